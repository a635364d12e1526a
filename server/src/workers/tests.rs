//! Both ends, over a pipe in memory, with engines that say what the test wants.

mod endings;
mod reports;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use passerelle_engine::clock::{Clock, ManualClock};
use passerelle_engine::{
    Allowed, AnswerEnd, Constraint, ConstraintError, Event, EventFeed, EventStream, Fault, FaultCounts, FinishReason,
    Request, RequestError, RequestId, SamplingParams, StepObserver, StepReport, TokenEvent,
};
use tokio::io::duplex;
use tokio::sync::{Notify, oneshot};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::timeout;

use super::*;
use crate::gateway::replica::Presence;
use crate::gateway::{Load, ReplicaDoor, ReplicaRefusal};

const PATIENCE: Duration = Duration::from_secs(20);
const BOUNDS: GateBounds = GateBounds { longest_silence: PATIENCE, longest_standstill: STANDSTILL };
const STANDSTILL: Duration = Duration::from_secs(60);
const HAND_OVER: Duration = Duration::from_secs(30);
const VOCAB_SIZE: usize = 100;
const PIPE_BYTES: usize = 4096;
/// A grammar that no worker can make.
const PANICS: &[u8] = b"panics";

/// What it was given; the test says the rest.
#[derive(Debug, Clone, Default)]
struct Script(Arc<Mutex<Vec<EventFeed>>>);

impl ReplicaDoor for Script {
    fn submit(&self, request: Request) -> Result<EventStream, ReplicaRefusal> {
        let (feed, stream) = EventFeed::open(&request, VOCAB_SIZE, Arc::new(|| {}));
        self.0.lock().unwrap().push(feed);
        Ok(stream)
    }

    fn load(&self) -> Load {
        Load { progress: 9, ..Load::default() }
    }
}

impl Script {
    fn say<T>(&self, what: impl FnOnce(&mut EventFeed) -> T) -> T {
        what(self.0.lock().unwrap().last_mut().expect("a request was given"))
    }
}

struct Worker {
    script: Script,
    bell: Arc<Notify>,
    tap: Arc<StepTap>,
    leave: Option<oneshot::Sender<()>>,
    works: JoinHandle<Result<(), WorkError>>,
}

/// What the gateway hears of.
#[derive(Debug, Default)]
struct Reports {
    failures: Mutex<FaultCounts>,
    steps: AtomicUsize,
}

impl StepObserver for Reports {
    fn step(&self, report: &StepReport) {
        *self.failures.lock().unwrap() += report.failures;
        self.steps.fetch_add(1, Ordering::Relaxed);
    }
}

struct Stage {
    reports: Arc<Reports>,
    clock: ManualClock,
    replica: RemoteReplica,
    slot: Arc<WorkerSlot>,
    gate: Gate,
}

fn facts(partition: &str, ends_in: Option<Duration>) -> WorkerFacts {
    let model = OfferedModel {
        name: "m".to_owned(),
        digest: "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".parse().unwrap(),
        fingerprint: "fp".to_owned(),
        weights_bytes: 1,
        kv_cache_bytes: 1,
        input_vocab_size: VOCAB_SIZE,
        max_model_len: 64,
        max_waiting_requests: 2,
        max_waiting_tokens: 64,
        max_running: 2,
        kind: OfferedKind::Generator { vocab_size: VOCAB_SIZE },
    };
    let [version, device, kernels] = ["1", "cpu", "none"].map(str::to_owned);
    WorkerFacts { version, partition: partition.to_owned(), device, kernels, threads: 1, models: vec![model], ends_in }
}

impl Stage {
    fn new() -> Self {
        Self::with(|replicas| WorkerSlot::new("a", WorkersFrom::Here, replicas))
    }

    fn with(slot: impl FnOnce(Vec<RemoteReplica>) -> WorkerSlot) -> Self {
        let clock = ManualClock::default();
        let bounds = RemoteReplicaBounds { longest_hand_over: HAND_OVER, vector_len: 0 };
        let reports = Arc::<Reports>::default();
        let replica = RemoteReplica::new("m", bounds, Arc::new(clock.clone()), Arc::<Reports>::clone(&reports));
        let slot = Arc::new(slot(vec![replica.clone()]));
        let gate = Gate::new([Arc::clone(&slot)], BOUNDS, Arc::new(clock.clone()));
        Self { reports, clock, replica, slot, gate }
    }

