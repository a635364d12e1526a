use std::pin::pin;
use std::sync::Mutex;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use super::*;
use crate::clock::ManualClock;
use crate::config::EngineConfig;
use crate::constraint::{Allowed, AnswerEnd, Constraint, ConstraintError};
use crate::cost::CostModel;
use crate::event_stream::EventStream;
use crate::fault::Fault;
use crate::fixtures::request;
use crate::request::{Class, Request};
use crate::stats::NullObserver;
use crate::testing::{Mishap, Pace, StubModel};
use crate::trust::MAX_FRUITLESS_STEPS;

const POISON: u32 = 31;

fn parts(observer: Arc<dyn StepObserver>) -> EngineParts {
    EngineParts {
        name: "test".into(),
        model: Box::new(StubModel::new(32, 4).with_mishap(POISON, Mishap::Error)),
        config: EngineConfig { num_kv_blocks: 64, max_model_len: 200, ..EngineConfig::default() },
        turns: StepTurns::new(),
        clock: Arc::new(ManualClock::default()),
        observer,
    }
}

#[test]
fn a_request_that_leaves_while_the_engine_waits_for_its_turn_never_runs_and_the_wait_is_not_measured() {
    let clock = ManualClock::default();
    let turns = StepTurns::new();
    let parts = EngineParts { turns: turns.clone(), clock: Arc::new(clock.clone()), ..parts(Arc::new(NullObserver)) };
    let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
    let turn = turns.take();
    let leaves = handle.submit(request(0, &[1, 2, 3])).unwrap();
    let _stays = handle.submit(request(1, &[4, 5])).unwrap();
    let thread = std::thread::spawn(move || step_loop.step());
    turns.wait_until_asked(2);
    drop(leaves);
    clock.advance(Duration::from_secs(1));
    drop(turn);
    let report = thread.join().unwrap();
    assert_eq!((report.num_sequences, report.prompt_tokens, report.duration), (1, 2, Duration::ZERO));
}

#[test]
fn a_request_that_arrives_while_the_engine_waits_for_its_turn_runs_in_that_step() {
    let turns = StepTurns::new();
    let parts = EngineParts { turns: turns.clone(), ..parts(Arc::new(NullObserver)) };
    let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
    let turn = turns.take();
    let _first = handle.submit(request(0, &[1, 2, 3])).unwrap();
    let thread = std::thread::spawn(move || step_loop.step());
    turns.wait_until_asked(2);
    let _second = handle.submit(request(1, &[4, 5])).unwrap();
    drop(turn);
    assert_eq!(thread.join().unwrap().num_sequences, 2);
}

/// Looks at the streams in the moment that a step is reported, which is after it was published.
#[derive(Default)]
struct Peek {
    seen: Mutex<Option<(EngineHandle, EventStream)>>,
}

impl StepObserver for Peek {
    fn step(&self, report: &StepReport) {
        let mut seen = self.seen.lock().unwrap();
        let Some((handle, stream)) = &mut *seen else { return };
        assert!(matches!(stream.try_next(), Some(Event::Token(_))));
        assert_eq!(stream.try_next(), None, "the end is told after the statistics");
        let stats = handle.stats();
        assert_eq!((stats.free_blocks, stats.running, stats.generated_tokens_total), (64, 0, 1));
        assert_eq!((stats.step_started, report.free_blocks), (None, 64));
        assert!(!handle.is_idle());
    }
}

#[test]
fn whoever_sees_a_request_end_finds_statistics_that_include_it() {
    let peek = Arc::new(Peek::default());
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::<Peek>::clone(&peek))).unwrap();
    let mut once = request(0, &[1, 2, 3]);
    once.sampling.max_tokens = 1;
    let stream = handle.submit(once).unwrap();
    *peek.seen.lock().unwrap() = Some((handle.clone(), stream));
    step_loop.step();
    let (_, mut stream) = peek.seen.lock().unwrap().take().unwrap();
    assert!(matches!(stream.try_next(), Some(Event::Finished { .. })));
    assert!(handle.is_idle());
}

