//! What a request may rely on, with the engine stepped by hand or on its own thread.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::{
    BLOCK_SIZE, VOCAB, alone, config, events, greedy, model, parts, request, run_to_end, step_loop, tokens,
};
use passerelle_engine::clock::{Clock, ManualClock, SystemClock};
use passerelle_engine::testing::{Mishap, Pace, StepGate, StubModel};
use passerelle_engine::{
    AddedLatency, ConfigError, CostModel, Engine, EngineConfig, EngineError, EngineParts, Event, EventStream,
    FinishReason, RequestError, SamplingParams, StepLoop, StepObserver, StepReport, StepTurns, SubmitError, Usage,
};
use passerelle_models::{CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput};

/// Of engines whose clock stands.
fn usage(prompt_tokens: u32, cached_tokens: u32, generated_tokens: u32) -> Usage {
    Usage { prompt_tokens, cached_tokens, generated_tokens, measured_ns: 0 }
}

fn finished(reason: FinishReason, prompt_tokens: u32, cached_tokens: u32, generated_tokens: u32) -> Event {
    Event::Finished { choice: 0, reason, usage: usage(prompt_tokens, cached_tokens, generated_tokens) }
}

#[test]
fn a_greedy_request_gets_the_models_own_continuation() {
    let got = alone(model(), config(), request(&[5, 6, 7], greedy(10)));
    assert_eq!(tokens(&got), model().greedy(&[5, 6, 7], 10));
    assert_eq!(got.last(), Some(&finished(FinishReason::Length, 3, 0, 10)));
}

#[test]
fn a_stop_token_is_reported_counted_and_last() {
    let expected = model().greedy(&[5, 6, 7], 10);
    let stop = SamplingParams { stop_token_ids: vec![expected[4]], ..greedy(10) };
    let got = alone(model(), config(), request(&[5, 6, 7], stop));
    let length = expected.iter().position(|token| *token == expected[4]).unwrap() + 1;
    assert_eq!(tokens(&got), expected[..length]);
    assert_eq!(got.last(), Some(&finished(FinishReason::Stop, 3, 0, length as u32)));
}

#[test]
fn no_tokens_to_generate_runs_the_prompt_only() {
    let got = alone(model(), config(), request(&[5, 6, 7], SamplingParams { prompt_logprobs: Some(2), ..greedy(0) }));
    assert!(matches!(&got[0], Event::PromptLogprobs(entries) if entries.len() == 3));
    assert_eq!(got[1..], [finished(FinishReason::Length, 3, 0, 0)]);
}

#[test]
fn a_prefix_is_reused_within_a_salt_and_changes_no_token() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let prompt: Vec<u32> = (0..14).collect();
    let mut usages = Vec::new();
    for salt in [1, 1, 2] {
        let mut salted = request(&prompt, greedy(6));
        salted.cache_salt = passerelle_engine::CacheSalt([salt; 32]);
        let mut stream = handle.submit(salted).unwrap();
        run_to_end(&mut step_loop);
        let got = events(&mut stream);
        assert_eq!(tokens(&got), model().greedy(&prompt, 6));
        usages.push(stream.usage().cached_tokens);
    }
    assert_eq!(usages, [0, 13, 0]);
    assert_eq!(handle.stats().prefix_hit_tokens_total, 13);
}

#[test]
fn preempted_sequences_repeat_no_token_and_change_none() {
    let tight = EngineConfig { num_kv_blocks: 8, ..config() };
    let (mut step_loop, handle) = step_loop(model(), tight.clone());
    let sampled = |seed| SamplingParams { max_tokens: 16, seed: Some(seed), ..SamplingParams::default() };
    let requests: Vec<_> = (0..4).map(|i| request(&[i, 1, 2, 3, 4], sampled(u64::from(i)))).collect();
    let streams: Vec<_> = requests.iter().map(|request| handle.submit(request.clone()).unwrap()).collect();
    run_to_end(&mut step_loop);
    assert!(handle.stats().preemptions_total > 0, "the pool is tight enough to preempt");
    for (mut stream, request) in streams.into_iter().zip(requests) {
        assert_eq!(events(&mut stream), alone(model(), tight.clone(), request));
    }
    assert_eq!(handle.stats().free_blocks, 8);
}

