//! From the device that was asked for to what computes.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use passerelle::config::{Config, ConfigError, EngineConfig, Numa, PartitionConfig, WorkerPlace};
use passerelle::placement::{Backend, Device, DeviceChoice, DeviceId, DeviceList, find_visible};
use passerelle_models::ops::{Compute, HostError, HostPlacement, MemoryPlacement, ProcessorSet, physical_cores};

/// There only where a driver is loaded.
const DRIVER: &str = "/proc/driver/nvidia/version";
const ENGINE_PROCESSORS: &str = "engine.cpu_affinity (--cpu-affinity)";
/// The status of `nvidia-smi` where it asked a driver that is well, and no device is there.
const NOTHING_FOUND: i32 = 6;
/// A driver that hangs does not keep a server from starting on the CPU.
const LONGEST_LISTING: Duration = Duration::from_secs(20);

/// Where a device and its processors were named, for errors.
#[derive(Debug, Clone)]
pub(crate) struct DeviceKey {
    key: String,
    processors: String,
    /// What can stand there everywhere.
    instead: &'static str,
}

impl DeviceKey {
    pub(crate) fn of_engine() -> Self {
        Self {
            key: "engine.device (--device)".to_owned(),
            processors: ENGINE_PROCESSORS.to_owned(),
            instead: "cpu, or auto for what it can use",
        }
    }

    pub(crate) fn of_partition(partition: &PartitionConfig) -> Self {
        let own = partition.processors.is_some();
        let processors = if own { partition.key("cpu_affinity") } else { ENGINE_PROCESSORS.to_owned() };
        Self { key: partition.key("device"), processors, instead: "cpu" }
    }
}

/// Where the ops of this process run. A device that was named and cannot be used is refused, never replaced; `auto` says
/// what it leaves unused.
pub(crate) fn compute(config: &EngineConfig) -> Result<Compute> {
    compute_on(config, &DeviceKey::of_engine(), Sight::Inherited)
}

/// For the gateway's own process, which takes no device from its workers where it runs no model itself.
pub(super) fn compute_of_gateway(config: &Config) -> Result<Compute> {
    if runs_models(config) { compute(&config.engine) } else { Ok(Compute::cpu(1)) }
}

/// Whether any model may be loaded into this process; comparisons are between those that are.
pub(super) fn runs_models(config: &Config) -> bool {
    config.server.models_dir.is_some() || config.models.iter().any(|model| model.partition.is_none())
}

/// Errors where this process may not run on the processors of a partition, and so none that it starts: the worker would end
/// at once.
pub(super) fn check_partitions(config: &Config) -> Result<(), ConfigError> {
    let here = |partition: &&PartitionConfig| {
        partition.worker == WorkerPlace::Local && partition.is.device == Device::Cpu && partition.processors.is_some()
    };
    for partition in config.partitions.iter().filter(here) {
        let host = HostPlacement { processors: partition.processors.clone(), memory: MemoryPlacement::FirstWriter };
        host.check().map_err(|error| {
            config.located(ConfigError::value(partition.key("cpu_affinity"), format!("`{}`: {error}", partition.name)))
        })?;
    }
    Ok(())
}

/// Which devices a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    /// Those that its environment shows it.
    Inherited,
    /// The device of its partition, and no other: whoever started it saw to that.
    OneDevice,
}

/// The same, where something else than `engine.device` names the device.
pub(super) fn compute_on(config: &EngineConfig, named: &DeviceKey, sight: Sight) -> Result<Compute> {
    match &config.device {
        DeviceChoice::Named(Device::Cpu) => on_cpu(config, &named.processors),
        DeviceChoice::Auto => gpu_if_any(config)?.map_or_else(|| on_cpu(config, &named.processors), Ok),
        DeviceChoice::Named(device) => on_accelerator(device, config, named, sight),
    }
}

