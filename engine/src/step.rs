//! The loop. One step: take commands, wait for the turn, schedule, run, drain aborts, update, publish, conclude.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use crate::admission::{Admission, Phase};
use crate::batch::ScheduledBatch;
use crate::calibration::Calibration;
use crate::clock::Clock;
use crate::doorbell::RungFlag;
use crate::engine::{Door, EngineHandle, EngineParts};
use crate::error::EngineError;
use crate::event::{Event, FinishReason, RequestError, TokenEvent};
use crate::fault::FaultCounts;
use crate::kv_cache_manager::Prefixes;
use crate::model_runner::ModelRunner;
use crate::sampler::{Sampler, SequenceOutput};
use crate::scheduler::Scheduler;
use crate::sequence::{Sequence, SequenceId};
use crate::shared_model::SharedModel;
use crate::stats::{EngineStats, StepObserver, StepReport};
use crate::step_logits::StepLogits;
use crate::trust::Trust;
use crate::turns::StepTurns;
use ending::Ending;

mod bookkeeping;
mod ending;
mod hope;
mod pricing;

/// New requests taken in per step, so that a flood of them cannot hold up the step.
const MAX_COMMANDS_PER_STEP: usize = 256;

/// The engine without its thread. [`crate::Engine`] runs it; a simulation steps it by hand.
#[derive(Debug)]
pub struct StepLoop {
    commands: Receiver<Command>,
    scheduler: Scheduler,
    runner: ModelRunner,
    /// Of the step in flight.
    logits: StepLogits,
    sampler: Sampler,
    turns: StepTurns,
    clock: Arc<dyn Clock>,
    observer: Observer,
    rung: RungFlag,
    shared: Arc<Shared>,
    stats: EngineStats,
    /// `None`: what work costs is known as well as it can be.
    calibration: Option<Calibration>,
    /// Sequences that failed in this step by no fault of their own.
    faulted_sequences: usize,
    /// Requests that did.
    failures: FaultCounts,
    trust: Trust,
    /// Sequences that are over, until their readers hear it.
    ended: Vec<(Sequence, Ending)>,
}

/// What the handle sends.
#[derive(Debug)]
pub(crate) enum Command {
    Add(Box<Sequence>),
    /// The phase has changed: look at it.
    Wake,
}

/// What the loop and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) admission: Arc<Admission>,
    pub(crate) stats: Mutex<EngineStats>,
}

struct Observer(Arc<dyn StepObserver>);

impl StepLoop {
    /// Errors when a bound is impossible or the cache cannot be made.
    pub fn new(parts: EngineParts) -> Result<(Self, EngineHandle), EngineError> {
        let EngineParts { name, model, config, turns, clock, observer } = parts;
        let model = SharedModel::from(model);
        let here = model.get().enter();
        config.validate_for(model.get().max_position())?;
        let kv_cache = model.get().kv_cache_spec();
        let (sender, commands) = command_channel(config.max_waiting_requests);
        let stats = EngineStats {
            total_blocks: config.num_kv_blocks,
            free_blocks: config.num_kv_blocks,
            ..EngineStats::default()
        };
        let shared = Arc::new(Shared {
            admission: Arc::new(Admission::new(config.admission())),
            stats: Mutex::new(stats.clone()),
        });
        let rung = RungFlag::default();
        let sampler = Sampler::new(model.get().pulse());
        let lent = (&model, Arc::clone(&observer));
        let door = Door::new(name, lent, &config, (sender, rung.clone()), Arc::clone(&shared));
        let mut runner = ModelRunner::new(model, config.num_kv_blocks)?;
        let (costs, calibration) = pricing::at_start(&mut runner, clock.as_ref(), &config)?;
        runner.take_memory();
        drop(here);
        tracing::info!(%costs, "what work costs");
        let step_loop = Self {
            commands,
            scheduler: Scheduler::new(config, costs, kv_cache),
            runner,
            logits: StepLogits::default(),
            sampler,
            turns,
            clock,
            observer: Observer(observer),
            rung,
            shared,
            stats,
            calibration,
            faulted_sequences: 0,
            failures: FaultCounts::default(),
            trust: Trust::default(),
            ended: Vec::new(),
        };
        Ok((step_loop, EngineHandle::new(door)))
    }

    /// One step over whatever there is to do.
    pub fn step(&mut self) -> StepReport {
        self.take_commands();
        let turns = self.turns.clone();
        // Whoever has nothing to compute takes nobody's turn.
        let turn = self.scheduler.has_work().then(|| turns.take());
        let before = self.begin();
        if turn.is_some() {
            // The wait may have been long.
            self.take_commands();
        }
        self.drain_aborts();
        // What is granted only now has rung already, and gets the next step: nothing computes out of turn.
        let batch = match &turn {
            Some(_) => self.scheduler.schedule(self.stats.step_started.unwrap_or_default()),
            None => ScheduledBatch::default(),
        };
        self.run(&batch);
        self.drain_aborts();
        self.update(&batch);
        let report = self.end(&batch, &before);
        self.scheduler.take_back(batch);
        report
    }

