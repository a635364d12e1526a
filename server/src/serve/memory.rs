//! How much memory there is for the KV cache.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use passerelle::config::{ByteSize, Config, ConfigError, EngineConfig};
use passerelle::placement::{self, DEVICE_OVERHEAD, KvDemand};
use passerelle_models::Activations;
use passerelle_models::ops::Compute;

/// Where the memory of the KV cache is stated, for errors.
pub(crate) const KV_CACHE_MEMORY: &str = "engine.kv_cache_memory (--kv-cache-memory)";
/// Without a stated size, the KV cache takes at most this share of the free memory.
pub(crate) const FREE_MEMORY_PART: u64 = 4;
/// Free memory, where the system does not tell.
const UNKNOWN_FREE_MEMORY: ByteSize = ByteSize(4 << 30);

/// Without a stated size, the KV cache takes at most this share of a GPU's free memory, out of a hundred: the rest is for
/// activations.
const FREE_GPU_MEMORY_PERCENT: u64 = 80;

/// What was stated, or on a device with memory of its own most of that, for [`share_kv_memory`]. To be asked once the
/// weights are loaded.
pub(crate) fn stated_or_of_device(stated: Option<ByteSize>, compute: &Compute) -> Option<ByteSize> {
    stated.or_else(|| compute.free_memory().map(part_of_device))
}

/// Of what is free on a device that has its weights. How much of [`DEVICE_OVERHEAD`] is taken by then is not known; steps are
/// recorded later.
fn part_of_device(free: u64) -> ByteSize {
    ByteSize((free / 100 * FREE_GPU_MEMORY_PERCENT).min(free.saturating_sub(DEVICE_OVERHEAD.0)))
}

/// For keys and values where nothing else needs them: what was stated, else as much as a server would take.
pub(crate) fn kv_budget(stated: Option<ByteSize>, compute: &Compute) -> ByteSize {
    stated_or_of_device(stated, compute).unwrap_or_else(|| ByteSize(free_memory().0 / FREE_MEMORY_PART))
}

/// Errors where the KV cache of the models in the gateway's own process, on the CPU, may take more than all that this
/// machine has, which no other start could find either. `machine`: see [`machine_memory`].
pub(super) fn check_stated(config: &Config, machine: Option<ByteSize>) -> Result<(), ConfigError> {
    let stated = config.engine.kv_cache_memory;
    let (Some(taken), Some(all)) = (stated, machine) else { return Ok(()) };
    if taken <= all || config.models.iter().all(|model| model.partition.is_some()) {
        return Ok(());
    }
    let most = all.0 >> 20;
    let problem = format!("{taken} is more than the {all} of memory that there is; state at most {most}MiB");
    let error = ConfigError::value(KV_CACHE_MEMORY, problem);
    let is_of_file = config.file.as_ref().is_some_and(|file| file.written().engine.kv_cache_memory == stated);
    Err(if is_of_file { config.located(error) } else { error })
}

/// Blocks for each model, in order, as [`placement::share_kv_memory`] gives them.
///
/// `stated` at `key`. Without it the cache is as large as the models can use, up to a quarter of the memory that is free once
/// their weights are loaded.
pub(crate) fn share_kv_memory(stated: Option<ByteSize>, key: &str, demands: &[KvDemand]) -> Result<Vec<usize>> {
    let budget = stated.unwrap_or_else(|| ByteSize(free_memory().0 / FREE_MEMORY_PART));
    placement::share_kv_memory(budget, demands).with_context(|| format!("{key}: too small; give it more"))
}

/// What a step of one engine holds at its peak beside weights and KV cache.
pub(crate) fn step_bytes(activations: &Activations, config: &EngineConfig) -> u64 {
    let tokens = config.steps.max_num_batched_tokens;
    activations.bytes(tokens, tokens.min(config.steps.max_num_seqs + config.prompt_logprobs_chunk_tokens))
}

/// What this process may still take: the system's own estimate, or the room left in its cgroup if that is less.
pub(crate) fn free_memory() -> ByteSize {
    let used = of_cgroup("memory.current").unwrap_or(0);
    let group = of_cgroup("memory.max").map(|limit| limit.saturating_sub(used));
    ByteSize(of_system("MemAvailable:").into_iter().chain(group).min().unwrap_or(UNKNOWN_FREE_MEMORY.0))
}

/// All that this machine has, or this process's cgroup may take if that is less; `None` where the system does not tell.
pub(super) fn machine_memory() -> Option<ByteSize> {
    of_system("MemTotal:").into_iter().chain(of_cgroup("memory.max")).min().map(ByteSize)
}

fn of_cgroup(file: &str) -> Option<u64> {
    fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok()?.trim().parse().ok()
}

fn of_system(entry: &str) -> Option<u64> {
    bytes_of(&fs::read_to_string("/proc/meminfo").ok()?, entry)
}

/// An entry of `/proc/meminfo`.
fn bytes_of(meminfo: &str, entry: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(entry))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use passerelle::config::Environment;
    use passerelle_models::{LoadOptions, WeightLayout, demo_checkpoint, footprint};

    use super::*;

    #[test]
    fn a_cache_that_is_larger_than_all_memory_is_refused_with_the_largest_that_is_not() {
        let environment = Environment { home: Some("/home/nobody".into()), ..Environment::default() };
        let with = |models: &str| {
            let written = format!("[engine]\nkv_cache_memory = \"3GiB\"\n{models}");
            Config::check(toml::from_str(&written).expect("it is well formed"), &environment).expect("it is valid")
        };
        let config = with("");
        for machine in [None, Some(ByteSize(3 << 30))] {
            check_stated(&config, machine).expect("it may be there");
        }
        let said = check_stated(&config, Some(ByteSize((3 << 30) - 1))).expect_err("it is not there").to_string();
        assert!(said.starts_with(KV_CACHE_MEMORY) && said.ends_with("state at most 3071MiB"), "{said}");
        let elsewhere = "[[partitions]]\nname = \"a\"\n[[models]]\nsource = \"demo\"\npartition = \"a\"\n";
        check_stated(&with(elsewhere), Some(ByteSize(1))).expect("no model here takes it");
    }

    #[test]
    fn memory_that_is_too_small_is_told_by_the_key_that_states_it() {
        let demo = footprint(&demo_checkpoint(), &LoadOptions::default(), WeightLayout::Panels).expect("it is whole");
        let demand = KvDemand { spec: demo.kv.expect("it generates"), most_blocks: 8 };
        let refused = share_kv_memory(Some(ByteSize(1)), "shelf.kv_cache", &[demand]).expect_err("less than a block");
        let told = format!("{refused:#}");
        assert!(told.starts_with("shelf.kv_cache: too small") && !told.contains(KV_CACHE_MEMORY), "{told}");
    }

    #[test]
    fn a_small_part_of_a_device_keeps_room_for_what_steps_record() {
        assert_eq!(part_of_device(100_000_000_000), ByteSize(80_000_000_000));
        assert_eq!(part_of_device(2 << 30), ByteSize(1 << 29));
        assert_eq!(part_of_device(1 << 30), ByteSize(0));
    }

    #[test]
    fn what_the_system_has_is_read_in_bytes() {
        let all = "MemTotal: 9 kB\nMemAvailable:    2048 kB\nBuffers: 1 kB\n";
        assert_eq!([bytes_of(all, "MemTotal:"), bytes_of(all, "MemAvailable:")], [Some(9 << 10), Some(2 << 20)]);
        assert_eq!(bytes_of("MemTotal: 9 kB\n", "MemAvailable:"), None);
    }
}