#[cfg(feature = "cuda")]
fn on_accelerator(
    device: &Device,
    config: &EngineConfig,
    DeviceKey { key, instead, .. }: &DeviceKey,
    sight: Sight,
) -> Result<Compute> {
    let Device::Accelerator { backend: Backend::Cuda, id } = device else {
        bail!("{key}: this build runs no models on {device}; use {instead}");
    };
    let variable = Backend::Cuda.visibility();
    let Some(ordinal) = ordinal(id, config.visible_devices.as_deref(), sight) else {
        require_listed(device, config, key)?;
        bail!("{key}: start this process with {variable}={device}, or give the models a partition of that device")
    };
    Compute::cuda(ordinal, threads(config)).with_context(|| format!("{key}: {device} cannot be used"))
}

#[cfg(not(feature = "cuda"))]
fn on_accelerator(
    device: &Device,
    config: &EngineConfig,
    DeviceKey { key, instead, .. }: &DeviceKey,
    sight: Sight,
) -> Result<Compute> {
    if sight == Sight::Inherited {
        require_listed(device, config, key)?;
    }
    let Device::Accelerator { backend: Backend::Cuda, .. } = device else {
        bail!("{key}: this build runs no models on {device}; use {instead}");
    };
    bail!("{key}: this build runs no models on {device}; use {instead}, or build with `--features cuda` (docs/gpu.md)")
}

/// Where the system lists its devices, one that is not among them is refused with those that are.
fn require_listed(device: &Device, config: &EngineConfig, key: &str) -> Result<()> {
    if let Some(list) = listed_devices(config)? {
        find_visible(device, &list.visible(config.visible_devices.as_deref())).with_context(|| key.to_owned())?;
    }
    Ok(())
}

/// What CUDA calls a device in a process with that sight, whose environment shows it what `variable` lists. A UUID is the
/// first where the list is that UUID alone: in which order CUDA counts others is not known here.
#[cfg(any(test, feature = "cuda"))]
fn ordinal(id: &DeviceId, variable: Option<&str>, sight: Sight) -> Option<usize> {
    match (sight, id) {
        (Sight::OneDevice, _) => Some(0),
        (Sight::Inherited, DeviceId::Index(index)) => Some(*index as usize),
        (Sight::Inherited, DeviceId::Uuid(uuid)) => {
            let only = variable.map(str::trim).filter(|only| !only.is_empty() && !only.contains(','))?;
            (only.starts_with(uuid) || uuid.starts_with(only)).then_some(0)
        }
    }
}

/// What a process finds in its environment so that it sees one device and no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneDevice {
    pub(super) variable: &'static str,
    pub(super) uuid: String,
}

impl OneDevice {
    /// For the worker of a partition that names a slice or a device by UUID, or by its place in a list of the gateway's
    /// own. `None`: the worker sees what the gateway does, and finds its device by itself.
    ///
    /// Errors when no such device is visible.
    pub(super) fn of(engine: &EngineConfig, partition: &PartitionConfig) -> Result<Option<Self>> {
        let device @ Device::Accelerator { backend, id } = &partition.is.device else { return Ok(None) };
        let is_counted = matches!(id, DeviceId::Index(_));
        if is_counted && engine.visible_devices.is_none() {
            return Ok(None);
        }
        let list = match listed_devices(engine) {
            // Then the worker counts as the gateway would.
            Err(error) if is_counted => {
                tracing::warn!(%error, partition = partition.name, "its device is not looked up");
                None
            }
            list => list?,
        };
        let Some(list) = list else { return Ok(None) };
        let visible = list.visible(engine.visible_devices.as_deref());
        let found = find_visible(device, &visible).with_context(|| partition.key("device"))?;
        Ok(Some(Self { variable: backend.visibility(), uuid: found.uuid().to_owned() }))
    }
}

/// With steps for what they run on.
pub(crate) fn sized_for(config: &EngineConfig, compute: &Compute) -> EngineConfig {
    config.on((!compute.device().is_cpu()).then_some(Backend::Cuda))
}

/// The devices of this machine; `None` without a driver.
///
/// Errors when the list cannot be had from a driver that is there, or from the file that was named instead.
pub(crate) fn listed_devices(config: &EngineConfig) -> Result<Option<DeviceList>> {
    if let Some(file) = &config.device_list {
        let text = fs::read_to_string(file).with_context(|| format!("engine.device_list: {}", file.display()))?;
        return Ok(Some(DeviceList::of_nvidia_smi(&text)));
    }
    if !Path::new(DRIVER).exists() {
        return Ok(None);
    }
    ask_driver().map(Some)
}

