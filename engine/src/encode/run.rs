//! The loop: take commands, wait for the turn, batch, run, publish, reply.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use passerelle_models::{Encoder, EncoderInput, EncoderSequence, ModelError};

use super::EncodeRequest;
use super::engine::{Command, EncoderConfig, EncoderStats, Shared};
use super::queue::{BatchBudget, Text, TextQueue};
use super::reply::Answer;
use crate::admission::Phase;
use crate::clock::Clock;
use crate::event::RequestError;
use crate::stats::{StepObserver, StepReport};
use crate::trust::MAX_FRUITLESS_STEPS;
use crate::turns::StepTurns;

/// New texts taken in per batch, so that a flood of them cannot hold up the batch.
const MAX_COMMANDS_PER_BATCH: usize = 1024;

pub(super) struct EncodeLoop {
    parts: LoopParts,
    queue: TextQueue,
    stats: EncoderStats,
    /// Batches in a row in which every text failed.
    fruitless: usize,
}

pub(super) struct LoopParts {
    pub(super) model: Box<dyn Encoder>,
    pub(super) config: EncoderConfig,
    pub(super) turns: StepTurns,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) observer: Arc<dyn StepObserver>,
    pub(super) commands: Receiver<Command>,
    pub(super) shared: Arc<Shared>,
}

impl EncodeLoop {
    pub(super) fn new(parts: LoopParts) -> Self {
        Self {
            queue: TextQueue::new(parts.config.max_batch_tokens),
            parts,
            stats: EncoderStats::default(),
            fruitless: 0,
        }
    }

    /// Runs until shut down, sleeping on the command queue while idle.
    pub(super) fn run_until_stopped(mut self) {
        while self.phase() < Phase::Stopping {
            if self.queue.is_empty() {
                match self.parts.commands.recv() {
                    Ok(command) => self.accept(command),
                    Err(_) => break,
                }
            }
            self.run_batch();
        }
        let why = match self.phase() {
            Phase::Dead => RequestError::Step("the model fails every text".into()),
            _ => RequestError::ShuttingDown,
        };
        self.take_commands();
        let left = self.queue.drain_all();
        self.end(left.into_iter().map(|text| (text, Err(why.clone()))).collect());
    }

    fn run_batch(&mut self) {
        self.take_commands();
        self.queue.drain_cancelled();
        if self.queue.is_empty() {
            return;
        }
        let turns = self.parts.turns.clone();
        let turn = turns.take();
        // The wait may have been long.
        self.take_commands();
        self.queue.drain_cancelled();
        let config = &self.parts.config;
        let budget = BatchBudget { tokens: config.max_batch_tokens, texts: config.max_batch_texts };
        let mut batch = self.queue.take_batch(budget);
        batch.retain(|text| text.reply.start());
        if batch.is_empty() {
            return;
        }
        let started = self.parts.clock.now();
        self.note_start(&batch);
        let answers = self.encode(&batch);
        drop(turn);
        let duration = self.parts.clock.now().saturating_sub(started);
        let failures = answers.iter().filter(|answer| answer.is_err()).count();
        self.note_end(failures, batch.len());
        let tokens = batch.iter().map(|text| text.request.tokens.len()).sum();
        self.publish(&report(duration, (batch.len(), tokens), failures));
        self.end(batch.into_iter().zip(answers).collect());
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
        let vectors = catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| RequestError::Step("the model panicked".into()))?
            .map_err(|error| RequestError::Step(error.to_string()))?;
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
        *self.parts.shared.lock_stats() = self.stats;
    }

    fn note_end(&mut self, failures: usize, num_texts: usize) {
        self.stats.running = 0;
        self.stats.failures_total += failures as u64;
        if failures < num_texts {
            self.stats.steps_total += 1;
            self.fruitless = 0;
            return;
        }
        self.fruitless += 1;
        if self.fruitless == MAX_FRUITLESS_STEPS {
            tracing::error!(batches = MAX_FRUITLESS_STEPS, "every text of these batches failed; the encoder gives up");
            self.parts.shared.admission.advance(Phase::Dead);
        }
    }

    fn publish(&self, report: &StepReport) {
        *self.parts.shared.lock_stats() = self.stats;
        let waiting = self.parts.shared.admission.occupancy().waiting_requests;
        self.parts.observer.step(&StepReport { waiting, ..report.clone() });
    }

    /// Places are given back before the answers: whoever has an answer finds room for the next text.
    fn end(&self, ended: Vec<(Text, Answer)>) {
        for (text, answer) in ended {
            let Text { ticket, reply, .. } = text;
            drop(ticket);
            reply.send(answer);
        }
    }

    fn take_commands(&mut self) {
        for _ in 0..MAX_COMMANDS_PER_BATCH {
            match self.parts.commands.try_recv() {
                Ok(command) => self.accept(command),
                Err(_) => return,
            }
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Add(text) => self.queue.push(*text),
            Command::Wake => {}
        }
    }

    fn phase(&self) -> Phase {
        self.parts.shared.admission.phase()
    }
}

impl Drop for EncodeLoop {
    /// Runs before the replies close, so that whoever finds one lost also finds the lane dead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.parts.shared.admission.advance(Phase::Dead);
        }
    }
}

fn only(mut answers: Vec<Answer>) -> Answer {
    answers.pop().unwrap_or_else(|| Err(RequestError::Step("no vector for a text".into())))
}

fn report(duration: Duration, (num_sequences, prompt_tokens): (usize, usize), failures: usize) -> StepReport {
    StepReport { duration, num_sequences, prompt_tokens, failures, ..StepReport::default() }
}
