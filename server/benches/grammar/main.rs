//! What following a grammar costs at the vocabulary of a large model: for each token, and in a step of several sequences
//! on a model that costs nothing, beside the same step without one. With a checkpoint: what it takes from that model's
//! speed, sampled step by step until it can tell.
//!
//! `cargo bench -p passerelle --bench grammar [-- --model DIRECTORY]`

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

mod interval;
mod shared;
mod throughput;
mod words;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use passerelle::text::{Grammar, GrammarBounds, GrammarCompiler, Tokenizer};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::testing::{self, FreeModel};
use passerelle_engine::{
    AnswerEnd, Constraint, EngineConfig, EngineParts, Request, RequestId, SamplingParams, StepLoop,
};
use serde_json::json;
use words::tokenizer_of;

const VOCAB: usize = 128 << 10;
const ANSWERS: u64 = 40;
const LONGEST_ANSWER: usize = 400;
const GOAL: Duration = Duration::from_micros(50);

const SEQUENCES: usize = 16;
const STEPS: usize = 200;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let holds = match arguments.iter().position(|argument| argument == "--model").and_then(|at| arguments.get(at + 1)) {
        Some(folder) => throughput::measure(folder.as_ref(), &grammars()),
        None => without_a_model(),
    };
    if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// True if every grammar reaches the goal.
fn without_a_model() -> bool {
    let mut holds = true;
    let clock = SystemClock::new();
    let compiler = compiler_of(VOCAB);
    let began = clock.now();
    compile(&compiler, &Grammar::JsonObject);
    println!("the first grammar of a vocabulary of {VOCAB}: {:?}", clock.now() - began);
    for (name, grammar) in grammars() {
        let began = clock.now();
        let compiled = compile(&compiler, &grammar);
        let compiling = clock.now() - began;
        let mut times = Vec::new();
        (0..ANSWERS).for_each(|seed| follow(compiled.fork().as_mut(), seed, &clock, &mut times));
        times.sort_unstable();
        let (median, tail) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!(
            "{name}: compiled in {compiling:?}; a token: median {median:?} (goal {GOAL:?}), 99th percentile {tail:?}"
        );
        let (free, followed) = (step_time(None), step_time(Some(compiled)));
        println!("  a step of {SEQUENCES} sequences without a model: {followed:?}, without the grammar {free:?}");
        holds &= median <= GOAL;
    }
    holds
}

/// The median of the steps in which every sequence generates; it covers the loop, the masks and the draws.
fn step_time(constraint: Option<Box<dyn Constraint>>) -> Duration {
    let config = EngineConfig { max_waiting_requests: SEQUENCES, ..EngineConfig::default() };
    let parts = testing::parts(FreeModel::new(vec![0.0; VOCAB]), config);
    let parts = EngineParts { clock: Arc::new(SystemClock::new()), ..parts };
    let (mut step_loop, handle) = StepLoop::new(parts).expect("the bench's bounds are possible");
    let submit = |id: usize| {
        let sampling = SamplingParams { max_tokens: 1000, seed: Some(id as u64), ..SamplingParams::default() };
        let request = Request::new(RequestId(id as u64), vec![0; 16], sampling);
        handle.submit(Request { constraint: constraint.clone(), ..request }).expect("the queue holds them all")
    };
    let mut streams: Vec<_> = (0..SEQUENCES).map(submit).collect();
    let mut times = Vec::new();
    for step in 0..STEPS {
        let report = step_loop.step();
        if report.generated_tokens == SEQUENCES {
            times.push(report.duration);
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            while stream.try_next().is_some() {}
            if stream.has_ended() {
                *stream = submit(SEQUENCES * (step + 1) + index);
            }
        }
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// For `vocab` tokens, of which the last ends an answer.
fn compiler_of(vocab: usize) -> GrammarCompiler {
    let tokenizer = Tokenizer::from_bytes(tokenizer_of(vocab).to_string().as_bytes());
    GrammarCompiler::new(tokenizer.expect("the bench's tokenizer is well formed"), vec![vocab as u32 - 1])
}

fn compile(compiler: &GrammarCompiler, grammar: &Grammar) -> Box<dyn Constraint> {
    compiler.compile(grammar, &GrammarBounds::default()).expect("the bench's grammars compile")
}

/// One random answer; adds the time of each token.
fn follow(constraint: &mut dyn Constraint, seed: u64, clock: &SystemClock, times: &mut Vec<Duration>) {
    let mut chance = seed;
    for _ in 0..LONGEST_ANSWER {
        if constraint.allowed().end == AnswerEnd::Reached {
            return;
        }
        let token = choose(constraint, &mut chance);
        let began = clock.now();
        constraint.accept(token).expect("an allowed token is accepted");
        times.push(clock.now() - began);
    }
}

/// A random allowed token, found from a random place in the vocabulary.
fn choose(constraint: &dyn Constraint, chance: &mut u64) -> u32 {
    *chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let start = (*chance >> 33) as usize % VOCAB;
    let allowed = constraint.allowed();
    let mut tokens = (start..VOCAB).chain(0..start).map(|token| token as u32);
    tokens.find(|&token| allowed.allows(token)).expect("an answer that has not ended can go on")
}

fn grammars() -> [(&'static str, Grammar); 4] {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "kind": {"enum": ["person", "animal", "thing"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 20}},
            "address": {"type": "object", "properties": {"city": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
        },
        "required": ["name", "age", "kind", "tags", "address"],
        "additionalProperties": false,
    });
    [
        ("any JSON object", Grammar::JsonObject),
        ("JSON of a schema", Grammar::JsonSchema(schema)),
        ("a regular expression", Grammar::Regex(r"([A-Z][a-z]+ ){1,20}[0-9]{4}-[0-9]{2}-[0-9]{2}".to_owned())),
        (
            "a grammar",
            Grammar::Lark("start: sum\nsum: term (/[+-]/ term)*\nterm: /[0-9]{1,9}/ | \"(\" sum \")\"".to_owned()),
        ),
    ]
}
