use std::sync::Arc;

use passerelle_models::{Encoder, EncoderInput, ModelError, Vectors};

use super::*;
use crate::clock::SystemClock;
use crate::error::SubmitError;
use crate::event::{RequestError, Usage};
use crate::stats::NullObserver;
use crate::testing::StepGate;
use crate::turns::StepTurns;

const VOCAB: usize = 100;
const PANICS: u32 = 90;
const FAILS: u32 = 91;
const NOT_A_NUMBER: u32 = 92;

/// A text's vector is its length, its tokens' sum, and how many texts ran with it.
struct Counting {
    gate: StepGate,
    /// A further token that brings a panic.
    also_panics: Option<u32>,
}

impl Encoder for Counting {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_tokens(&self) -> usize {
        64
    }

    fn width(&self) -> usize {
        3
    }

    fn forward(&mut self, input: &EncoderInput) -> Result<Vectors, ModelError> {
        self.gate.pass();
        let tokens = input.step().tokens();
        let panics = |token: &u32| *token == PANICS || Some(*token) == self.also_panics;
        assert!(!tokens.iter().any(panics), "a token that brings a panic");
        if tokens.contains(&FAILS) {
            return Err(ModelError::Input("a token that brings an error".into()));
        }
        let mut values = Vec::new();
        for sequence in 0..input.num_sequences() {
            let text = &tokens[input.rows(sequence)];
            let sum: u32 = text.iter().sum();
            let sum = if text.contains(&NOT_A_NUMBER) { f32::NAN } else { sum as f32 };
            values.extend([text.len() as f32, sum, input.num_sequences() as f32]);
        }
        Ok(Vectors::new(3, values))
    }
}

fn lane(config: EncoderConfig) -> (EncoderEngine, StepGate) {
    let gate = StepGate::default();
    (lane_of(Counting { gate: gate.clone(), also_panics: None }, config), gate)
}

fn lane_of(model: Counting, config: EncoderConfig) -> EncoderEngine {
    let parts = EncoderParts {
        name: "test".into(),
        model: Box::new(model),
        config,
        turns: StepTurns::new(),
        clock: Arc::new(SystemClock::new()),
        observer: Arc::new(NullObserver),
    };
    EncoderEngine::spawn(parts).unwrap()
}

fn config() -> EncoderConfig {
    EncoderConfig { max_text_tokens: 64, ..EncoderConfig::default() }
}

fn text(tokens: &[u32]) -> EncodeRequest {
    shared_by(0, tokens)
}

fn shared_by(key: u64, tokens: &[u32]) -> EncodeRequest {
    EncodeRequest { id: RequestId(0), tokens: tokens.to_vec(), second_text: None, share_key: ShareKey(key) }
}

/// Waits until the lane holds a batch of `texts` at the gate.
fn wait_for_running(handle: &EncoderHandle, texts: usize) {
    while handle.stats().running != texts {
        std::thread::yield_now();
    }
}

#[test]
fn what_waits_together_runs_together_within_the_budget() {
    let (engine, gate) = lane(EncoderConfig { max_batch_tokens: 10, max_batch_texts: 3, ..config() });
    let handle = engine.handle();
    let first = handle.submit(text(&[1])).unwrap();
    wait_for_running(&handle, 1);
    let replies: Vec<_> = [&[1; 4][..], &[1; 4], &[1; 4], &[1; 20], &[1], &[1], &[1], &[1]]
        .map(|tokens| handle.submit(text(tokens)).unwrap())
        .into();
    gate.open();
    assert_eq!(first.blocking_wait().unwrap(), [1.0, 1.0, 1.0]);
    let companies: Vec<_> = replies.into_iter().map(|reply| reply.blocking_wait().unwrap()[2]).collect();
    // Two of four tokens fill it; the third waits for a text that is too long for company; three texts are the most.
    assert_eq!(companies, [2.0, 2.0, 1.0, 1.0, 3.0, 3.0, 3.0, 1.0]);
    assert_eq!(handle.stats().prompt_tokens_total, 1 + 12 + 20 + 4);
}

#[test]
fn shares_take_turns_however_much_one_of_them_asks() {
    let (engine, gate) = lane(EncoderConfig { max_batch_texts: 1, ..config() });
    let handle = engine.handle();
    let first = handle.submit(text(&[1])).unwrap();
    wait_for_running(&handle, 1);
    let greedy: Vec<_> = (0..20).map(|_| handle.submit(shared_by(1, &[1; 8])).unwrap()).collect();
    let modest = handle.submit(shared_by(2, &[1; 8])).unwrap();
    // The batch at the gate, one of the greedy and the modest one.
    gate.allow(3);
    first.blocking_wait().unwrap();
    modest.blocking_wait().unwrap();
    assert!(handle.stats().waiting >= 18, "{:?}", handle.stats());
    drop(greedy);
    gate.open();
}

