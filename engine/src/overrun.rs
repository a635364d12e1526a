//! How much longer steps take than the prices say, as the last ones have shown. Prices are those of a quiet machine, and of a
//! few kinds of steps; what a stream waits for is the time that a step really takes. So sequences catch up for less time than
//! a step may add, by as much as the last steps took longer, and only in as far as that was anywhere near the bound.

use std::time::Duration;

use crate::batch::ScheduledBatch;
use crate::cost::CostNs;

/// A step is planned so far below the bound, so that one that takes a little longer than those before it keeps it too.
const HEADROOM: f64 = 1.1;
/// What one step can change: one that was held up tells little of the next.
const STEEPEST_RISE: f64 = 1.25;
/// What was seen is forgotten in about so many steps.
const STEPS_TO_FORGET: f64 = 32.0;
/// However long steps take, prompts get on.
const MOST: f64 = 8.0;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Overrun {
    /// What catching up takes, over its price, with the headroom. From 1 to [`MOST`].
    catching_up: f64,
    /// What steps take in which nobody catches up, over their price.
    alone: f64,
}

impl Default for Overrun {
    fn default() -> Self {
        Self { catching_up: 1.0, alone: 1.0 }
    }
}

impl Overrun {
    /// What may be spent of `most`, by the prices.
    pub(crate) fn budget(&self, most: Duration) -> CostNs {
        (most.as_nanos() as f64 / self.catching_up) as CostNs
    }

    /// The step that ran `batch` took so long, and those that catch up were to add at most `most`.
    pub(crate) fn note(&mut self, batch: &ScheduledBatch, took: Duration, most: Duration) {
        let (took, most) = (took.as_nanos() as f64, most.as_nanos() as f64);
        let price = batch.sequences.iter().map(|scheduled| scheduled.cost).sum::<CostNs>() as f64;
        let of_catching_up = batch.catch_up_cost as f64;
        if of_catching_up > 0.0 {
            let added = took - (price - of_catching_up) * self.alone;
            self.note_added(added / of_catching_up, added > most / 2.0);
        } else if price > 0.0 {
            // Whatever holds up a step makes it longer, so the shorter one tells the truth.
            let seen = took / price;
            let rise = (seen - self.alone) / STEPS_TO_FORGET;
            self.alone = seen.min(self.alone + rise.max(0.0));
        }
    }

    fn note_added(&mut self, over_price: f64, is_near_the_bound: bool) {
        let seen = (HEADROOM * over_price).clamp(1.0, MOST);
        if seen < self.catching_up {
            self.catching_up -= (self.catching_up - seen) / STEPS_TO_FORGET;
        } else if is_near_the_bound {
            self.catching_up = seen.min(self.catching_up * STEEPEST_RISE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::ScheduledSequence;
    use crate::request::Class;
    use crate::sequence::SequenceId;

    const BOUND: Duration = Duration::from_millis(20);

    /// One sequence that has its token, at 5 ms, and one that catches up, at `catch_up_ms`.
    fn batch(catch_up_ms: CostNs) -> ScheduledBatch {
        let scheduled = |arrival, ms: CostNs| {
            let id = SequenceId { class: Class::Standard, arrival, choice: 0 };
            ScheduledSequence { id, num_tokens: 1, cost: ms * 1_000_000 }
        };
        let sequences = vec![scheduled(0, 5), scheduled(1, catch_up_ms)];
        ScheduledBatch { sequences, catch_up_cost: catch_up_ms * 1_000_000, ..ScheduledBatch::default() }
    }

    fn note(overrun: &mut Overrun, catch_up_ms: CostNs, took_ms: u64) -> f64 {
        overrun.note(&batch(catch_up_ms), Duration::from_millis(took_ms), BOUND);
        BOUND.as_nanos() as f64 / overrun.budget(BOUND) as f64
    }

    #[test]
    fn a_step_that_was_held_up_once_changes_little_and_is_forgotten() {
        let mut overrun = Overrun::default();
        assert!((note(&mut overrun, 20, 3000) - STEEPEST_RISE).abs() < 1e-6);
        let after = (0..200).fold(0.0, |_, _| note(&mut overrun, 16, 19));
        assert!(after < 1.01, "{after}");
    }

    #[test]
    fn what_always_takes_longer_is_budgeted_so_and_never_without_end() {
        let mut overrun = Overrun::default();
        let twice = (0..8).fold(0.0, |_, _| note(&mut overrun, 20, 45));
        assert!((twice - 2.0 * HEADROOM).abs() < 1e-6, "{twice}");
        let endless = (0..40).fold(0.0, |_, _| note(&mut overrun, 1, 90_000));
        assert!((endless - MOST).abs() < 1e-6, "{endless}");
    }

    #[test]
    fn a_short_prompt_in_a_slow_step_far_from_the_bound_changes_nothing() {
        let mut overrun = Overrun::default();
        assert_eq!(note(&mut overrun, 1, 14), 1.0);
    }

    #[test]
    fn streams_that_are_dearer_than_their_price_are_not_held_against_prompts() {
        let mut overrun = Overrun::default();
        (0..1000).for_each(|_| _ = note(&mut overrun, 0, 50));
        assert!(note(&mut overrun, 16, 64) < 1.0 + 1e-6);
        // And many at once that are cheaper hide nothing.
        note(&mut overrun, 0, 1);
        assert!(note(&mut overrun, 16, 31) > 1.2);
    }
}
