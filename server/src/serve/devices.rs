//! From the device that was asked for to what computes.

#[cfg(feature = "cuda")]
use anyhow::Context;
use anyhow::{Result, bail};
use passerelle::config::EngineConfig;
#[cfg(feature = "cuda")]
use passerelle::placement::{Backend, DeviceId};
use passerelle::placement::{Device, DeviceChoice};
use passerelle_models::ops::Compute;

/// Where the ops of this process run. A device that was named and cannot be used is refused, never replaced.
pub(crate) fn compute(config: &EngineConfig) -> Result<Compute> {
    match &config.device {
        DeviceChoice::Named(Device::Cpu) => Ok(Compute::cpu(threads(config))),
        DeviceChoice::Auto => Ok(gpu_if_any(config).unwrap_or_else(|| Compute::cpu(threads(config)))),
        #[cfg(feature = "cuda")]
        DeviceChoice::Named(device @ Device::Accelerator { backend: Backend::Cuda, id: DeviceId::Index(index) }) => {
            let compute = Compute::cuda(*index as usize, threads(config));
            let compute = compute.with_context(|| format!("engine.device (--device): {device} cannot be used"))?;
            say_what_is_not_known();
            Ok(compute)
        }
        DeviceChoice::Named(device) => {
            bail!(
                "engine.device (--device): this build runs no models on {device}; use cpu, or auto for what it can use"
            )
        }
    }
}

/// The first visible GPU of a build that runs models on GPUs. Says in one line why there is none.
#[cfg(feature = "cuda")]
fn gpu_if_any(config: &EngineConfig) -> Option<Compute> {
    match Compute::cuda(0, threads(config)) {
        Ok(compute) => {
            say_what_is_not_known();
            Some(compute)
        }
        Err(reason) => {
            tracing::warn!(%reason, "no GPU can be used, so models run on the CPU");
            None
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu_if_any(_: &EngineConfig) -> Option<Compute> {
    None
}

/// To go when a report of a run on a GPU is committed.
#[cfg(feature = "cuda")]
fn say_what_is_not_known() {
    tracing::warn!("CUDA is not yet verified on hardware: compare answers with the CPU's before you rely on them");
}

/// Threads that compute: what was asked for, else one for each physical core that this process may use.
fn threads(config: &EngineConfig) -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    config.threads.unwrap_or_else(|| num_cpus::get_physical().min(allowed))
}
