//! How fast a real model writes with and without a grammar, step by step in turns, so that whatever else the machine does
//! meets both: two engines over one model write answers of the same lengths, a step of the one, two of the other and another
//! of the first. Each such quartet says what the grammar took; their median is judged by an interval that holds for any
//! distribution, and more of them are run until it lies on one side of the goal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use passerelle::text::Grammar;
use passerelle_engine::clock::SystemClock;
use passerelle_engine::testing;
use passerelle_engine::{
    Constraint, EngineConfig, EngineHandle, EngineParts, EventStream, Request, RequestId, SamplingParams, StepLoop,
};
use passerelle_models::ops::Compute;
use passerelle_models::{CheckpointFiles, LoadOptions, load_decoder, unwatched};

use super::interval::{Interval, Verdict};
use super::shared::Shared;
use super::{SEQUENCES, compile, compiler_of};

const PROMPT_TOKENS: usize = 16;
/// The prompt's step gives the first of them, and each quartet two more.
const ANSWER_TOKENS: u32 = 17;
/// Answers of every sequence of both engines.
const LEAST_ROUNDS: usize = 6;
const MOST_ROUNDS: usize = 40;
/// Of the time that a step takes without a grammar.
const MOST_LOST: f64 = 0.05;
/// Of the bench's vocabulary, the only token that closes an object. Never drawn where there is a choice, so that no answer
/// ends before its time and every step holds all sequences.
const CLOSING: (u32, f32) = (b'}' as u32, -1000.0);

/// An engine of its own over the model.
struct Side {
    step_loop: StepLoop,
    handle: EngineHandle,
    vocab: usize,
    next_id: u64,
}

/// The two that are compared.
struct Sides {
    free: Side,
    held: Side,
}

/// What four steps took, two of each.
#[derive(Debug, Clone, Copy, Default)]
struct Quartet {
    free: Duration,
    held: Duration,
}

/// True if it is sure that no grammar takes more than it may.
pub(crate) fn measure(folder: &Path, grammars: &[(&'static str, Grammar)]) -> bool {
    let mut sides = Sides::load(folder);
    let compiler = compiler_of(sides.free.vocab);
    // What the machine makes of no difference at all. It also touches memory and wakes threads.
    sides.report("no grammar on either side", None);
    let mut holds = true;
    for (name, grammar) in grammars {
        let constraint = compile(&compiler, grammar);
        holds &= sides.report(name, Some(constraint.as_ref())) == Verdict::Below;
    }
    holds
}

impl Sides {
    fn load(folder: &Path) -> Self {
        let files = CheckpointFiles::directory(folder).expect("--model names a checkpoint");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let loaded = load_decoder(&files, &Compute::cpu(threads), &LoadOptions::default(), &mut unwatched);
        let (decoder, description) = loaded.expect("the checkpoint loads");
        let model = Shared(Arc::new(decoder));
        let side = || Side::new(model.clone(), description.vocab_size);
        Self { free: side(), held: side() }
    }

    /// Runs until it can tell, or has run enough, and prints what it found.
    fn report(&mut self, name: &str, constraint: Option<&dyn Constraint>) -> Verdict {
        let mut quartets = Vec::new();
        for round in 1..=MOST_ROUNDS {
            self.run(constraint, &mut quartets);
            let is_told = lost(&quartets).is_some_and(|lost| lost.beside(MOST_LOST) != Verdict::Unknown);
            if round >= LEAST_ROUNDS && is_told {
                break;
            }
        }
        let lost = lost(&quartets).expect("no grammar of the bench ends answers so early");
        let verdict = lost.beside(MOST_LOST);
        let tokens_per_s = |of: fn(&Quartet) -> Duration| {
            (2 * SEQUENCES * quartets.len()) as f64 / quartets.iter().map(of).sum::<Duration>().as_secs_f64()
        };
        println!(
            "{name}: {:.1} tokens/s of {SEQUENCES} sequences, without it {:.1}",
            tokens_per_s(|quartet| quartet.held),
            tokens_per_s(|quartet| quartet.free),
        );
        println!(
            "  a step takes {:.2} % longer: median of {} quartets, 99 % sure of {:.2} to {:.2} %; {verdict} the goal of {} %",
            100.0 * lost.median,
            quartets.len(),
            100.0 * lost.low,
            100.0 * lost.high,
            100.0 * MOST_LOST,
        );
        verdict
    }

    /// One answer of each sequence of both, in which `held` follows the constraint.
    fn run(&mut self, constraint: Option<&dyn Constraint>, quartets: &mut Vec<Quartet>) {
        let streams = [self.free.submit_all(None), self.held.submit_all(constraint)];
        // The prompts.
        self.free.step_loop.step();
        self.held.step_loop.step();
        for turn in 0..(ANSWER_TOKENS - 1) / 2 {
            quartets.extend(if turn % 2 == 0 { self.free_outside() } else { self.held_outside() });
        }
        drop(streams);
        for side in [&mut self.free, &mut self.held] {
            while !side.step_loop.is_idle() {
                side.step_loop.step();
            }
        }
    }

    /// `None` unless all sequences wrote in all of the steps.
    fn free_outside(&mut self) -> Option<Quartet> {
        let before = self.free.step()?;
        let held = self.held.step()? + self.held.step()?;
        Some(Quartet { free: before + self.free.step()?, held })
    }

    fn held_outside(&mut self) -> Option<Quartet> {
        let before = self.held.step()?;
        let free = self.free.step()? + self.free.step()?;
        Some(Quartet { held: before + self.held.step()?, free })
    }
}

impl Side {
    fn new(model: Shared, vocab: usize) -> Self {
        let config = EngineConfig { max_num_seqs: SEQUENCES, ..EngineConfig::default() };
        let parts = EngineParts { clock: Arc::new(SystemClock::new()), ..testing::parts(model, config) };
        let (step_loop, handle) = StepLoop::new(parts).expect("the bench's bounds are possible");
        Self { step_loop, handle, vocab, next_id: 0 }
    }

    /// How long it took, if every sequence wrote a token in it.
    fn step(&mut self) -> Option<Duration> {
        let report = self.step_loop.step();
        (report.generated_tokens == SEQUENCES && report.prompt_tokens == 0).then_some(report.duration)
    }

    fn submit_all(&mut self, constraint: Option<&dyn Constraint>) -> Vec<EventStream> {
        (0..SEQUENCES).map(|_| self.submit(constraint.map(Constraint::fork))).collect()
    }

    /// No two prompts begin alike, so none finds another's prefix.
    fn submit(&mut self, constraint: Option<Box<dyn Constraint>>) -> EventStream {
        let id = self.next_id;
        self.next_id += 1;
        let prompt = (0..PROMPT_TOKENS as u64).map(|at| (7919 * (id + 1) + at) as u32 % self.vocab as u32).collect();
        let sampling = SamplingParams {
            max_tokens: ANSWER_TOKENS,
            seed: Some(id),
            logit_bias: vec![CLOSING],
            ..SamplingParams::default()
        };
        let request = Request { constraint, ..Request::new(RequestId(id), prompt, sampling) };
        self.handle.submit(request).expect("the queue holds them all")
    }
}

/// By how much longer the held steps took, as a part of the others.
fn lost(quartets: &[Quartet]) -> Option<Interval> {
    Interval::of_median(
        quartets.iter().map(|quartet| quartet.held.as_secs_f64() / quartet.free.as_secs_f64() - 1.0).collect(),
    )
}
