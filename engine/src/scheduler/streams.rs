//! Which of the sequences that are one token behind get it in a step.
//!
//! All of them, unless batch would hold up better ones: with it, a step takes at most twice as long as those streams take
//! without it, by what steps of so many have taken ([`Overrun`](crate::overrun::Overrun)). Batch streams take turns, the one
//! that has been longest without a token first; one of them moves in any case. In the time that they leave, batch catches up.

use super::Scheduler;
use crate::catch_up::UNBOUNDED;
use crate::cost::CostNs;
use crate::overrun::Streams;
use crate::request::Class;

/// Of so many steps in which better ones generate batch sits one out, so that it is known how long those take without it.
const STEPS_UNTIL_SAT_OUT: u64 = 64;

impl Scheduler {
    /// Schedules a token of each stream that moves, and nothing of the other sequences. The streams that move, and the time
    /// that batch may catch up in, if it may.
    pub(super) fn schedule_streams(&mut self) -> (Streams, Option<CostNs>) {
        let (mut streams, mut turns) = (Streams::default(), Vec::new());
        for (index, sequence) in self.running.iter_mut().enumerate() {
            sequence.num_scheduled = 0;
            if sequence.num_remaining() > 1 {
                continue;
            }
            let cost = self.costs.of_tokens(sequence.num_computed, 1);
            if sequence.id.class == Class::Batch {
                turns.push((sequence.idle_since.is_none(), sequence.idle_since, index, cost));
            } else {
                sequence.num_scheduled = 1;
                streams = streams.with(cost);
            }
        }
        let mut most = UNBOUNDED;
        if streams.count > 0 {
            self.steps_of_better += 1;
            if self.steps_of_better.is_multiple_of(STEPS_UNTIL_SAT_OUT) {
                return (streams, None);
            }
            most = 2 * self.overrun.of_streams(streams);
            turns.sort_unstable();
        }
        for (turn, (_, _, index, cost)) in turns.into_iter().enumerate() {
            let with = streams.with(cost);
            if turn > 0 && self.overrun.of_streams(with) > most {
                break;
            }
            self.running.at_mut(index).expect("it was found there").num_scheduled = 1;
            streams = with;
        }
        (streams, Some(most.saturating_sub(self.overrun.of_streams(streams))))
    }
}