    async fn worker(&self) -> Worker {
        self.worker_with(facts("a", None)).await
    }

    /// One that has been let in, or sent away.
    async fn worker_with(&self, facts: WorkerFacts) -> Worker {
        let (here, there) = duplex(PIPE_BYTES);
        tokio::spawn(self.gate.clone().serve(here, Peer::Owner));
        let (script, bell) = (Script::default(), Arc::new(Notify::new()));
        let tap = Arc::new(StepTap::new(Arc::clone(&bell)));
        let revive: Revive = Arc::new(|recipe| if recipe == PANICS { panic!("as it was told") } else { None });
        let models = vec![WorkerModel { door: Box::new(script.clone()), tap: Arc::clone(&tap), revive }];
        let clock: Arc<dyn Clock> = Arc::new(self.clock.clone());
        let parts = WorkerParts { facts, models, bell: Arc::clone(&bell), clock, patience: PATIENCE };
        let (leave, asked) = oneshot::channel::<()>();
        let asked = async {
            // Dropped: it was never asked.
            if asked.await.is_err() {
                std::future::pending::<()>().await;
            }
            "asked".to_owned()
        };
        let before = self.slot.standing().borrow().arrivals;
        let works = tokio::spawn(async move { work(dial(there).await.unwrap(), parts, asked).await });
        until(|| works.is_finished() || self.slot.standing().borrow().arrivals > before).await;
        Worker { script, bell, tap, leave: Some(leave), works }
    }
}

impl Worker {
    fn say<T>(&self, what: impl FnOnce(&mut EventFeed) -> T) -> T {
        let said = self.script.say(what);
        self.bell.notify_one();
        said
    }

    async fn given(&self, count: usize) {
        until(|| self.script.0.lock().unwrap().len() == count).await;
    }

    fn ask_to_leave(&mut self) {
        self.leave.take().expect("once").send(()).unwrap();
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    timeout(PATIENCE, async {
        while !is_so() {
            yield_now().await;
        }
    })
    .await
    .expect("it never comes to be");
}

fn request(granted_tokens: Option<u32>) -> Request {
    let sampling = SamplingParams { max_tokens: 8, ..SamplingParams::default() };
    Request { granted_tokens, ..Request::new(RequestId(1), vec![1, 2, 3], sampling) }
}

fn token(token: u32) -> TokenEvent {
    TokenEvent { choice: 0, token, logprobs: None }
}

#[tokio::test]
async fn a_request_crosses_and_its_tokens_come_back_as_they_are_made() {
    let stage = Stage::new();
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::Away, "nobody has come yet");
    let worker = stage.worker().await;
    let mut stream = stage.replica.submit(request(Some(1))).unwrap();
    worker.given(1).await;
    worker.say(|feed| feed.start(2));
    worker.say(|feed| feed.token(token(7))).unwrap();
    assert_eq!(stream.next().await, Some(Event::Token(token(7))));
    stream.grant(3);
    until(|| worker.script.say(|feed| feed.granted_tokens()) == 4).await;
    worker.say(|feed| feed.token(token(8))).unwrap();
    worker.say(|feed| feed.finish(0, FinishReason::Stop)).unwrap();
    assert_eq!(stream.next().await, Some(Event::Token(token(8))));
    assert!(matches!(stream.next().await, Some(Event::Finished { reason: FinishReason::Stop, .. })));
    let used = stream.usage();
    assert_eq!((used.prompt_tokens, used.cached_tokens, used.generated_tokens), (3, 2, 2));
    assert_eq!((stage.replica.load().presence, stage.replica.load().has_work()), (Presence::Here, false));
    until(|| stage.replica.load().progress == 9).await;
}

#[tokio::test]
async fn a_reader_that_leaves_ends_its_request_in_the_worker() {
    let stage = Stage::new();
    let worker = stage.worker().await;
    let stream = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
    drop(stream);
    until(|| worker.script.say(|feed| feed.closed_choices().count()) == 1).await;
    worker.say(|feed| feed.finish(0, FinishReason::Aborted)).unwrap();
    until(|| !stage.replica.load().has_work()).await;
}