fn ask_driver() -> Result<DeviceList> {
    let (sender, answer) = mpsc::sync_channel(1);
    thread::spawn(move || sender.send(Command::new("nvidia-smi").arg("-L").stdin(Stdio::null()).output()));
    let output = answer.recv_timeout(LONGEST_LISTING).context("nvidia-smi -L does not answer; use --device cpu")?;
    list_of(&output.context("nvidia-smi cannot be run, although a driver is loaded; use --device cpu")?)
}

fn list_of(output: &Output) -> Result<DeviceList> {
    let [listed, complaint] = [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    // It says what is wrong on either.
    let why = [complaint.trim(), listed.trim()].into_iter().find(|said| !said.is_empty()).unwrap_or("it says nothing");
    let list = DeviceList::of_nvidia_smi(&listed);
    // Some complaints come with a whole list.
    let has_asked = output.status.success() || output.status.code() == Some(NOTHING_FOUND) || !list.devices.is_empty();
    ensure!(has_asked, "nvidia-smi -L fails ({}): {why}; use --device cpu", output.status);
    Ok(list)
}

/// A driver that fails says nothing of the CPU, on which this build runs all.
#[cfg(not(feature = "cuda"))]
fn say_what_is_unused(config: &EngineConfig) {
    let list = match listed_devices(config) {
        Ok(Some(list)) => list,
        Ok(None) => return,
        Err(reason) => return tracing::warn!("{reason:#}"),
    };
    let unused = list.visible(config.visible_devices.as_deref());
    if !unused.is_empty() {
        let devices = unused.iter().map(|part| part.device().to_string()).collect::<Vec<_>>().join(", ");
        tracing::warn!(devices, "this build runs no models on these devices: serving on the CPU");
    }
}

/// The first visible GPU of a build that runs models on GPUs. Says in one line why there is none.
#[cfg(feature = "cuda")]
fn gpu_if_any(config: &EngineConfig) -> Result<Option<Compute>> {
    match Compute::cuda(0, threads(config)) {
        Ok(compute) => Ok(Some(compute)),
        Err(reason) => {
            tracing::warn!(%reason, "no GPU can be used, so models run on the CPU");
            Ok(None)
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpu_if_any(config: &EngineConfig) -> Result<Option<Compute>> {
    say_what_is_unused(config);
    Ok(None)
}

/// Errors when the host does not give what was asked for; `processors` is where these were named.
fn on_cpu(config: &EngineConfig, processors: &str) -> Result<Compute> {
    let memory = match config.numa {
        Numa::Off => MemoryPlacement::FirstWriter,
        Numa::Interleave => MemoryPlacement::Interleaved,
    };
    let host = HostPlacement { processors: config.processors.clone(), memory };
    if let Some(warning) = warning_of_threads(config) {
        tracing::warn!(threads = threads(config), "{warning}");
    }
    Compute::cpu_on(host, threads(config)).map_err(|error| {
        let key = match error {
            HostError::NoInterleaving(_) => "engine.numa (--numa)",
            HostError::NotAllowed { .. } | HostError::NoBinding(_) => processors,
        };
        anyhow::Error::new(error).context(key.to_owned())
    })
}

/// Threads that compute: what was asked for, else one for each physical core that they may use.
fn threads(config: &EngineConfig) -> usize {
    config.threads.unwrap_or_else(|| {
        let cores = physical_cores(config.processors.as_ref()).unwrap_or_else(num_cpus::get_physical);
        cores.min(allowed_processors(config))
    })
}

fn allowed_processors(config: &EngineConfig) -> usize {
    let allowed = || std::thread::available_parallelism().map_or(1, usize::from);
    config.processors.as_ref().map_or_else(allowed, ProcessorSet::count)
}

/// Where more threads were asked for than there are processors.
pub(crate) fn warning_of_threads(config: &EngineConfig) -> Option<String> {
    let allowed = allowed_processors(config);
    let processors = if allowed == 1 { "processor" } else { "processors" };
    config.threads.filter(|threads| *threads > allowed).map(|_| {
        format!(
            "more threads than the {allowed} {processors} that they may run on: steps wait for those that do not run"
        )
    })
}

#[cfg(test)]
mod tests;