    /// Nothing runs, waits or is parked inside; a command may still be on its way.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_empty()
    }

    /// # Panics
    /// If blocks or sequences do not add up. For tests, after a step.
    pub fn check_integrity(&self) {
        self.scheduler.check_integrity();
    }

    /// Steps until shut down, sleeping on the command queue while there is nothing to run.
    pub(crate) fn run_until_stopped(mut self) {
        let _here = self.runner.enter();
        while self.shared.admission.phase() < Phase::Stopping {
            if !self.scheduler.has_work() {
                match self.wait() {
                    Ok(command) => self.accept(command),
                    Err(_) => break,
                }
            }
            self.step();
        }
        let why = match self.shared.admission.phase() {
            Phase::Dead => RequestError::Step("the model fails every step".into()),
            _ => RequestError::ShuttingDown,
        };
        self.fail_all(&why);
    }

    fn take_commands(&mut self) {
        for _ in 0..MAX_COMMANDS_PER_STEP {
            match self.commands.try_recv() {
                Ok(command) => self.accept(command),
                Err(_) => return,
            }
        }
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Add(sequence) => self.scheduler.add(*sequence),
            Command::Wake => self.rung.clear(),
        }
    }

    fn drain_aborts(&mut self) {
        for sequence in self.scheduler.extract(|sequence| sequence.events.is_aborted()) {
            self.conclude(sequence, Ending::Finished(FinishReason::Aborted));
        }
    }

    fn run(&mut self, batch: &ScheduledBatch) {
        if !batch.sequences.is_empty() {
            self.runner.run(self.scheduler.sequences_of(batch), &batch.copies, &mut self.logits);
        }
    }

    fn update(&mut self, batch: &ScheduledBatch) {
        for (index, scheduled) in batch.sequences.iter().enumerate() {
            // Aborted during the run.
            let Some(sequence) = self.scheduler.sequence(scheduled.id) else { continue };
            match self.logits.rows(index).and_then(|rows| self.sampler.output(sequence, rows)) {
                Ok(output) => self.emit(scheduled.id, output),
                Err(error) => self.fail(scheduled.id, error),
            }
        }
        self.logits.clear();
    }

    fn emit(&mut self, id: SequenceId, output: SequenceOutput) {
        let Some(sequence) = self.scheduler.advance(id) else { return };
        sequence.prompt_logprobs.extend(output.prompt_logprobs);
        if let Some(logprobs) = sequence.take_prompt_logprobs() {
            sequence.events.send(Event::PromptLogprobs(logprobs));
        }
        if !output.further_tokens.is_empty() {
            let senders = sequence.events.take_further_choices();
            for (events, token) in senders.into_iter().zip(output.further_tokens) {
                if let Some(fork) = self.scheduler.fork(id, events) {
                    self.deliver(fork, Some(token));
                }
            }
        }
        self.deliver(id, output.token);
    }

    /// Hands a token to its reader and ends the sequence if it was the last one.
    fn deliver(&mut self, id: SequenceId, token: Option<TokenEvent>) {
        let Some(sequence) = self.scheduler.sequence_mut(id) else { return };
        if let Some(event) = token {
            let appended = sequence.append(event.token);
            if !sequence.events.token(event) {
                // Aborted in this very moment: the next drain ends it.
                return;
            }
            self.stats.generated_tokens_total += 1;
            if let Err(error) = appended {
                return self.fail(id, error);
            }
        }
        if let Some(reason) = sequence.finish_reason()
            && let Some(sequence) = self.scheduler.remove(id, Prefixes::Keep)
        {
            self.conclude(sequence, Ending::Finished(reason));
        }
    }
}

impl Drop for StepLoop {
    /// Runs before the requests' streams close, so that whoever sees one end also finds the engine dead.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.admission.advance(Phase::Dead);
        }
        // A panic within a panic would abort the process, so a poisoned lock is left alone.
        if let Ok(mut stats) = self.shared.stats.lock() {
            (stats.running, stats.resuming, stats.parked) = (0, 0, 0);
            stats.step_started = None;
        }
    }
}

impl Shared {
    pub(crate) fn lock_stats(&self) -> std::sync::MutexGuard<'_, EngineStats> {
        self.stats.lock().expect("no code panics while it holds the statistics")
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StepObserver")
    }
}

/// Every waiting request holds a ticket, so there is a place for each of their commands, and one for a wake-up.
fn command_channel(max_waiting_requests: usize) -> (SyncSender<Command>, Receiver<Command>) {
    sync_channel(max_waiting_requests + 1)
}

#[cfg(test)]
mod tests;