/// Asks once more in the moment that it hears something, as a client does that waits for an answer.
struct AsksAgain {
    handle: EngineHandle,
    is_taken: Mutex<Vec<bool>>,
}

impl Wake for AsksAgain {
    fn wake(self: Arc<Self>) {
        let is_taken = self.handle.submit(request(9, &[1])).is_ok();
        self.is_taken.lock().unwrap().push(is_taken);
    }
}

#[test]
fn whoever_hears_the_end_of_a_request_finds_its_place_given_back() {
    let parts = parts(Arc::new(NullObserver));
    let config = EngineConfig { max_waiting_requests: 1, max_num_seqs: 1, ..parts.config };
    let (mut step_loop, handle) = StepLoop::new(EngineParts { config, ..parts }).unwrap();
    // Two may be inside, of which one waits for its reader.
    let _parked = handle.submit(Request { granted_tokens: Some(0), ..request(0, &[1]) }).unwrap();
    step_loop.step();
    let mut prompt_alone = request(1, &[1, 2]);
    prompt_alone.sampling.max_tokens = 0;
    let mut ends = handle.submit(prompt_alone).unwrap();
    let asks = Arc::new(AsksAgain { handle, is_taken: Mutex::default() });
    let waker = Waker::from(Arc::clone(&asks));
    let mut next = pin!(ends.next());
    assert!(next.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    step_loop.step();
    assert_eq!(*asks.is_taken.lock().unwrap(), [true]);
}

/// Keeps the last report's running sequences and used blocks.
#[derive(Default)]
struct LastReport(Mutex<Option<(usize, usize)>>);

impl StepObserver for LastReport {
    fn step(&self, report: &StepReport) {
        *self.0.lock().unwrap() = Some((report.running, report.total_blocks - report.free_blocks));
    }
}

#[test]
fn the_last_reader_that_leaves_is_reported_though_nothing_runs_any_more() {
    let last = Arc::new(LastReport::default());
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::<LastReport>::clone(&last))).unwrap();
    let stream = handle.submit(request(0, &[1, 2, 3])).unwrap();
    step_loop.step();
    assert_eq!(*last.0.lock().unwrap(), Some((1, 1)));
    drop(stream);
    step_loop.step();
    assert_eq!(*last.0.lock().unwrap(), Some((0, 0)));
}

/// Started before it fell ill: what its work costs is known.
fn ill(model: StubModel) -> EngineParts {
    let costs = Some(CostModel {
        prompt_token_ns: 1e6,
        generated_token_ns: 1e6,
        context_token_ns: 1e3,
        prompt_context_token_ns: 1e3,
        lone_token_ns: 1e6,
    });
    let well = parts(Arc::new(NullObserver));
    EngineParts { model: Box::new(model), config: EngineConfig { costs, ..well.config }, ..well }
}

#[test]
fn a_model_that_fails_every_step_makes_no_progress_and_its_engine_dies() {
    let model = StubModel::new(32, 4).with_mishap(POISON, Mishap::Error).with_mishap(0, Mishap::Nan);
    let (mut step_loop, handle) = StepLoop::new(ill(model)).unwrap();
    for id in 0..MAX_FRUITLESS_STEPS as u64 {
        assert!(handle.is_accepting());
        let _stream = handle.submit(request(id, &[POISON])).unwrap();
        step_loop.step();
    }
    assert_eq!((handle.is_dead(), handle.is_accepting()), (true, false));
    assert_eq!(handle.submit(request(99, &[1])).unwrap_err(), crate::SubmitError::Dead);
    let stats = handle.stats();
    assert_eq!((stats.steps_total, stats.failures_total), (0, MAX_FRUITLESS_STEPS as u64));
}

