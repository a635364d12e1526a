use std::net::SocketAddr;
use std::num::NonZeroUsize;

use serde::{Deserialize, Deserializer};

use crate::config::{ByteSize, Period, WorkerPlace};
use crate::placement::Device;
use crate::units::TextVisitor;

/// A device or a part of one. One worker process serves it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenPartition {
    /// What models call it.
    pub name: String,
    /// Default: the CPU.
    pub device: Option<Device>,
    /// That compute. Default: as `engine.threads`.
    pub threads: Option<NonZeroUsize>,
    /// That its models run on, of a CPU, like `0-7,16-23`. Default: as `engine.cpu_affinity`.
    pub cpu_affinity: Option<String>,
    /// Weights and KV caches of all models that lie on it.
    pub memory: Option<ByteSize>,
    /// Who starts its worker.
    pub worker: Option<WorkerPlace>,
    /// Normalised GPU hours in an hour of it. Default: as `ledger.gpu_factor`.
    pub gpu_factor: Option<f64>,
}

/// How workers are looked after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenWorkers {
    /// Where workers of other machines come in, over mutual TLS.
    #[serde(deserialize_with = "address")]
    pub listen: Option<SocketAddr>,
    /// A worker that gives no sign of life for so long is gone.
    pub longest_silence: Option<Period>,
    /// A worker with a model that has work and makes no progress for so long is ended.
    pub longest_standstill: Option<Period>,
    /// Requests wait so long for the successor of a worker that leaves.
    pub longest_hand_over: Option<Period>,
    /// Before a worker that ended is started again. Doubles, up to the longest.
    pub first_restart: Option<Period>,
    pub longest_restart: Option<Period>,
}
lay_over!(WrittenWorkers {
    listen,
    longest_silence,
    longest_standstill,
    longest_hand_over,
    first_restart,
    longest_restart
});

fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let read = |text: &str| {
        text.parse::<SocketAddr>()
            .map_err(|_| format!("`{text}` is not an address; write ADDR:PORT (127.0.0.1:9443, [::1]:9443)"))
    };
    deserializer.deserialize_str(TextVisitor { like: "an address, like \"127.0.0.1:9443\"", read }).map(Some)
}
