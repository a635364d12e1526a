use std::sync::{Arc, Mutex};

use super::*;
use crate::clock::ManualClock;
use crate::error::SubmitError;
use crate::event::RequestError;
use crate::fault::{Fault, FaultCounts};
use crate::stats::{NullObserver, StepObserver, StepReport};
use crate::testing::{Mishap, StepGate, StubModel};
use crate::turns::StepTurns;

const VOCAB: usize = 64;
const BLOCK_SIZE: usize = 4;
const POISON: u32 = 63;

#[derive(Default)]
struct Steps(Mutex<Vec<usize>>);

impl StepObserver for Steps {
    fn step(&self, report: &StepReport) {
        self.0.lock().unwrap().push(report.prompt_tokens);
    }
}

#[derive(Default)]
struct Failures(Mutex<FaultCounts>);

impl StepObserver for Failures {
    fn step(&self, report: &StepReport) {
        *self.0.lock().unwrap() += report.failures;
    }
}

fn parts(config: ComparisonConfig) -> ComparisonParts {
    let (turns, clock) = (StepTurns::new(), Arc::new(ManualClock::default()));
    ComparisonParts { config, turns, clock, observer: Arc::new(NullObserver) }
}

fn lane(config: ComparisonConfig) -> ComparisonLane {
    ComparisonLane::spawn(parts(config)).unwrap()
}

/// The turnstile shows how far the lane has come.
fn watched(config: ComparisonConfig) -> (ComparisonLane, StepTurns) {
    let parts = parts(config);
    let turns = parts.turns.clone();
    (ComparisonLane::spawn(parts).unwrap(), turns)
}

fn shared(model: StubModel) -> SharedModel {
    SharedModel::from(Box::new(model) as Box<dyn passerelle_models::CausalLm>)
}

fn stub() -> StubModel {
    StubModel::new(VOCAB, BLOCK_SIZE)
}

fn request(tokens: &[u32]) -> ComparisonRequest {
    between(tokens, stub(), stub())
}

fn between(tokens: &[u32], first: StubModel, second: StubModel) -> ComparisonRequest {
    let (first, second) = (shared(first), shared(second));
    ComparisonRequest { id: RequestId(0), tokens: tokens.to_vec(), first, second, share_key: ShareKey(0) }
}

/// Each step of the first model waits for the gate.
fn held() -> (ComparisonRequest, StepGate) {
    let gate = StepGate::default();
    (between(&[1, 2, 3, 4, 5, 6], stub().with_gate(gate.clone()), stub()), gate)
}

#[test]
fn every_position_but_the_first_is_compared_in_chunks_of_at_most_the_bound() {
    let steps = Arc::new(Steps::default());
    let config = ComparisonConfig { max_chunk_tokens: 7, ..ComparisonConfig::default() };
    let lane = ComparisonLane::spawn(ComparisonParts { observer: Arc::clone(&steps) as _, ..parts(config) }).unwrap();
    let tokens: Vec<u32> = (0..17).collect();
    let reply = lane.handle().submit(request(&tokens)).unwrap();
    let compared = reply.blocking_wait().unwrap();
    assert_eq!(compared.len(), 17);
    assert_eq!(compared[0], None);
    for (position, compared) in compared.iter().enumerate().skip(1) {
        let compared = compared.as_ref().unwrap();
        let row = stub().logits(&tokens[..position]);
        let expected = crate::logprobs::token_logprobs(&row, tokens[position], 1).unwrap();
        assert_eq!((&compared.first, compared.kl), (&expected, 0.0));
        assert_eq!(compared.first, compared.second);
    }
    drop(lane);
    assert_eq!(*steps.0.lock().unwrap(), [7, 7, 7, 7, 3, 3]);
}

#[test]
fn a_text_of_one_token_has_nothing_to_compare_and_is_counted() {
    let lane = lane(ComparisonConfig::default());
    let mut reply = lane.handle().submit(request(&[5])).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(reply.wait()), Ok(vec![None]));
    assert_eq!(reply.close().prompt_tokens, 1);
}