/// That a worker makes anew, of its recipe.
#[derive(Debug, Clone)]
struct Grammar(&'static [u8]);

impl Constraint for Grammar {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: &[], end: AnswerEnd::Here }
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }

    fn recipe(&self) -> Option<Vec<u8>> {
        Some(self.0.to_vec())
    }
}

#[tokio::test]
async fn a_request_whose_grammar_cannot_be_made_in_the_worker_fails_and_the_worker_goes_on() {
    let stage = Stage::new();
    let worker = stage.worker().await;
    let lost = RequestError::Constraint(ConstraintError::Lost);
    let unmade = RequestError::Step("its grammar could not be made again".to_owned());
    for (recipe, expected) in [(PANICS, lost), (b"none", unmade)] {
        let constrained = Request { constraint: Some(Box::new(Grammar(recipe))), ..request(None) };
        let mut stream = stage.replica.submit(constrained).unwrap();
        let failed = timeout(PATIENCE, stream.next()).await.expect("its reader is told");
        assert!(matches!(&failed, Some(Event::Failed { error, .. }) if *error == expected), "{failed:?}");
    }
    let _next = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
}

#[tokio::test]
async fn what_a_worker_ran_that_is_gone_fails_at_once_and_counted_and_its_replica_is_away() {
    let stage = Stage::new();
    let worker = stage.worker().await;
    let mut stream = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
    worker.works.abort();
    assert!(matches!(stream.next().await, Some(Event::Failed { error: RequestError::WorkerLost, .. })));
    assert_eq!(*stage.reports.failures.lock().unwrap(), FaultCounts::of(Fault::Worker, 1));
    until(|| stage.replica.load().presence == Presence::Away).await;
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::Away);
    assert_eq!(stage.slot.standing().borrow().losses, 1);
    let _successor = stage.worker().await;
    assert_eq!(stage.replica.load().presence, Presence::Here);
}

/// Its progress is always the same number.
#[tokio::test]
async fn a_worker_with_work_that_gets_nowhere_is_given_up_however_much_it_says() {
    const INSTANT: Duration = Duration::from_nanos(1);
    let stage = Stage::new();
    let worker = stage.worker().await;
    let says_something_after = async |time: Duration| {
        stage.clock.advance(time);
        worker.tap.step(&StepReport::default());
        worker.tap.concluded();
        until(|| stage.slot.figures(stage.clock.now()).silence.is_none_or(|silence| silence.is_zero())).await;
    };
    says_something_after(INSTANT).await;
    says_something_after(2 * STANDSTILL).await;
    // One that waits for its reader does not wait for the worker.
    let mut parked = stage.replica.submit(request(Some(1))).unwrap();
    worker.given(1).await;
    worker.say(|feed| feed.start(0));
    worker.say(|feed| feed.token(token(7))).unwrap();
    assert_eq!(parked.next().await, Some(Event::Token(token(7))));
    says_something_after(INSTANT).await;
    says_something_after(2 * STANDSTILL).await;
    assert!(!stage.replica.load().has_work());
    let mut stream = stage.replica.submit(request(None)).unwrap();
    worker.given(2).await;
    // What is heard meanwhile counts from an instant earlier.
    says_something_after(INSTANT).await;
    says_something_after(STANDSTILL - 2 * INSTANT).await;
    assert_eq!((stage.slot.standing().borrow().losses, stage.replica.load().has_work()), (0, true), "it may be slow");
    says_something_after(2 * INSTANT).await;
    assert!(matches!(stream.next().await, Some(Event::Failed { error: RequestError::WorkerLost, .. })));
    until(|| stage.slot.standing().borrow().losses == 1).await;
}

#[tokio::test]
async fn a_worker_that_leaves_finishes_what_it_has_and_what_comes_waits_for_its_successor() {
    let stage = Stage::new();
    let mut worker = stage.worker().await;
    let mut stream = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::HandingOver).await;
    let mut held = stage.replica.submit(request(None)).unwrap();
    let successor = stage.worker().await;
    successor.given(1).await;
    successor.say(|feed| feed.finish(0, FinishReason::Length)).unwrap();
    assert!(matches!(held.next().await, Some(Event::Finished { .. })));
    assert!(!worker.works.is_finished());
    worker.say(|feed| feed.finish(0, FinishReason::Length)).unwrap();
    assert!(matches!(stream.next().await, Some(Event::Finished { .. })));
    timeout(PATIENCE, worker.works).await.unwrap().unwrap().unwrap();
    assert_eq!(stage.slot.standing().borrow().losses, 0);
}

