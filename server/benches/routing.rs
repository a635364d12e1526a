//! What one choice of a replica costs in a large fleet.
//!
//! `cargo bench -p passerelle --bench routing`

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use passerelle::gateway::replica::{Load, ReplicaDoor, ReplicaId, ReplicaRefusal};
use passerelle::gateway::{PrefixHint, Replica, Router};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{CacheSalt, EventStream, Request};

const REPLICAS: u32 = 15_000;
const PROMPTS: u32 = 1_000;
const PROMPT_TOKENS: u32 = 64;
const ROUNDS: u32 = 200;
const GOAL: Duration = Duration::from_micros(5);

/// Always ready, never asked.
#[derive(Debug)]
struct Idle;

impl ReplicaDoor for Idle {
    fn submit(&self, _: Request) -> Result<EventStream, ReplicaRefusal> {
        Err(ReplicaRefusal::Closed)
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

fn main() -> ExitCode {
    let mut holds = true;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let replicas = (0..REPLICAS).map(|id| Arc::new(Replica::new(ReplicaId(id), "m", Box::new(Idle))));
    let router = Router::new(replicas, Arc::clone(&clock), 7);
    let salt = CacheSalt([7; 32]);
    let prompts: Vec<Vec<u32>> = (0..PROMPTS).map(|prompt| (prompt..prompt + PROMPT_TOKENS).collect()).collect();
    for (name, has_hint) in [("by the prompt's beginning", true), ("without one", false)] {
        let mut times = Vec::with_capacity((PROMPTS * ROUNDS) as usize);
        for _ in 0..ROUNDS {
            for prompt in &prompts {
                let began = clock.now();
                let hint = if has_hint { PrefixHint::of(prompt, &salt) } else { PrefixHint::NONE };
                let _ = black_box(router.pick("m", hint, &[]));
                times.push(clock.now() - began);
            }
        }
        times.sort_unstable();
        let (median, tail) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!(
            "among {REPLICAS} replicas, {name}: median {median:?} (goal {GOAL:?}), 99th percentile {tail:?}, of {} choices",
            times.len()
        );
        holds &= median <= GOAL;
    }
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
