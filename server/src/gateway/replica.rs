//! One model in one place: an engine on a partition, behind a door that tells no difference between one in this process
//! and one elsewhere, or an upstream, which is another server.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;
use passerelle_engine::{EncodeReply, EncodeRequest, EncoderHandle, EngineHandle, EventStream, Request, SharedModel};

use super::breaker::{Breaker, BreakerBounds, Fingerprint};
use super::chance::Chance;
use super::health::{Health, Progress};
use super::upstream::{Failure, UpstreamDoor};

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
    fn submit(&self, request: Request) -> Result<EventStream, ReplicaRefusal>;

    /// As [`ReplicaDoor::submit`], for a text that is to become a vector. Only encoders do that.
    fn encode(&self, _: EncodeRequest) -> Result<EncodeReply, ReplicaRefusal> {
        Err(ReplicaRefusal::Refused { parameter: Some("model"), why: "this model makes no vectors".to_owned() })
    }

    /// For others who run it in turn with this replica. `None` for what is not to be lent, or has ended.
    fn shared_model(&self) -> Option<SharedModel> {
        None
    }

    /// Where [`ReplicaDoor::shared_model`] is `None`.
    fn why_not_lent(&self) -> ReplicaRefusal {
        ReplicaRefusal::Closed
    }

    fn load(&self) -> Load;

    /// Whether any request would be refused for want of a place.
    fn is_full(&self) -> bool {
        false
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaRefusal {
    #[error("the queue of this replica is full")]
    QueueFull,
    #[error("this replica is shutting down")]
    Closed,
    /// Its engine ended by a fault. Others of the model may still serve.
    #[error("this replica has failed")]
    Dead,
    /// Its worker is gone, and another one will come.
    #[error("the worker of this replica is gone")]
    Away,
    /// Prompt and answer are more than any replica of this model holds.
    #[error("{0}")]
    ExceedsContext(String),
    /// Will be refused by every replica of this model.
    #[error("{why}")]
    Refused { parameter: Option<&'static str>, why: String },
}

/// How busy an engine is, and the sign of life that [`super::health`] reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    pub waiting_requests: usize,
    pub running_requests: usize,
    /// Moves while the engine gets on, whatever it does.
    pub progress: u64,
    /// Too many of its requests failed lately, on the clock that it shares with whoever asks.
    pub distrusted_until: Option<Duration>,
    /// Nothing will ever run there again.
    pub is_dead: bool,
    pub presence: Presence,
}

/// Whether somebody is there to run requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Presence {
    #[default]
    Here,
    /// A worker has left and its successor is on the way: requests are kept for it.
    HandingOver,
    /// A worker is gone. Another will come, nobody knows when.
    Away,
}

#[derive(Debug)]
pub struct Replica {
    id: ReplicaId,
    model: String,
    side: Side,
    tokens_in_flight: AtomicU64,
}

#[derive(Debug)]
enum Side {
    Engine(EngineSide),
    Upstream(UpstreamSide),
}

/// A replica that takes tokens.
#[derive(Debug)]
pub struct EngineSide {
    door: Box<dyn ReplicaDoor>,
    /// An engine that closed never opens again.
    closed: AtomicBool,
    progress: Mutex<Progress>,
}

/// A replica that takes requests as clients write them.
#[derive(Debug)]
pub struct UpstreamSide {
    name: String,
    door: Box<dyn UpstreamDoor>,
    breaker: Mutex<Breaker>,
    clock: Arc<dyn Clock>,
    chance: Chance,
}

/// What an upstream replica is made of.
#[derive(Debug)]
pub struct UpstreamParts {
    /// Names it in logs and metrics. Holds no secret.
    pub name: String,
    pub door: Box<dyn UpstreamDoor>,
    pub bounds: BreakerBounds,
    pub clock: Arc<dyn Clock>,
    /// Decides by how much its rests vary.
    pub seed: u64,
}

/// A request that was let through to an upstream. Without a verdict, dropping it lets the next one through.
#[derive(Debug)]
#[must_use = "dropping an attempt ends it without a verdict"]
pub(super) struct Attempt<'a> {
    upstream: &'a UpstreamSide,
    judged: bool,
}

/// A request's share of its replica's load. Given back when dropped.
#[derive(Debug)]
#[must_use = "the load is given back when this is dropped"]
pub struct InFlight {
    replica: Arc<Replica>,
    tokens: u64,
}

impl Load {
    pub fn has_work(&self) -> bool {
        self.waiting_requests + self.running_requests > 0
    }
}

