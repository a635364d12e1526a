//! What prompts may add to a step in which others generate, where no bound is stated: little while they come one by one, so that
//! answers flow evenly, and more the longer several of them wait, since then it is tokens a second that everybody waits for.
//!
//! ```text
//! what the step takes without prompts       |   prompts may add
//! short                                     |   50 ms
//! so long that this would pass 75 ms        |   what is left of 75 ms
//! longer                                    |   0.75 times that; the longer prompts wait, the more: up to twice, at most 250 ms
//! ```
//!
//! Under a steady load the last factor finds its level: where prompts are done before the next ones come it falls, and
//! where they pile up it rises. So they are spread over all steps, while with a fixed factor steps without any and
//! steps full of them take turns.

use std::time::Duration;

use crate::config::AddedLatency;

/// To short steps.
const SHORT: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_millis(250);
/// Thirteen tokens a second, faster than anybody reads.
const EVEN_STEP: Duration = Duration::from_millis(75);
const LEAST_FACTOR: f64 = 0.75;
const MOST_FACTOR: f64 = 2.0;
/// Of steps in which the factor grows or shrinks to the e-fold: a burst of prompts is over before it has grown much.
const TIME: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// From [`LEAST_FACTOR`] to [`MOST_FACTOR`].
    factor: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { factor: LEAST_FACTOR }
    }
}

impl Pace {
    /// What prompts may add to a step that takes `alone` without them.
    pub(crate) fn added(self, bound: AddedLatency, alone: Duration) -> Duration {
        match bound {
            AddedLatency::AtMost(most) => most,
            AddedLatency::Paced => {
                let up_to_even = SHORT.min(EVEN_STEP.saturating_sub(alone));
                up_to_even.max(alone.mul_f64(self.factor)).min(MOST)
            }
        }
    }

    /// A step in which streams are protected took so long.
    pub(crate) fn note(&mut self, took: Duration, prompts: Prompts) {
        // One that was held up tells no more than any other.
        let change = (took.as_secs_f64() / TIME.as_secs_f64()).min(1.0 / 64.0).exp();
        let factor = match prompts {
            Prompts::Wait => self.factor * change,
            Prompts::Pass => self.factor / change,
        };
        self.factor = factor.clamp(LEAST_FACTOR, MOST_FACTOR);
    }
}

/// Those that a step leaves undone.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Prompts {
    /// One at most.
    #[default]
    Pass,
    /// Several.
    Wait,
}

impl AddedLatency {
    /// To any step.
    pub fn at_most(self) -> Duration {
        match self {
            Self::AtMost(most) => most,
            Self::Paced => MOST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn added(pace: Pace, alone_ms: u32) -> Duration {
        pace.added(AddedLatency::Paced, MS * alone_ms)
    }

    #[test]
    fn prompts_fill_short_steps_up_to_a_pace_that_nobody_reads_at_and_long_ones_in_proportion() {
        let pace = Pace::default();
        for (alone, expected) in
            [(0, 50), (8, 50), (25, 50), (30, 45), (40, 35), (60, 45), (80, 60), (200, 150), (900, 250)]
        {
            assert_eq!(added(pace, alone), MS * expected, "beside {alone} ms");
        }
        assert_eq!(pace.added(AddedLatency::AtMost(MS * 7), MS * 80), MS * 7);
    }

    #[test]
    fn prompts_that_pile_up_get_more_until_they_pass_again() {
        let mut pace = Pace::default();
        let mut steps = |prompts, seconds| {
            (0..10 * seconds).for_each(|_| pace.note(MS * 100, prompts));
            added(pace, 100)
        };
        assert!(steps(Prompts::Wait, 6) < MS * 84, "a burst changes little");
        assert_eq!(steps(Prompts::Wait, 60), MS * 200, "twice as long at most");
        assert!(steps(Prompts::Pass, 20) < MS * 150);
        assert_eq!(steps(Prompts::Pass, 60), MS * 75);
    }

    #[test]
    fn a_step_that_was_held_up_for_long_changes_little() {
        let mut pace = Pace::default();
        pace.note(Duration::from_secs(3600), Prompts::Wait);
        assert!(added(pace, 100) < MS * 77);
    }
}
