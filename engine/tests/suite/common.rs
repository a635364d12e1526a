//! An engine without a thread, stepped by hand.

use passerelle_engine::testing::StubModel;
pub(crate) use passerelle_engine::testing::parts;
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, Event, EventStream, Request, RequestId, SamplingParams, StepLoop,
};

pub(crate) const VOCAB: usize = 64;
pub(crate) const BLOCK_SIZE: usize = 4;

pub(crate) fn model() -> StubModel {
    StubModel::new(VOCAB, BLOCK_SIZE)
}

pub(crate) fn config() -> EngineConfig {
    EngineConfig {
        num_kv_blocks: 32,
        max_num_seqs: 8,
        max_num_batched_tokens: 32,
        max_model_len: 128,
        prefill_chunk_tokens: 8,
        prompt_logprobs_chunk_tokens: 3,
        ..EngineConfig::default()
    }
}

pub(crate) fn step_loop(model: StubModel, config: EngineConfig) -> (StepLoop, EngineHandle) {
    StepLoop::new(parts(model, config)).expect("the tests' own figures are possible")
}

pub(crate) fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() }
}

pub(crate) fn request(prompt: &[u32], sampling: SamplingParams) -> Request {
    Request { cache_salt: CacheSalt([1; 32]), ..Request::new(RequestId(1), prompt.to_vec(), sampling) }
}

/// Steps until nothing is left to do, checking every block at each step.
pub(crate) fn run_to_end(step_loop: &mut StepLoop) {
    const FAR_TOO_MANY_STEPS: usize = 10_000;
    for _ in 0..FAR_TOO_MANY_STEPS {
        step_loop.step();
        step_loop.check_integrity();
        if step_loop.is_idle() {
            return;
        }
    }
    panic!("requests starve");
}

pub(crate) fn events(stream: &mut EventStream) -> Vec<Event> {
    std::iter::from_fn(|| stream.try_next()).collect()
}

pub(crate) fn tokens(events: &[Event]) -> Vec<u32> {
    let token = |event: &Event| if let Event::Token(token) = event { Some(token.token) } else { None };
    events.iter().filter_map(token).collect()
}

/// What a request yields with the engine to itself.
pub(crate) fn alone(model: StubModel, config: EngineConfig, request: Request) -> Vec<Event> {
    let (mut step_loop, handle) = step_loop(model, config);
    let mut stream = handle.submit(request).expect("the tests' own figures are possible");
    run_to_end(&mut step_loop);
    events(&mut stream)
}
