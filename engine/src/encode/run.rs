//! The loop: take commands, wait for the turn, batch, run, publish, reply.

use std::sync::Arc;
use std::time::Duration;

use passerelle_models::{Encoder, EncoderInput, EncoderSequence, ModelError, TokenId};

use super::EncodeRequest;
use super::engine::{EncoderConfig, EncoderStats, SharedStats};
use crate::clock::Clock;
use crate::event::RequestError;
use crate::fault::FaultCounts;
use crate::lane::{BatchBudget, Inbox, Job};
use crate::stats::{StepObserver, StepReport};
use crate::survival::survive;
use crate::trust::{Outcome, Trust};
use crate::turns::StepTurns;

/// Every vocabulary has it.
const TOKEN: TokenId = 0;

type Text = Job<EncodeRequest, Vec<f32>>;
type Answer = Result<Vec<f32>, RequestError>;

pub(super) struct EncodeLoop {
    parts: LoopParts,
    stats: EncoderStats,
    trust: Trust,
}

pub(super) struct LoopParts {
    pub(super) model: Box<dyn Encoder>,
    pub(super) config: EncoderConfig,
    pub(super) turns: StepTurns,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn StepObserver>,
    pub(super) inbox: Inbox<EncodeRequest, Vec<f32>>,
    pub(super) stats: SharedStats,
}

impl EncodeLoop {
    pub(super) fn new(parts: LoopParts) -> Self {
        Self { parts, stats: EncoderStats::default(), trust: Trust::default() }
    }

    /// Runs until shut down, sleeping while idle.
    pub(super) fn run_until_stopped(mut self) {
        let _here = self.parts.model.enter();
        while self.parts.inbox.wait() {
            self.run_batch();
        }
        self.parts.inbox.fail_all("the model fails every text");
    }

    fn run_batch(&mut self) {
        if !self.parts.inbox.refresh() {
            return;
        }
        let turns = self.parts.turns.clone();
        let turn = turns.take();
        // The wait may have been long.
        self.parts.inbox.refresh();
        let config = &self.parts.config;
        let budget = BatchBudget { tokens: config.max_batch_tokens, requests: config.max_batch_texts };
        let mut batch = self.parts.inbox.take_batch(budget);
        batch.retain(|text| text.reply.owe(text.request.tokens.len()));
        if batch.is_empty() {
            return;
        }
        let started = self.parts.clock.now();
        self.note_start(&batch);
        let answers = self.encode(&batch);
        let duration = self.parts.clock.now().saturating_sub(started);
        let failures: FaultCounts =
            answers.iter().filter_map(|answer| answer.as_ref().err().and_then(RequestError::fault)).collect();
        self.note_end(failures, batch.len());
        drop(turn);
        let tokens = batch.iter().map(|text| text.request.tokens.len()).sum();
        self.publish(&report(duration, batch.len(), tokens, failures));
        batch.into_iter().zip(answers).for_each(|(text, answer)| text.end(answer));
    }

    /// All texts together; when that fails, each alone, so that only those at fault fail.
    fn encode(&mut self, batch: &[Text]) -> Vec<Answer> {
        match self.forward(batch) {
            Ok(answers) => answers,
            Err(error) if batch.len() == 1 => vec![Err(error)],
            Err(error) => {
                tracing::warn!(%error, texts = batch.len(), "a batch failed; its texts run one by one");
                let alone = |text| self.forward(std::slice::from_ref(text)).map_or_else(Err, only);
                batch.iter().map(alone).collect()
            }
        }
    }

    fn forward<'a>(&mut self, batch: &'a [Text]) -> Result<Vec<Answer>, RequestError> {
        let sequence = |text: &'a Text| {
            let EncodeRequest { tokens, second_text, .. } = &text.request;
            EncoderSequence { tokens, second_text: *second_text }
        };
        let sequences: Vec<_> = batch.iter().map(sequence).collect();
        let model = self.parts.model.as_mut();
        let run = || -> Result<_, ModelError> { model.forward(&EncoderInput::new(&sequences)?) };
        let vectors = survive(run)?;
        if vectors.num_rows() != batch.len() {
            return Err(RequestError::Step(format!("{} vectors for {} texts", vectors.num_rows(), batch.len())));
        }
        let checked = |row: &[f32]| match row.iter().all(|x| x.is_finite()) {
            true => Ok(row.to_vec()),
            false => Err(RequestError::NotFinite),
        };
        Ok((0..batch.len()).map(|row| checked(vectors.row(row))).collect())
    }

    fn note_start(&mut self, batch: &[Text]) {
        self.stats.running = batch.len();
        self.stats.texts_total += batch.len() as u64;
        self.stats.prompt_tokens_total += batch.iter().map(|text| text.request.tokens.len() as u64).sum::<u64>();
        *self.parts.stats.lock() = self.stats;
    }

    fn note_end(&mut self, failures: FaultCounts, num_texts: usize) {
        self.stats.running = 0;
        self.stats.failures_total += failures.total();
        self.stats.distrusted_until = self.trust.note_failures(self.parts.clock.now(), failures.total());
        match self.trust.note_step(num_texts, failures.total() as usize, &failures) {
            Outcome::Fruitful => self.stats.steps_total += 1,
            Outcome::Doubtful if !self.model_still_runs() => {
                tracing::error!("every text failed, and so does one of the encoder's own; the encoder gives up");
                self.parts.inbox.give_up();
            }
            Outcome::Fruitless | Outcome::Doubtful => {}
        }
    }

    /// Runs one token of nobody's, as a generating engine does before it gives up.
    fn model_still_runs(&mut self) -> bool {
        let (model, text) = (self.parts.model.as_mut(), EncoderSequence { tokens: &[TOKEN], second_text: None });
        let vectors = survive(|| model.forward(&EncoderInput::new(&[text])?));
        vectors.is_ok_and(|vectors| (0..vectors.num_rows()).all(|row| vectors.row(row).iter().all(|x| x.is_finite())))
    }

    fn publish(&self, report: &StepReport) {
        *self.parts.stats.lock() = self.stats;
        let waiting = self.parts.inbox.num_waiting();
        self.parts.observer.step(&StepReport { waiting, ..report.clone() });
    }
}

fn only(mut answers: Vec<Answer>) -> Answer {
    answers.pop().unwrap_or_else(|| Err(RequestError::Step("no vector for a text".into())))
}

fn report(duration: Duration, num_sequences: usize, prompt_tokens: usize, failures: FaultCounts) -> StepReport {
    StepReport { duration, num_sequences, prompt_tokens, failures, ..StepReport::default() }
}