#[test]
fn the_same_seed_gives_the_same_tokens_in_any_batch() {
    let sampling = SamplingParams { max_tokens: 20, seed: Some(7), top_p: 0.9, ..SamplingParams::default() };
    let expected = tokens(&alone(model(), config(), request(&[1, 2], sampling.clone())));
    let (mut step_loop, handle) = step_loop(model(), config());
    let others: Vec<_> = (0..5).map(|i| handle.submit(request(&[9, i], greedy(20))).unwrap()).collect();
    let mut stream = handle.submit(request(&[1, 2], sampling)).unwrap();
    run_to_end(&mut step_loop);
    assert_eq!(tokens(&events(&mut stream)), expected);
    drop(others);
}

#[test]
fn prompt_logprobs_do_not_depend_on_how_the_prompt_was_cut() {
    let prompt: Vec<u32> = (10..27).collect();
    let asking = request(&prompt, SamplingParams { prompt_logprobs: Some(3), logprobs: Some(2), ..greedy(3) });
    let whole = EngineConfig { prompt_logprobs_chunk_tokens: 64, ..config() };
    let got = alone(model(), whole, asking.clone());
    assert_eq!(got, alone(model(), config(), asking));
    let Event::PromptLogprobs(entries) = &got[0] else { panic!("the first event is {:?}", got[0]) };
    assert_eq!(entries.len(), prompt.len());
    assert_eq!(entries[0], None);
    for (entry, &token) in entries.iter().zip(&prompt).skip(1) {
        assert_eq!(entry.as_ref().unwrap().token, token);
        assert_eq!(entry.as_ref().unwrap().top.len(), 3);
    }
}

#[test]
fn what_can_never_be_served_is_refused_at_once() {
    let (_step_loop, handle) = step_loop(model(), EngineConfig { num_kv_blocks: 4, max_model_len: 20, ..config() });
    let refusal = |prompt: &[u32], sampling| handle.submit(request(prompt, sampling)).unwrap_err();
    assert_eq!(refusal(&[], greedy(1)), SubmitError::EmptyPrompt);
    let too_long = SubmitError::TooLong { prompt_tokens: 2, max_tokens: 19, max_model_len: 20 };
    assert_eq!(refusal(&[1, 2], greedy(19)), too_long);
    assert_eq!(refusal(&[1, 2], greedy(16)), SubmitError::NeverFits { needed_blocks: 5, total_blocks: 4 });
    assert!(handle.submit(request(&[1, 2], greedy(15))).is_ok());
    let invalid = SubmitError::InvalidToken { token: VOCAB as u32, vocab_size: VOCAB };
    assert_eq!(refusal(&[1, VOCAB as u32], greedy(1)), invalid);
    let biased = SamplingParams { logit_bias: vec![(VOCAB as u32, 1.0)], ..greedy(1) };
    assert_eq!(refusal(&[1], biased), invalid);
}

#[test]
fn a_sampling_parameter_out_of_range_is_refused_by_name() {
    let (_step_loop, handle) = step_loop(model(), config());
    let cases = [
        ("temperature", SamplingParams { temperature: -1.0, ..greedy(1) }),
        ("top_k", SamplingParams { top_k: Some(0), ..greedy(1) }),
        ("top_p", SamplingParams { top_p: f32::NAN, ..greedy(1) }),
        ("min_p", SamplingParams { min_p: 1.5, ..greedy(1) }),
        ("frequency_penalty", SamplingParams { frequency_penalty: 2.5, ..greedy(1) }),
        ("presence_penalty", SamplingParams { presence_penalty: -2.5, ..greedy(1) }),
        ("repetition_penalty", SamplingParams { repetition_penalty: 0.0, ..greedy(1) }),
        ("logit_bias", SamplingParams { logit_bias: vec![(1, f32::NAN)], ..greedy(1) }),
    ];
    for (parameter, sampling) in cases {
        let refusal = handle.submit(request(&[1], sampling)).unwrap_err();
        assert_eq!(refusal, SubmitError::InvalidSampling { parameter });
    }
}

#[test]
fn a_request_may_fill_the_context_or_the_cache_to_the_last_token() {
    // The last token of an answer is never computed, so it needs no room in the cache.
    for (num_kv_blocks, max_model_len, longest) in [(4, 128, 4 * BLOCK_SIZE + 1), (32, 20, 20)] {
        let (_step_loop, handle) = step_loop(model(), EngineConfig { num_kv_blocks, max_model_len, ..config() });
        let room = longest as u32 - 2;
        assert!(handle.submit(request(&[1, 2], greedy(room))).is_ok());
        assert!(handle.submit(request(&[1, 2], greedy(room + 1))).is_err());
    }
}

#[test]
fn the_largest_sequence_that_fits_runs_to_its_end() {
    let small = EngineConfig { num_kv_blocks: 4, ..config() };
    let got = alone(model(), small, request(&[1, 2], greedy(4 * BLOCK_SIZE as u32 - 1)));
    assert_eq!(tokens(&got).len(), 4 * BLOCK_SIZE - 1);
}