#[test]
fn an_engine_outlives_whatever_it_is_asked_while_its_model_runs_a_token_of_its_own() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    for id in 0..4 * MAX_FRUITLESS_STEPS as u64 {
        let _stream = handle.submit(request(id, &[POISON])).unwrap();
        step_loop.step();
        step_loop.check_integrity();
    }
    assert!(handle.is_accepting());
    let mut well = handle.submit(request(99, &[1, 2])).unwrap();
    step_loop.step();
    assert!(matches!(well.try_next(), Some(Event::Token(_))));
}

#[test]
fn an_engine_whose_device_is_lost_dies_with_the_first_request_that_it_fails() {
    let device_fails =
        |token| StubModel::new(32, 4).with_mishap(POISON, Mishap::Device).with_mishap(token, Mishap::Device);
    for (also, dies) in [(0, true), (9, false)] {
        let (mut step_loop, handle) = StepLoop::new(ill(device_fails(also))).unwrap();
        let _stream = handle.submit(request(0, &[POISON])).unwrap();
        step_loop.step();
        assert_eq!(handle.is_dead(), dies);
    }
}

#[test]
fn a_step_that_reads_many_rows_gets_on_row_by_row() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    let mut asked = request(0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    asked.sampling.prompt_logprobs = Some(1);
    let _stream = handle.submit(asked).unwrap();
    let before = handle.progress();
    step_loop.step();
    // Seven rows of the prompt, the one that chooses a token, and the step.
    assert_eq!(handle.progress() - before, 9);
}

#[test]
fn one_step_that_succeeds_for_anyone_clears_an_engine_of_suspicion() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    for id in 0..2 * MAX_FRUITLESS_STEPS as u64 {
        let prompt = if id % 8 == 7 { [1] } else { [POISON] };
        let _stream = handle.submit(request(id, &prompt)).unwrap();
        step_loop.step();
    }
    assert!(handle.is_accepting());
}

#[test]
fn failed_requests_are_told_of_with_the_time_until_which_they_count() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    let mut fail = |id| {
        let _stream = handle.submit(request(id, &[POISON])).unwrap();
        step_loop.step();
        handle.stats().distrusted_until
    };
    assert_eq!([fail(0), fail(1), fail(2)], [None, None, Some(Duration::from_secs(60))]);
}

#[test]
fn requests_that_leave_themselves_no_token_fail_alone_and_never_put_an_engine_out_of_service() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    for id in 0..2 * MAX_FRUITLESS_STEPS as u64 {
        let mut asked = request(id, &[1]);
        asked.sampling.bad_words = (0..32).map(|token| vec![token]).collect();
        let mut stream = handle.submit(asked).unwrap();
        step_loop.step();
        let heard = stream.try_next();
        assert!(matches!(heard, Some(Event::Failed { error: RequestError::NothingAllowed, .. })), "{heard:?}");
    }
    let stats = handle.stats();
    assert!(handle.is_accepting());
    assert_eq!((stats.distrusted_until, stats.failures_total), (None, 0));
}

#[test]
fn a_request_that_fails_by_its_own_fields_leaves_what_others_have_cached() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    let prompt: Vec<u32> = (0..30).collect();
    let hits_of = |step_loop: &mut StepLoop, asked: Request| {
        let before = handle.stats().prefix_hit_tokens_total;
        let _stream = handle.submit(asked).unwrap();
        step_loop.step();
        handle.stats().prefix_hit_tokens_total - before
    };
    assert_eq!(hits_of(&mut step_loop, request(0, &prompt)), 0);
    let found = hits_of(&mut step_loop, request(1, &prompt));
    let mut nothing_allowed = request(2, &prompt);
    nothing_allowed.sampling.bad_words = (0..32).map(|token| vec![token]).collect();
    assert_eq!(hits_of(&mut step_loop, nothing_allowed), found);
    assert!(found > 0 && hits_of(&mut step_loop, request(3, &prompt)) >= found);
}

