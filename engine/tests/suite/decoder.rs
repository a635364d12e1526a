//! The real decoder under the engine: in a full, preempting, prefix-sharing engine each request gets, bit for bit, what it
//! gets alone, though every block holds NaN when it is handed out.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::chance::{Chance, Kinds};
use crate::common::{events, run_to_end};
use crate::crowd::Crowd;
use passerelle_engine::clock::{ManualClock, SystemClock};
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, EngineParts, NullObserver, Request, StepLoop, StepTurns,
};
use passerelle_models::ops::Compute;
use passerelle_models::{
    BlockCopy, CausalLm, CheckpointFiles, KvCache, KvCacheSpec, LoadOptions, Logits, ModelError, ModelInput, load,
};

const REQUESTS: u64 = 120;
const ALL_REQUESTS: u64 = 10_000;
const REQUESTS_AT_ONCE: u64 = 24;
const FAR_TOO_MANY_STEPS: usize = 20_000;
/// No two of the requests that run alone share a salt, so that none finds anything cached.
const LONELY_SALTS: u64 = 1 << 40;

#[test]
fn the_real_decoder_gives_every_request_what_it_gets_alone() {
    compare(REQUESTS);
}

#[test]
#[ignore = "ten thousand requests take minutes; .ci/full runs them"]
fn ten_thousand_requests_differ_in_no_bit_from_what_they_get_alone() {
    compare(ALL_REQUESTS);
}

fn compare(requests: u64) {
    let (mut alone, alone_handle) = engine(64, decoder());
    let (mut crowded, handle) = engine(14, Box::new(NanInNewBlocks(decoder())));
    let kinds = Kinds { longest_prompt: 70, most_tokens: 30, most_choices: 3, usual_ids: 200, ids: 200 };
    let mut chance = Chance(1);
    for first in (0..requests).step_by(REQUESTS_AT_ONCE as usize) {
        let ids = first..(first + REQUESTS_AT_ONCE).min(requests);
        let mut crowd = Crowd::new(ids.map(|id| chance.request(&kinds, id)).collect());
        run(&mut crowd, &mut chance, (&mut crowded, &handle));
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
    assert!(stats.preemptions_total > 0 && stats.prefix_hit_tokens_total > 0, "{stats:?}");
    assert_eq!((stats.free_blocks, stats.failures_total), (14, 0));
}

#[test]
fn what_work_costs_is_measured_with_the_real_model_before_the_first_request() {
    let config = EngineConfig { costs: None, ..config(64) };
    let parts = EngineParts { clock: Arc::new(SystemClock::new()), ..parts(config, decoder()) };
    let (mut step_loop, handle) = StepLoop::new(parts).expect("the model runs");
    step_loop.step();
    // The bound on what accounts may differ by follows from the prices: between a microsecond and an hour.
    let bound = handle.stats().fair_share_bound;
    assert!(bound > Duration::from_micros(1) && bound < Duration::from_secs(3600), "{bound:?}");
}

fn run(crowd: &mut Crowd, chance: &mut Chance, (step_loop, handle): (&mut StepLoop, &EngineHandle)) {
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

fn decoder() -> Box<dyn CausalLm> {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/plain");
    let files = CheckpointFiles::directory(fixture).expect("the fixture lies beside the models");
    load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut |_| ()).expect("the fixture loads").model
}

fn config(num_kv_blocks: usize) -> EngineConfig {
    EngineConfig {
        num_kv_blocks,
        max_num_seqs: 6,
        max_num_batched_tokens: 48,
        max_model_len: 128,
        prefill_chunk_tokens: 20,
        prompt_logprobs_chunk_tokens: 7,
        max_added_latency: Duration::from_millis(1),
        ..EngineConfig::default()
    }
}

fn parts(config: EngineConfig, model: Box<dyn CausalLm>) -> EngineParts {
    EngineParts {
        name: "plain".into(),
        model,
        config,
        turns: StepTurns::new(),
        clock: Arc::new(ManualClock::default()),
        observer: Arc::new(NullObserver),
    }
}

fn engine(num_kv_blocks: usize, model: Box<dyn CausalLm>) -> (StepLoop, EngineHandle) {
    StepLoop::new(parts(config(num_kv_blocks), model)).expect("the tests' own figures are possible")
}

/// Fills blocks with NaN in the moment that they are handed out: whatever somebody left there, nobody reads it.
struct NanInNewBlocks(Box<dyn CausalLm>);

impl CausalLm for NanInNewBlocks {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn input_vocab_size(&self) -> usize {
        self.0.input_vocab_size()
    }

    fn max_position(&self) -> usize {
        self.0.max_position()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.0.kv_cache_spec()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.0.new_kv_cache(num_blocks)
    }

    fn copy_blocks(&mut self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        self.0.copy_blocks(copies, cache)
    }

    fn forward(&mut self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        for sequence in 0..input.num_sequences() {
            let num_computed = input.positions()[input.query_start()[sequence]] as usize;
            let new_blocks = num_computed.div_ceil(input.block_size())..;
            for &block in &input.block_table(sequence)[new_blocks] {
                cache.fill_block(block, f32::NAN)?;
            }
        }
        self.0.forward(input, cache)
    }
}
