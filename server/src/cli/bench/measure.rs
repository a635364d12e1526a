//! Runs a batch through an engine and adds up what its steps report.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use passerelle_engine::{EngineHandle, Event, Request, RequestId, SamplingParams, StepObserver, StepReport};
use passerelle_models::TokenId;

/// Sequences of one shape.
#[derive(Debug, Clone, Copy)]
pub(super) struct Workload {
    pub(super) batch: usize,
    pub(super) prompt_tokens: usize,
    pub(super) generate_tokens: usize,
}

/// What the steps of one workload did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Measured {
    /// In steps that ran any part of a prompt.
    pub(super) prefill_tokens: usize,
    pub(super) prefill_time: Duration,
    /// In steps that only generated.
    pub(super) decode_tokens: usize,
    pub(super) decode_steps: usize,
    pub(super) decode_time: Duration,
}

/// Collects reports on the engine's thread.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    measured: Mutex<Measured>,
}

impl StepObserver for Recorder {
    fn step(&self, report: &StepReport) {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).add(report);
    }
}

impl Measured {
    fn add(&mut self, report: &StepReport) {
        if report.prompt_tokens > 0 {
            self.prefill_tokens += report.prompt_tokens;
            self.prefill_time += report.duration;
        } else if report.generated_tokens > 0 {
            self.decode_tokens += report.generated_tokens;
            self.decode_steps += 1;
            self.decode_time += report.duration;
        }
    }

    pub(super) fn prefill_tokens_per_s(&self) -> f64 {
        per_second(self.prefill_tokens, self.prefill_time)
    }

    pub(super) fn decode_tokens_per_s(&self) -> f64 {
        per_second(self.decode_tokens, self.decode_time)
    }

    pub(super) fn decode_steps_per_s(&self) -> f64 {
        per_second(self.decode_steps, self.decode_time)
    }
}

/// 0 if nothing of the kind was measured.
fn per_second(count: usize, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count as f64 / time.as_secs_f64() }
}

/// Runs the workload to its end. `round` makes its prompts unlike those of other rounds, so that none is found in the
/// prefix cache.
pub(super) fn run(
    engine: &EngineHandle,
    recorder: &Recorder,
    vocab: usize,
    (load, round): (Workload, u64),
) -> Result<Measured> {
    *recorder.measured.lock().unwrap_or_else(PoisonError::into_inner) = Measured::default();
    let submit = |index: usize| engine.submit(request(load, vocab, round * load.batch as u64 + index as u64));
    let streams = (0..load.batch).map(submit).collect::<Result<Vec<_>, _>>().context("the engine refuses the batch")?;
    for mut stream in streams {
        while let Some(event) = stream.blocking_next() {
            if let Event::Failed { error, .. } = event {
                bail!("a request failed: {error}");
            }
        }
    }
    Ok(*recorder.measured.lock().unwrap_or_else(PoisonError::into_inner))
}

fn request(load: Workload, vocab: usize, id: u64) -> Request {
    let sampling = SamplingParams {
        max_tokens: load.generate_tokens as u32,
        min_tokens: load.generate_tokens as u32,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    Request::new(RequestId(id), prompt(load.prompt_tokens, vocab, id), sampling)
}

/// Numbers without meaning: speed does not depend on what is said. A linear congruential generator (Knuth's MMIX).
fn prompt(tokens: usize, vocab: usize, seed: u64) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as TokenId
    };
    std::iter::repeat_with(next).take(tokens).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(prompt_tokens: usize, generated_tokens: usize, ms: u64) -> StepReport {
        let duration = Duration::from_millis(ms);
        StepReport { duration, prompt_tokens, generated_tokens, ..StepReport::default() }
    }

    #[test]
    fn steps_with_prompts_and_steps_without_are_counted_apart() {
        let mut measured = Measured::default();
        for step in [report(100, 0, 50), report(100, 1, 50), report(0, 4, 10), report(0, 4, 30)] {
            measured.add(&step);
        }
        assert_eq!(measured.prefill_tokens_per_s(), 2000.0);
        assert_eq!(measured.decode_tokens_per_s(), 200.0);
        assert_eq!(measured.decode_steps_per_s(), 50.0);
    }

    #[test]
    fn prompts_of_two_sequences_share_no_beginning() {
        assert_ne!(prompt(16, 1000, 0)[..4], prompt(16, 1000, 1)[..4]);
        assert!(prompt(1000, 7, 3).iter().all(|token| *token < 7));
    }
}
