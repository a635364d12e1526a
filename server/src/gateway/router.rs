//! Which replica runs a request: the healthiest only, the one that has probably cached the prompt's beginning unless it is
//! overloaded, else the less loaded of two drawn at random ("the power of two choices", Mitzenmacher 2001).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use passerelle_engine::CacheSalt;
use passerelle_engine::clock::Clock;
use passerelle_models::TokenId;
use sha2::{Digest, Sha256};

use super::health::Health;
use super::replica::Replica;

/// Two prompts that agree on this many leading tokens go to the same replica. Shorter prompts share too little to
/// matter and go where there is room.
const LEADING_TOKENS: usize = 32;
/// Affinity gives way when its replica has more than this many times the work of the least loaded one...
const OVERLOAD_FACTOR: u64 = 2;
/// ...and at least this much more, so that a nearly idle fleet keeps its caches.
const OVERLOAD_SLACK_TOKENS: u64 = 4096;

#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, ServedModel>,
    clock: Arc<dyn Clock>,
    chance: AtomicU64,
}

/// What a model list shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelEntry {
    pub name: String,
    /// When it began to be served; seconds since 1970.
    pub created: u64,
}

/// A fingerprint of a prompt's beginning, under the salt that its cached blocks are under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrefixHint(Option<u64>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no model is called '{0}'")]
    UnknownModel(String),
    #[error("no replica of '{0}' is ready")]
    NoReplicaReady(String),
}

#[derive(Debug)]
struct ServedModel {
    entry: ModelEntry,
    replicas: Vec<Arc<Replica>>,
}

/// A replica and its load, read once per decision.
#[derive(Debug, Clone, Copy)]
struct Candidate<'a> {
    replica: &'a Arc<Replica>,
    tokens: u64,
}

impl Router {
    /// `seed` decides every random choice that follows.
    pub fn new(replicas: impl IntoIterator<Item = Replica>, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let created = clock.wall().as_secs();
        let mut models = BTreeMap::new();
        for replica in replicas {
            let name = replica.model().to_owned();
            let entry = ModelEntry { name: name.clone(), created };
            let model = models.entry(name).or_insert_with(|| ServedModel { entry, replicas: Vec::new() });
            model.replicas.push(Arc::new(replica));
        }
        Self { models, clock, chance: AtomicU64::new(seed) }
    }

    pub fn pick(&self, model: &str, prefix: PrefixHint) -> Result<Arc<Replica>, RouteError> {
        let served = self.models.get(model).ok_or_else(|| RouteError::UnknownModel(model.to_owned()))?;
        let candidates = self.healthiest(served);
        let least = candidates.iter().map(|candidate| candidate.tokens).min();
        let least = least.ok_or_else(|| RouteError::NoReplicaReady(model.to_owned()))?;
        let overloaded = |tokens: u64| tokens > (least * OVERLOAD_FACTOR).max(least + OVERLOAD_SLACK_TOKENS);
        let choice = match favourite(&candidates, prefix) {
            Some(favourite) if !overloaded(favourite.tokens) => favourite,
            _ => self.less_loaded_of_two(&candidates),
        };
        Ok(Arc::clone(choice.replica))
    }

    /// By name, in the order of names.
    pub fn models(&self) -> impl Iterator<Item = &ModelEntry> {
        self.models.values().map(|served| &served.entry)
    }

    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models.get(name).map(|served| &served.entry)
    }

    pub fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.models.values().flat_map(|served| &served.replicas)
    }

    /// Whether every model has a replica that is ready.
    pub fn is_ready(&self) -> bool {
        let now = self.clock.now();
        let is_ready = |replica: &Arc<Replica>| replica.observe(now) == Health::Ready;
        self.models.values().all(|served| served.replicas.iter().any(is_ready))
    }

    /// Looks at every replica, so that one that hangs is known before anybody asks for it.
    pub fn look(&self) {
        let now = self.clock.now();
        self.replicas().for_each(|replica| _ = replica.observe(now));
    }

    /// The replicas of the best health that any has, among those that serve.
    fn healthiest<'a>(&self, served: &'a ServedModel) -> Vec<Candidate<'a>> {
        let now = self.clock.now();
        let mut best = Health::Distrusted;
        let mut candidates = Vec::with_capacity(served.replicas.len());
        for replica in &served.replicas {
            let health = replica.observe(now);
            if health < best {
                best = health;
                candidates.clear();
            }
            if health == best {
                candidates.push(Candidate { replica, tokens: replica.tokens_in_flight() });
            }
        }
        candidates
    }

    /// `candidates` is not empty.
    fn less_loaded_of_two<'a>(&self, candidates: &[Candidate<'a>]) -> Candidate<'a> {
        let chance = self.draw();
        let count = candidates.len() as u64;
        let first = chance % count;
        // The second is drawn among the others; a lone replica has no other.
        let second = if count > 1 { (first + 1 + (chance >> 32) % (count - 1)) % count } else { first };
        let (one, other) = (candidates[first as usize], candidates[second as usize]);
        if other.tokens < one.tokens { other } else { one }
    }

    /// SplitMix64 (Steele, Lea and Flood 2014): an atomic addition and a mix, so that no lock is needed.
    fn draw(&self) -> u64 {
        const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        mix(self.chance.fetch_add(GOLDEN_GAMMA, Ordering::Relaxed))
    }
}

impl PrefixHint {
    /// No prompt, or one that is not to be kept together with its like.
    pub const NONE: Self = Self(None);

    pub fn of(prompt: &[TokenId], salt: &CacheSalt) -> Self {
        let Some(leading) = prompt.get(..LEADING_TOKENS) else { return Self::NONE };
        let mut hash = Sha256::new();
        hash.update(salt.0);
        for token in leading {
            hash.update(token.to_le_bytes());
        }
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = <[u8; 32]>::from(hash.finalize());
        Self(Some(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])))
    }
}

/// Rendezvous hashing (Thaler and Ravishankar 1998): a replica that comes or goes moves only its own share of prompts.
fn favourite<'a>(candidates: &[Candidate<'a>], prefix: PrefixHint) -> Option<Candidate<'a>> {
    let hint = prefix.0?;
    candidates.iter().copied().max_by_key(|candidate| mix(hint ^ mix(u64::from(candidate.replica.id().0))))
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests;
