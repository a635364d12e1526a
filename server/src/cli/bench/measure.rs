//! Runs a batch through an engine and adds up what its steps report.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use passerelle_engine::{
    Engine, Event, EventStream, Request, RequestId, SamplingParams, StepObserver, StepReport, StepTurns, SubmitError,
};
use passerelle_models::TokenId;
use passerelle_models::ops::OpTimes;

use super::profile::{self, Spent};

/// Sequences of one shape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Workload {
    pub(super) batch: usize,
    pub(super) prompt_tokens: usize,
    pub(super) generate_tokens: usize,
}

impl Workload {
    pub(super) fn no_longer_than(self, tokens: usize) -> Self {
        let [prompt_tokens, generate_tokens] = [self.prompt_tokens, self.generate_tokens].map(|len| len.min(tokens));
        Self { prompt_tokens, generate_tokens, ..self }
    }
}

/// What the steps of one workload did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Measured {
    /// In steps that ran any part of a prompt.
    pub(super) prefill_tokens: usize,
    pub(super) prefill_steps: usize,
    pub(super) prefill_time: Duration,
    pub(super) prefill_ops: Spent,
    /// Sequences that generated at once, at most.
    pub(super) decoding: usize,
    /// In steps in which so many generated, and that did nothing else.
    pub(super) decode_tokens: usize,
    pub(super) decode_steps: usize,
    pub(super) decode_time: Duration,
    pub(super) decode_ops: Spent,
}

/// Collects reports on the engine's thread.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    recorded: Mutex<Recorded>,
    /// Where the ops' times are added up, for a profile.
    times: Option<Arc<OpTimes>>,
}

#[derive(Debug, Default)]
struct Recorded {
    measured: Measured,
    /// The ops' times when the last step ended.
    spent: Spent,
    progress: Progress,
}

/// How far a workload is, said now and then: a long one looks like one that hangs.
#[derive(Debug, Default)]
struct Progress {
    load: Option<Workload>,
    prompt_tokens: usize,
    generated_tokens: usize,
    /// Of its steps since anything was said.
    silent: Duration,
}

impl StepObserver for Recorder {
    fn step(&self, report: &StepReport) {
        let mut recorded = self.lock();
        let spent = self.times.as_ref().map_or(recorded.spent, |times| profile::totals(times));
        let before = std::mem::replace(&mut recorded.spent, spent);
        recorded.progress.add(report);
        recorded.measured.add(report, &std::array::from_fn(|op| spent[op] - before[op]));
    }
}

impl Recorder {
    pub(super) fn new(times: Option<Arc<OpTimes>>) -> Self {
        Self { times, ..Self::default() }
    }

    fn begin(&self, load: Workload) {
        let progress = Progress { load: Some(load), ..Progress::default() };
        let mut recorded = self.lock();
        *recorded = Recorded { spent: recorded.spent, progress, ..Recorded::default() };
    }

    fn lock(&self) -> MutexGuard<'_, Recorded> {
        self.recorded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress {
    const SAID_EVERY: Duration = Duration::from_secs(5);

    fn add(&mut self, report: &StepReport) {
        self.prompt_tokens += report.prompt_tokens;
        self.generated_tokens += report.generated_tokens;
        self.silent += report.duration;
        if self.silent >= Self::SAID_EVERY {
            self.silent = Duration::ZERO;
            if let Some(load) = &self.load {
                tell!("{}", self.line(load));
            }
        }
    }

    fn line(&self, load: &Workload) -> String {
        let Workload { batch, prompt_tokens, generate_tokens } = load;
        format!(
            "batch of {batch}: {} of {} prompt tokens read, {} of {} generated",
            self.prompt_tokens,
            batch * prompt_tokens,
            self.generated_tokens,
            batch * generate_tokens
        )
    }
}

impl Measured {
    fn add(&mut self, report: &StepReport, ops: &Spent) {
        let sums = if report.prompt_tokens > 0 {
            self.prefill_tokens += report.prompt_tokens;
            self.prefill_steps += 1;
            self.prefill_time += report.duration;
            &mut self.prefill_ops
        } else if report.generated_tokens > 0 && report.generated_tokens >= self.decoding {
            if report.generated_tokens > self.decoding {
                self.forget_decoding(report.generated_tokens);
            }
            self.decode_tokens += report.generated_tokens;
            self.decode_steps += 1;
            self.decode_time += report.duration;
            &mut self.decode_ops
        } else {
            return;
        };
        for (sum, op) in sums.iter_mut().zip(ops) {
            *sum += *op;
        }
    }

    /// A batch fills while the last prompts are read, and empties as sequences end.
    fn forget_decoding(&mut self, decoding: usize) {
        *self = Self {
            prefill_tokens: self.prefill_tokens,
            prefill_steps: self.prefill_steps,
            prefill_time: self.prefill_time,
            prefill_ops: self.prefill_ops,
            decoding,
            ..Self::default()
        };
    }

    pub(super) fn prefill_tokens_per_s(&self) -> f64 {
        per_second(self.prefill_tokens as f64, self.prefill_time)
    }

    pub(super) fn decode_tokens_per_s(&self) -> f64 {
        per_second(self.decode_tokens as f64, self.decode_time)
    }

