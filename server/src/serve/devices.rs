//! From the device that was asked for to what computes.

use anyhow::{Result, bail};
use passerelle::config::EngineConfig;
use passerelle::placement::{Device, DeviceChoice};
use passerelle_models::ops::Compute;

/// Where the ops of this process run. A device that was named and cannot be used is refused, never replaced.
pub(crate) fn compute(config: &EngineConfig) -> Result<Compute> {
    match &config.device {
        DeviceChoice::Auto | DeviceChoice::Named(Device::Cpu) => Ok(Compute::cpu(threads(config))),
        DeviceChoice::Named(device) => {
            bail!(
                "engine.device (--device): this build runs no models on {device}; use cpu, or auto for what it can use"
            )
        }
    }
}

/// Threads that compute: what was asked for, else one for each physical core that this process may use.
fn threads(config: &EngineConfig) -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    config.threads.unwrap_or_else(|| num_cpus::get_physical().min(allowed))
}