impl Replica {
    pub fn new(id: ReplicaId, model: impl Into<String>, door: Box<dyn ReplicaDoor>) -> Self {
        let side = EngineSide { door, closed: AtomicBool::new(false), progress: Mutex::default() };
        Self { id, model: model.into(), side: Side::Engine(side), tokens_in_flight: AtomicU64::new(0) }
    }

    pub fn upstream(id: ReplicaId, model: impl Into<String>, parts: UpstreamParts) -> Self {
        let UpstreamParts { name, door, bounds, clock, seed } = parts;
        let breaker = Mutex::new(Breaker::new(bounds));
        let side = UpstreamSide { name, door, breaker, clock, chance: Chance::new(seed) };
        Self { id, model: model.into(), side: Side::Upstream(side), tokens_in_flight: AtomicU64::new(0) }
    }

    pub fn id(&self) -> ReplicaId {
        self.id
    }

    /// The name under which clients ask for it.
    pub fn model(&self) -> &str {
        &self.model
    }

    pub fn as_upstream(&self) -> Option<&UpstreamSide> {
        match &self.side {
            Side::Upstream(upstream) => Some(upstream),
            Side::Engine(_) => None,
        }
    }

    /// Prompt tokens, and tokens to generate at most, of all requests it was given and that have not ended.
    pub fn tokens_in_flight(&self) -> u64 {
        self.tokens_in_flight.load(Ordering::Relaxed)
    }

    /// See [`ReplicaDoor::shared_model`].
    pub(super) fn shared_model(&self) -> Option<SharedModel> {
        match &self.side {
            Side::Engine(engine) => engine.door.shared_model(),
            Side::Upstream(_) => None,
        }
    }

    pub(super) fn why_not_lent(&self) -> ReplicaRefusal {
        match &self.side {
            Side::Engine(engine) => engine.door.why_not_lent(),
            Side::Upstream(_) => ReplicaRefusal::Closed,
        }
    }

    /// Looks at the replica at `now` and remembers what it saw.
    pub fn observe(&self, now: Duration) -> Health {
        match &self.side {
            Side::Engine(engine) => engine.observe(now),
            Side::Upstream(upstream) if upstream.breaker().lets_pass(now) => Health::Ready,
            Side::Upstream(_) => Health::Resting,
        }
    }

    /// See [`ReplicaDoor::is_full`]. What an upstream has room for, only it knows.
    pub fn is_full(&self) -> bool {
        match &self.side {
            Side::Engine(engine) => engine.door.is_full(),
            Side::Upstream(_) => false,
        }
    }

    /// How long it will take no request at least, if that is known.
    pub fn rests_for(&self, now: Duration) -> Option<Duration> {
        self.as_upstream().map(|upstream| upstream.breaker().opens_in(now))
    }

    /// [`super::Generation::start`] is how requests come here. An upstream takes none in this form.
    pub(super) fn submit(self: &Arc<Self>, request: Request) -> Result<(EventStream, InFlight), ReplicaRefusal> {
        let Side::Engine(engine) = &self.side else { return Err(ReplicaRefusal::Closed) };
        // Counted before the engine has it, so that two routers of one instant see each other.
        let most = u64::from(request.sampling.max_tokens) * u64::from(request.num_choices.get());
        let in_flight = self.hold(request.prompt.len() as u64 + most);
        let submitted = engine.door.submit(request);
        if matches!(submitted, Err(ReplicaRefusal::Closed | ReplicaRefusal::Dead)) {
            engine.closed.store(true, Ordering::Relaxed);
        }
        Ok((submitted?, in_flight))
    }

    /// [`super::Encoding`] is how texts come here. An upstream takes none.
    pub(super) fn encode(self: &Arc<Self>, text: EncodeRequest) -> Result<(EncodeReply, InFlight), ReplicaRefusal> {
        let Side::Engine(engine) = &self.side else { return Err(ReplicaRefusal::Closed) };
        let in_flight = self.hold(text.tokens.len() as u64);
        let submitted = engine.door.encode(text);
        if matches!(submitted, Err(ReplicaRefusal::Closed | ReplicaRefusal::Dead)) {
            engine.closed.store(true, Ordering::Relaxed);
        }
        Ok((submitted?, in_flight))
    }

    /// [`super::ComparedPrompt`] is how texts come to two models at once. While it is held, the replica has work.
    pub(super) fn lend(self: &Arc<Self>, tokens: u64) -> Result<(SharedModel, InFlight), ReplicaRefusal> {
        let in_flight = self.hold(tokens);
        Ok((self.shared_model().ok_or_else(|| self.why_not_lent())?, in_flight))
    }

