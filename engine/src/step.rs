//! The loop. One step: take commands, wait for the turn, schedule, run, drain aborts, update, publish, conclude.
//!
//! Whoever sees a request end finds statistics that include its end, so a request's last event and its ticket wait until
//! they are published.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::admission::{Admission, Phase};
use crate::clock::Clock;
use crate::engine::{Door, EngineHandle, EngineParts};
use crate::error::EngineError;
use crate::event::{Event, FinishReason, RequestError};
use crate::kv_cache_manager::Prefixes;
use crate::model_runner::{ModelRunner, StepLogits};
use crate::sampler::{Sampler, SequenceOutput};
use crate::scheduler::{ScheduledBatch, Scheduler};
use crate::sequence::{Sequence, SequenceId};
use crate::stats::{EngineStats, StepObserver, StepReport};
use crate::turns::StepTurns;

/// New requests taken in per step, so that a flood of them cannot hold up the step.
const MAX_COMMANDS_PER_STEP: usize = 256;

/// A model that fails every sequence of this many steps in a row will not recover: the engine dies, so that its traffic
/// goes elsewhere.
pub(crate) const MAX_FRUITLESS_STEPS: usize = 16;

/// The engine without its thread. [`crate::Engine`] runs it; a simulation steps it by hand.
#[derive(Debug)]
pub struct StepLoop {
    commands: Receiver<Command>,
    scheduler: Scheduler,
    runner: ModelRunner,
    sampler: Sampler,
    turns: StepTurns,
    clock: Arc<dyn Clock>,
    observer: Observer,
    shared: Arc<Shared>,
    stats: EngineStats,
    /// Requests that are over, until they hear it.
    ended: Vec<(Sequence, Ending)>,
    /// Steps in a row in which every sequence failed.
    fruitless_steps: usize,
}