#[test]
fn what_a_stop_ends_is_reported_and_nothing_of_it_runs_or_waits_any_more() {
    let last = Arc::new(LastReport::default());
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::<LastReport>::clone(&last))).unwrap();
    let _stream = handle.submit(request(0, &[1, 2, 3])).unwrap();
    step_loop.step();
    assert_eq!(*last.0.lock().unwrap(), Some((1, 1)));
    step_loop.fail_all(&RequestError::ShuttingDown);
    assert_eq!(*last.0.lock().unwrap(), Some((0, 0)));
}

/// Grants a token whenever it is looked at, as a step does when it begins.
#[derive(Debug, Default)]
struct GrantingClock(Mutex<Option<EventStream>>);

impl Clock for GrantingClock {
    fn now(&self) -> Duration {
        self.0.lock().unwrap().iter().for_each(|stream| stream.grant(1));
        Duration::ZERO
    }

    fn wall(&self) -> Duration {
        Duration::ZERO
    }
}

#[test]
fn what_is_granted_once_a_step_without_a_turn_has_begun_runs_in_the_next_one() {
    let clock = Arc::new(GrantingClock::default());
    let parts = EngineParts { clock: Arc::<GrantingClock>::clone(&clock), ..parts(Arc::new(NullObserver)) };
    let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
    let stream = handle.submit(Request { granted_tokens: Some(0), ..request(0, &[1, 2]) }).unwrap();
    step_loop.step();
    *clock.0.lock().unwrap() = Some(stream);
    assert_eq!(step_loop.step().num_sequences, 0);
    assert_eq!(step_loop.step().num_sequences, 1);
}

/// Cannot be followed past its first token.
#[derive(Debug)]
struct Lost;

impl Constraint for Lost {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: &[u32::MAX], end: AnswerEnd::NotHere }
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        Err(ConstraintError::Lost)
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Self)
    }
}

#[test]
fn grammars_that_cannot_be_followed_are_counted_and_never_put_an_engine_out_of_service() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    for id in 0..2 * MAX_FRUITLESS_STEPS as u64 {
        let mut stream = handle.submit(Request { constraint: Some(Box::new(Lost)), ..request(id, &[1]) }).unwrap();
        assert_eq!(step_loop.step().failures, FaultCounts::of(Fault::Grammar, 1));
        let heard = std::iter::from_fn(|| stream.try_next()).last();
        let lost = RequestError::Constraint(ConstraintError::Lost);
        assert!(matches!(&heard, Some(Event::Failed { error, .. }) if *error == lost), "{heard:?}");
    }
    let stats = handle.stats();
    assert!(handle.is_accepting());
    assert_eq!((stats.distrusted_until, stats.failures_total), (None, 2 * MAX_FRUITLESS_STEPS as u64));
}

/// Only those of the further choices are lost.
#[derive(Debug)]
struct LostInOthers;

impl Constraint for LostInOthers {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: &[u32::MAX], end: AnswerEnd::NotHere }
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Lost)
    }
}

#[test]
fn a_request_that_fails_leaves_in_that_step_with_all_of_its_choices() {
    let (mut step_loop, handle) = StepLoop::new(parts(Arc::new(NullObserver))).unwrap();
    let constraint: Option<Box<dyn Constraint>> = Some(Box::new(LostInOthers));
    let asked = Request { constraint, num_choices: 2.try_into().unwrap(), ..request(0, &[1, 2]) };
    let mut stream = handle.submit(asked).unwrap();
    let report = step_loop.step();
    step_loop.check_integrity();
    assert_eq!((report.running, report.free_blocks, report.failures.total()), (0, 64, 1));
    assert!(step_loop.is_idle() && handle.is_idle());
    let heard = std::iter::from_fn(|| stream.try_next()).last();
    assert!(matches!(heard, Some(Event::Failed { .. })), "{heard:?}");
}

/// Only its prompt may bring the poison.
fn clean(id: u64, prompt: &[u32]) -> Request {
    let mut asked = request(id, prompt);
    asked.sampling.logit_bias = vec![(POISON, -100.0)];
    asked
}

/// A run of its model takes a step's time.
struct Paced {
    step_loop: StepLoop,
    handle: EngineHandle,
    step: Duration,
}

