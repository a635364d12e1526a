//! What models that come and go get, checked.

use std::time::Duration;

use super::checked::{count, period, some_period};
use super::{ByteSize, ConfigError, WrittenShelf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShelfConfig {
    /// Weights and KV caches of all that are in memory. `None`: half of the memory that is free at the start.
    pub memory: Option<ByteSize>,
    /// The KV cache of each, at most.
    pub kv_cache: ByteSize,
    /// How long a request waits for its model.
    pub longest_load: Duration,
    pub look_interval: Duration,
    pub max_models: usize,
}

pub(super) fn check_shelf(written: &WrittenShelf) -> Result<ShelfConfig, ConfigError> {
    Ok(ShelfConfig {
        memory: written.memory,
        kv_cache: written.kv_cache.unwrap_or(ByteSize(256 << 20)),
        longest_load: period(written.longest_load, Duration::from_secs(10)),
        look_interval: some_period(
            written.look_interval,
            Duration::from_secs(2),
            ("shelf.look_interval", "would look at the folder without a pause"),
        )?,
        max_models: count(written.max_models, 1024),
    })
}
