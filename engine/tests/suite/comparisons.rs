//! Real, tiny decoders compared: the floats of prompt log-probabilities, and the divergence of the reference implementation.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::common::{events, parts, run_to_end};
use crate::decoder::{decoder, loaded_as};
use passerelle_engine::clock::SystemClock;
use passerelle_engine::{
    ComparedPosition, ComparisonConfig, ComparisonLane, ComparisonParts, ComparisonRequest, EngineConfig, Event,
    NullObserver, Request, RequestId, SamplingParams, ShareKey, SharedModel, StepLoop, StepTurns, TokenLogprobs,
};
use passerelle_models::{CausalLm, Decoder, KvDtype, LoadOptions};
use safetensors::SafeTensors;

/// All of one vocabulary; every pair of neighbours is compared, both ways.
const FIXTURES: [&str; 5] = ["plain", "mistral_window", "qwen3_windows", "olmo2", "bloom"];
/// The longest input of the fixtures, in tokens.
const LENGTH: usize = 70;
/// Of f32 logits beside the reference implementation's own.
const TOLERANCE: f64 = 1e-4;

#[test]
fn divergence_is_that_of_the_reference_implementations_logits() {
    let mut largest = 0.0_f64;
    for [first, second] in pairs() {
        // The reference implementation rounds no keys or values.
        let unrounded = LoadOptions { kv_dtype: KvDtype::F32, ..LoadOptions::default() };
        let models = [first, second].map(|fixture| loaded_as(fixture, &unrounded));
        let compared = compare(models, ComparisonConfig::default());
        let [p, q] = [first, second].map(golden_rows);
        for (position, compared) in compared.iter().enumerate().skip(1) {
            let expected = divergence(&p[position - 1], &q[position - 1]);
            let found = compared.as_ref().expect("every position but the first is compared").kl;
            assert!((found - expected).abs() < TOLERANCE, "{first} {second} {position}: {found} for {expected}");
            largest = largest.max(expected);
        }
    }
    assert!(largest > 0.1, "the fixtures differ: {largest}");
}

#[test]
fn what_is_said_of_a_position_are_the_floats_of_prompt_logprobs_however_the_text_is_cut() {
    for [first, second] in pairs() {
        let expected = [first, second].map(prompt_logprobs);
        for max_chunk_tokens in [1, 5, 64] {
            let config = ComparisonConfig { max_chunk_tokens, ..ComparisonConfig::default() };
            let compared = compare([first, second].map(decoder), config);
            let sides: [fn(&ComparedPosition) -> &TokenLogprobs; 2] = [|it| &it.first, |it| &it.second];
            for (side, expected) in sides.into_iter().zip(&expected) {
                let found: Vec<_> = compared.iter().map(|it| it.as_ref().map(side).cloned()).collect();
                assert_eq!(&found, expected, "{first} {second} in chunks of {max_chunk_tokens}");
            }
        }
    }
}

#[test]
fn an_engine_goes_on_beside_comparisons_of_its_model_and_both_say_what_they_say_alone() {
    let engine = passerelle_engine::Engine::spawn(parts(decoder("plain"), engine_config())).expect("the model runs");
    let model = engine.handle().model().expect("the engine lives");
    let alone = compare(["plain", "olmo2"].map(decoder), ComparisonConfig::default());
    let lane = lane(ComparisonConfig::default());
    let request = || ComparisonRequest { first: model.clone(), ..comparison(["plain", "olmo2"].map(decoder)) };
    let replies: Vec<_> = (0..4).map(|_| lane.handle().submit(request()).expect("there is room")).collect();
    let mut stream = engine.handle().submit(asking_for_logprobs()).expect("there is room");
    assert_eq!(stream.blocking_next(), Some(Event::PromptLogprobs(prompt_logprobs("plain"))));
    replies.into_iter().for_each(|reply| assert_eq!(reply.blocking_wait().expect("it is compared"), alone));
}

fn pairs() -> impl Iterator<Item = [&'static str; 2]> {
    FIXTURES.windows(2).flat_map(|pair| [[pair[0], pair[1]], [pair[1], pair[0]]])
}

fn compare(models: [Decoder; 2], config: ComparisonConfig) -> Vec<Option<ComparedPosition>> {
    let lane = lane(config);
    let reply = lane.handle().submit(comparison(models)).expect("the two can be compared");
    reply.blocking_wait().expect("both models run")
}

fn lane(config: ComparisonConfig) -> ComparisonLane {
    let (turns, clock, observer) = (StepTurns::new(), Arc::new(SystemClock::new()), Arc::new(NullObserver));
    ComparisonLane::spawn(ComparisonParts { config, turns, clock, observer }).expect("there is a thread")
}

fn comparison(models: [Decoder; 2]) -> ComparisonRequest {
    let [first, second] = models.map(|model| SharedModel::from(Box::new(model) as Box<dyn CausalLm>));
    ComparisonRequest { id: RequestId(1), tokens: input(), first, second, share_key: ShareKey(1) }
}

/// As the engine says it, with the model to itself.
fn prompt_logprobs(fixture: &str) -> Vec<Option<TokenLogprobs>> {
    let (mut step_loop, handle) = StepLoop::new(parts(decoder(fixture), engine_config())).expect("the model runs");
    let mut stream = handle.submit(asking_for_logprobs()).expect("there is room");
    run_to_end(&mut step_loop);
    match events(&mut stream).swap_remove(0) {
        Event::PromptLogprobs(logprobs) => logprobs,
        other => panic!("{other:?}"),
    }
}

fn engine_config() -> EngineConfig {
    EngineConfig { max_model_len: 128, num_kv_blocks: 64, prompt_logprobs_chunk_tokens: 7, ..EngineConfig::default() }
}

fn asking_for_logprobs() -> Request {
    let sampling = SamplingParams { max_tokens: 0, prompt_logprobs: Some(1), ..SamplingParams::default() };
    Request::new(RequestId(2), input(), sampling)
}

/// The same for all fixtures.
fn input() -> Vec<u32> {
    words("plain", "input_70").into_iter().map(u32::from_le_bytes).collect()
}

/// What the reference implementation computed, a row for each token.
fn golden_rows(fixture: &str) -> Vec<Vec<f32>> {
    let values: Vec<f32> = words(fixture, "logits_70").into_iter().map(f32::from_le_bytes).collect();
    values.chunks(values.len() / LENGTH).map(<[f32]>::to_vec).collect()
}

fn words(fixture: &str, tensor: &str) -> Vec<[u8; 4]> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures").join(fixture);
    let bytes = fs::read(file.join("golden.safetensors")).expect("the fixture has goldens");
    let golden = SafeTensors::deserialize(&bytes).expect("the goldens are tensors");
    golden.tensor(tensor).expect("every fixture has it").data().as_chunks::<4>().0.to_vec()
}

/// By the definition, from whole rows.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let [p, q] = [p, q].map(log_softmax);
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

fn log_softmax(row: &[f32]) -> Vec<f64> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|logit| f64::from(logit - max).exp()).sum();
    row.iter().map(|logit| f64::from(logit - max) - sum.ln()).collect()
}
