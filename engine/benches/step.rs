//! What a step costs beside the model: 256 running sequences on a model that costs nothing, events included.
//!
//! `cargo bench -p passerelle-engine --bench step`

#![expect(clippy::print_stdout, reason = "a bench prints its figure")]

use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device};
use passerelle_engine::clock::SystemClock;
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, EngineParts, EventStream, NullObserver, Request, RequestId, SamplingParams,
    ShareKey, StepLoop, StepTurns,
};
use passerelle_models::{CausalLm, KvCache, KvCacheSpec, Logits, ModelError, ModelInput};

const SEQUENCES: usize = 256;
const WARM_UP_STEPS: usize = 50;
const STEPS: usize = 1000;
const GOAL: Duration = Duration::from_micros(250);
const VOCAB: usize = 32;

fn main() {
    let (mut step_loop, handle) = StepLoop::new(parts()).expect("the bench's bounds are possible");
    let mut streams: Vec<_> = (0..SEQUENCES as u64).map(|id| submit(&handle, id)).collect();
    let mut durations = Vec::with_capacity(STEPS);
    for step in 0..WARM_UP_STEPS + STEPS {
        let report = step_loop.step();
        streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
        if step >= WARM_UP_STEPS {
            assert_eq!(report.generated_tokens, SEQUENCES, "every sequence runs in every measured step");
            durations.push(report.duration);
        }
    }
    durations.sort_unstable();
    let (median, p99) = (durations[STEPS / 2], durations[STEPS * 99 / 100]);
    let verdict = if median <= GOAL { "within" } else { "ABOVE" };
    println!("step over {SEQUENCES} sequences: median {median:?}, p99 {p99:?}; {verdict} the goal of {GOAL:?}");
}

fn parts() -> EngineParts {
    EngineParts {
        name: "bench".into(),
        model: Box::new(FreeModel),
        config: EngineConfig {
            num_kv_blocks: 32_768,
            max_num_seqs: SEQUENCES,
            max_num_batched_tokens: 16 * SEQUENCES,
            max_waiting_requests: SEQUENCES,
            ..EngineConfig::default()
        },
        turns: StepTurns::new(),
        clock: Arc::new(SystemClock::new()),
        observer: Arc::new(NullObserver),
    }
}

fn submit(handle: &EngineHandle, id: u64) -> EventStream {
    let request = Request {
        id: RequestId(id),
        prompt: vec![id as u32 % VOCAB as u32; 16],
        sampling: SamplingParams { max_tokens: 2000, temperature: 0.0, ..SamplingParams::default() },
        share_key: ShareKey(id % 8),
        cache_salt: CacheSalt([id as u8; 32]),
    };
    handle.submit(request).expect("the queue holds every sequence of the bench")
}

struct FreeModel;

impl CausalLm for FreeModel {
    fn vocab_size(&self) -> usize {
        VOCAB
    }

    fn input_vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_position(&self) -> usize {
        1 << 20
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        KvCacheSpec { num_layers: 1, num_kv_heads: 1, head_dim: 1, dtype: DType::F32, block_size: 16 }
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.kv_cache_spec(), num_blocks, &Device::Cpu)
    }

    fn forward(&mut self, input: &ModelInput, _: &mut KvCache) -> Result<Logits, ModelError> {
        Ok(Logits::new(VOCAB, vec![0.0; VOCAB * input.rows_to_sample().len()]))
    }
}