#[test]
fn whoever_leaves_owes_what_had_begun_and_the_next_one_runs() {
    let (lane, turns) = watched(ComparisonConfig { max_chunk_tokens: 2, ..ComparisonConfig::default() });
    let (request_at_gate, gate) = held();
    let leaving = lane.handle().submit(request_at_gate).unwrap();
    let waiting = lane.handle().submit(request(&[1, 2])).unwrap();
    // The second chunk stands at the gate.
    gate.allow(1);
    turns.wait_until_asked(4);
    assert_eq!(waiting.close().prompt_tokens, 0);
    assert_eq!(leaving.close().prompt_tokens, 4);
    drop((waiting, leaving));
    gate.open();
    let next = lane.handle().submit(request(&[7, 8, 9])).unwrap();
    assert_eq!(next.blocking_wait().unwrap().len(), 3);
    // Neither the third chunk nor the one that waited took a turn: four of the first, and four of the next, and for each one
    // in which its caches came and one in which they went.
    turns.wait_until_asked(12);
    assert!(lane.handle().is_idle());
    assert_eq!(turns.num_asked(), 12);
}

#[test]
fn whoever_leaves_the_line_frees_its_models_at_the_next_chunk_of_another() {
    let (lane, turns) = watched(ComparisonConfig { max_chunk_tokens: 2, ..ComparisonConfig::default() });
    let (request_at_gate, gate) = held();
    let running = lane.handle().submit(request_at_gate).unwrap();
    turns.wait_until_asked(2);
    let left = request(&[1, 2]);
    let lent = left.first.lend(Arc::new(NullObserver));
    drop(lane.handle().submit(left).unwrap());
    let was_kept = lent.get().is_some();
    // The second chunk stands at the gate.
    gate.allow(1);
    turns.wait_until_asked(4);
    let is_kept = lent.get().is_some();
    // Before anything is judged: a lane whose thread stands at a gate does not end.
    gate.open();
    assert_eq!(running.blocking_wait().unwrap().len(), 6);
    assert_eq!((was_kept, is_kept), (true, false));
}

#[test]
fn a_shutdown_ends_a_comparison_between_two_chunks() {
    let (lane, turns) = watched(ComparisonConfig { max_chunk_tokens: 2, ..ComparisonConfig::default() });
    let (request_at_gate, gate) = held();
    let running = lane.handle().submit(request_at_gate).unwrap();
    turns.wait_until_asked(2);
    let waiting = lane.handle().submit(request(&[1, 2])).unwrap();
    lane.handle().shutdown();
    assert_eq!(lane.handle().submit(request(&[1])).unwrap_err(), SubmitError::ShuttingDown);
    gate.open();
    assert_eq!(running.blocking_wait().unwrap_err(), RequestError::ShuttingDown);
    assert_eq!(waiting.blocking_wait().unwrap_err(), RequestError::ShuttingDown);
}

#[test]
fn what_can_never_be_compared_is_refused_at_once() {
    let lane = lane(ComparisonConfig { max_text_tokens: 6, max_waiting_texts: 1, ..ComparisonConfig::default() });
    let refused = |request| lane.handle().submit(request).unwrap_err();
    let other = StubModel::new(VOCAB + 1, BLOCK_SIZE);
    let error = refused(between(&[1], stub(), other));
    assert_eq!(error, SubmitError::DifferentVocabularies { first: 64, second: 65 });
    assert!(error.to_string().contains("different vocabularies"), "{error}");
    assert_eq!(refused(request(&[])), SubmitError::EmptyPrompt);
    assert_eq!(refused(request(&[64])), SubmitError::InvalidToken { token: 64, vocab_size: VOCAB });
    assert!(matches!(refused(request(&[1; 7])), SubmitError::TooLong { max_model_len: 6, .. }));
    let short = between(&[1; 5], stub(), stub().with_max_position(4));
    assert!(matches!(refused(short), SubmitError::TooLong { max_model_len: 4, .. }));
    let zero = ComparisonConfig { max_chunk_tokens: 0, ..ComparisonConfig::default() };
    assert!(ComparisonLane::spawn(parts(zero)).is_err());
}