#[tokio::test]
async fn what_waits_for_a_successor_is_bounded_in_number_and_in_time() {
    let stage = Stage::new();
    let mut worker = stage.worker().await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::HandingOver).await;
    let mut held = [0; 2].map(|_| stage.replica.submit(request(None)).unwrap());
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::QueueFull);
    stage.clock.advance(HAND_OVER + Duration::from_nanos(1));
    assert_eq!(stage.replica.load().presence, Presence::Away);
    for stream in &mut held {
        assert!(matches!(stream.next().await, Some(Event::Failed { error: RequestError::WorkerLost, .. })));
    }
}

#[tokio::test]
async fn a_worker_that_soon_ends_is_given_nothing_that_would_end_later() {
    let stage = Stage::new();
    let worker = stage.worker_with(facts("a", Some(Duration::from_secs(8)))).await;
    let _first = stage.replica.submit(request(None)).expect("nothing is known of its pace");
    worker.given(1).await;
    // Eight tokens at two seconds each.
    stage.clock.advance(Duration::from_secs(2));
    let step = StepReport { duration: Duration::from_secs(2), num_sequences: 1, ..StepReport::default() };
    worker.tap.step(&step);
    worker.tap.concluded();
    until(|| stage.replica.submit(request(None)).is_err_and(|refused| refused == ReplicaRefusal::Away)).await;
}

/// Of a model that runs two sequences at once, and has many waiting.
async fn soon_ends(stage: &Stage, seconds: u64) -> Worker {
    let mut facts = facts("a", Some(Duration::from_secs(seconds)));
    facts.models[0].max_waiting_requests = 16;
    stage.worker_with(facts).await
}

impl Worker {
    /// A step takes two seconds, in which so much of prompts is read, and the gateway learns of it.
    async fn takes_two_seconds(&self, stage: &Stage, prompt_tokens: usize) {
        stage.clock.advance(Duration::from_secs(2));
        let step =
            StepReport { duration: Duration::from_secs(2), num_sequences: 1, prompt_tokens, ..StepReport::default() };
        self.tap.step(&step);
        self.tap.concluded();
        until(|| stage.reports.steps.load(Ordering::Relaxed) > 0).await;
    }
}

#[tokio::test]
async fn what_waits_and_runs_counts_against_the_time_that_a_worker_has_left() {
    let stage = Stage::new();
    let worker = soon_ends(&stage, 42).await;
    worker.takes_two_seconds(&stage, 0).await;
    // Answers of eight steps, of which all but the last keep two places busy: 8, 12, 16 and 20 steps.
    let mut taken = Vec::new();
    while let Ok(stream) = stage.replica.submit(request(None)) {
        taken.push(stream);
    }
    assert_eq!(taken.len(), 4);
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::Away);
    // An answer that has come is not waited for.
    worker.given(4).await;
    worker.say(|feed| feed.finish(0, FinishReason::Stop)).unwrap();
    assert!(matches!(taken[3].next().await, Some(Event::Finished { .. })));
    let _next = stage.replica.submit(request(None)).expect("there is room again");
}

#[tokio::test]
async fn prompts_and_further_choices_count_against_the_time_that_a_worker_has_left() {
    let stage = Stage::new();
    let worker = soon_ends(&stage, 18).await;
    worker.takes_two_seconds(&stage, 0).await;
    let two = Request { num_choices: 2.try_into().unwrap(), ..request(None) };
    assert_eq!(stage.replica.submit(two).unwrap_err(), ReplicaRefusal::Away);
    drop(stage.replica.submit(request(None)).expect("one answer fits"));
    let stage = Stage::new();
    let worker = soon_ends(&stage, 18).await;
    worker.takes_two_seconds(&stage, 64).await;
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::Away, "its prompt is read first");
}

