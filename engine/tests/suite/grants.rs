//! A request may generate what was granted, no more; without a grant it holds up nobody.

use crate::common::{alone, config, events, greedy, model, parts, request, run_to_end, step_loop, tokens};
use passerelle_engine::testing::StepGate;
use passerelle_engine::{Engine, EngineConfig, Event, Request};

fn granted(tokens: u32, request: Request) -> Request {
    Request { granted_tokens: Some(tokens), ..request }
}

#[test]
fn a_request_generates_what_was_granted_and_goes_on_exactly_where_it_stopped() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let mut stream = handle.submit(granted(3, request(&[5, 6, 7], greedy(10)))).unwrap();
    (0..6).for_each(|_| _ = step_loop.step());
    let mut got = events(&mut stream);
    assert_eq!(tokens(&got).len(), 3);
    assert_eq!((handle.stats().parked, handle.stats().running, handle.stats().free_blocks), (1, 0, 32));
    for grant in [1, 2, 100] {
        stream.grant(grant);
        (0..8).for_each(|_| {
            step_loop.step();
            step_loop.check_integrity();
        });
        got.extend(events(&mut stream));
        assert_eq!(tokens(&got).len(), [4, 6, 10][grant.min(3) as usize - 1]);
    }
    assert_eq!(got, alone(model(), config(), request(&[5, 6, 7], greedy(10))));
    assert!(handle.is_idle());
}

#[test]
fn nothing_runs_before_the_first_grant() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let stream = handle.submit(granted(0, request(&[5, 6, 7], greedy(10)))).unwrap();
    assert_eq!(step_loop.step().num_sequences, 0);
    assert_eq!((handle.stats().parked, handle.stats().prompt_tokens_total), (1, 0));
    stream.grant(1);
    assert_eq!(step_loop.step().generated_tokens, 1);
}

#[test]
fn parked_requests_take_neither_places_nor_blocks() {
    let (mut step_loop, handle) = step_loop(model(), EngineConfig { max_num_seqs: 2, num_kv_blocks: 4, ..config() });
    let parked: Vec<_> =
        (0..2).map(|i| handle.submit(granted(1, request(&[i, 1, 2, 3, 4], greedy(4)))).unwrap()).collect();
    (0..3).for_each(|_| _ = step_loop.step());
    assert_eq!(handle.stats().parked, 2);
    let mut other = handle.submit(request(&[7, 7], greedy(14))).unwrap();
    (0..20).for_each(|_| _ = step_loop.step());
    assert_eq!(tokens(&events(&mut other)), model().greedy(&[7, 7], 14));
    drop(parked);
    run_to_end(&mut step_loop);
    assert!(handle.is_idle());
}

#[test]
fn a_request_that_was_granted_more_and_finds_no_place_counts_among_those_that_wait() {
    let (mut step_loop, handle) = step_loop(model(), EngineConfig { max_num_seqs: 1, ..config() });
    let stream = handle.submit(granted(1, request(&[5, 6], greedy(4)))).unwrap();
    (0..2).for_each(|_| _ = step_loop.step());
    let _other = handle.submit(request(&[7, 7], greedy(20))).unwrap();
    step_loop.step();
    stream.grant(3);
    let report = step_loop.step();
    let stats = handle.stats();
    let apart = [stats.running, stats.parked, stats.waiting, stats.resuming];
    assert_eq!((apart, report.waiting), ([1, 0, 0, 1], 1));
    run_to_end(&mut step_loop);
    assert_eq!(handle.stats().resuming, 0);
}

#[test]
fn a_parked_request_that_is_aborted_is_gone_at_the_next_step() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let stream = handle.submit(granted(1, request(&[5, 6], greedy(9)))).unwrap();
    (0..2).for_each(|_| _ = step_loop.step());
    assert!(!handle.is_idle());
    drop(stream);
    step_loop.step();
    assert_eq!(handle.stats().parked, 0);
    assert!(handle.is_idle());
}

#[test]
fn an_engine_that_sleeps_is_woken_by_a_grant_and_by_an_abort() {
    let gate = StepGate::default();
    gate.open();
    let engine = Engine::spawn(parts(model().with_gate(gate), config())).unwrap();
    let mut stream = engine.handle().submit(granted(1, request(&[5, 6], greedy(3)))).unwrap();
    for _ in 0..2 {
        assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
        stream.grant(1);
    }
    assert!(matches!(stream.blocking_next(), Some(Event::Token(_))));
    assert!(matches!(stream.blocking_next(), Some(Event::Finished { .. })));
    let mut leaves = engine.handle().submit(granted(1, request(&[5, 6], greedy(3)))).unwrap();
    assert!(matches!(leaves.blocking_next(), Some(Event::Token(_))));
    leaves.abort();
    assert!(matches!(leaves.blocking_next(), Some(Event::Finished { .. })));
}
