//! What a step leaves behind: who took part in its time, whether it was worth it, and the figures that others read.

use std::time::Duration;

use super::StepLoop;
use crate::admission::Phase;
use crate::batch::ScheduledBatch;
use crate::cost::{CostNs, Shares};
use crate::stats::{EngineStats, StepReport};
use crate::trust::Outcome;

impl StepLoop {
    pub(super) fn begin(&mut self) -> EngineStats {
        let now = self.clock.now();
        let before = self.stats.clone();
        self.stats.step_started = Some(now);
        self.shared.lock_stats().step_started = Some(now);
        before
    }

    pub(super) fn end(&mut self, batch: &ScheduledBatch, before: &EngineStats) -> StepReport {
        let now = self.clock.now();
        let duration = now.saturating_sub(self.stats.step_started.take().unwrap_or(now));
        self.note_outcome(now, batch.sequences.len());
        self.scheduler.note_duration(batch, duration);
        self.share_out(batch, duration);
        self.end_choices_of_failed();
        self.stats.last_step_end = Some(now);
        self.stats.preemptions_total += batch.preemptions as u64;
        self.stats.prompt_tokens_total += batch.started_prompt_tokens;
        self.publish();
        let report = self.report(batch, before, duration);
        let is_worth_telling = report.num_sequences > 0 || !self.ended.is_empty();
        if is_worth_telling {
            self.observer.0.step(&report);
        }
        self.release_ended();
        if is_worth_telling {
            self.observer.0.concluded();
        }
        report
    }

    /// Counts the step unless it failed every sequence.
    fn note_outcome(&mut self, now: Duration, num_sequences: usize) {
        let faulted_sequences = std::mem::take(&mut self.faulted_sequences);
        self.stats.distrusted_until = self.trust.note_failures(now, self.failures.of_model());
        if num_sequences == 0 {
            return;
        }
        match self.trust.note_step(num_sequences, faulted_sequences, &self.failures) {
            Outcome::Fruitful => self.stats.steps_total += 1,
            Outcome::Doubtful if !self.model_still_runs() => {
                tracing::error!("every sequence failed, and so does a token of the engine's own; the engine gives up");
                self.shared.admission.advance(Phase::Dead);
            }
            Outcome::Fruitless | Outcome::Doubtful => {}
        }
    }

    /// Divides the step's time among the requests that took part, in proportion to what their tokens cost.
    fn share_out(&mut self, batch: &ScheduledBatch, duration: Duration) {
        let mut shares = Shares::of(duration, batch.sequences.iter().map(|scheduled| scheduled.cost).sum::<CostNs>());
        for scheduled in &batch.sequences {
            let share = shares.next(scheduled.cost);
            let ended = || self.ended.iter().map(|(sequence, _)| sequence).find(|ended| ended.id == scheduled.id);
            match self.scheduler.sequence(scheduled.id).or_else(ended) {
                Some(sequence) if sequence.events.add_time(share) => self.stats.measured_ns_total += share,
                _ => self.stats.unclaimed_ns_total += share,
            }
        }
    }

    pub(super) fn publish(&mut self) {
        let (cache, occupancy) = (self.scheduler.cache(), self.shared.admission.occupancy());
        let prefix = cache.prefix_totals();
        self.stats.running = self.scheduler.num_running();
        self.stats.resuming = self.scheduler.num_resuming();
        self.stats.parked = self.scheduler.num_parked();
        self.stats.waiting = occupancy.waiting_requests;
        self.stats.waiting_tokens = occupancy.waiting_tokens;
        self.stats.free_blocks = cache.pool().num_free();
        self.stats.cached_blocks = cache.pool().num_cached();
        self.stats.prefix_query_tokens_total = prefix.query_tokens;
        self.stats.prefix_hit_tokens_total = prefix.hit_tokens;
        let (gap, bound) = self.scheduler.fairness();
        self.stats.fair_share_gap = Duration::from_nanos(gap);
        self.stats.fair_share_bound = Duration::from_nanos(bound);
        self.shared.lock_stats().clone_from(&self.stats);
    }

    pub(super) fn report(&mut self, batch: &ScheduledBatch, before: &EngineStats, duration: Duration) -> StepReport {
        let failures = std::mem::take(&mut self.failures);
        let after = &self.stats;
        StepReport {
            duration,
            num_sequences: batch.sequences.len(),
            prompt_tokens: batch.catch_up_tokens,
            generated_tokens: (after.generated_tokens_total - before.generated_tokens_total) as usize,
            preemptions: batch.preemptions,
            failures,
            running: after.running,
            waiting: after.waiting + after.resuming,
            fair_share_gap: after.fair_share_gap,
            fair_share_bound: after.fair_share_bound,
            free_blocks: after.free_blocks,
            total_blocks: after.total_blocks,
            prefix_query_tokens: after.prefix_query_tokens_total - before.prefix_query_tokens_total,
            prefix_hit_tokens: after.prefix_hit_tokens_total - before.prefix_hit_tokens_total,
        }
    }
}
