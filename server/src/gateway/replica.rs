//! One model on one partition, behind a door that tells no difference between an engine in this process and one
//! elsewhere.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use passerelle_engine::{Event, Request};

use super::health::{Health, Progress};

/// Names a replica in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReplicaId(pub u32);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What the gateway may do with an engine.
pub trait ReplicaDoor: Send + Sync + fmt::Debug {
    /// Never waits: a full queue, an engine that is gone and a request that can never fit are answered at once.
    fn submit(&self, request: Request) -> Result<Box<dyn EventSource>, SubmitError>;

    fn load(&self) -> Load;
}

/// A request's events, in the order that [`Event`] states.
pub trait EventSource: Send + fmt::Debug {
    /// `None`: the engine is gone and says nothing more.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>>;

    /// Asks the engine to stop; the last event still comes, and says what was used.
    fn abort(&mut self);
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("the queue of this replica is full")]
    QueueFull,
    #[error("this replica is shutting down")]
    Closed,
    /// Will be refused by every replica of this model.
    #[error("{0}")]
    Refused(String),
}

/// How busy a replica is, and the signs of life that [`super::health`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub waiting_requests: u32,
    pub running_requests: u32,
    /// Prompt tokens still to compute and tokens still to generate, of everything waiting and running.
    pub tokens_in_flight: u64,
    /// Steps finished since the engine started.
    pub steps: u64,
    pub accepting: Accepting,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accepting {
    #[default]
    Yes,
    /// Draining, or gone.
    No,
}

impl Load {
    pub fn has_work(&self) -> bool {
        self.waiting_requests + self.running_requests > 0
    }
}

#[derive(Debug)]
pub struct Replica {
    id: ReplicaId,
    model: String,
    door: Box<dyn ReplicaDoor>,
    progress: Mutex<Progress>,
}

impl Replica {
    pub fn new(id: ReplicaId, model: impl Into<String>, door: Box<dyn ReplicaDoor>) -> Self {
        Self { id, model: model.into(), door, progress: Mutex::default() }
    }

    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// The name under which clients ask for it.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn submit(&self, request: Request) -> Result<Box<dyn EventSource>, SubmitError> {
        self.door.submit(request)
    }

    pub fn load(&self) -> Load {
        self.door.load()
    }

    /// Looks at the replica at `now` and remembers what it saw.
    pub fn observe(&self, now: Duration) -> (Health, Load) {
        let load = self.door.load();
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        (progress.observe(now, &load), load)
    }
}
