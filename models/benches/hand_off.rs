//! What it costs to hand a job to all threads of a pool: `cargo bench -p passerelle-models --bench hand_off [-- THREADS]`.
//!
//! Each task of a job waits until all have begun, so that no thread can do another's part: a job takes as long as it takes
//! to reach every thread and to hear of its end. Ends with a failure above the goal, as it does where other processes want
//! the same cores.

#![expect(clippy::print_stdout, reason = "a bench prints its figure")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use passerelle_models::ops::ComputePool;

const WARM_UP_JOBS: usize = 1000;
const JOBS: usize = 20_000;
const GOAL: Duration = Duration::from_micros(3);

fn main() -> ExitCode {
    // Cargo passes `--bench` to a bench.
    let threads = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let threads = threads.or_else(|| std::thread::available_parallelism().ok().map(Into::into)).unwrap_or(1);
    let pool = ComputePool::new(threads);
    for _ in 0..WARM_UP_JOBS {
        hand_off(&pool);
    }
    let mut durations: Vec<Duration> = (0..JOBS).map(|_| hand_off(&pool)).collect();
    durations.sort_unstable();
    let (median, p99) = (durations[JOBS / 2], durations[JOBS * 99 / 100]);
    let verdict = if median < GOAL { "below" } else { "NOT BELOW" };
    let threads = pool.num_threads();
    println!("hand-off of a job to {threads} threads and back: median {median:?}, p99 {p99:?}; {verdict} {GOAL:?}");
    if median < GOAL { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// From the call to its return.
#[expect(clippy::disallowed_methods, reason = "a bench measures time")]
fn hand_off(pool: &ComputePool) -> Duration {
    let (threads, begun) = (pool.num_threads(), AtomicUsize::new(0));
    let start = Instant::now();
    pool.run(threads, &|_| {
        begun.fetch_add(1, Ordering::SeqCst);
        while begun.load(Ordering::SeqCst) < threads {
            std::hint::spin_loop();
        }
    });
    start.elapsed()
}