    pub(super) fn decode_steps_per_s(&self) -> f64 {
        per_second(self.decode_steps as f64, self.decode_time)
    }
}

/// 0 if nothing of the kind was measured.
pub(super) fn per_second(count: f64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { count / time.as_secs_f64() }
}

/// An engine whose steps are recorded.
pub(super) struct Runner {
    pub(super) engine: Engine,
    /// The engine's, and nobody else's.
    pub(super) turns: StepTurns,
    pub(super) recorder: Arc<Recorder>,
    /// Token ids that the model reads.
    pub(super) vocab: usize,
}

impl Runner {
    /// Runs the workload to its end. `round` makes its prompts unlike those of other rounds, so that none is found in the
    /// prefix cache.
    pub(super) fn run(&self, load: Workload, round: u64) -> Result<Measured> {
        self.recorder.begin(load);
        for mut stream in self.submit(load, round).context("the engine refuses the batch")? {
            while let Some(event) = stream.blocking_next() {
                if let Event::Failed { error, .. } = event {
                    bail!("a request failed: {error}");
                }
            }
        }
        Ok(self.recorder.lock().measured)
    }

    /// All at once, up to the few hundred that an engine takes in before a step: none begins meanwhile. Otherwise a short answer
    /// may be over before the last prompt is there.
    fn submit(&self, load: Workload, round: u64) -> Result<Vec<EventStream>, SubmitError> {
        let engine = self.engine.handle();
        let _turn = self.turns.take();
        let first = round * load.batch as u64;
        (0..load.batch as u64).map(|index| engine.submit(request(load, self.vocab, first + index))).collect()
    }
}

pub(super) fn request(load: Workload, vocab: usize, id: u64) -> Request {
    let sampling = SamplingParams {
        max_tokens: load.generate_tokens as u32,
        min_tokens: load.generate_tokens as u32,
        temperature: 0.0,
        ..SamplingParams::default()
    };
    Request::new(RequestId(id), prompt(load.prompt_tokens, vocab, id), sampling)
}

/// Numbers without meaning: speed does not depend on what is said. A linear congruential generator (Knuth's MMIX).
pub(super) fn prompt(tokens: usize, vocab: usize, seed: u64) -> Vec<TokenId> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocab as u64) as TokenId
    };
    std::iter::repeat_with(next).take(tokens).collect()
}

#[cfg(test)]
mod tests {
    use passerelle_engine::testing::{StubModel, parts};
    use passerelle_engine::{EngineConfig, EngineParts};

    use super::*;

    fn report(prompt_tokens: usize, generated_tokens: usize, ms: u64) -> StepReport {
        let duration = Duration::from_millis(ms);
        StepReport { duration, prompt_tokens, generated_tokens, ..StepReport::default() }
    }

    #[test]
    fn steps_with_prompts_and_steps_of_the_whole_batch_are_counted_apart() {
        let mut measured = Measured::default();
        let ops = |ms| Spent::default().map(|_| Duration::from_millis(ms));
        for (step, ops) in [
            (report(100, 0, 50), ops(2)),
            (report(100, 1, 50), ops(3)),
            (report(0, 3, 1), ops(7)),
            (report(0, 4, 10), ops(1)),
            (report(0, 4, 30), ops(1)),
            (report(0, 2, 1), ops(7)),
            (report(0, 0, 9), ops(9)),
        ] {
            measured.add(&step, &ops);
        }
        assert_eq!(measured.prefill_tokens_per_s(), 2000.0);
        assert_eq!((measured.decoding, measured.decode_tokens_per_s()), (4, 200.0));
        assert_eq!(measured.decode_steps_per_s(), 50.0);
        assert_eq!((measured.prefill_ops, measured.decode_ops), (ops(5), ops(2)));
    }

    #[test]
    fn a_batch_begins_as_one_however_fast_its_answers_are() {
        let (recorder, turns) = (Arc::new(Recorder::new(None)), StepTurns::new());
        let engine = Engine::spawn(EngineParts {
            turns: turns.clone(),
            observer: Arc::<Recorder>::clone(&recorder),
            ..parts(StubModel::new(16, 16), EngineConfig::default())
        });
        let runner = Runner { engine: engine.expect("bounds that hold"), turns, recorder, vocab: 16 };
        for round in 0..16 {
            let load = Workload { batch: 64, prompt_tokens: 32, generate_tokens: 2 };
            let measured = runner.run(load, round).expect("nothing fails");
            assert_eq!((measured.prefill_steps, measured.decode_steps, measured.decoding), (1, 1, 64), "round {round}");
        }
    }

    #[test]
    fn a_workload_says_how_far_it_is_of_all_that_its_sequences_will_run() {
        let load = Workload { batch: 4, prompt_tokens: 1000, generate_tokens: 50 };
        let mut progress = Progress { load: Some(load), ..Progress::default() };
        [report(512, 0, 4000), report(512, 1, 900), report(0, 4, 200)].iter().for_each(|step| progress.add(step));
        assert_eq!(progress.line(&load), "batch of 4: 1024 of 4000 prompt tokens read, 5 of 200 generated");
        assert_eq!(progress.silent, Duration::ZERO, "it was said after five seconds");
        assert_eq!(load.no_longer_than(64), Workload { prompt_tokens: 64, ..load });
    }

    #[test]
    fn prompts_of_two_sequences_share_no_beginning() {
        assert_ne!(prompt(16, 1000, 0)[..4], prompt(16, 1000, 1)[..4]);
        assert!(prompt(1000, 7, 3).iter().all(|token| *token < 7));
    }
}