#[test]
fn a_full_queue_refuses_and_takes_again_once_a_request_has_started() {
    let (mut step_loop, handle) = step_loop(model(), EngineConfig { max_waiting_requests: 2, ..config() });
    let submit = || handle.submit(request(&[1], greedy(2)));
    let _streams = (submit().unwrap(), submit().unwrap());
    assert_eq!(submit().unwrap_err(), SubmitError::Full { waiting_requests: 2, waiting_tokens: 2 });
    step_loop.step();
    assert!(submit().is_ok());
}

#[test]
fn a_disconnect_frees_its_blocks_at_the_next_step() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let gone = handle.submit(request(&[1, 2, 3, 4, 5], greedy(50))).unwrap();
    let mut stays = handle.submit(request(&[6], greedy(50))).unwrap();
    step_loop.step();
    assert_eq!((handle.stats().running, handle.stats().free_blocks), (2, 29));
    drop(gone);
    step_loop.step();
    step_loop.check_integrity();
    assert_eq!((handle.stats().running, handle.stats().free_blocks), (1, 31));
    run_to_end(&mut step_loop);
    assert_eq!(tokens(&events(&mut stays)), model().greedy(&[6], 50));
}

/// The reader leaves while the model runs.
struct LeavesMidway {
    model: StubModel,
    reader: Arc<Mutex<Option<EventStream>>>,
}

impl CausalLm for LeavesMidway {
    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn input_vocab_size(&self) -> usize {
        self.model.input_vocab_size()
    }

    fn max_position(&self) -> usize {
        self.model.max_position()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.model.kv_cache_spec()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.model.new_kv_cache(num_blocks)
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.reader.lock().expect("the test holds it only before the step").take();
        self.model.forward(input, cache)
    }
}

#[test]
fn a_disconnect_during_the_run_frees_its_blocks_in_the_same_step() {
    let reader = Arc::default();
    let leaving = LeavesMidway { model: model(), reader: Arc::clone(&reader) };
    let parts = EngineParts { model: Box::new(leaving), ..parts(model(), config()) };
    let (mut step_loop, handle) = StepLoop::new(parts).unwrap();
    let mut stays = handle.submit(request(&[6], greedy(9))).unwrap();
    *reader.lock().unwrap() = Some(handle.submit(request(&[1, 2, 3, 4, 5], greedy(9))).unwrap());
    let report = step_loop.step();
    step_loop.check_integrity();
    assert_eq!((report.num_sequences, report.generated_tokens), (2, 1));
    assert_eq!((report.running, report.free_blocks), (1, 31));
    run_to_end(&mut step_loop);
    assert_eq!(tokens(&events(&mut stays)), model().greedy(&[6], 9));
}

#[test]
fn an_abort_bills_exactly_what_the_engine_counts() {
    let (mut step_loop, handle) = step_loop(model(), config());
    let mut stream = handle.submit(request(&[1, 2, 3], greedy(50))).unwrap();
    let waiting = handle.submit(request(&[4], greedy(50))).unwrap();
    assert_eq!(waiting.abort(), Usage::default());
    (0..4).for_each(|_| _ = step_loop.step());
    let bill = stream.abort_handle().abort();
    assert_eq!(bill, usage(3, 0, 4));
    run_to_end(&mut step_loop);
    assert_eq!(events(&mut stream).last(), Some(&finished(FinishReason::Aborted, 3, 0, 4)));
    let stats = handle.stats();
    assert_eq!((stats.prompt_tokens_total, stats.generated_tokens_total), (3, 4));
    assert!(handle.is_idle());
}

#[test]
fn a_request_that_brings_a_mishap_fails_alone() {
    for mishap in [Mishap::Panic, Mishap::Error, Mishap::Nan] {
        const POISON: u32 = 63;
        let poisoned_model = || model().with_mishap(POISON, mishap);
        // Biased away, so that only the prompt can bring the poison.
        let clean = || SamplingParams { logit_bias: vec![(POISON, -100.0)], ..greedy(12) };
        let (mut step_loop, handle) = step_loop(poisoned_model(), config());
        let mut before: Vec<_> = (0..3).map(|i| handle.submit(request(&[i, 7, 8], clean())).unwrap()).collect();
        step_loop.step();
        let mut culprit = handle.submit(request(&[1, 2, 3, 4, 5, POISON, 6], clean())).unwrap();
        let mut after = handle.submit(request(&[9, 9], clean())).unwrap();
        run_to_end(&mut step_loop);
        let failure = events(&mut culprit);
        match mishap {
            Mishap::Nan => assert!(matches!(&failure[..], [Event::Failed { error: RequestError::NotFinite, .. }])),
            Mishap::Panic => assert!(matches!(&failure[..], [Event::Failed { error: RequestError::Panic, .. }])),
            _ => assert!(matches!(&failure[..], [Event::Failed { error: RequestError::Step(_), .. }])),
        }
        for (i, stream) in before.iter_mut().enumerate() {
            assert_eq!(events(stream), alone(model(), config(), request(&[i as u32, 7, 8], clean())));
        }
        assert_eq!(tokens(&events(&mut after)).len(), 12);
        assert_eq!((handle.stats().failures_total, handle.stats().free_blocks), (1, 32));
    }
}