#[test]
fn a_full_lane_refuses_at_once() {
    let (lane, turns) = watched(ComparisonConfig { max_waiting_texts: 1, ..ComparisonConfig::default() });
    let (request_at_gate, gate) = held();
    let running = lane.handle().submit(request_at_gate).unwrap();
    turns.wait_until_asked(2);
    let waiting = lane.handle().submit(request(&[1])).unwrap();
    let refused = lane.handle().submit(request(&[1])).unwrap_err();
    assert!(matches!(refused, SubmitError::Full { waiting_requests: 1, .. }), "{refused}");
    gate.open();
    assert_eq!(running.blocking_wait().unwrap().len(), 6);
    assert_eq!(waiting.blocking_wait().unwrap().len(), 1);
}

#[test]
fn a_model_that_fails_fails_its_comparison_alone() {
    let lane = lane(ComparisonConfig::default());
    for (mishap, is_expected) in [
        (Mishap::Panic, (|error| matches!(error, RequestError::Panic)) as fn(&RequestError) -> bool),
        (Mishap::Error, |error| matches!(error, RequestError::Step(why) if why.contains("brings an error"))),
        (Mishap::Nan, |error| *error == RequestError::NotFinite),
    ] {
        let sick = || stub().with_mishap(POISON, mishap);
        for request in [between(&[1, POISON, 2], sick(), stub()), between(&[1, POISON, 2], stub(), sick())] {
            let error = lane.handle().submit(request).unwrap().blocking_wait().unwrap_err();
            assert!(is_expected(&error), "{error}");
        }
        assert_eq!(lane.handle().submit(request(&[1, 2])).unwrap().blocking_wait().unwrap().len(), 2);
    }
}

#[test]
fn a_comparison_that_fails_is_a_failure_of_the_model_that_failed_it_and_not_of_the_other() {
    let lane = lane(ComparisonConfig::default());
    let faults = [(Mishap::Nan, Fault::NotFinite), (Mishap::Panic, Fault::Panic), (Mishap::Error, Fault::Model)];
    for ((mishap, fault), sick) in faults.into_iter().flat_map(|fault| [(fault, 0), (fault, 1)]) {
        let counted = [0, 1].map(|_| Arc::new(Failures::default()));
        let engines = [0, 1].map(|side| {
            let model = if side == sick { stub().with_mishap(POISON, mishap) } else { stub() };
            let parts = crate::testing::parts(model, crate::EngineConfig::default());
            crate::Engine::spawn(crate::EngineParts { observer: Arc::clone(&counted[side]) as _, ..parts }).unwrap()
        });
        let [first, second] = engines.each_ref().map(|engine| engine.handle().model().unwrap());
        let request = ComparisonRequest { first, second, ..request(&[1, POISON, 2]) };
        assert!(lane.handle().submit(request).unwrap().blocking_wait().is_err());
        let mut expected = [FaultCounts::default(); 2];
        expected[sick] = FaultCounts::of(fault, 1);
        assert_eq!(counted.each_ref().map(|counted| *counted.0.lock().unwrap()), expected);
    }
}

#[test]
fn a_model_is_not_kept_by_the_door_of_an_engine_that_ended() {
    let engine = crate::Engine::spawn(crate::testing::parts(stub(), crate::EngineConfig::default())).unwrap();
    let handle = engine.handle();
    let lent = handle.model().unwrap();
    drop(engine);
    assert!(handle.model().is_some(), "whoever runs it keeps it");
    drop(lent);
    assert!(handle.model().is_none());
}
