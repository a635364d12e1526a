//! Looks after an upstream while nobody asks it anything.

use std::sync::Weak;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use super::Upstream;
use crate::gateway::Replica;

/// Probes until the replica is served no more, the first time at once. A probe that fails counts as one request that failed:
/// an upstream that is down at the start is asked too until `routing.failures_to_rest` of either have failed.
pub async fn watch(replica: Weak<Replica>, upstream: Upstream, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_well = true;
    loop {
        ticks.tick().await;
        let found = upstream.probe().await;
        let Some(replica) = replica.upgrade() else { return };
        let Some(side) = replica.as_upstream() else { return };
        if found.is_ok() != was_well {
            was_well = found.is_ok();
            let (name, model) = (side.name(), replica.model());
            match &found {
                Ok(()) => tracing::info!(upstream = name, model, "an upstream answers probes again"),
                Err(failure) => tracing::warn!(upstream = name, model, %failure, "an upstream fails its probes"),
            }
        }
        side.probed(found);
    }
}
