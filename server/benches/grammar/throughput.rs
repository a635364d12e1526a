//! How fast a real model writes with and without a grammar, in turns, so that whatever else the machine does meets both.

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
use passerelle_models::{CheckpointFiles, LoadOptions, load_decoder};

use super::{SEQUENCES, compile, compiler_of};

const PROMPT_TOKENS: usize = 16;
const ANSWER_TOKENS: u32 = 16;
/// Runs with and runs without each grammar, in pairs.
const TURNS: usize = 12;
/// In percent.
const MOST_LOST: f64 = 5.0;
/// Of the bench's vocabulary, the only token that closes an object. Never drawn where there is a choice, so that no answer
/// ends before its time and every step holds all sequences.
const CLOSING: (u32, f32) = (b'}' as u32, -1000.0);

struct Bench {
    step_loop: StepLoop,
    handle: EngineHandle,
    vocab: usize,
    next_id: u64,
}

/// Steps in which every sequence wrote a token.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    tokens: usize,
    time: Duration,
}

/// True if no grammar takes more than it may, by the median of its pairs of runs.
pub(crate) fn measure(folder: &Path, grammars: &[(&'static str, Grammar)]) -> bool {
    let mut holds = true;
    let mut bench = Bench::load(folder);
    let compiler = compiler_of(bench.vocab);
    // Touches memory and wakes threads.
    bench.run(None);
    for (name, grammar) in grammars {
        let constraint = compile(&compiler, grammar);
        let (mut free, mut held, mut lost) = (Written::default(), Written::default(), Vec::new());
        for _ in 0..TURNS {
            let pair = (bench.run(None), bench.run(Some(constraint.as_ref())));
            lost.push(1.0 - pair.1.tokens_per_s() / pair.0.tokens_per_s());
            free.add(pair.0);
            held.add(pair.1);
        }
        lost.sort_by(f64::total_cmp);
        let [low, median, high] = [TURNS / 4, TURNS / 2, TURNS * 3 / 4].map(|at| lost[at] * 100.0);
        println!(
            "{name}: {:.1} tokens/s of {SEQUENCES} sequences, without it {:.1}, over {} tokens each",
            held.tokens_per_s(),
            free.tokens_per_s(),
            held.tokens,
        );
        println!(
            "  lost: median {median:.1} %, quartiles {low:.1} and {high:.1} %, of {TURNS} pairs (goal {MOST_LOST} %)"
        );
        holds &= median <= MOST_LOST;
    }
    holds
}

impl Bench {
    fn load(folder: &Path) -> Self {
        let files = CheckpointFiles::directory(folder).expect("--model names a checkpoint");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let loaded = load_decoder(&files, &Compute::cpu(threads), &LoadOptions::default(), &mut |_| ());
        let (decoder, description) = loaded.expect("the checkpoint loads");
        let config = EngineConfig { max_num_seqs: SEQUENCES, ..EngineConfig::default() };
        let parts = EngineParts { clock: Arc::new(SystemClock::new()), ..testing::parts(decoder, config) };
        let (step_loop, handle) = StepLoop::new(parts).expect("the bench's bounds are possible");
        Self { step_loop, handle, vocab: description.vocab_size, next_id: 0 }
    }

    fn run(&mut self, constraint: Option<&dyn Constraint>) -> Written {
        let streams: Vec<_> = (0..SEQUENCES).map(|_| self.submit(constraint.map(Constraint::fork))).collect();
        let mut written = Written::default();
        loop {
            let report = self.step_loop.step();
            if report.generated_tokens == SEQUENCES && report.prompt_tokens == 0 {
                written.add(Written { tokens: SEQUENCES, time: report.duration });
            }
            if self.step_loop.is_idle() {
                drop(streams);
                return written;
            }
        }
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

impl Written {
    fn add(&mut self, more: Self) {
        self.tokens += more.tokens;
        self.time += more.time;
    }

    fn tokens_per_s(self) -> f64 {
        self.tokens as f64 / self.time.as_secs_f64()
    }
}
