//! What a constrained request may rely on.

use crate::common::{alone, config, events, greedy, model, request, run_to_end, step_loop, tokens};
use passerelle_engine::{
    Allowed, AnswerEnd, Constraint, ConstraintError, EngineConfig, Event, FinishReason, Request, RequestError,
    SamplingParams,
};

/// Every answer counts up: each token is one or two above the one before, from 1 on, and 40 or 41 is the last.
#[derive(Debug, Clone)]
struct Rising {
    last: u32,
    allowed: [u32; 2],
}

const GOAL: u32 = 40;

impl Rising {
    fn boxed() -> Box<dyn Constraint> {
        Box::new(Self::after(0))
    }

    fn after(last: u32) -> Self {
        let bits = 0b11_u64 << (last + 1);
        Self { last, allowed: [bits as u32, (bits >> 32) as u32] }
    }
}

impl Constraint for Rising {
    fn allowed(&self) -> Allowed<'_> {
        let end = if self.last >= GOAL { AnswerEnd::Reached } else { AnswerEnd::NotHere };
        Allowed { tokens: &self.allowed, end }
    }

    fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        assert!(self.allowed().allows(token), "{token} after {}", self.last);
        *self = Self::after(token);
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Gives up at its third token.
#[derive(Debug, Clone, Default)]
struct Tiring(u32);

impl Constraint for Tiring {
    fn allowed(&self) -> Allowed<'_> {
        Allowed { tokens: &[u32::MAX; 2], end: AnswerEnd::NotHere }
    }

    fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
        self.0 += 1;
        if self.0 < 3 { Ok(()) } else { Err(ConstraintError::TooComplex) }
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

fn rising(prompt: &[u32], sampling: SamplingParams) -> Request {
    Request { constraint: Some(Rising::boxed()), ..request(prompt, sampling) }
}

fn sampled(seed: u64) -> SamplingParams {
    SamplingParams { max_tokens: 45, seed: Some(seed), ..SamplingParams::default() }
}

#[test]
fn a_constraint_is_followed_to_its_end_at_any_temperature() {
    for sampling in [greedy(60), sampled(1), SamplingParams { top_p: 0.5, ..sampled(2) }] {
        let got = alone(model(), config(), rising(&[5, 6, 7], sampling));
        let steps = [&[0], tokens(&got).as_slice()].concat();
        assert!(steps.windows(2).all(|pair| (1..=2).contains(&(pair[1] - pair[0]))), "{steps:?}");
        assert!(steps.last().is_some_and(|last| *last >= GOAL));
        assert!(matches!(got.last(), Some(Event::Finished { reason: FinishReason::Stop, .. })));
    }
}

#[test]
fn nothing_follows_a_complete_answer_whatever_the_minimum() {
    let patient = SamplingParams { min_tokens: 60, ..greedy(60) };
    assert!(tokens(&alone(model(), config(), rising(&[1], patient))).len() <= GOAL as usize);
}

#[test]
fn a_stop_token_does_not_cut_an_unfinished_answer() {
    // Token 63 is never allowed as text.
    let eager = SamplingParams { stop_token_ids: vec![63], logit_bias: vec![(63, 1e6)], ..greedy(60) };
    let got = tokens(&alone(model(), config(), rising(&[1], eager)));
    assert!(!got.contains(&63) && got.last().is_some_and(|last| *last >= GOAL), "{got:?}");
}

#[test]
fn a_preempted_answer_keeps_its_place_in_the_grammar() {
    let tight = EngineConfig { num_kv_blocks: 16, ..config() };
    let (mut step_loop, handle) = step_loop(model(), tight.clone());
    let requests: Vec<_> = (0..4).map(|i| rising(&[i, 1, 2, 3, 4], sampled(u64::from(i)))).collect();
    let streams: Vec<_> = requests.iter().map(|request| handle.submit(request.clone()).unwrap()).collect();
    run_to_end(&mut step_loop);
    assert!(handle.stats().preemptions_total > 0, "the pool is tight enough to preempt");
    for (mut stream, request) in streams.into_iter().zip(requests) {
        assert_eq!(events(&mut stream), alone(model(), tight.clone(), request));
    }
}

#[test]
fn a_constraint_that_gives_up_fails_its_request_alone() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let tiring = Request { constraint: Some(Box::new(Tiring::default())), ..request(&[1, 2], greedy(10)) };
    let mut tiring = handle.submit(tiring).unwrap();
    let mut other = handle.submit(request(&[5, 6, 7], greedy(10))).unwrap();
    run_to_end(&mut step_loop);
    let got = events(&mut tiring);
    assert_eq!(tokens(&got).len(), 3);
    let error = RequestError::Constraint(ConstraintError::TooComplex);
    assert!(matches!(got.last(), Some(Event::Failed { error: given, .. }) if *given == error));
    assert_eq!(tokens(&events(&mut other)), model().greedy(&[5, 6, 7], 10));
}

#[test]
fn what_leaves_no_token_fails_the_request() {
    let forbidden = SamplingParams { bad_words: vec![vec![1], vec![2]], ..greedy(10) };
    let got = alone(model(), config(), rising(&[1], forbidden));
    assert!(matches!(got.last(), Some(Event::Failed { error: RequestError::NothingAllowed, .. })));
}
