//! Several answers to one prompt: computed once, apart from the first token on.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{BLOCK_SIZE, alone, config, events, greedy, model, parts, request, run_to_end, step_loop, tokens};
use passerelle_engine::clock::ManualClock;
use passerelle_engine::testing::{Mishap, Pace};
use passerelle_engine::{
    Class, EngineConfig, EngineParts, Event, FinishReason, Request, RequestError, SamplingParams, StepLoop,
    SubmitError, Usage,
};
use passerelle_models::KvReach;

/// Brings the mishap of a model that has one.
const POISON: u32 = 63;

fn choices(count: u32, request: Request) -> Request {
    Request { num_choices: count.try_into().expect("at least one"), ..request }
}

fn sampled(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, seed: Some(7), ..SamplingParams::default() }
}

/// Generates no [`POISON`].
fn clean(max_tokens: u32) -> SamplingParams {
    SamplingParams { logit_bias: vec![(POISON, -100.0)], ..greedy(max_tokens) }
}

fn tokens_of(events: &[Event], choice: u32) -> Vec<u32> {
    let own = |event: &Event| match event {
        Event::Token(token) if token.choice == choice => Some(token.token),
        _ => None,
    };
    events.iter().filter_map(own).collect()
}

fn ends(events: &[Event]) -> Vec<(u32, FinishReason)> {
    let end = |event: &Event| {
        if let Event::Finished { choice, reason, .. } = event { Some((*choice, *reason)) } else { None }
    };
    events.iter().filter_map(end).collect()
}

/// With half a block, a whole number of blocks and less than a block.
#[test]
fn the_prompt_is_computed_and_counted_once_whatever_its_length() {
    for prompt_len in [6, 8, 3] {
        let prompt: Vec<u32> = (0..prompt_len).collect();
        let (mut step_loop, handle) = step_loop(model(), config());
        let mut stream = handle.submit(choices(3, request(&prompt, sampled(9)))).unwrap();
        let report = step_loop.step();
        assert_eq!((report.prompt_tokens, report.generated_tokens, report.running), (prompt_len as usize, 3, 3));
        let held = 32 - report.free_blocks;
        assert_eq!(held, (prompt_len as usize).div_ceil(BLOCK_SIZE), "the prompt's blocks are shared");
        run_to_end(&mut step_loop);
        let got = events(&mut stream);
        let usage = Usage { prompt_tokens: prompt_len, generated_tokens: 27, ..Usage::default() };
        assert!(matches!(got.last(), Some(Event::Finished { usage: last, .. }) if *last == usage), "{got:?}");
        assert_eq!(handle.stats().prompt_tokens_total, u64::from(prompt_len));
        assert_eq!(handle.stats().free_blocks, 32);
    }
}

#[test]
fn choice_0_is_what_a_single_choice_gets_and_the_others_differ() {
    let single = tokens(&alone(model(), config(), request(&[1, 2, 3], sampled(12))));
    let got = alone(model(), config(), choices(3, request(&[1, 2, 3], sampled(12))));
    let answers: Vec<_> = (0..3).map(|choice| tokens_of(&got, choice)).collect();
    assert_eq!(answers[0], single);
    assert!(answers[1] != answers[0] && answers[2] != answers[0] && answers[1] != answers[2], "{answers:?}");
    let again = alone(model(), config(), choices(3, request(&[1, 2, 3], sampled(12))));
    assert_eq!(got, again);
}

#[test]
fn greedy_choices_are_alike_which_shows_that_each_reads_its_own_blocks() {
    let got = alone(model(), config(), choices(4, request(&[5, 6, 7, 8, 9], greedy(14))));
    let expected = model().greedy(&[5, 6, 7, 8, 9], 14);
    assert!((0..4).all(|choice| tokens_of(&got, choice) == expected));
    assert_eq!(ends(&got), [0, 1, 2, 3].map(|choice| (choice, FinishReason::Length)));
}

#[test]
fn preempted_choices_get_what_they_get_with_room() {
    let asked = || choices(4, request(&[1, 2, 3, 4, 5], sampled(20)));
    let roomy = alone(model(), config(), asked());
    let (mut tight, handle) = step_loop(model(), EngineConfig { num_kv_blocks: 12, ..config() });
    let mut stream = handle.submit(asked()).unwrap();
    run_to_end(&mut tight);
    assert!(handle.stats().preemptions_total > 0);
    let got = events(&mut stream);
    assert!((0..4).all(|choice| tokens_of(&got, choice) == tokens_of(&roomy, choice)));
}