#[test]
fn an_impossible_configuration_is_refused() {
    let beyond = EngineConfig { max_model_len: 100, ..config() };
    let result = Engine::spawn(parts(model().with_max_position(99), beyond));
    assert!(matches!(result, Err(EngineError::Config(ConfigError::BeyondPositions { .. }))));
}

#[tokio::test]
async fn a_thread_serves_many_readers() {
    let engine = Engine::spawn(parts(model(), config())).unwrap();
    let readers: Vec<_> = (0..20)
        .map(|i| {
            let mut stream = engine.handle().submit(request(&[i, 3], greedy(15))).unwrap();
            tokio::spawn(async move {
                let mut got = Vec::new();
                while let Some(event) = stream.next().await {
                    got.push(event);
                }
                got
            })
        })
        .collect();
    for (i, reader) in readers.into_iter().enumerate() {
        assert_eq!(tokens(&reader.await.unwrap()), model().greedy(&[i as u32, 3], 15));
    }
}

#[test]
fn a_drained_engine_finishes_what_it_has_and_admits_nothing() {
    let gate = StepGate::default();
    let engine = Engine::spawn(parts(model().with_gate(gate.clone()), config())).unwrap();
    let handle = engine.handle();
    let mut stream = handle.submit(request(&[1], greedy(5))).unwrap();
    handle.drain();
    assert_eq!(handle.submit(request(&[1], greedy(5))).unwrap_err(), SubmitError::ShuttingDown);
    assert!(!handle.is_idle());
    gate.open();
    let got: Vec<_> = std::iter::from_fn(|| stream.blocking_next()).collect();
    assert_eq!(tokens(&got).len(), 5);
}

#[test]
fn shutting_down_fails_what_still_runs() {
    let gate = StepGate::default();
    let engine = Engine::spawn(parts(model().with_gate(gate.clone()), config())).unwrap();
    let handle = engine.handle();
    let mut streams: Vec<_> = (0..3).map(|_| handle.submit(request(&[1], greedy(100))).unwrap()).collect();
    gate.allow(1);
    assert!(matches!(streams[0].blocking_next(), Some(Event::Token(_))));
    handle.shutdown();
    gate.open();
    drop(engine);
    for stream in &mut streams {
        let last = std::iter::from_fn(|| stream.blocking_next()).last();
        assert!(matches!(last, Some(Event::Failed { error: RequestError::ShuttingDown, .. })), "{last:?}");
    }
    assert!(handle.is_idle());
    assert_eq!(handle.stats().failures_total, 0, "whoever is asked to stop has not failed");
}

/// Stands for a defect of the engine itself.
struct Defect;

impl StepObserver for Defect {
    fn step(&self, _: &StepReport) {
        panic!("a defect outside the model");
    }
}

#[test]
fn a_dead_engine_ends_its_streams_and_says_so() {
    let engine = Engine::spawn(EngineParts { observer: Arc::new(Defect), ..parts(model(), config()) }).unwrap();
    let mut stream = engine.handle().submit(request(&[1], greedy(100))).unwrap();
    let last = std::iter::from_fn(|| stream.blocking_next()).last();
    assert!(matches!(last, Some(Event::Failed { error: RequestError::Step(_), .. })), "{last:?}");
    assert_eq!(engine.handle().submit(request(&[1], greedy(1))).unwrap_err(), SubmitError::Dead);
    let (handle, stats) = (engine.handle(), engine.handle().stats());
    assert!(handle.is_dead() && !handle.is_accepting());
    assert_eq!((stats.running, stats.step_started), (0, None));
}

