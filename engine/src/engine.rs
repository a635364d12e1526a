//! One engine: one OS thread that owns one model, and the door to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;

use passerelle_models::{CausalLm, KvCacheSpec, Pulse};

use crate::admission::Phase;
use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::doorbell::{Doorbell, RungFlag};
use crate::error::{EngineError, SubmitError};
use crate::event_stream::{ChannelSpec, EventStream, event_channel};
use crate::owned_thread::OwnedThread;
use crate::random::mix;
use crate::request::Request;
use crate::rules::RequestRules;
use crate::sequence::{NewSequence, Sequence};
use crate::shared_model::{LentModel, SharedModel};
use crate::stats::{EngineStats, StepObserver};
use crate::step::{Command, Shared, StepLoop};
use crate::turns::StepTurns;

/// Owns the engine's thread. Dropping it shuts the engine down and joins the thread.
#[derive(Debug)]
pub struct Engine {
    handle: EngineHandle,
    thread: OwnedThread,
}

/// The door to an engine. Cheap to clone; outliving the engine is harmless.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    door: Arc<Door>,
}

/// What makes an [`Engine`].
pub struct EngineParts {
    /// Names the thread, and the engine in logs.
    pub name: String,
    /// Moves to the engine's thread.
    pub model: Box<dyn CausalLm>,
    /// Every bound.
    pub config: EngineConfig,
    /// Shared by the engines that compute on the same cores or device.
    pub turns: StepTurns,
    /// Measures steps.
    pub clock: Arc<dyn Clock>,
    /// Hears every step.
    pub observer: Arc<dyn StepObserver>,
}

/// What a request is checked against before it is queued.
#[derive(Debug)]
pub(crate) struct Door {
    name: String,
    config: EngineConfig,
    kv_cache: KvCacheSpec,
    input_vocab_size: usize,
    vocab_size: usize,
    next_arrival: AtomicU64,
    commands: SyncSender<Command>,
    doorbell: Doorbell,
    /// The model's.
    pulse: Pulse,
    model: LentModel,
    shared: Arc<Shared>,
}

impl Engine {
    /// Makes the KV cache and starts the thread. Errors when a bound is impossible, or there is no memory or thread.
    pub fn spawn(parts: EngineParts) -> Result<Self, EngineError> {
        let name = parts.name.clone();
        let (step_loop, handle) = StepLoop::new(parts)?;
        let thread = OwnedThread::spawn(format!("engine {name}"), move || step_loop.run_until_stopped())?;
        Ok(Self { handle, thread })
    }

    /// A door to this engine.
    pub fn handle(&self) -> EngineHandle {
        self.handle.clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.handle.shutdown();
        self.thread.join();
    }
}

impl EngineHandle {
    pub(crate) fn new(door: Door) -> Self {
        Self { door: Arc::new(door) }
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.door.name
    }

    /// The engine's bounds.
    pub fn config(&self) -> &EngineConfig {
        &self.door.config
    }

    /// What every request is checked against.
    pub fn rules(&self) -> RequestRules {
        self.door.rules()
    }

    /// Of the whole cache.
    pub fn kv_cache_bytes(&self) -> u64 {
        self.door.config.num_kv_blocks as u64 * self.door.kv_cache.block_bytes() as u64
    }

    /// What the engine runs, for others who run it in turn with it. `None` once the engine has ended.
    pub fn model(&self) -> Option<SharedModel> {
        self.door.model.get()
    }