#[test]
fn a_choice_that_is_aborted_ends_alone() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let mut stream = handle.submit(choices(2, request(&[1, 2, 3], greedy(10)))).unwrap();
    (0..3).for_each(|_| _ = step_loop.step());
    assert_eq!(stream.abort_choice(0), 3);
    run_to_end(&mut step_loop);
    let got = events(&mut stream);
    assert_eq!((tokens_of(&got, 0).len(), tokens_of(&got, 1).len()), (3, 10));
    assert_eq!(ends(&got), [(0, FinishReason::Aborted), (1, FinishReason::Length)]);
    assert_eq!(stream.usage().generated_tokens, 13);
    assert_eq!(handle.stats().generated_tokens_total, 13);
}

#[test]
fn a_request_fails_as_a_whole_and_counts_once() {
    let sick = || model().with_mishap(POISON, Mishap::Nan);
    let (mut step_loop, handle) = step_loop(sick(), config());
    // Both choices draw the poison at once.
    let sampling = SamplingParams { logit_bias: vec![(POISON, 100.0)], ..greedy(10) };
    let mut stream = handle.submit(choices(2, request(&[1, 2, 3], sampling))).unwrap();
    run_to_end(&mut step_loop);
    let got = events(&mut stream);
    assert!(matches!(got.last(), Some(Event::Failed { error: RequestError::NotFinite, .. })), "{got:?}");
    assert_eq!((handle.stats().failures_total, handle.stats().free_blocks), (1, 32));
    assert!(handle.is_idle());
}

#[test]
fn a_request_whose_block_cannot_be_copied_fails_alone() {
    let clean = || clean(10);
    let asked = || choices(2, request(&[1, 2, 3], clean()));
    let undisturbed = alone(model(), config(), asked());
    let (mut step_loop, handle) = step_loop(model().with_mishap(POISON, Mishap::Copy), config());
    let mut healthy = handle.submit(asked()).unwrap();
    let mut single = handle.submit(request(&[5, 6], clean())).unwrap();
    let mut culprit = handle.submit(choices(2, request(&[1, POISON, 3], clean()))).unwrap();
    run_to_end(&mut step_loop);
    let failure = events(&mut culprit);
    assert!(matches!(failure.last(), Some(Event::Failed { error: RequestError::Step(_), .. })), "{failure:?}");
    let got = events(&mut healthy);
    assert!((0..2).all(|choice| tokens_of(&got, choice) == tokens_of(&undisturbed, choice)), "{got:?}");
    assert_eq!(tokens(&events(&mut single)).len(), 10);
    assert_eq!(handle.stats().free_blocks, 32);
}

#[test]
fn a_request_whose_cached_tail_cannot_be_copied_fails_once() {
    let prompt = [1, 2, 3, 4, POISON, 6];
    let asked = || request(&prompt, clean(3));
    let undisturbed = alone(model(), config(), asked());
    let (mut step_loop, handle) = step_loop(model().with_mishap(POISON, Mishap::Copy), config());
    let mut ask = || {
        let mut stream = handle.submit(asked()).unwrap();
        run_to_end(&mut step_loop);
        (events(&mut stream), stream.usage().cached_tokens)
    };
    assert_eq!(ask().0, undisturbed);
    let failure = ask().0;
    assert!(matches!(failure.last(), Some(Event::Failed { error: RequestError::Step(_), .. })), "{failure:?}");
    let (again, cached) = ask();
    assert_eq!((tokens(&again), cached), (tokens(&undisturbed), 0), "what it would copy is forgotten");
}