#[test]
fn engines_that_share_turns_all_get_through() {
    let turns = StepTurns::new();
    let engines: Vec<_> = (0..3)
        .map(|_| Engine::spawn(EngineParts { turns: turns.clone(), ..parts(model(), config()) }).unwrap())
        .collect();
    let streams: Vec<_> =
        engines.iter().map(|engine| engine.handle().submit(request(&[4, 2], greedy(30))).unwrap()).collect();
    for mut stream in streams {
        let got: Vec<_> = std::iter::from_fn(|| stream.blocking_next()).collect();
        assert_eq!(tokens(&got), model().greedy(&[4, 2], 30));
    }
}

#[test]
fn service_resumes_within_100_ms_of_a_panic() {
    const POISON: u32 = 63;
    let clock = SystemClock::new();
    let sick = model().with_mishap(POISON, Mishap::Panic);
    let engine = Engine::spawn(EngineParts { clock: Arc::new(SystemClock::new()), ..parts(sick, config()) }).unwrap();
    let clean = || SamplingParams { logit_bias: vec![(POISON, -100.0)], ..greedy(30) };
    let time_to_resume = |_| {
        let mut healthy = engine.handle().submit(request(&[1, 2], clean())).unwrap();
        assert!(matches!(healthy.blocking_next(), Some(Event::Token(_))));
        let start = clock.now();
        let mut poisoned = engine.handle().submit(request(&[POISON], clean())).unwrap();
        assert!(matches!(poisoned.blocking_next(), Some(Event::Failed { .. })));
        while healthy.try_next().is_some() {}
        let mut next = engine.handle().submit(request(&[3, 4], clean())).unwrap();
        assert!(matches!(next.blocking_next(), Some(Event::Token(_))));
        clock.now().saturating_sub(start)
    };
    let mut taken: Vec<_> = (0..9).map(time_to_resume).collect();
    taken.sort_unstable();
    // The median, because other processes hold up this one now and then.
    assert!(taken[taken.len() / 2] < Duration::from_millis(100), "{taken:?}");
}

/// What prompts may add to a step in which a stream moves.
const MOST_ADDED: Duration = Duration::from_millis(20);

/// Of the steps that run a prompt of 1000 tokens beside a stream: how much longer than without it each of them took. A token
/// of the prompt takes so long, where the prices say a millisecond.
fn added_by_a_long_prompt(token: Duration) -> Vec<Duration> {
    let clock = ManualClock::default();
    let pace = Pace { clock: clock.clone(), step: Duration::from_millis(5), further_token: token };
    let costs = CostModel {
        prompt_token_ns: 1e6,
        generated_token_ns: 5e6,
        context_token_ns: 0.01,
        prompt_context_token_ns: 0.01,
        lone_token_ns: 5e6,
    };
    let config = EngineConfig {
        num_kv_blocks: 400,
        max_model_len: 1200,
        max_num_batched_tokens: 512,
        prefill_chunk_tokens: 512,
        max_added_latency: AddedLatency::AtMost(MOST_ADDED),
        costs: Some(costs),
        ..config()
    };
    let parts = EngineParts { clock: Arc::new(clock), ..parts(model().with_pace(pace), config) };
    let (mut step_loop, handle) = StepLoop::new(parts).expect("the stub runs every step");
    let mut stream = handle.submit(request(&[1, 2], greedy(200))).expect("there is room");
    step_loop.step();
    let alone = step_loop.step().duration;
    let prompt: Vec<u32> = (0..1000).map(|token| token % 60).collect();
    let mut long = handle.submit(request(&prompt, greedy(1))).expect("there is room");
    let mut added = Vec::new();
    while !long.has_ended() {
        // One token of the chunk comes with the sequence, at the price of the step.
        added.push(step_loop.step().duration.saturating_sub(alone));
        assert!(!tokens(&events(&mut stream)).is_empty(), "the stream moves at every step");
        events(&mut long);
    }
    added
}

#[test]
fn a_long_prompt_adds_no_more_to_a_streams_latency_than_configured() {
    let added = added_by_a_long_prompt(Duration::from_millis(1));
    assert!(added.iter().all(|added| *added <= MOST_ADDED), "{added:?}");
    assert!((45..=55).contains(&added.len()), "the time that is allowed is used: {} steps", added.len());
}

#[test]
fn a_long_prompt_that_takes_longer_than_its_price_adds_no_more_after_a_few_steps() {
    let added = added_by_a_long_prompt(Duration::from_micros(1300));
    assert!(added[0] > MOST_ADDED, "the prices are too low: {added:?}");
    assert!(added[3..].iter().all(|added| *added <= MOST_ADDED), "{added:?}");
    assert!((60..=80).contains(&added.len()), "the time that is allowed is used: {} steps", added.len());
}
