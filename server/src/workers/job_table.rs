//! What a worker has to do, and how far it is: orders in, what the engines say of them out.

use std::collections::BTreeMap;
use std::sync::Arc;

use passerelle_engine::clock::Clock;
use passerelle_engine::{Constraint, ConstraintError, EncodeRequest, EventStream, Request, RequestError, Usage};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::tap::StepTap;
use super::wire::{self, CallId, Change, Heard, Load, Malformed, Ordered, Orders, Report, Step, Vector, event};
use crate::gateway::{ReplicaDoor, ReplicaRefusal};

/// From what a grammar is made of to the constraint, on a thread of its own. `None` where it cannot be made.
pub type Revive = Arc<dyn Fn(&[u8]) -> Option<Box<dyn Constraint>> + Send + Sync>;

/// A model of a worker.
pub struct WorkerModel {
    pub door: Box<dyn ReplicaDoor>,
    /// Hears its engine.
    pub tap: Arc<StepTap>,
    pub revive: Revive,
}

pub(super) struct JobTable {
    models: Vec<WorkerModel>,
    running: BTreeMap<u64, Running>,
    making_grammars: JoinSet<Constrained>,
    reading_texts: JoinSet<Read>,
    /// What ended outside of an engine's step.
    ended: Vec<(u32, Heard)>,
    clock: Arc<dyn Clock>,
}

/// What was ordered, and its grammar if it could be made.
type Constrained = (Box<Ordered>, Option<Box<dyn Constraint>>);

struct Running {
    model: u32,
    stage: Stage,
}

enum Stage {
    /// Its grammar is being made, by this task. What its reader changes meanwhile.
    Making {
        task: Id,
        changes: Vec<Change>,
    },
    Generating {
        events: EventStream,
        num_choices: u32,
        granted_tokens: u32,
        told: Usage,
    },
    Reading(AbortHandle),
}

/// A text that was read.
struct Read {
    call: u64,
    owed_tokens: u32,
    answer: Result<Vec<f32>, RequestError>,
}

impl JobTable {
    pub(super) fn new(models: Vec<WorkerModel>, clock: Arc<dyn Clock>) -> Self {
        let (making_grammars, reading_texts) = (JoinSet::new(), JoinSet::new());
        Self { models, running: BTreeMap::new(), making_grammars, reading_texts, ended: Vec::new(), clock }
    }

    /// Nothing runs, and everything was told.
    pub(super) fn is_done(&self) -> bool {
        self.running.is_empty() && self.ended.is_empty()
    }

    /// One of the engines has ended by a fault.
    pub(super) fn is_dead(&self) -> bool {
        self.models.iter().any(|model| model.door.load().is_dead)
    }

    pub(super) fn obey(&mut self, orders: Orders) -> Result<(), Malformed> {
        for submission in orders.submissions {
            self.begin(submission.try_into()?)?;
        }
        for text in orders.texts {
            let id = CallId { call: text.call, model: text.model };
            self.read(id, text.try_into()?)?;
        }
        orders.changes.into_iter().for_each(|change| self.change(change));
        Ok(())
    }

    /// Something that the engines do not tell by their steps is ready. Never, while there is nothing of that kind.
    pub(super) async fn next_aside(&mut self) {
        tokio::select! {
            Some(made) = self.making_grammars.join_next(), if !self.making_grammars.is_empty() => {
                match made {
                    Ok((ordered, constraint)) => self.begin_constrained(*ordered, constraint),
                    Err(lost) => self.lose(&lost, RequestError::Constraint(ConstraintError::Lost)),
                }
            }
            Some(read) = self.reading_texts.join_next(), if !self.reading_texts.is_empty() => {
                match read {
                    Ok(read) => self.take_vector(read),
                    Err(lost) => self.lose(&lost, RequestError::Step("its text was lost".to_owned())),
                }
            }
            else => std::future::pending().await,
        }
    }

    /// What there is to tell; with `Signs::OfLife`, something of every model.
    pub(super) fn take_steps(&mut self, signs: Signs) -> Vec<Step> {
        let mut heard: BTreeMap<u32, Vec<Heard>> = BTreeMap::new();
        for (model, ended) in self.ended.drain(..) {
            heard.entry(model).or_default().push(ended);
        }
        self.running.retain(|&call, running| {
            let Stage::Generating { events, told, .. } = &mut running.stage else { return true };
            heard.entry(running.model).or_default().extend(listen(call, events, told));
            !events.has_ended()
        });
        let mut steps = Vec::new();
        for (model, id) in self.models.iter().zip(0..) {
            let reports: Vec<Report> = model.tap.take().into_iter().map(Report::from).collect();
            let heard = heard.remove(&id).unwrap_or_default();
            if signs == Signs::OfLife || !reports.is_empty() || !heard.is_empty() {
                steps.push(Step { model: id, load: Some(self.load(model)), reports, heard });
            }
        }
        steps
    }

    fn load(&self, model: &WorkerModel) -> Load {
        let load = model.door.load();
        let distrusted = load.distrusted_until.map(|until| until.saturating_sub(self.clock.now()));
        Load { progress: load.progress, distrusted_ns: distrusted.map_or(0, wire::nanoseconds) }
    }

    fn begin(&mut self, mut ordered: Ordered) -> Result<(), Malformed> {
        let id = ordered.id;
        let model = self.models.get(id.model as usize).ok_or(Malformed("model"))?;
        let Some(recipe) = ordered.grammar.take() else {
            self.start(id, ordered.request);
            return Ok(());
        };
        let revive = Arc::clone(&model.revive);
        let making = self.making_grammars.spawn_blocking(move || {
            let constraint = revive(&recipe);
            (Box::new(ordered), constraint)
        });
        let stage = Stage::Making { task: making.id(), changes: Vec::new() };
        self.running.insert(id.call, Running { model: id.model, stage });
        Ok(())
    }

