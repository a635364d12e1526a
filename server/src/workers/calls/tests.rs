use std::num::NonZeroU32;

use passerelle_engine::{Event as EngineEvent, FeedError, RequestId, SamplingParams, ShareKey, TokenEvent, Usage};

use super::super::wire::{Event, Finished, Malformed, Reason, Vector};
use super::*;

const VOCAB_SIZE: usize = 50;

/// Of three tokens, to answer with at most four.
fn generate(granted_tokens: Option<u32>) -> (Job, EventStream) {
    let sampling = SamplingParams { max_tokens: 4, ..SamplingParams::default() };
    let request = Request { granted_tokens, ..Request::new(RequestId(1), vec![1, 2, 3], sampling) };
    Job::generate(request, None, VOCAB_SIZE)
}

fn calls_with(jobs: impl IntoIterator<Item = Job>) -> Calls {
    let (mut calls, bell) = (Calls::default(), Arc::default());
    jobs.into_iter().for_each(|job| calls.add(0, job, &bell));
    calls
}

fn token(token: u32) -> Event {
    EngineEvent::Token(TokenEvent { choice: 0, token, logprobs: None }).into()
}

fn end() -> Event {
    Event { what: Some(event::What::Finished(Finished { choice: 0, reason: Reason::Length.into() })) }
}

fn heard(call: u64, events: Vec<Event>) -> Heard {
    Heard { call, cached_tokens: Some(1), measured_ns: 70, events }
}

#[test]
fn what_a_worker_says_of_a_request_reaches_its_reader_and_its_bill() {
    let (job, mut stream) = generate(None);
    let mut calls = calls_with([job]);
    let orders = calls.take_orders().expect("a request is to be sent");
    assert_eq!((orders.submissions.len(), orders.submissions[0].call), (1, 0));
    assert_eq!(calls.take_orders(), None, "it is sent once");
    calls.hear(heard(0, vec![token(5), token(6)])).expect("sense");
    calls.hear(heard(0, vec![end()])).expect("sense");
    assert!(calls.is_empty());
    let tokens = std::iter::from_fn(|| stream.try_next()).filter(|event| matches!(event, EngineEvent::Token(_)));
    assert_eq!(tokens.count(), 2);
    let bill = Usage { prompt_tokens: 3, cached_tokens: 1, generated_tokens: 2, measured_ns: 70 };
    assert_eq!(stream.usage(), bill);
}

#[test]
fn a_worker_is_told_once_of_what_a_reader_changes() {
    let (job, stream) = generate(Some(1));
    let mut calls = calls_with([job]);
    assert_eq!(calls.take_orders().expect("a request").submissions[0].granted_tokens, 1);
    stream.grant(2);
    let change = Change { call: 0, granted_tokens: 3, closed_choices: Vec::new() };
    assert_eq!(calls.take_orders().expect("a grant").changes, [change]);
    assert_eq!(calls.take_orders(), None);
    drop(stream);
    let change = Change { call: 0, granted_tokens: 3, closed_choices: vec![0] };
    assert_eq!(calls.take_orders().expect("it left").changes, [change]);
    assert_eq!(calls.take_orders(), None);
}

#[test]
fn what_nobody_waits_for_any_more_is_never_sent() {
    let ((job, stream), (text, reply)) = (generate(None), encode());
    let mut calls = calls_with([job, text]);
    drop((stream, reply));
    assert_eq!(calls.take_orders(), None);
    assert!(calls.is_empty());
}

#[test]
fn a_choice_that_is_closed_before_its_request_is_sent_ends_neither_the_others_nor_the_worker() {
    let sampling = SamplingParams { max_tokens: 4, ..SamplingParams::default() };
    let num_choices = NonZeroU32::new(2).expect("not zero");
    let request = Request { num_choices, ..Request::new(RequestId(1), vec![1, 2, 3], sampling) };
    let (job, stream) = Job::generate(request, None, VOCAB_SIZE);
    let mut calls = calls_with([job]);
    stream.abort_choice(1);
    let orders = calls.take_orders().expect("a request is to be sent");
    assert_eq!((orders.submissions.len(), orders.changes.len()), (1, 1));
    assert_eq!(orders.changes[0].closed_choices, [1]);
    // The worker begins before it comes to the change.
    let of = |choice| Event::from(EngineEvent::Token(TokenEvent { choice, token: 5, logprobs: None }));
    calls.hear(heard(0, vec![of(1), of(0)])).expect("sense");
    assert_eq!(stream.usage().generated_tokens, 1);
}

