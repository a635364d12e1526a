//! Partitions: devices or parts of one, each served by a worker process of its own; checked.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use passerelle_models::ops::ProcessorSet;

use super::checked::{period, processors, some_period};
use super::ledger::is_factor;
use super::models::{fits_as_name, no_name};
use super::{ConfigError, ModelConfig, WorkerPlace, WrittenPartition, WrittenWorkers};
use crate::placement::{Device, Partition, PartitionError};

#[derive(Debug, Clone, PartialEq)]
pub struct PartitionConfig {
    pub name: String,
    /// Among `[[partitions]]`, from 0.
    pub place: usize,
    /// Without threads: as `engine.threads`. Without memory: as a server without partitions.
    pub is: Partition,
    /// Of a CPU: where its models run. `None`: as `engine.cpu_affinity`.
    pub processors: Option<ProcessorSet>,
    pub worker: WorkerPlace,
    /// Normalised GPU hours in an hour of it; without: as `ledger.gpu_factor`.
    pub gpu_factor: Option<f64>,
}

impl PartitionConfig {
    /// What errors call one of its settings: `partitions[1].device`.
    pub fn key(&self, setting: &str) -> String {
        key(self.place, setting)
    }
}

/// How workers are looked after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkersConfig {
    /// For workers on other machines.
    pub listen: Option<SocketAddr>,
    pub longest_silence: Duration,
    pub longest_standstill: Duration,
    pub longest_hand_over: Duration,
    pub first_restart: Duration,
    pub longest_restart: Duration,
}

/// Threads that compute: more than any machine's processors, and fewer than a system refuses to start.
pub(super) const MOST_THREADS: usize = 1024;

/// Every partition has a name of its own and at least one of the models.
pub(super) fn check_partitions(
    written: Vec<WrittenPartition>,
    models: &[ModelConfig],
    workers: &WorkersConfig,
) -> Result<Vec<PartitionConfig>, ConfigError> {
    let mut names = HashSet::new();
    for (place, WrittenPartition { name, .. }) in written.iter().enumerate() {
        check_partition_name(key(place, "name"), name)?;
        if !names.insert(name.as_str()) {
            return Err(ConfigError::value(key(place, "name"), format!("two partitions are named `{name}`")));
        }
    }
    let placed = models.iter().enumerate();
    let placed = placed.filter_map(|(number, model)| Some((number, &model.name, model.partition.as_deref()?)));
    if let Some((number, model, unknown)) = placed.clone().find(|(.., partition)| !names.contains(partition)) {
        let problem = format!("`{unknown}`, where `{model}` is to lie, is none of [[partitions]]");
        return Err(ConfigError::value(format!("models[{number}].partition"), problem));
    }
    let is_empty = |partition: &str| !placed.clone().any(|(.., place)| place == partition);
    if let Some((place, empty)) = written.iter().enumerate().find(|(_, written)| is_empty(&written.name)) {
        let problem = format!("no model lies on `{}`; give one `partition = \"{}\"`", empty.name, empty.name);
        return Err(ConfigError::value(key(place, "name"), problem));
    }
    let remote = written.iter().find(|written| written.worker == Some(WorkerPlace::Remote));
    if let (Some(remote), None) = (remote, workers.listen) {
        let problem = format!("is missing, and `{}` has a worker on another machine", remote.name);
        return Err(ConfigError::value("workers.listen", problem));
    }
    if remote.is_none() && workers.listen.is_some() {
        let problem = "no partition has a worker on another machine; give one `worker = \"remote\"`, or leave this out";
        return Err(ConfigError::value("workers.listen", problem));
    }
    written.into_iter().enumerate().map(|(place, written)| check_partition(place, written)).collect()
}

/// `key`: what errors call whatever says the name.
pub fn check_partition_name(key: impl Into<String>, name: &str) -> Result<(), ConfigError> {
    if fits_as_name(name) { Ok(()) } else { Err(ConfigError::value(key, no_name(name, "one"))) }
}

fn key(place: usize, setting: &str) -> String {
    format!("partitions[{place}].{setting}")
}

fn check_partition(place: usize, written: WrittenPartition) -> Result<PartitionConfig, ConfigError> {
    let WrittenPartition { name, device, threads, cpu_affinity, memory, worker, gpu_factor } = written;
    let device = device.unwrap_or(Device::Cpu);
    if let Some(odd) = gpu_factor.filter(|factor| !is_factor(*factor)) {
        let problem = format!("`{name}`: {odd} is no number above 0");
        return Err(ConfigError::value(key(place, "gpu_factor"), problem));
    }
    if let Some(threads) = threads.filter(|threads| threads.get() > MOST_THREADS) {
        let problem = format!("`{name}`: {threads} are more than {MOST_THREADS}");
        return Err(ConfigError::value(key(place, "threads"), problem));
    }
    if cpu_affinity.is_some() && device != Device::Cpu {
        let problem = format!("`{name}`: processors are for a partition of the CPU, and it is {device}");
        return Err(ConfigError::value(key(place, "cpu_affinity"), problem));
    }
    let processors = processors(cpu_affinity.as_deref(), || key(place, "cpu_affinity"))?;
    let is = Partition::new(device, threads, memory).map_err(|error| {
        let setting = match error {
            PartitionError::ThreadsOfAccelerator { .. } => "threads",
            PartitionError::NoMemory { .. } => "memory",
            _ => "device",
        };
        ConfigError::value(key(place, setting), format!("`{name}`: {error}"))
    })?;
    Ok(PartitionConfig { name, place, is, processors, worker: worker.unwrap_or_default(), gpu_factor })
}

/// Errors when no worker could be taken for one that lives.
pub(super) fn check_workers(written: &WrittenWorkers) -> Result<WorkersConfig, ConfigError> {
    let longest = |stated, usual, setting| {
        some_period(stated, Duration::from_secs(usual), (setting, "is over before a worker has said anything"))
    };
    // One that is not stated follows the other.
    let stated_longest = written.longest_restart.map_or(Duration::MAX, |longest| longest.0);
    let first_restart = some_period(
        written.first_restart,
        Duration::from_millis(500).min(stated_longest),
        ("workers.first_restart", "would start what ends at once again without a pause"),
    )?;
    let longest_restart = some_period(
        written.longest_restart,
        Duration::from_secs(60).max(first_restart),
        ("workers.longest_restart", "would start what ends at once again without a pause"),
    )?;
    if longest_restart < first_restart {
        let problem = format!("{longest_restart:?} is shorter than the {first_restart:?} of workers.first_restart");
        return Err(ConfigError::value("workers.longest_restart", problem));
    }
    Ok(WorkersConfig {
        listen: written.listen,
        longest_silence: longest(written.longest_silence, 5, "workers.longest_silence")?,
        longest_standstill: longest(written.longest_standstill, 60, "workers.longest_standstill")?,
        longest_hand_over: period(written.longest_hand_over, Duration::from_secs(30)),
        first_restart,
        longest_restart,
    })
}