    /// A task that panicked answers nobody: whoever waits for it is told. One that was aborted has been forgotten already.
    fn lose(&mut self, lost: &JoinError, error: RequestError) {
        let waiting = self.running.iter().find(|(_, running)| running.stage.waits_for(lost.id()));
        let Some(id) = waiting.map(|(&call, running)| CallId { call, model: running.model }) else { return };
        self.running.remove(&id.call);
        self.fail(id, error);
    }

    fn begin_constrained(&mut self, ordered: Ordered, constraint: Option<Box<dyn Constraint>>) {
        let Ordered { id, mut request, .. } = ordered;
        let Some(Running { stage: Stage::Making { changes, .. }, .. }) = self.running.remove(&id.call) else { return };
        if constraint.is_none() {
            return self.fail(id, RequestError::Step("its grammar could not be made again".to_owned()));
        }
        request.constraint = constraint;
        self.start(id, request);
        changes.into_iter().for_each(|change| self.change(change));
    }

    fn start(&mut self, id: CallId, request: Request) {
        let Some(door) = self.models.get(id.model as usize).map(|model| &model.door) else { return };
        let num_choices = request.num_choices.get();
        let granted_tokens = request.granted_tokens.unwrap_or(u32::MAX);
        match door.submit(request) {
            Ok(events) => {
                let told = Usage::default();
                let stage = Stage::Generating { events, num_choices, granted_tokens, told };
                self.running.insert(id.call, Running { model: id.model, stage });
            }
            Err(refused) => self.fail(id, lost(refused)),
        }
    }

    fn read(&mut self, id: CallId, text: EncodeRequest) -> Result<(), Malformed> {
        let CallId { call, model } = id;
        let door = &self.models.get(model as usize).ok_or(Malformed("model"))?.door;
        match door.encode(text) {
            Ok(mut reply) => {
                let reading = self.reading_texts.spawn(async move {
                    let answer = reply.wait().await;
                    Read { call, owed_tokens: reply.close().prompt_tokens, answer }
                });
                self.running.insert(call, Running { model, stage: Stage::Reading(reading) });
            }
            Err(refused) => self.fail(id, lost(refused)),
        }
        Ok(())
    }

    fn take_vector(&mut self, Read { call, owed_tokens, answer }: Read) {
        let Some(Running { model, .. }) = self.running.remove(&call) else { return };
        let id = CallId { call, model };
        match answer {
            Ok(values) => self.end(id, event::What::Vector(Vector { values, owed_tokens })),
            Err(error) => self.fail(id, error),
        }
    }

    /// Of a request that has ended meanwhile there is nothing to change.
    fn change(&mut self, change: Change) {
        let Some(running) = self.running.get_mut(&change.call) else { return };
        match &mut running.stage {
            Stage::Making { changes, .. } => changes.push(change),
            Stage::Generating { events, num_choices, granted_tokens, .. } => {
                let more = change.granted_tokens.saturating_sub(*granted_tokens);
                if more > 0 {
                    *granted_tokens += more;
                    events.grant(more);
                }
                let num_choices = *num_choices;
                let closed = change.closed_choices.into_iter().filter(|choice| *choice < num_choices);
                closed.for_each(|choice| _ = events.abort_choice(choice));
            }
            Stage::Reading(reading) => {
                reading.abort();
                let id = CallId { call: change.call, model: running.model };
                self.running.remove(&id.call);
                self.fail(id, RequestError::ShuttingDown);
            }
        }
    }

    fn fail(&mut self, id: CallId, error: RequestError) {
        self.end(id, event::What::Failed(error.into()));
    }

    fn end(&mut self, CallId { call, model }: CallId, what: event::What) {
        let events = vec![wire::Event { what: Some(what) }];
        self.ended.push((model, Heard { call, events, ..Heard::default() }));
    }
}

impl Stage {
    fn waits_for(&self, task: Id) -> bool {
        match self {
            Self::Making { task: making, .. } => *making == task,
            Self::Reading(reading) => reading.id() == task,
            Self::Generating { .. } => false,
        }
    }
}

/// Whether a model is told of that has nothing to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signs {
    OfLife,
    OfWork,
}

/// What a request heard since the last time; `None` if that is nothing.
fn listen(call: u64, events: &mut EventStream, told: &mut Usage) -> Option<Heard> {
    let heard: Vec<wire::Event> = std::iter::from_fn(|| events.try_next()).map(wire::Event::from).collect();
    let usage = events.usage();
    if heard.is_empty() && usage == *told {
        return None;
    }
    *told = usage;
    let cached_tokens = (usage.prompt_tokens > 0).then_some(usage.cached_tokens);
    Some(Heard { call, cached_tokens, measured_ns: usage.measured_ns, events: heard })
}

/// The gateway has checked it before: what is refused here came at the wrong moment, and may be asked again.
fn lost(refused: ReplicaRefusal) -> RequestError {
    match refused {
        ReplicaRefusal::QueueFull | ReplicaRefusal::Closed | ReplicaRefusal::Dead | ReplicaRefusal::Away => {
            RequestError::WorkerLost
        }
        ReplicaRefusal::ExceedsContext(_) | ReplicaRefusal::Refused { .. } => RequestError::Step(refused.to_string()),
    }
}

impl std::fmt::Debug for WorkerModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerModel").field("door", &self.door).finish_non_exhaustive()
    }
}