    pub(super) fn hold(self: &Arc<Self>, tokens: u64) -> InFlight {
        self.tokens_in_flight.fetch_add(tokens, Ordering::Relaxed);
        InFlight { replica: Arc::clone(self), tokens }
    }
}

impl EngineSide {
    fn observe(&self, now: Duration) -> Health {
        if self.closed.load(Ordering::Relaxed) {
            return Health::Closed;
        }
        let load = self.door.load();
        if load.is_dead {
            self.closed.store(true, Ordering::Relaxed);
            return Health::Closed;
        }
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).observe(now, &load)
    }
}

impl UpstreamSide {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a probe found. One that failed counts as a request that failed.
    pub fn probed(&self, found: Result<(), Failure>) {
        match found {
            Ok(()) => self.breaker().probe_succeeded(),
            Err(failure) => self.failed(&failure),
        }
    }

    pub(super) fn door(&self) -> &dyn UpstreamDoor {
        self.door.as_ref()
    }

    /// `None` while it rests.
    pub(super) fn enter(&self) -> Option<Attempt<'_>> {
        self.breaker().enter(self.clock.now()).then_some(Attempt { upstream: self, judged: false })
    }

    fn failed(&self, failure: &Failure) {
        self.breaker().failed(failure, self.clock.now(), self.chance.draw());
    }

    /// Of a request that it was let in for, at its beginning or later.
    pub(super) fn failed_on(&self, request: Fingerprint, failure: &Failure) {
        self.breaker().failed_on(request, failure, self.clock.now(), self.chance.draw());
    }

    /// A request has its whole answer.
    pub(super) fn answered(&self) {
        self.breaker().succeeded();
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attempt<'_> {
    /// What came first: the beginning of an answer, or a failure.
    pub(super) fn came_to(mut self, request: Fingerprint, how: Result<(), &Failure>) {
        self.judged = true;
        match how {
            Ok(()) => self.upstream.breaker().began_to_answer(),
            Err(failure) => self.upstream.failed_on(request, failure),
        }
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.judged {
            self.upstream.breaker().leave();
        }
    }
}

impl InFlight {
    pub(super) fn replica(&self) -> &Replica {
        &self.replica
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.replica.tokens_in_flight.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}

impl ReplicaDoor for EngineHandle {
    fn submit(&self, request: Request) -> Result<EventStream, ReplicaRefusal> {
        Ok(EngineHandle::submit(self, request)?)
    }

    fn shared_model(&self) -> Option<SharedModel> {
        self.model()
    }

    fn is_full(&self) -> bool {
        EngineHandle::is_full(self)
    }

    fn load(&self) -> Load {
        let stats = self.stats();
        Load {
            waiting_requests: stats.waiting + stats.resuming,
            // Who has left the queue for the step in flight counts as running from its end.
            running_requests: stats.running.max(usize::from(stats.step_started.is_some())),
            progress: self.progress(),
            distrusted_until: stats.distrusted_until,
            is_dead: self.is_dead(),
            presence: Presence::Here,
        }
    }
}

impl ReplicaDoor for EncoderHandle {
    fn submit(&self, _: Request) -> Result<EventStream, ReplicaRefusal> {
        Err(ReplicaRefusal::Refused { parameter: Some("model"), why: "this model generates no text".to_owned() })
    }

    fn encode(&self, text: EncodeRequest) -> Result<EncodeReply, ReplicaRefusal> {
        Ok(EncoderHandle::submit(self, text)?)
    }

    fn load(&self) -> Load {
        let stats = self.stats();
        Load {
            waiting_requests: stats.waiting,
            running_requests: stats.running,
            progress: self.progress(),
            distrusted_until: stats.distrusted_until,
            is_dead: self.is_dead(),
            presence: Presence::Here,
        }
    }
}

impl From<passerelle_engine::SubmitError> for ReplicaRefusal {
    fn from(cause: passerelle_engine::SubmitError) -> Self {
        use passerelle_engine::SubmitError as Cause;
        match cause {
            Cause::Full { .. } => Self::QueueFull,
            Cause::ShuttingDown => Self::Closed,
            Cause::Dead => Self::Dead,
            Cause::TooLong { .. } | Cause::NeverFits { .. } => Self::ExceedsContext(cause.to_string()),
            Cause::InvalidSampling { parameter } => {
                Self::Refused { parameter: Some(parameter), why: cause.to_string() }
            }
            Cause::TooManyChoices { .. } => Self::Refused { parameter: Some("n"), why: cause.to_string() },
            Cause::EmptyPrompt | Cause::InvalidToken { .. } | Cause::DifferentVocabularies { .. } => {
                Self::Refused { parameter: None, why: cause.to_string() }
            }
        }
    }
}
