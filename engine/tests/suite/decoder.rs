//! The real decoder under the engine: in a full, preempting, prefix-sharing engine each request gets, bit for bit, what
//! it gets alone.

use std::path::Path;
use std::sync::Arc;

use crate::common::{events, run_to_end, tokens};
use passerelle_engine::clock::ManualClock;
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, EngineParts, Event, NullObserver, Request, RequestId, SamplingParams,
    ShareKey, StepLoop, StepTurns,
};
use passerelle_models::ops::Compute;
use passerelle_models::{CheckpointFiles, LoadOptions, load};

const REQUESTS: u64 = 18;
const SHARED_TOKENS: u32 = 37;

fn engine(num_kv_blocks: usize) -> (StepLoop, EngineHandle) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/plain");
    let files = CheckpointFiles::directory(fixture).expect("the fixture lies beside the models");
    let model = load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut |_| ()).expect("the fixture loads").model;
    let parts = EngineParts {
        name: "plain".into(),
        model,
        config: EngineConfig {
            num_kv_blocks,
            max_num_seqs: 6,
            max_num_batched_tokens: 48,
            max_model_len: 128,
            prefill_chunk_tokens: 20,
            prompt_logprobs_chunk_tokens: 7,
            ..EngineConfig::default()
        },
        turns: StepTurns::new(),
        clock: Arc::new(ManualClock::default()),
        observer: Arc::new(NullObserver),
    };
    StepLoop::new(parts).expect("the tests' own figures are possible")
}

/// Half of them begin with the same text; no two have the same length or sampling.
fn request(id: u64) -> Request {
    let shared = if id.is_multiple_of(2) { SHARED_TOKENS } else { 0 };
    let own = (0..3 + 2 * id as u32).map(|i| 8 + (i * 31 + id as u32 * 17) % 200);
    Request {
        id: RequestId(id),
        prompt: (0..shared).map(|i| 8 + i * 5 % 200).chain(own).collect(),
        sampling: SamplingParams {
            max_tokens: 12 + 2 * id as u32,
            temperature: [0.0, 0.7, 1.3][id as usize % 3],
            top_k: (id % 4 == 1).then_some(20),
            top_p: [1.0, 0.9][id as usize % 2],
            min_p: [0.0, 0.01][(id as usize / 2) % 2],
            repetition_penalty: [1.0, 1.1][(id as usize / 3) % 2],
            seed: Some(id),
            logprobs: Some(2),
            prompt_logprobs: (id % 5 == 3).then_some(1),
            ..SamplingParams::default()
        },
        share_key: ShareKey(id % 3),
        cache_salt: CacheSalt([0; 32]),
        constraint: None,
    }
}

/// Everything but the usage, whose cached tokens depend on the company.
fn outcome(events: Vec<Event>) -> Vec<Event> {
    events.into_iter().filter(|event| !matches!(event, Event::Finished { .. })).collect()
}

#[test]
fn the_real_decoder_gives_every_request_what_it_gets_alone() {
    let (mut crowd, handle) = engine(14);
    let mut streams: Vec<_> = (0..REQUESTS).map(|id| handle.submit(request(id)).unwrap()).collect();
    run_to_end(&mut crowd);
    let stats = handle.stats();
    assert!(stats.preemptions_total > 0 && stats.prefix_hit_tokens_total > 0, "{stats:?}");
    assert_eq!((stats.free_blocks, stats.failures_total), (14, 0));
    for (id, stream) in (0..REQUESTS).zip(&mut streams) {
        // A fresh engine, with room for everything.
        let (mut alone, handle) = engine(64);
        let mut expected = handle.submit(request(id)).unwrap();
        run_to_end(&mut alone);
        let (got, expected) = (outcome(events(stream)), outcome(events(&mut expected)));
        assert!(tokens(&expected).len() == 12 + 2 * id as usize, "request {id} ends early");
        assert_eq!(got, expected, "request {id}");
    }
}
