//! How soon a real model serves again after a step that failed. The figures are printed: with `--nocapture`.
#![expect(clippy::print_stdout, reason = "it measures")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::common::parts;
use crate::decoder::decoder_in;
use crate::sick::{BRING_A_PANIC, BRING_AN_ERROR, NewBlocks, Sick};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{
    Engine, EngineConfig, EngineHandle, EngineParts, Event, EventStream, Request, RequestError, RequestId,
    SamplingParams,
};
use passerelle_models::LoadOptions;

const TRIES: usize = 9;
/// A round of tries is judged by its median. Where other processes have all processors for as long as one, another tells more.
const MOST_ROUNDS: usize = 5;
const LONGEST: Duration = Duration::from_millis(100);

/// Of streams that run when the step fails, and with it, each with a prompt of so many tokens; so is the culprit's.
#[derive(Clone, Copy)]
struct Load {
    streams: u32,
    prompt_tokens: u32,
}

#[test]
fn service_resumes_within_100_ms_of_a_step_that_failed_on_the_bundled_model() {
    measure(Load { streams: 4, prompt_tokens: 16 });
}

fn measure(load: Load) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/final");
    let model = Sick { decoder: decoder_in(&demo, &LoadOptions::default()), new_blocks: NewBlocks::AsTheyWere };
    let config = EngineConfig { max_num_seqs: 32, max_model_len: 512, costs: None, ..EngineConfig::default() };
    let clock = Arc::new(SystemClock::new());
    let engine = Engine::spawn(EngineParts { clock: Arc::clone(&clock) as _, ..parts(model, config) });
    let engine = engine.expect("the bundled model runs");
    for (mishap, poison) in [("an error", BRING_AN_ERROR.start), ("a panic", BRING_A_PANIC.start)] {
        let round = |_| {
            let mut taken: Vec<_> =
                (0..TRIES).map(|_| time_to_resume(&engine.handle(), &clock, load, poison)).collect();
            taken.sort_unstable();
            let (fastest, median) = (taken[0], taken[TRIES / 2]);
            println!("{mishap} beside {} streams: {median:?} (median of {TRIES}), {fastest:?} (fastest)", load.streams);
            median < LONGEST
        };
        assert!((0..MOST_ROUNDS).any(round), "half of the tries take longer");
    }
}

/// From the moment that the request comes which fails the step, until it has heard so, every stream that ran beside it has
/// a further token, and a new request its first.
fn time_to_resume(engine: &EngineHandle, clock: &SystemClock, load: Load, poison: u32) -> Duration {
    let Load { streams, prompt_tokens } = load;
    let prompt = |number| prompt(number, prompt_tokens);
    let mut running: Vec<EventStream> = (0..streams).map(|first| submit(engine, prompt(first))).collect();
    running.iter_mut().for_each(wait_for_a_token);
    let start = clock.now();
    let mut culprit = submit(engine, [prompt(streams), vec![poison]].concat());
    let failed = culprit.blocking_next();
    assert!(
        matches!(failed, Some(Event::Failed { error: RequestError::Step(_) | RequestError::Panic, .. })),
        "{failed:?}"
    );
    for stream in &mut running {
        while let Some(event) = stream.try_next() {
            assert!(matches!(event, Event::Token(_)), "{event:?}");
        }
        wait_for_a_token(stream);
    }
    wait_for_a_token(&mut submit(engine, prompt(streams + 1)));
    clock.now().saturating_sub(start)
}

fn submit(engine: &EngineHandle, prompt: Vec<u32>) -> EventStream {
    // Only a prompt may bring what fails the step.
    let logit_bias = (BRING_AN_ERROR.start..BRING_A_PANIC.end).map(|token| (token, -100.0)).collect();
    let sampling = SamplingParams { max_tokens: 400, temperature: 0.0, logit_bias, ..SamplingParams::default() };
    engine.submit(Request::new(RequestId(1), prompt, sampling)).expect("there is room for all")
}

/// No two begin alike.
fn prompt(first: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|position| 300 + (first * 31 + position * 7) % 1500).collect()
}

fn wait_for_a_token(stream: &mut EventStream) {
    let event = stream.blocking_next();
    assert!(matches!(event, Some(Event::Token(_))), "{event:?}");
}
