//! The real decoder under the engine: in a full, preempting, prefix-sharing engine each request gets, bit for bit, what it
//! gets alone, though every block holds NaN when it is handed out, and steps fail and panic when they have run.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::chance::{Chance, Kinds};
use crate::common::{events, greedy, parts, request, run_to_end, tokens};
use crate::crowd::Crowd;
use crate::sick::{BRING_AN_ERROR, NewBlocks, Sick};
use passerelle_engine::clock::SystemClock;
use passerelle_engine::{
    AddedLatency, CacheSalt, EngineConfig, EngineHandle, EngineParts, Request, SamplingParams, StepLoop,
};
use passerelle_models::ops::Compute;
use passerelle_models::{CausalLm, CheckpointFiles, Decoder, KvDtype, LoadOptions, load_decoder, unwatched};
use tempfile::TempDir;

/// One whose layers look at everything, one whose layers all have a window, and two that have layers of both kinds.
const FIXTURES: [&str; 4] = ["plain", "mistral_window", "ministral", "qwen3_windows"];
const REQUESTS: u64 = 240;
const ALL_REQUESTS: u64 = 10_000;
const REQUESTS_AT_ONCE: u64 = 24;
const LONGEST_PROMPT: usize = 70;
const MOST_TOKENS: usize = 30;
const FAR_TOO_MANY_STEPS: usize = 20_000;
/// No two of the requests that run alone share a salt, so that none finds anything cached.
const LONELY_SALTS: u64 = 1 << 40;

#[test]
fn the_real_decoder_gives_every_request_what_it_gets_alone() {
    FIXTURES.iter().for_each(|fixture| compare(fixture, KvDtype::Auto, REQUESTS / FIXTURES.len() as u64));
}

/// Copied for several choices, found as a prefix, and full of NaN when they are handed out.
#[test]
fn the_scales_of_keys_and_values_in_8_bits_go_where_these_go() {
    compare("ministral", KvDtype::Int8, REQUESTS / FIXTURES.len() as u64);
}

#[test]
#[ignore = "ten thousand requests take minutes; .ci/full runs them"]
fn ten_thousand_requests_differ_in_no_bit_from_what_they_get_alone() {
    FIXTURES.iter().for_each(|fixture| compare(fixture, KvDtype::Auto, ALL_REQUESTS / FIXTURES.len() as u64));
}

fn compare(fixture: &str, kv_dtype: KvDtype, requests: u64) {
    let decoder = |fixture| loaded_as(fixture, &LoadOptions { kv_dtype, ..LoadOptions::default() });
    let (mut alone, alone_handle) = engine(200, Sick { decoder: decoder(fixture), new_blocks: NewBlocks::AsTheyWere });
    let crowded = decoder(fixture);
    // One sequence fits, and half of another.
    let most_blocks =
        crowded.kv_cache_spec().most_blocks(LONGEST_PROMPT + MOST_TOKENS, config(1).max_num_batched_tokens);
    let num_blocks = most_blocks + most_blocks / 2;
    let (mut crowded, handle) = engine(num_blocks, Sick { decoder: crowded, new_blocks: NewBlocks::FullOfNan });
    let (longest_prompt, most_tokens) = (LONGEST_PROMPT, MOST_TOKENS);
    let kinds =
        Kinds { longest_prompt, most_tokens, most_choices: 3, usual_ids: BRING_AN_ERROR.start as usize, ids: 200 };
    let mut chance = Chance(1);
    for first in (0..requests).step_by(REQUESTS_AT_ONCE as usize) {
        let ids = first..(first + REQUESTS_AT_ONCE).min(requests);
        let mut crowd = Crowd::new(ids.map(|id| chance.request(&kinds, id)).collect());
        run(&mut crowd, &mut chance, &mut crowded, &handle);
        for ended in &crowd.ended {
            let mut salt = [0; 32];
            salt[..8].copy_from_slice(&(LONELY_SALTS + ended.request.id.0).to_le_bytes());
            let request = Request { granted_tokens: None, cache_salt: CacheSalt(salt), ..ended.request.clone() };
            let mut stream = alone_handle.submit(request).expect("the tests' own figures are possible");
            run_to_end(&mut alone);
            ended.assert_is_part_of(&events(&mut stream));
        }
    }
    let stats = handle.stats();
    assert!(stats.preemptions_total > 0 && stats.prefix_hit_tokens_total > 0, "{fixture}: {stats:?}");
    assert_eq!(stats.free_blocks, num_blocks);
    assert!(stats.failures_total > 0, "no request met a mishap");
}

