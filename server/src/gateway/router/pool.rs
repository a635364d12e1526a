//! The replicas of one model, and the choice among them. A choice looks at a few, whatever their number.

use std::sync::Arc;
use std::time::Duration;

use super::PrefixHint;
use super::ring::Ring;
use crate::gateway::chance::Chance;
use crate::gateway::health::Health;
use crate::gateway::replica::{Replica, ReplicaId};

/// Replicas that a choice looks at. A pool that is not larger is seen whole.
const LOOKED_AT: usize = 8;
/// Affinity gives way when its replica has more than this many times the work of the less loaded of two others...
const OVERLOAD_FACTOR: u64 = 2;
/// ...and at least this much more, so that a nearly idle fleet keeps its caches.
pub(super) const OVERLOAD_SLACK_TOKENS: u64 = 4096;

#[derive(Debug)]
pub(super) struct Pool {
    replicas: Vec<Arc<Replica>>,
    ring: Ring,
}

/// A replica and its load, read once per choice.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    replica: &'a Arc<Replica>,
    tokens: u64,
}

/// What a choice knows beside the pool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Circumstances<'a> {
    pub(super) now: Duration,
    pub(super) chance: &'a Chance,
    /// Not to be chosen.
    pub(super) tried: &'a [ReplicaId],
}

impl Pool {
    pub(super) fn new(replicas: Vec<Arc<Replica>>) -> Self {
        let ring = Ring::new(replicas.iter().map(|replica| replica.id()));
        Self { replicas, ring }
    }

    pub(super) fn replicas(&self) -> &[Arc<Replica>] {
        &self.replicas
    }

    pub(super) fn is_ready(&self, now: Duration) -> bool {
        self.replicas.iter().any(|replica| matches!(replica.observe(now), Health::Ready | Health::HandingOver))
    }

    /// The first instant, from now, at which a resting replica may be asked again.
    pub(super) fn rests_for(&self, now: Duration) -> Option<Duration> {
        self.replicas.iter().filter_map(|replica| replica.rests_for(now)).min().filter(|rest| !rest.is_zero())
    }

    pub(super) fn choose(&self, prefix: PrefixHint, around: Circumstances<'_>) -> Option<&Arc<Replica>> {
        let (best, candidates) = self.look(around);
        let lighter = less_loaded_of_two(&candidates, around.chance.draw())?;
        let most = (lighter.tokens.saturating_mul(OVERLOAD_FACTOR)).max(lighter.tokens + OVERLOAD_SLACK_TOKENS);
        let home = prefix.0.and_then(|hint| {
            let mut homes = self.ring.homes(hint).map(|position| &self.replicas[position as usize]);
            homes.find(|replica| around.allows(replica) && replica.observe(around.now) == best)
        });
        match home {
            Some(home) if home.tokens_in_flight() <= most => Some(home),
            _ => Some(lighter.replica),
        }
    }

    /// Some replicas of the best health that any of them has, if any serves. All are looked at only where none of a few
    /// serves, which in a large pool means that most of it is down.
    fn look(&self, around: Circumstances<'_>) -> (Health, Vec<Candidate<'_>>) {
        let count = self.replicas.len();
        if count <= LOOKED_AT {
            return healthiest(self.replicas.iter(), around);
        }
        // Neighbours of one random place: as good as scattered ones, since nothing orders a pool.
        let place = (around.chance.draw() % count as u64) as usize;
        let few = (0..LOOKED_AT).map(|step| &self.replicas[(place + step) % count]);
        match healthiest(few, around) {
            (_, none) if none.is_empty() => healthiest(self.replicas.iter(), around),
            found => found,
        }
    }
}

impl Circumstances<'_> {
    fn allows(&self, replica: &Replica) -> bool {
        !self.tried.contains(&replica.id())
    }
}

fn healthiest<'a>(
    replicas: impl Iterator<Item = &'a Arc<Replica>>,
    around: Circumstances<'_>,
) -> (Health, Vec<Candidate<'a>>) {
    let mut best = Health::Distrusted;
    let mut candidates = Vec::with_capacity(LOOKED_AT);
    for replica in replicas.filter(|replica| around.allows(replica)) {
        let health = replica.observe(around.now);
        if health < best {
            best = health;
            candidates.clear();
        }
        if health == best {
            candidates.push(Candidate { replica, tokens: replica.tokens_in_flight() });
        }
    }
    (best, candidates)
}

/// "The power of two choices" (Mitzenmacher 2001). `None` without candidates.
fn less_loaded_of_two<'a>(candidates: &[Candidate<'a>], chance: u64) -> Option<Candidate<'a>> {
    let count = candidates.len() as u64;
    let first = chance.checked_rem(count)?;
    // The second is drawn among the others; a lone replica has no other.
    let second = if count > 1 { (first + 1 + (chance >> 32) % (count - 1)) % count } else { first };
    let (one, other) = (candidates[first as usize], candidates[second as usize]);
    Some(if other.tokens < one.tokens { other } else { one })
}