#[derive(Debug)]
enum Ending {
    Finished(FinishReason),
    Failed(RequestError),
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
        config.validate_for(model.max_position())?;
        let block_size = model.kv_cache_spec().block_size;
        let (sender, commands) = command_channel(config.max_waiting_requests);
        let stats = EngineStats {
            total_blocks: config.num_kv_blocks,
            free_blocks: config.num_kv_blocks,
            ..EngineStats::default()
        };
        let shared =
            Arc::new(Shared { admission: Arc::new(Admission::new(&config)), stats: Mutex::new(stats.clone()) });
        let door = Door::new(name, model.as_ref(), &config, sender, Arc::clone(&shared));
        let step_loop = Self {
            commands,
            runner: ModelRunner::new(model, config.num_kv_blocks)?,
            scheduler: Scheduler::new(config, block_size),
            sampler: Sampler::default(),
            turns,
            clock,
            observer: Observer(observer),
            shared,
            stats,
            ended: Vec::new(),
            fruitless_steps: 0,
        };
        Ok((step_loop, EngineHandle::new(door)))
    }

    /// One step over whatever there is to do.
    pub fn step(&mut self) -> StepReport {
        self.take_commands();
        let turns = self.turns.clone();
        // Whoever has nothing to compute takes nobody's turn.
        let turn = (!self.scheduler.is_idle()).then(|| turns.take());
        let before = self.begin();
        if turn.is_some() {
            // The wait may have been long.
            self.take_commands();
        }
        self.drain_aborts();
        let batch = self.scheduler.schedule();
        let logits = self.run(&batch);
        self.drain_aborts();
        self.update(&batch, logits);
        self.end(&batch, &before)
    }

    /// Nothing runs and nothing waits inside; a command may still be on its way.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// # Panics
    /// If blocks or sequences do not add up. For tests, after a step.
    pub fn check_integrity(&self) {
        self.scheduler.check_integrity();
    }

    /// Steps until shut down, sleeping on the command queue while idle.
    pub(crate) fn run_until_stopped(mut self) {
        while self.shared.admission.phase() < Phase::Stopping {
            if self.scheduler.is_idle() {
                match self.commands.recv() {
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
            Command::Wake => {}
        }
    }

    fn drain_aborts(&mut self) {
        for sequence in self.scheduler.extract(|sequence| sequence.events.is_aborted()) {
            self.conclude(sequence, Ending::Finished(FinishReason::Aborted));
        }
    }

    fn run(&mut self, batch: &ScheduledBatch) -> Option<StepLogits> {
        let sequences: Vec<&Sequence> =
            batch.sequences.iter().filter_map(|scheduled| self.scheduler.sequence(scheduled.id)).collect();
        if sequences.is_empty() { None } else { Some(self.runner.run(&sequences)) }
    }

    fn update(&mut self, batch: &ScheduledBatch, logits: Option<StepLogits>) {
        let Some(mut logits) = logits else { return };
        for (index, scheduled) in batch.sequences.iter().enumerate() {
            // Aborted during the run.
            let Some(sequence) = self.scheduler.sequence(scheduled.id) else { continue };
            match logits.rows(index).and_then(|rows| self.sampler.output(sequence, rows)) {
                Ok(output) => self.emit(scheduled.id, output),
                Err(error) => self.fail(scheduled.id, error),
            }
        }
    }

    fn emit(&mut self, id: SequenceId, output: SequenceOutput) {
        let Some(sequence) = self.scheduler.advance(id) else { return };
        sequence.prompt_logprobs.extend(output.prompt_logprobs);
        if let Some(logprobs) = sequence.take_prompt_logprobs() {
            sequence.events.send(Event::PromptLogprobs(logprobs));
        }
        if let Some(event) = output.token {
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

    fn fail(&mut self, id: SequenceId, error: RequestError) {
        let Some(sequence) = self.scheduler.remove(id, Prefixes::Forget) else { return };
        tracing::error!(request = sequence.request_id.0, %error, "a request failed");
        self.conclude(sequence, Ending::Failed(error));
    }

    fn conclude(&mut self, mut sequence: Sequence, ending: Ending) {
        // One that never ran still stands in the queue.
        sequence.ticket.leave_queue();
        self.stats.failures_total += u64::from(matches!(ending, Ending::Failed(_)));
        self.ended.push((sequence, ending));
    }

    /// The last events. Only after [`StepLoop::publish`].
    fn release_ended(&mut self) {
        for (sequence, ending) in self.ended.drain(..) {
            match ending {
                Ending::Finished(reason) => sequence.events.finish(reason),
                Ending::Failed(error) => sequence.events.fail(error),
            }
        }
    }

    fn fail_all(&mut self, error: &RequestError) {
        while let Ok(command) = self.commands.try_recv() {
            self.accept(command);
        }
        for sequence in self.scheduler.extract(|_| true) {
            self.conclude(sequence, Ending::Failed(error.clone()));
        }
        self.publish();
        self.release_ended();
    }

    fn begin(&mut self) -> EngineStats {
        let now = self.clock.now();
        let before = self.stats.clone();
        self.stats.step_started = Some(now);
        self.shared.lock_stats().step_started = Some(now);
        before
    }

    fn end(&mut self, batch: &ScheduledBatch, before: &EngineStats) -> StepReport {
        let now = self.clock.now();
        let duration = now.saturating_sub(self.stats.step_started.take().unwrap_or(now));
        self.note_progress(batch.sequences.len(), self.stats.failures_total - before.failures_total);
        self.stats.last_step_end = Some(now);
        self.stats.preemptions_total += batch.preemptions as u64;
        self.stats.prompt_tokens_total += batch.started_prompt_tokens;
        self.publish();
        let report = self.report(batch, before, duration);
        if report.num_sequences > 0 || !self.ended.is_empty() {
            self.observer.0.step(&report);
        }
        self.release_ended();
        report
    }

    /// Counts the step unless every sequence failed.
    fn note_progress(&mut self, num_sequences: usize, failures: u64) {
        if num_sequences == 0 {
            return;
        }
        if failures < num_sequences as u64 {
            self.stats.steps_total += 1;
            self.fruitless_steps = 0;
            return;
        }
        self.fruitless_steps += 1;
        if self.fruitless_steps == MAX_FRUITLESS_STEPS {
            tracing::error!(steps = MAX_FRUITLESS_STEPS, "every sequence of these steps failed; the engine gives up");
            self.shared.admission.advance(Phase::Dead);
        }
    }

    fn publish(&mut self) {
        let (cache, occupancy) = (self.scheduler.cache(), self.shared.admission.occupancy());
        let prefix = cache.prefix_totals();
        self.stats.running = self.scheduler.num_running();
        self.stats.preempted = self.scheduler.num_preempted();
        self.stats.waiting = occupancy.waiting_requests;
        self.stats.waiting_tokens = occupancy.waiting_tokens;
        self.stats.free_blocks = cache.pool().num_free();
        self.stats.cached_blocks = cache.pool().num_cached();
        self.stats.prefix_query_tokens_total = prefix.query_tokens;
        self.stats.prefix_hit_tokens_total = prefix.hit_tokens;
        self.shared.lock_stats().clone_from(&self.stats);
    }

    fn report(&self, batch: &ScheduledBatch, before: &EngineStats, duration: Duration) -> StepReport {
        let after = &self.stats;
        StepReport {
            duration,
            num_sequences: batch.sequences.len(),
            prompt_tokens: batch.catch_up_tokens,
            generated_tokens: (after.generated_tokens_total - before.generated_tokens_total) as usize,
            preemptions: batch.preemptions,
            failures: (after.failures_total - before.failures_total) as usize,
            running: after.running,
            waiting: after.waiting,
            free_blocks: after.free_blocks,
            total_blocks: after.total_blocks,
            prefix_query_tokens: after.prefix_query_tokens_total - before.prefix_query_tokens_total,
            prefix_hit_tokens: after.prefix_hit_tokens_total - before.prefix_hit_tokens_total,
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
            (stats.running, stats.preempted, stats.step_started) = (0, 0, None);
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