/// Its table still names blocks that its window has left, and that others hold by now.
#[test]
fn a_stream_with_a_window_does_not_fail_with_whoever_holds_a_block_that_it_has_left() {
    let windowed = || model().with_layers(&[KvReach::Window(4_usize.try_into().unwrap())]);
    let config = EngineConfig { num_kv_blocks: 8, max_num_batched_tokens: 8, ..config() };
    let undisturbed = alone(windowed(), config.clone(), request(&[5, 6], clean(60)));
    let (mut step_loop, handle) = step_loop(windowed().with_mishap(POISON, Mishap::Copy), config);
    let mut stream = handle.submit(request(&[5, 6], clean(60))).unwrap();
    // Until it has held every block of the cache.
    (0..40).for_each(|_| _ = step_loop.step());
    let mut culprit = handle.submit(choices(2, request(&[1, POISON, 3], clean(10)))).unwrap();
    run_to_end(&mut step_loop);
    let failure = events(&mut culprit);
    assert!(matches!(failure.last(), Some(Event::Failed { error: RequestError::Step(_), .. })), "{failure:?}");
    assert_eq!(events(&mut stream), undisturbed);
}

#[test]
fn nothing_is_copied_for_a_choice_that_gives_way_into_blocks_of_whoever_takes_its_place() {
    let config = EngineConfig { num_kv_blocks: 2, ..config() };
    let urgent = || Request { class: Class::Interactive, ..request(&[5, 6, 7, 8, 9], clean(1)) };
    let undisturbed = alone(model(), config.clone(), urgent());
    let (mut step_loop, handle) = step_loop(model().with_mishap(POISON, Mishap::Copy), config);
    let patient = choices(2, request(&[1, POISON], clean(2)));
    let mut patient = handle.submit(Request { class: Class::Batch, ..patient }).unwrap();
    step_loop.step();
    // In the next step the choices part, and both blocks of the cache are needed for this one.
    let mut urgent = handle.submit(urgent()).unwrap();
    run_to_end(&mut step_loop);
    assert_eq!(events(&mut urgent), undisturbed);
    assert_eq!(tokens(&events(&mut patient)).len(), 4, "each goes on alone, and has nothing to copy");
}

#[test]
fn more_choices_than_can_run_at_once_are_refused() {
    let (_step_loop, handle) = step_loop(model(), config());
    let refusal = handle.submit(choices(9, request(&[1], greedy(1)))).unwrap_err();
    assert_eq!(refusal, SubmitError::TooManyChoices { num_choices: 9, max_num_seqs: 8 });
}

#[test]
fn a_prompt_keeps_a_place_for_each_of_its_choices() {
    let (mut step_loop, handle) = step_loop(model(), EngineConfig { max_num_seqs: 4, ..config() });
    let _streams = [2, 3, 1].map(|count| handle.submit(choices(count, request(&[1, 2], greedy(5)))).unwrap());
    step_loop.step();
    step_loop.check_integrity();
    // The second does not fit beside the first, and nobody overtakes it.
    assert_eq!((handle.stats().running, handle.stats().waiting), (2, 2));
    run_to_end(&mut step_loop);
    assert_eq!(handle.stats().generated_tokens_total, 30);
}

#[test]
fn the_shares_of_a_step_add_up_to_the_step() {
    let clock = ManualClock::default();
    let pace =
        Pace { clock: clock.clone(), step: Duration::from_nanos(1003), further_token: Duration::from_nanos(101) };
    let parts = EngineParts { clock: Arc::new(clock), ..parts(model().with_pace(pace), config()) };
    let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
    let asked = [(1, 13), (3, 5), (1, 4)];
    let mut streams: Vec<_> = asked
        .iter()
        .map(|&(count, length)| {
            let prompt: Vec<u32> = (0..length).map(|token| token + 10 * count).collect();
            handle.submit(choices(count, request(&prompt, sampled(6)))).unwrap()
        })
        .collect();
    let mut stepped = Duration::ZERO;
    for step in 0..40 {
        let before: u64 = streams.iter().map(|stream| stream.usage().measured_ns).sum();
        if step == 3 {
            drop(streams.pop());
            stepped += step_loop.step().duration;
            continue;
        }
        let duration = step_loop.step().duration;
        let after: u64 = streams.iter().map(|stream| stream.usage().measured_ns).sum();
        assert_eq!(after - before, duration.as_nanos() as u64, "step {step}");
        stepped += duration;
    }
    let stats = handle.stats();
    assert!(step_loop.is_idle() && stats.measured_ns_total > 0);
    assert_eq!(u128::from(stats.measured_ns_total + stats.unclaimed_ns_total), stepped.as_nanos());
}