#[test]
fn only_the_text_at_fault_fails() {
    for (token, is_expected) in [
        (PANICS, (|error| matches!(error, RequestError::Panic)) as fn(&RequestError) -> bool),
        (FAILS, |error| matches!(error, RequestError::Step(why) if why.contains("brings an error"))),
        (NOT_A_NUMBER, |error| *error == RequestError::NotFinite),
    ] {
        let (engine, gate) = lane(config());
        let handle = engine.handle();
        let first = handle.submit(text(&[1])).unwrap();
        wait_for_running(&handle, 1);
        let [before, at_fault, after] = [1, token, 2].map(|token| handle.submit(text(&[token])).unwrap());
        gate.open();
        first.blocking_wait().unwrap();
        assert_eq!(before.blocking_wait().unwrap()[1], 1.0);
        assert_eq!(after.blocking_wait().unwrap()[1], 2.0);
        let error = at_fault.blocking_wait().unwrap_err();
        assert!(is_expected(&error), "{error}");
        assert_eq!(handle.stats().failures_total, 1);
        assert!(!handle.is_dead());
    }
}

#[test]
fn a_text_that_nobody_waits_for_is_not_run_and_not_owed() {
    let (engine, gate) = lane(config());
    let handle = engine.handle();
    let first = handle.submit(text(&[1, 1])).unwrap();
    wait_for_running(&handle, 1);
    let (waiting, kept) = (handle.submit(text(&[1; 5])).unwrap(), handle.submit(text(&[1; 7])).unwrap());
    assert_eq!(waiting.close(), Usage::default());
    drop(waiting);
    // One that runs is owed, and leaves nothing behind.
    assert_eq!(first.close().prompt_tokens, 2);
    drop(first);
    gate.open();
    assert_eq!(kept.blocking_wait().unwrap(), [7.0, 7.0, 1.0]);
    assert_eq!(handle.stats().prompt_tokens_total, 9);
    assert!(handle.is_idle());
}

#[test]
fn a_full_queue_refuses_at_once_and_room_comes_back() {
    let bounds = EncoderConfig { max_waiting_texts: 2, max_waiting_tokens: 10, ..config() };
    let (engine, gate) = lane(bounds);
    let handle = engine.handle();
    let first = handle.submit(text(&[1])).unwrap();
    wait_for_running(&handle, 1);
    let second = handle.submit(text(&[1; 8])).unwrap();
    assert!(matches!(handle.submit(text(&[1; 3])), Err(SubmitError::Full { waiting_requests: 1, waiting_tokens: 8 })));
    let third = handle.submit(text(&[1])).unwrap();
    assert!(matches!(handle.submit(text(&[1])), Err(SubmitError::Full { waiting_requests: 2, .. })));
    gate.open();
    for reply in [first, second, third] {
        reply.blocking_wait().unwrap();
    }
    handle.submit(text(&[1; 8])).unwrap().blocking_wait().unwrap();
}

#[test]
fn what_can_never_be_read_is_refused_at_once() {
    let (engine, _) = lane(config());
    let refused = |request| engine.handle().submit(request).unwrap_err();
    assert_eq!(refused(text(&[])), SubmitError::EmptyPrompt);
    assert!(matches!(refused(text(&[1; 65])), SubmitError::TooLong { prompt_tokens: 65, max_model_len: 64, .. }));
    assert_eq!(refused(text(&[100])), SubmitError::InvalidToken { token: 100, vocab_size: VOCAB });
    let zero = EncoderConfig { max_batch_texts: 0, ..config() };
    assert!(zero.validate(64).is_err());
    assert!(EncoderConfig { max_text_tokens: 65, ..config() }.validate(64).is_err());
}

#[test]
fn a_shutdown_fails_what_waits_and_refuses_what_comes() {
    let (engine, gate) = lane(EncoderConfig { max_batch_texts: 1, ..config() });
    let handle = engine.handle();
    let first = handle.submit(text(&[1])).unwrap();
    wait_for_running(&handle, 1);
    let waiting = handle.submit(text(&[1])).unwrap();
    handle.shutdown();
    assert_eq!(handle.submit(text(&[1])).unwrap_err(), SubmitError::ShuttingDown);
    gate.open();
    assert!(first.blocking_wait().is_ok());
    assert_eq!(waiting.blocking_wait().unwrap_err(), RequestError::ShuttingDown);
    drop(engine);
}

#[test]
fn texts_that_a_model_fails_end_no_encoder_that_still_reads_others() {
    let (engine, gate) = lane(config());
    let handle = engine.handle();
    gate.open();
    for token in [PANICS, NOT_A_NUMBER].into_iter().cycle().take(50) {
        handle.submit(text(&[token])).unwrap().blocking_wait().unwrap_err();
    }
    assert_eq!(handle.submit(text(&[7, 8])).unwrap().blocking_wait().unwrap(), [2.0, 15.0, 1.0]);
}

#[test]
fn a_model_that_fails_every_text_is_given_up() {
    let gate = StepGate::default();
    let engine = lane_of(Counting { gate: gate.clone(), also_panics: Some(0) }, config());
    let handle = engine.handle();
    gate.open();
    while !handle.is_dead() {
        let Ok(reply) = handle.submit(text(&[PANICS])) else { break };
        reply.blocking_wait().unwrap_err();
    }
    assert_eq!(handle.submit(text(&[1])).unwrap_err(), SubmitError::Dead);
}