    /// Queues a request and returns its events; never blocks. Errors at once when the queue is full, or when the request
    /// could never be served.
    ///
    /// Its prompt is checked here, on the caller's thread: prompt and `max_tokens` together within `max_model_len` and
    /// the KV cache, every token within the vocabulary, every sampling parameter within its range.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        let door = &self.door;
        door.check(&request)?;
        let prompt_tokens = request.prompt.len();
        let ticket = door.shared.admission.enter(prompt_tokens)?;
        let (events, stream) = event_channel(ChannelSpec::of(&request), door.doorbell.clone());
        let seed = request.sampling.seed.unwrap_or_else(|| mix(door.config.seed ^ mix(request.id.0)));
        let arrival = door.next_arrival.fetch_add(1, Ordering::Relaxed);
        let mut sequence = Box::new(Sequence::new(NewSequence { arrival, request, seed, events, ticket }));
        // Hashing a long prompt takes milliseconds; the engine's thread has better things to do.
        if sequence.may_reuse_prefix() {
            sequence.block_hashes(door.kv_cache.block_size);
        }
        door.commands.try_send(Command::Add(sequence)).map_err(|_| door.shared.admission.refusal())?;
        Ok(stream)
    }

    /// [`EngineHandle::submit`] would refuse any request for want of a place: who asks first can save the work of making one.
    pub fn is_full(&self) -> bool {
        self.door.shared.admission.is_full()
    }

    /// The engine's own account of itself, as of the end of its last step. Queue figures are current.
    pub fn stats(&self) -> EngineStats {
        let occupancy = self.door.shared.admission.occupancy();
        let mut stats = self.door.shared.lock_stats().clone();
        stats.waiting = occupancy.waiting_requests;
        stats.waiting_tokens = occupancy.waiting_tokens;
        stats
    }

    /// A count that moves while the engine gets on, also within a step that takes long, and while it waits for the turn of
    /// another engine on the same threads that gets on. It stands still while there is nothing to do.
    pub fn progress(&self) -> u64 {
        self.door.shared.lock_stats().steps_total.wrapping_add(self.door.pulse.count())
    }

    /// The engine's thread has panicked, or its model fails every step. Nothing will ever run again.
    pub fn is_dead(&self) -> bool {
        self.door.shared.admission.is_dead()
    }

    /// Neither draining nor stopped nor dead: a request that fits is admitted.
    pub fn is_accepting(&self) -> bool {
        self.door.shared.admission.phase() == Phase::Open
    }

    /// No request waits, runs or is parked.
    pub fn is_idle(&self) -> bool {
        self.door.shared.admission.is_idle()
    }

    /// Admits nothing more; what waits and runs finishes. [`EngineHandle::is_idle`] says when it has.
    pub fn drain(&self) {
        self.door.shared.admission.advance(Phase::Draining);
    }

    /// Admits nothing more; what waits and runs fails with [`crate::RequestError::ShuttingDown`], then the thread ends.
    pub fn shutdown(&self) {
        self.door.shared.admission.advance(Phase::Stopping);
        self.door.doorbell.ring();
    }
}

impl std::fmt::Debug for EngineParts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EngineParts").field("name", &self.name).field("config", &self.config).finish_non_exhaustive()
    }
}

impl Door {
    pub(crate) fn new(
        name: String,
        (model, observer): (&SharedModel, Arc<dyn StepObserver>),
        config: &EngineConfig,
        (commands, rung): (SyncSender<Command>, RungFlag),
        shared: Arc<Shared>,
    ) -> Self {
        let lent = model.lend(observer);
        let model = model.get();
        Self {
            name,
            config: config.clone(),
            kv_cache: model.kv_cache_spec(),
            input_vocab_size: model.input_vocab_size(),
            vocab_size: model.vocab_size(),
            next_arrival: AtomicU64::new(0),
            doorbell: Doorbell::new(commands.clone(), rung),
            pulse: model.pulse(),
            model: lent,
            commands,
            shared,
        }
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        self.rules().check(request)?;
        // The last generated token is never computed, so it needs no room.
        let computed_tokens = request.prompt.len() + (request.sampling.max_tokens as usize).saturating_sub(1);
        let needed_blocks = self.kv_cache.most_blocks(computed_tokens, self.config.max_num_batched_tokens);
        let total_blocks = self.config.num_kv_blocks;
        if needed_blocks > total_blocks {
            return Err(SubmitError::NeverFits { needed_blocks, total_blocks });
        }
        Ok(())
    }

    fn rules(&self) -> RequestRules {
        RequestRules {
            max_model_len: self.config.max_model_len,
            max_num_seqs: self.config.max_num_seqs,
            input_vocab_size: self.input_vocab_size,
            vocab_size: self.vocab_size,
        }
    }
}
