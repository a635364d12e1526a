//! One model on one partition, whichever worker serves it at the moment: the gateway's door to it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;
use passerelle_engine::{EncodeReply, EncodeRequest, EventStream, Request, StepObserver};

use super::calls::{Job, Occupancy, answer_tokens};
use super::facts::{OfferedKind, OfferedModel};
use super::link::{Link, NotTaken, Pace};
use crate::gateway::replica::Presence;
use crate::gateway::{Load, ReplicaDoor, ReplicaRefusal};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteReplicaBounds {
    /// Requests are held so long for the successor of a worker that leaves.
    pub longest_hand_over: Duration,
    /// Numbers that answer a text, and no others. 0 for a model that generates.
    pub vector_len: usize,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct RemoteReplica {
    model: Arc<str>,
    bounds: RemoteReplicaBounds,
    clock: Arc<dyn Clock>,
    observer: Arc<dyn StepObserver>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The one that takes requests.
    worker: Option<Worker>,
    /// As the last worker offered it.
    offered: Option<OfferedModel>,
    /// A worker has left, and another is to come.
    hand_over: Option<HandOver>,
}

#[derive(Debug)]
struct Worker {
    link: Arc<Link>,
    /// Which of its models this is.
    model: u32,
    /// Nothing runs beyond, on the gateway's clock.
    ends_at: Option<Duration>,
}

#[derive(Debug)]
struct HandOver {
    since: Duration,
    held: VecDeque<(Job, JobSize)>,
    /// Of the steps of the worker that left, since its successor's are not known.
    pace: Pace,
}

impl HandOver {
    fn occupancy(&self) -> Occupancy {
        let waiting_tokens = self.held.iter().map(|(_, size)| size.prompt_tokens).sum();
        Occupancy { waiting_requests: self.held.len(), waiting_tokens, ..Occupancy::default() }
    }
}

impl RemoteReplica {
    /// `observer`: hears the steps of whichever worker it is.
    pub fn new(
        model: impl Into<Arc<str>>,
        bounds: RemoteReplicaBounds,
        clock: Arc<dyn Clock>,
        observer: Arc<dyn StepObserver>,
    ) -> Self {
        Self { model: model.into(), bounds, clock, observer, state: Arc::default() }
    }

    pub fn model(&self) -> &str {
        &self.model
    }

    /// As the present worker offers it, or the last one did. `None` before the first.
    pub fn offered(&self) -> Option<OfferedModel> {
        self.lock().offered.clone()
    }

    pub(super) fn observer(&self) -> Arc<dyn StepObserver> {
        Arc::clone(&self.observer)
    }

    /// Requests go to this worker from now on, those that were held for it first.
    pub(super) fn take_up(&self, link: &Arc<Link>, model: u32) {
        let mut state = self.lock();
        state.offered = link.offered(model).cloned();
        let ends_at = link.facts().ends_in.map(|time| self.clock.now().saturating_add(time));
        let worker = Worker { link: Arc::clone(link), model, ends_at };
        if let Some(HandOver { held, pace, .. }) = state.hand_over.take() {
            let now = self.clock.now();
            for (job, size) in held {
                // One that leaves at once loses them, and their readers are told, like those that would outlast it.
                if worker.has_time_for(size, pace, now) {
                    let _ = link.add(model, job);
                }
            }
        }
        state.worker = Some(worker);
    }

    /// It takes nothing more; what comes is held for its successor.
    pub(super) fn hand_over(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.is_served_by(link) {
            let pace = state.worker.take().map(|worker| link.occupancy(worker.model).1.pace).unwrap_or_default();
            state.hand_over = Some(HandOver { since: self.clock.now(), held: VecDeque::new(), pace });
        }
    }

    /// Nothing is taken any more, and what runs is lost.
    pub(super) fn shut_down(&self) {
        let mut state = self.lock();
        let worker = state.worker.take();
        state.hand_over = None;
        drop(state);
        if let Some(worker) = worker {
            let _ = worker.link.close();
        }
    }

    /// It is gone, or leaves and nobody is to follow.
    pub(super) fn vacate(&self, link: &Arc<Link>) {
        let mut state = self.lock();
        if state.is_served_by(link) {
            state.worker = None;
        }
    }

    fn hand(&self, state: &mut State, job: Job, size: JobSize) -> Result<(), ReplicaRefusal> {
        let offered = state.offered.as_ref().ok_or(ReplicaRefusal::Away)?;
        match (&state.worker, &mut state.hand_over) {
            (Some(worker), _) => {
                let (occupancy, reported) = worker.link.occupancy(worker.model);
                if !worker.has_time_for(size, reported.pace, self.clock.now()) {
                    return Err(ReplicaRefusal::Away);
                }
                check_room(offered, occupancy, size.prompt_tokens)?;
                worker.link.add(worker.model, job).map_err(|NotTaken| ReplicaRefusal::Away)
            }
            (None, Some(hand_over)) => {
                // Who has left keeps nobody out.
                hand_over.held.retain_mut(|(job, _)| !job.is_abandoned());
                check_room(offered, hand_over.occupancy(), size.prompt_tokens)?;
                hand_over.held.push_back((job, size));
                Ok(())
            }
            (None, None) => Err(ReplicaRefusal::Away),
        }
    }

    /// What is held too long is lost.
    fn end_hand_over(&self, state: &mut State) {
        let now = self.clock.now();
        let is_over = |hand_over: &HandOver| now.saturating_sub(hand_over.since) > self.bounds.longest_hand_over;
        if state.hand_over.as_ref().is_some_and(is_over) {
            tracing::warn!(model = &*self.model, "no successor has come for a worker that left");
            state.hand_over = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of how long a job takes.
#[derive(Debug, Clone, Copy)]
struct JobSize {
    prompt_tokens: usize,
    /// Of its longest answer, a step for each.
    max_tokens: u64,
    /// Of all its answers.
    answer_tokens: u64,
}

impl Worker {
    /// Whether a job would end before the worker does, at that pace, behind all that the worker has: the prompts are read,
    /// and what is to be generated keeps every place busy until the job's longest answer begins.
    fn has_time_for(&self, size: JobSize, pace: Pace, now: Duration) -> bool {
        let Some(end) = self.ends_at else { return true };
        let places = self.link.offered(self.model).map_or(1, |offered| offered.max_running.max(1)) as u64;
        let Occupancy { unanswered_prompt_tokens, owed_tokens, .. } = self.link.occupancy(self.model).0;
        let beside = owed_tokens.saturating_add(size.answer_tokens.saturating_sub(size.max_tokens));
        let steps = beside.div_ceil(places).saturating_add(size.max_tokens);
        let reading = pace.reading_ns(unanswered_prompt_tokens.saturating_add(size.prompt_tokens));
        let takes = Duration::from_nanos(pace.step_ns.saturating_mul(steps).saturating_add(reading));
        now.saturating_add(takes) <= end
    }
}

impl State {
    fn is_served_by(&self, link: &Arc<Link>) -> bool {
        self.worker.as_ref().is_some_and(|worker| Arc::ptr_eq(&worker.link, link))
    }
}

/// As the worker's own queue would refuse.
fn check_room(offered: &OfferedModel, occupancy: Occupancy, prompt_tokens: usize) -> Result<(), ReplicaRefusal> {
    let Occupancy { waiting_requests, waiting_tokens, .. } = occupancy;
    let no_room = waiting_requests > 0 && waiting_tokens + prompt_tokens > offered.max_waiting_tokens;
    if is_full(offered, occupancy) || no_room { Err(ReplicaRefusal::QueueFull) } else { Ok(()) }
}

fn is_full(offered: &OfferedModel, occupancy: Occupancy) -> bool {
    let Occupancy { waiting_requests, running_requests, parked_requests, .. } = occupancy;
    let live = waiting_requests + running_requests + parked_requests;
    let most_live = offered.max_waiting_requests.saturating_add(offered.max_running);
    waiting_requests >= offered.max_waiting_requests || live >= most_live
}

impl ReplicaDoor for RemoteReplica {
    fn submit(&self, request: Request) -> Result<EventStream, ReplicaRefusal> {
        let mut state = self.lock();
        let offered = state.offered.as_ref().ok_or(ReplicaRefusal::Away)?;
        let (Some(rules), OfferedKind::Generator { vocab_size }) = (offered.rules(), offered.kind) else {
            return Err(ReplicaRefusal::Refused {
                parameter: Some("model"),
                why: "this model generates no text".to_owned(),
            });
        };
        rules.check(&request)?;
        let grammar = match &request.constraint {
            None => None,
            Some(constraint) => Some(constraint.recipe().ok_or_else(bound_to_this_process)?),
        };
        let size = JobSize {
            prompt_tokens: request.prompt.len(),
            max_tokens: u64::from(request.sampling.max_tokens),
            answer_tokens: answer_tokens(&request),
        };
        let (job, stream) = Job::generate(request, grammar, vocab_size);
        self.hand(&mut state, job, size)?;
        Ok(stream)
    }

    fn encode(&self, text: EncodeRequest) -> Result<EncodeReply, ReplicaRefusal> {
        let mut state = self.lock();
        let offered = state.offered.as_ref().ok_or(ReplicaRefusal::Away)?;
        if offered.kind != OfferedKind::Encoder {
            return Err(ReplicaRefusal::Refused {
                parameter: Some("model"),
                why: "this model makes no vectors".to_owned(),
            });
        }
        let prompt_tokens = text.tokens.len();
        if prompt_tokens > offered.max_model_len {
            let longest = offered.max_model_len;
            return Err(ReplicaRefusal::ExceedsContext(format!(
                "{prompt_tokens} tokens exceed the context of {longest}"
            )));
        }
        let (job, reply) = Job::encode(text, self.bounds.vector_len);
        self.hand(&mut state, job, JobSize { prompt_tokens, max_tokens: 1, answer_tokens: 1 })?;
        Ok(reply)
    }

    fn why_not_lent(&self) -> ReplicaRefusal {
        let why = "this model runs in a worker process, and models are compared in the gateway's own; \
                   `passerelle score --against` compares any two of one vocabulary";
        ReplicaRefusal::Refused { parameter: Some("model"), why: why.to_owned() }
    }

    fn is_full(&self) -> bool {
        let state = self.lock();
        let (Some(offered), Some(worker)) = (&state.offered, &state.worker) else { return false };
        is_full(offered, worker.link.occupancy(worker.model).0)
    }

    fn load(&self) -> Load {
        let mut state = self.lock();
        self.end_hand_over(&mut state);
        if let Some(worker) = &state.worker {
            let (occupancy, reported) = worker.link.occupancy(worker.model);
            let distrusted = Duration::from_nanos(reported.distrusted_ns);
            return Load {
                waiting_requests: occupancy.waiting_requests,
                running_requests: occupancy.running_requests,
                progress: reported.progress,
                distrusted_until: (!distrusted.is_zero()).then(|| self.clock.now() + distrusted),
                ..Load::default()
            };
        }
        match &state.hand_over {
            // What is held waits for nobody's step.
            Some(_) => Load { presence: Presence::HandingOver, ..Load::default() },
            None => Load { presence: Presence::Away, ..Load::default() },
        }
    }
}

fn bound_to_this_process() -> ReplicaRefusal {
    ReplicaRefusal::Refused { parameter: None, why: "its grammar cannot be sent to a worker process".to_owned() }
}

impl std::fmt::Debug for RemoteReplica {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteReplica").field("model", &self.model).field("state", &self.state).finish_non_exhaustive()
    }
}
