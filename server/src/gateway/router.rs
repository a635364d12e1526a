//! Which replica runs a request: a healthy one, the one that has probably cached the prompt's beginning unless it is
//! overloaded, else the less loaded of two drawn at random.

mod pool;
mod ring;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::CacheSalt;
use passerelle_engine::clock::Clock;
use passerelle_models::TokenId;
use sha2::{Digest, Sha256};

use super::chance::Chance;
use super::health::Health;
use super::replica::{Replica, ReplicaId};
use pool::{Circumstances, Pool};

/// Two prompts that agree on this many leading tokens go to the same replica. Shorter prompts share too little to
/// matter and go where there is room.
const LEADING_TOKENS: usize = 32;
/// The same where nobody here can count tokens.
const LEADING_BYTES: usize = 256;

#[derive(Debug)]
pub struct Router {
    models: BTreeMap<String, RoutedModel>,
    clock: Arc<dyn Clock>,
    chance: Chance,
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
    #[error("no replica of '{model}' is ready")]
    NoReplicaReady {
        model: String,
        /// The first instant, from now, at which one that rests may be asked again.
        retry_after: Option<Duration>,
    },
}

#[derive(Debug)]
struct RoutedModel {
    entry: ModelEntry,
    pool: Pool,
    has_upstream: bool,
}

impl Router {
    /// `seed` decides every random choice that follows.
    pub fn new(replicas: impl IntoIterator<Item = Arc<Replica>>, clock: Arc<dyn Clock>, seed: u64) -> Self {
        let created = clock.wall().as_secs();
        let mut pools = BTreeMap::<String, Vec<Arc<Replica>>>::new();
        for replica in replicas {
            pools.entry(replica.model().to_owned()).or_default().push(replica);
        }
        let serve = |(name, replicas): (String, Vec<Arc<Replica>>)| {
            let entry = ModelEntry { name: name.clone(), created };
            let has_upstream = replicas.iter().any(|replica| replica.as_upstream().is_some());
            (name, RoutedModel { entry, pool: Pool::new(replicas), has_upstream })
        };
        Self { models: pools.into_iter().map(serve).collect(), clock, chance: Chance::new(seed) }
    }

    /// Models that `former` served too are as old as they were there.
    #[must_use]
    fn after(mut self, former: &Self) -> Self {
        for (name, served) in &mut self.models {
            if let Some(before) = former.models.get(name) {
                served.entry.created = before.entry.created;
            }
        }
        self
    }

    /// The same, and `replica` too, in the place of one with its id.
    #[must_use]
    pub fn with(&self, replica: Arc<Replica>) -> Self {
        let id = replica.id();
        self.of(self.replicas().filter(|other| other.id() != id).cloned().chain([replica]))
    }

    /// The same, without one replica.
    #[must_use]
    pub fn without(&self, id: ReplicaId) -> Self {
        self.of(self.replicas().filter(|replica| replica.id() != id).cloned())
    }

    /// What runs here stays; `upstreams` take the place of those that there were.
    #[must_use]
    pub fn with_upstreams(&self, upstreams: impl IntoIterator<Item = Arc<Replica>>) -> Self {
        let here = self.replicas().filter(|replica| replica.as_upstream().is_none());
        self.of(here.cloned().chain(upstreams))
    }

    fn of(&self, replicas: impl Iterator<Item = Arc<Replica>>) -> Self {
        Self::new(replicas, Arc::clone(&self.clock), self.chance.draw()).after(self)
    }

    /// None of `tried`. Looks at a few replicas, whatever their number.
    pub fn pick(&self, model: &str, prefix: PrefixHint, tried: &[ReplicaId]) -> Result<Arc<Replica>, RouteError> {
        let served = self.models.get(model).ok_or_else(|| RouteError::UnknownModel(model.to_owned()))?;
        let now = self.clock.now();
        let chosen = served.pool.choose(prefix, Circumstances { now, chance: &self.chance, tried });
        chosen.cloned().ok_or_else(|| RouteError::NoReplicaReady {
            model: model.to_owned(),
            retry_after: served.pool.rests_for(now),
        })
    }

    /// One whose engine is in this process and gets on.
    pub fn engine_of(&self, model: &str) -> Result<Arc<Replica>, RouteError> {
        let served = self.models.get(model).ok_or_else(|| RouteError::UnknownModel(model.to_owned()))?;
        let now = self.clock.now();
        let is_well = |replica: &&Arc<Replica>| matches!(replica.observe(now), Health::Ready | Health::Distrusted);
        let ready = served.pool.replicas().iter().filter(|replica| replica.as_upstream().is_none()).find(is_well);
        ready.cloned().ok_or_else(|| RouteError::NoReplicaReady { model: model.to_owned(), retry_after: None })
    }

    /// By name, in the order of names.
    pub fn models(&self) -> impl Iterator<Item = &ModelEntry> {
        self.models.values().map(|served| &served.entry)
    }

    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models.get(name).map(|served| &served.entry)
    }

    /// Whether another server has the model.
    pub fn has_upstream(&self, model: &str) -> bool {
        self.models.get(model).is_some_and(|served| served.has_upstream)
    }

    /// Whether no replica of the model has a place for anybody.
    pub fn is_full(&self, model: &str) -> bool {
        let full = |served: &RoutedModel| served.pool.replicas().iter().all(|replica| replica.is_full());
        self.models.get(model).is_some_and(full)
    }

    pub fn replicas(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.models.values().flat_map(|served| served.pool.replicas())
    }

    /// Whether every model has a replica that is ready.
    pub fn is_ready(&self) -> bool {
        let now = self.clock.now();
        self.models.values().all(|served| served.pool.is_ready(now))
    }

    /// Whether a replica of the model is ready.
    pub fn is_model_ready(&self, model: &str) -> bool {
        let now = self.clock.now();
        self.models.get(model).is_some_and(|served| served.pool.is_ready(now))
    }

    /// Looks at every replica, so that one that hangs is known before anybody asks for it.
    pub fn look(&self) {
        let now = self.clock.now();
        self.replicas().for_each(|replica| _ = replica.observe(now));
    }
}

impl PrefixHint {
    /// No prompt, or one that is not to be kept together with its like.
    pub const NONE: Self = Self(None);

    pub fn of(prompt: &[TokenId], salt: &CacheSalt) -> Self {
        let Some(leading) = prompt.get(..LEADING_TOKENS) else { return Self::NONE };
        Self::hash(&salt.0, leading.iter().flat_map(|token| token.to_le_bytes()))
    }

    /// Of a prompt that is not counted here, as it was written.
    pub fn of_text(prompt: &str, salt: &CacheSalt) -> Self {
        let Some(leading) = prompt.as_bytes().get(..LEADING_BYTES) else { return Self::NONE };
        Self::hash(&salt.0, leading.iter().copied())
    }

    /// Of prompts that begin alike, those that their caller calls by the same name. Too many for one replica can so be shared out
    /// over several.
    #[must_use]
    pub fn under(self, key: Option<&str>) -> Self {
        match (self.0, key) {
            (Some(hint), Some(key)) => Self::hash(&hint.to_le_bytes(), key.bytes()),
            _ => self,
        }
    }

    fn hash(under: &[u8], content: impl Iterator<Item = u8>) -> Self {
        let mut hash = Sha256::new();
        hash.update(under);
        hash.update(content.collect::<Vec<u8>>());
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = <[u8; 32]>::from(hash.finalize());
        Self(Some(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7])))
    }
}

#[cfg(test)]
mod tests;
