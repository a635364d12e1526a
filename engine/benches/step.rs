//! What a step costs beside the model: 256 running sequences on a model that costs nothing. It is timed from outside, so
//! commands, events, statistics and the observer are in it.
//!
//! `cargo bench -p passerelle-engine --bench step`

#![expect(clippy::print_stdout, reason = "a bench prints its figure")]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::testing::{self, FreeModel};
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, EngineParts, EventStream, Request, RequestId, SamplingParams, ShareKey,
    StepLoop, StepReport,
};

const SEQUENCES: usize = 256;
const WARM_UP_STEPS: usize = 50;
const STEPS: usize = 1000;
const GOAL: Duration = Duration::from_micros(250);
const VOCAB: usize = 32;

/// What a row costs is measured at the vocabulary of a large model.
const LARGE_VOCAB: usize = 128 << 10;
const DRAWING_SEQUENCES: usize = 8;
const DRAWING_STEPS: usize = 50;

fn main() -> ExitCode {
    let goals = [bench_steps(), bench_rows()];
    if goals == [true; 2] { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// True if no greedy or top-k request takes as long as half of sorting a row.
fn bench_rows() -> bool {
    let plain = SamplingParams::default();
    let greedy = row_time(&SamplingParams { temperature: 0.0, ..plain.clone() });
    println!("a row of {LARGE_VOCAB} logits, copied and searched for its maximum: {greedy:?}");
    for (name, sampling) in
        [("temperature 1", plain.clone()), ("top-p 0.9", SamplingParams { top_p: 0.9, ..plain.clone() })]
    {
        println!("{name}: {:?} more", row_time(&sampling).saturating_sub(greedy));
    }
    let mut slowest = greedy;
    for top_k in [40, 100, 1000] {
        let took = row_time(&SamplingParams { top_k: Some(top_k), ..plain.clone() });
        println!("top-k {top_k}: {:?} more", took.saturating_sub(greedy));
        slowest = slowest.max(took);
    }
    let sorted = sort_time();
    let holds = slowest < sorted / 2;
    let verdict = if holds { "within" } else { "ABOVE" };
    println!("greedy and top-k: at most {slowest:?}; {verdict} half of sorting a row, which takes {sorted:?}");
    holds
}

/// The median time in which a row's tokens are put in order.
fn sort_time() -> Duration {
    let row = large_row();
    let clock = SystemClock::new();
    let sort = |_| {
        let start = clock.now();
        let mut ids: Vec<u32> = (0..row.len() as u32).collect();
        ids.sort_unstable_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
        std::hint::black_box(ids);
        clock.now().saturating_sub(start)
    };
    let mut durations: Vec<_> = (0..DRAWING_STEPS).map(sort).collect();
    durations.sort_unstable();
    durations[DRAWING_STEPS / 2]
}

fn large_row() -> Vec<f32> {
    (0..LARGE_VOCAB).map(|id| (id * 7919 % 1000) as f32 / 50.0).collect()
}

/// The median time per sequence of a step in which every sequence draws.
fn row_time(sampling: &SamplingParams) -> Duration {
    let model = FreeModel::new(large_row());
    let (mut step_loop, handle) = StepLoop::new(parts(model)).expect("the bench's bounds are possible");
    let sampling = SamplingParams { max_tokens: 2000, ..sampling.clone() };
    let _streams: Vec<_> = (0..DRAWING_SEQUENCES as u64).map(|id| submit(&handle, id, sampling.clone())).collect();
    let mut durations: Vec<_> = (0..DRAWING_STEPS).map(|_| timed(&mut step_loop).1).collect();
    durations.sort_unstable();
    durations[DRAWING_STEPS / 2] / DRAWING_SEQUENCES as u32
}

/// True if the goal is reached.
fn bench_steps() -> bool {
    let model = FreeModel::new(vec![0.0; VOCAB]);
    let sampling = SamplingParams { max_tokens: 2000, temperature: 0.0, ..SamplingParams::default() };
    let (mut step_loop, handle) = StepLoop::new(parts(model)).expect("the bench's bounds are possible");
    let mut streams: Vec<_> = (0..SEQUENCES as u64).map(|id| submit(&handle, id, sampling.clone())).collect();
    let mut durations = Vec::with_capacity(STEPS);
    for step in 0..WARM_UP_STEPS + STEPS {
        let (report, took) = timed(&mut step_loop);
        streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
        if step >= WARM_UP_STEPS {
            assert_eq!(report.generated_tokens, SEQUENCES, "every sequence runs in every measured step");
            durations.push(took);
        }
    }
    durations.sort_unstable();
    let (median, p99) = (durations[STEPS / 2], durations[STEPS * 99 / 100]);
    let verdict = if median <= GOAL { "within" } else { "ABOVE" };
    println!("step over {SEQUENCES} sequences: median {median:?}, p99 {p99:?}; {verdict} the goal of {GOAL:?}");
    median <= GOAL
}

/// A whole step, whatever its report counts.
fn timed(step_loop: &mut StepLoop) -> (StepReport, Duration) {
    let clock = SystemClock::new();
    let report = step_loop.step();
    (report, clock.now())
}

fn parts(model: FreeModel) -> EngineParts {
    let config = EngineConfig {
        num_kv_blocks: 32_768,
        max_num_seqs: SEQUENCES,
        max_num_batched_tokens: 16 * SEQUENCES,
        max_waiting_requests: SEQUENCES,
        ..EngineConfig::default()
    };
    EngineParts { clock: Arc::new(SystemClock::new()), ..testing::parts(model, config) }
}

fn submit(handle: &EngineHandle, id: u64, sampling: SamplingParams) -> EventStream {
    let request = Request {
        share_key: ShareKey(id % 8),
        cache_salt: CacheSalt([id as u8; 32]),
        ..Request::new(RequestId(id), vec![id as u32 % VOCAB as u32; 16], sampling)
    };
    handle.submit(request).expect("the queue holds every sequence of the bench")
}
