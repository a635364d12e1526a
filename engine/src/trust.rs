//! Whether an engine can be trusted with more requests, from how its last ones ended. What a request brings upon itself does
//! not count, nor what its grammar does; and before an engine gives up it runs something of its own, so nobody can talk one out
//! of service.

use std::collections::VecDeque;
use std::time::Duration;

use crate::fault::{Fault, FaultCounts};

/// A model that fails every sequence of this many steps in a row may not recover.
pub(crate) const MAX_FRUITLESS_STEPS: usize = 16;
/// So many failed requests within [`FAILURES_WITHIN`] make an engine one to avoid.
const FAILURES_TO_DISTRUST: usize = 3;
const FAILURES_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Trust {
    /// Steps in a row in which every sequence failed.
    fruitless_steps: usize,
    /// When the last requests failed, at most [`FAILURES_TO_DISTRUST`] of them.
    failures: VecDeque<Duration>,
}

/// How a step ended that ran something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Fruitful,
    /// Every sequence failed.
    Fruitless,
    /// The same, as in all of the last [`MAX_FRUITLESS_STEPS`], or by the device: nothing will run again, unless the model runs
    /// something of the engine's own.
    Doubtful,
}

impl Trust {
    /// Of the sequences that ran so many failed, by no fault of their own, and by what `failures` says.
    pub(crate) fn note_step(&mut self, num_sequences: usize, num_failed: usize, failures: &FaultCounts) -> Outcome {
        if num_failed < num_sequences {
            self.fruitless_steps = 0;
            return Outcome::Fruitful;
        }
        self.fruitless_steps += 1;
        if self.fruitless_steps == MAX_FRUITLESS_STEPS {
            self.fruitless_steps = 0;
            return Outcome::Doubtful;
        }
        // A device whose context is lost fails everything from then on.
        if failures.get(Fault::Device) > 0 { Outcome::Doubtful } else { Outcome::Fruitless }
    }

    /// So many more requests have failed now. Until when the engine is one to avoid, which may be over.
    pub(crate) fn note_failures(&mut self, now: Duration, count: u64) -> Option<Duration> {
        for _ in 0..count.min(FAILURES_TO_DISTRUST as u64) {
            if self.failures.len() == FAILURES_TO_DISTRUST {
                self.failures.pop_front();
            }
            self.failures.push_back(now);
        }
        let is_full = self.failures.len() == FAILURES_TO_DISTRUST;
        self.failures.front().filter(|_| is_full).map(|first| *first + FAILURES_WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_model_is_doubted_when_it_fails_many_steps_in_a_row_and_at_once_when_its_device_fails_one() {
        let [by_model, by_device] = [Fault::Model, Fault::Device].map(|fault| FaultCounts::of(fault, 1));
        let mut trust = Trust::default();
        for _ in 0..2 {
            for _ in 1..MAX_FRUITLESS_STEPS {
                assert_eq!(trust.note_step(2, 2, &by_model), Outcome::Fruitless);
            }
            assert_eq!(trust.note_step(2, 2, &by_model), Outcome::Doubtful);
        }
        assert_eq!(trust.note_step(2, 1, &by_device), Outcome::Fruitful, "others still run");
        assert_eq!(trust.note_step(2, 2, &by_device), Outcome::Doubtful);
    }

    #[test]
    fn three_failures_within_a_minute_count_until_a_minute_after_the_first_of_them() {
        let mut trust = Trust::default();
        assert_eq!(trust.note_failures(Duration::ZERO, 1), None);
        assert_eq!(trust.note_failures(30 * SECOND, 1), None);
        assert_eq!(trust.note_failures(50 * SECOND, 1), Some(60 * SECOND));
        assert_eq!(trust.note_failures(80 * SECOND, 1), Some(90 * SECOND));
        assert_eq!(trust.note_failures(100 * SECOND, 9), Some(160 * SECOND));
    }
}