fn paced() -> Paced {
    let (clock, step) = (ManualClock::default(), Duration::from_millis(1));
    let pace = Pace { clock: clock.clone(), step, further_token: Duration::ZERO };
    let model = StubModel::new(32, 4).with_mishap(POISON, Mishap::Error).with_pace(pace);
    let parts = EngineParts { model: Box::new(model), clock: Arc::new(clock), ..parts(Arc::new(NullObserver)) };
    let (step_loop, handle) = StepLoop::new(parts).unwrap();
    Paced { step_loop, handle, step }
}

#[test]
fn one_culprit_among_many_is_found_in_a_few_steps() {
    let Paced { mut step_loop, handle, step } = paced();
    let prompt = |id| if id == 11 { [POISON] } else { [1] };
    let _streams: Vec<_> = (0..16).map(|id| handle.submit(request(id, &prompt(id))).unwrap()).collect();
    let report = step_loop.step();
    assert_eq!((report.num_sequences, report.failures.total(), report.running), (16, 1, 15));
    // All, 8 that are well, 4 that are not, 2 and 1 that are well, the culprit, and the other 4.
    assert_eq!(report.duration, 7 * step);
}

/// Streams that have answered, and then a newcomer whose prompt fails the step, in front of them and behind.
#[test]
fn a_newcomer_that_fails_the_step_of_many_streams_costs_two_more_runs() {
    for class in [Class::Interactive, Class::Standard] {
        let Paced { mut step_loop, handle, step } = paced();
        let mut streams: Vec<_> = (0..16).map(|id| handle.submit(clean(id, &[1])).unwrap()).collect();
        step_loop.step();
        let culprit = Request { class, ..request(16, &[POISON]) };
        let mut culprit = handle.submit(culprit).unwrap();
        let report = step_loop.step();
        assert_eq!((report.num_sequences, report.generated_tokens, report.failures.total()), (17, 16, 1), "{class:?}");
        // All, those that had answered, and the newcomer.
        assert_eq!(report.duration, 3 * step, "{class:?}");
        assert!(matches!(culprit.try_next(), Some(Event::Failed { error: RequestError::Step(_), .. })));
        for stream in &mut streams {
            let heard = [stream.try_next(), stream.try_next()];
            assert!(heard.iter().all(|event| matches!(event, Some(Event::Token(_)))), "{heard:?}");
        }
    }
}

#[test]
fn every_one_of_many_culprits_fails_and_nobody_else() {
    for culprits in [vec![0, 15], vec![7, 8], (0..16).collect(), (1..16).collect()] {
        let Paced { mut step_loop, handle, .. } = paced();
        let prompt = |id| if culprits.contains(&id) { [POISON] } else { [1] };
        let mut streams: Vec<_> = (0..16).map(|id| handle.submit(request(id, &prompt(id))).unwrap()).collect();
        step_loop.step();
        for (id, stream) in (0..).zip(&mut streams) {
            let failed = matches!(stream.try_next(), Some(Event::Failed { .. }));
            assert_eq!(failed, culprits.contains(&id), "{id} of {culprits:?}");
        }
    }
}

#[test]
fn failed_requests_are_reported_by_what_failed_them() {
    let causes = [(Mishap::Nan, Fault::NotFinite), (Mishap::Panic, Fault::Panic), (Mishap::Error, Fault::Model)];
    for (mishap, fault) in causes {
        let model = StubModel::new(32, 4).with_mishap(POISON, mishap);
        let parts = EngineParts { model: Box::new(model), ..parts(Arc::new(NullObserver)) };
        let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
        let _streams = [[POISON], [1]].map(|prompt| handle.submit(clean(0, &prompt)).unwrap());
        let reports = [step_loop.step(), step_loop.step()].map(|report| report.failures);
        assert_eq!(reports, [FaultCounts::of(fault, 1), FaultCounts::default()], "{mishap:?}");
    }
}