#[test]
fn the_bell_rings_for_the_link_that_has_the_request() {
    let (job, stream) = generate(Some(1));
    let (mut calls, bell) = (Calls::default(), Arc::new(Notify::new()));
    calls.add(0, job, &bell);
    stream.grant(1);
    let rung = std::pin::pin!(bell.notified());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(rung.poll(&mut context).is_ready());
}

#[test]
fn occupancy_counts_what_waits_until_it_has_begun() {
    let jobs = [generate(None), generate(None)];
    let (jobs, _streams): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
    let mut calls = calls_with(jobs);
    let _ = calls.take_orders();
    let read = |owed_tokens| Occupancy { unanswered_prompt_tokens: 6, owed_tokens, ..Occupancy::default() };
    let both = Occupancy { waiting_requests: 2, waiting_tokens: 6, ..read(8) };
    assert_eq!((calls.occupancy(0), calls.occupancy(1)), (both, Occupancy::default()));
    calls.hear(heard(1, Vec::new())).expect("sense");
    let started = Occupancy { waiting_requests: 1, waiting_tokens: 3, running_requests: 1, ..read(8) };
    assert_eq!(calls.occupancy(0), started, "its prompt may not have been read yet");
    calls.hear(heard(1, vec![token(5)])).expect("sense");
    assert_eq!(calls.occupancy(0), Occupancy { unanswered_prompt_tokens: 3, owed_tokens: 7, ..started });
}

#[test]
fn what_no_worker_says_is_a_violation() {
    let ((job, _stream), (text, _reply)) = (generate(None), encode());
    let mut calls = calls_with([job, text]);
    let _ = calls.take_orders();
    let vector = || Event { what: Some(event::What::Vector(Vector { values: vec![1.0], owed_tokens: 1 })) };
    assert_eq!(calls.hear(heard(9, vec![token(1)])), Err(Violation::UnknownCall));
    assert_eq!(calls.hear(heard(0, vec![vector()])), Err(Malformed("vector").into()));
    assert_eq!(calls.hear(heard(0, vec![Event { what: None }])), Err(Malformed("event").into()));
    assert_eq!(calls.hear(heard(0, vec![token(50)])), Err(FeedError::UnknownToken.into()));
    assert_eq!(calls.hear(heard(1, vec![token(1)])), Err(Malformed("event").into()));
    assert_eq!(calls.hear(heard(1, vec![vector()])), Err(Malformed("vector").into()), "one number, not two");
    for odd in [f32::NAN, f32::INFINITY] {
        let vector = event::What::Vector(Vector { values: vec![1.0, odd], owed_tokens: 1 });
        let said = heard(1, vec![Event { what: Some(vector) }]);
        assert_eq!(calls.hear(said), Err(Malformed("vector").into()), "{odd}");
    }
    let unstarted = Heard { cached_tokens: None, ..heard(0, vec![token(1)]) };
    let mut fresh = calls_with([generate(None).0]);
    let _ = fresh.take_orders();
    assert_eq!(fresh.hear(unstarted), Err(Violation::UnknownCall), "its reader had left before");
}

fn encode() -> (Job, EncodeReply) {
    Job::encode(EncodeRequest { id: RequestId(2), tokens: vec![1, 2], second_text: None, share_key: ShareKey(0) }, 2)
}

#[test]
fn a_text_is_answered_once_and_owes_no_more_than_itself() {
    let (job, mut reply) = encode();
    let mut calls = calls_with([job]);
    let _ = calls.take_orders();
    let vector = event::What::Vector(Vector { values: vec![0.5, -1.0], owed_tokens: 1000 });
    let answer = || heard(0, vec![Event { what: Some(vector.clone()) }]);
    calls.hear(answer()).expect("sense");
    assert_eq!(calls.hear(answer()), Err(Violation::UnknownCall));
    assert_eq!(reply.close().prompt_tokens, 2);
    let waiting = std::pin::pin!(reply.wait());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert_eq!(waiting.poll(&mut context), std::task::Poll::Ready(Ok(vec![0.5, -1.0])));
}

#[test]
fn calls_that_are_lost_end_their_readers() {
    let ((sent, mut first), (unsent, mut second)) = (generate(None), generate(None));
    let mut calls = calls_with([sent]);
    let _ = calls.take_orders();
    calls.add(0, unsent, &Arc::default());
    drop(calls);
    for stream in [&mut first, &mut second] {
        assert!(matches!(stream.try_next(), Some(EngineEvent::Failed { error: RequestError::WorkerLost, .. })));
    }
}
