//! Which replica is home to a prompt's beginning, without asking all of them.
//!
//! Multi-probe consistent hashing (Appleton and O'Reilly 2015): each replica is one point on a circle, a prompt looks
//! from many points at once, and the replica that is closest ahead of any of them is its home. A replica that comes or
//! goes moves only its own share of prompts, and the shares are about equal.

use crate::gateway::chance::mix;
use crate::gateway::replica::ReplicaId;

/// Points that a prompt looks from. With 21, the largest share is about 5 % above the mean (the paper's table).
const PROBES: usize = 21;

#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Point and position in the pool, in the order of points.
    points: Vec<(u64, u32)>,
}

impl Ring {
    pub(super) fn new(replicas: impl Iterator<Item = ReplicaId>) -> Self {
        let mut points: Vec<_> = replicas.zip(0..).map(|(id, position)| (mix(u64::from(id.0) + 1), position)).collect();
        points.sort_unstable();
        Self { points }
    }

    /// Positions in the pool, closest first; with repetitions, and not every one.
    pub(super) fn homes(&self, hint: u64) -> impl Iterator<Item = u32> {
        let mut found = [(0, 0); PROBES];
        let count = if self.points.is_empty() { 0 } else { PROBES };
        for (probe, slot) in (1_u64..).zip(&mut found[..count]) {
            let from = mix(hint ^ mix(probe));
            let ahead = self.points.partition_point(|(point, _)| *point < from);
            let (point, position) = self.points[ahead % self.points.len()];
            *slot = (point.wrapping_sub(from), position);
        }
        found[..count].sort_unstable();
        found.into_iter().take(count).map(|(_, position)| position)
    }
}