#[tokio::test]
async fn a_worker_of_another_partition_or_with_another_checkpoint_is_sent_away() {
    let stage = Stage::new();
    let stranger = stage.worker_with(facts("b", None)).await;
    assert!(matches!(stranger.works.await.unwrap(), Err(WorkError::Unwanted(why)) if why.contains("`b`")));
    stage.worker().await.works.abort();
    until(|| stage.slot.standing().borrow().losses == 1).await;
    let mut changed = facts("a", None);
    changed.models[0].digest = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let changed = stage.worker_with(changed).await;
    assert!(matches!(changed.works.await.unwrap(), Err(WorkError::Unwanted(why)) if why.contains("checkpoint")));
}

#[tokio::test]
async fn a_worker_with_another_checkpoint_than_the_gateway_has_read_is_sent_away_though_it_is_the_first() {
    let other = format!("sha256:{}", "0".repeat(64)).parse().unwrap();
    let stage = Stage::with(|replicas| {
        WorkerSlot::new("a", WorkersFrom::Here, replicas).with_digests([("m".to_owned(), other)])
    });
    let first = stage.worker().await;
    assert!(matches!(first.works.await.unwrap(), Err(WorkError::Unwanted(why)) if why.contains("checkpoint")));
}

#[tokio::test]
async fn a_worker_of_another_protocol_is_told_both_numbers_and_what_to_do() {
    let stage = Stage::new();
    let (here, there) = duplex(PIPE_BYTES);
    tokio::spawn(stage.gate.clone().serve(here, Peer::Owner));
    let mut dialled = dial(there).await.unwrap();
    let hello = wire::Hello { protocol: wire::PROTOCOL + 7, ..wire::Hello::from(&facts("a", None)) };
    let hello = wire::FromWorker { what: Some(wire::from_worker::What::Hello(hello)) };
    let says = stream::iter([hello]).chain(stream::pending());
    let mut answers = dialled.client().attach(says).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().and_then(|message| message.what);
    let Some(wire::from_gateway::What::Goodbye(wire::Goodbye { why })) = answer else { panic!("{answer:?}") };
    for said in
        [format!("protocol {}", wire::PROTOCOL), format!("protocol {}", wire::PROTOCOL + 7), "same version".to_owned()]
    {
        assert!(why.contains(&said), "{why}");
    }
}

/// Nobody is sure to start another.
#[tokio::test]
async fn requests_do_not_wait_for_the_successor_of_a_worker_of_another_machine() {
    let stage = Stage::with(|replicas| WorkerSlot::new("a", WorkersFrom::Anywhere, replicas));
    let mut worker = stage.worker().await;
    let mut stream = stage.replica.submit(request(None)).unwrap();
    worker.given(1).await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::Away).await;
    assert_eq!(stage.replica.submit(request(None)).unwrap_err(), ReplicaRefusal::Away);
    worker.say(|feed| feed.finish(0, FinishReason::Length)).unwrap();
    assert!(matches!(stream.next().await, Some(Event::Finished { .. })), "what it has it finishes");
    timeout(PATIENCE, worker.works).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_second_worker_of_a_partition_is_sent_away_and_harms_the_first_in_nothing() {
    let stage = Stage::new();
    let first = stage.worker().await;
    let _stream = stage.replica.submit(request(None)).unwrap();
    let second = stage.worker().await;
    assert!(matches!(second.works.await.unwrap(), Err(WorkError::Unwanted(why)) if why.contains("has a worker")));
    first.given(1).await;
    let standing = *stage.slot.standing().borrow();
    assert_eq!((standing.arrivals, standing.losses, stage.replica.load().presence), (1, 0, Presence::Here));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_is_not_kept() {
    let (here, _there) = duplex(PIPE_BYTES);
    timeout(PATIENCE, Stage::new().gate.serve(here, Peer::Owner)).await.expect("its place is free again");
}

#[tokio::test]
async fn what_waits_for_a_successor_is_bounded_in_tokens() {
    let stage = Stage::new();
    let mut worker = stage.worker().await;
    worker.ask_to_leave();
    until(|| stage.replica.load().presence == Presence::HandingOver).await;
    let long = || Request { prompt: vec![1; 40], ..request(None) };
    let _held = stage.replica.submit(long()).unwrap();
    assert_eq!(stage.replica.submit(long()).unwrap_err(), ReplicaRefusal::QueueFull);
}