/// Its step keeps the rows of the prompt whole, and of the last one no more than its likeliest tokens.
#[test]
fn a_request_that_scores_its_prompt_and_takes_the_likeliest_tokens_is_answered_beside_others_and_alone() {
    let (mut step_loop, handle) = engine(64, decoder("plain"));
    let scoring = SamplingParams { prompt_logprobs: Some(0), ..greedy(3) };
    let drawn = SamplingParams { temperature: 1.0, ..greedy(3) };
    let of_some = SamplingParams { top_k: Some(5), ..drawn.clone() };
    let mut submit =
        |sampling: &SamplingParams| handle.submit(request(&[5, 6, 7, 8, 9, 10], sampling.clone())).unwrap();
    for sampling in [&[scoring.clone()][..], &[drawn.clone(), drawn, scoring, of_some]] {
        let mut streams: Vec<_> = sampling.iter().map(&mut submit).collect();
        run_to_end(&mut step_loop);
        assert!(streams.iter_mut().all(|stream| tokens(&events(stream)).len() == 3));
    }
    assert_eq!(handle.stats().failures_total, 0);
}

#[test]
fn what_work_costs_is_measured_with_the_real_model_before_the_first_request() {
    let config = EngineConfig { costs: None, ..config(64) };
    let parts = EngineParts { clock: Arc::new(SystemClock::new()), ..parts(decoder("plain"), config) };
    let (mut step_loop, handle) = StepLoop::new(parts).expect("the model runs");
    step_loop.step();
    // The bound on what accounts may differ by follows from the prices: between a microsecond and an hour, and not that of
    // simulations.
    let bound = handle.stats().fair_share_bound;
    assert!(bound > Duration::from_micros(1) && bound < Duration::from_secs(3600), "{bound:?}");
    let (mut of_simulations, simulated) = engine(64, decoder("plain"));
    of_simulations.step();
    assert_ne!(bound, simulated.stats().fair_share_bound);
}

fn run(crowd: &mut Crowd, chance: &mut Chance, step_loop: &mut StepLoop, handle: &EngineHandle) {
    for _ in 0..FAR_TOO_MANY_STEPS {
        crowd.arrive(chance, handle);
        step_loop.step();
        step_loop.check_integrity();
        crowd.read(chance);
        if crowd.is_over() && step_loop.is_idle() {
            return;
        }
    }
    panic!("requests starve");
}

pub(crate) fn decoder(fixture: &str) -> Decoder {
    loaded_as(fixture, &LoadOptions::default())
}

pub(crate) fn loaded_as(fixture: &str, options: &LoadOptions) -> Decoder {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures");
    let folder = TempDir::new().expect("there is room for a fixture");
    // A fixture without weights of its own has those of `plain`.
    for file in ["plain/model.safetensors", &format!("{fixture}/model.safetensors"), &format!("{fixture}/config.json")]
    {
        let file = fixtures.join(file);
        let name = file.file_name().expect("it was given one");
        if file.exists() {
            fs::copy(&file, folder.path().join(name)).expect("a fixture is copied");
        }
    }
    decoder_in(folder.path(), options)
}

pub(crate) fn decoder_in(folder: &Path, options: &LoadOptions) -> Decoder {
    let files = CheckpointFiles::directory(folder).expect("it is a checkpoint");
    load_decoder(&files, &Compute::cpu(1), options, &mut unwatched).expect("it loads").0
}

fn config(num_kv_blocks: usize) -> EngineConfig {
    EngineConfig {
        num_kv_blocks,
        max_num_seqs: 6,
        max_num_batched_tokens: 48,
        max_model_len: 128,
        prefill_chunk_tokens: 20,
        prompt_logprobs_chunk_tokens: 7,
        max_added_latency: AddedLatency::AtMost(Duration::from_millis(1)),
        ..EngineConfig::default()
    }
}

fn engine(num_kv_blocks: usize, model: impl CausalLm + 'static) -> (StepLoop, EngineHandle) {
    StepLoop::new(parts(model, config(num_kv_blocks))).expect("the tests' own figures are possible")
}
