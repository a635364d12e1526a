//! Which of the sequences that are one token behind get it in a step.
//!
//! All of them, unless batch would hold up better ones. Beside better streams, a step takes at most twice as long as those
//! streams take without batch, by what steps of so many have taken ([`Overrun`](crate::overrun::Overrun)). Batch streams take
//! turns, the one that has been longest without a token first; one of them moves in any case, and while better prompts are all
//! that there is no further one, nor do these go by its needs. In the time that the streams leave, and for as long again as
//! better ones catch up, batch catches up.

use std::mem;
use std::time::Duration;

use super::Scheduler;
use crate::batch::ScheduledBatch;
use crate::catch_up::UNBOUNDED;
use crate::cost::CostNs;
use crate::overrun::Streams;
use crate::request::Class;
use crate::sequence::Sequence;

/// Of so many steps in which better ones generate batch sits one out, so that it is known how long those take without it.
const STEPS_UNTIL_SAT_OUT: u64 = 64;

/// A batch stream that may move: whoever was idle longest goes first, and those that never were go last.
pub(super) type Turn = (bool, Option<Duration>, usize, CostNs);

/// What the streams of a step leave to those that catch up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamsOfStep {
    /// That move.
    pub(crate) moving: Streams,
    /// Of them, those that whoever catches up may hold up within a bound only.
    pub(crate) num_protected: usize,
    /// The worst of their classes.
    pub(crate) worst_protected: Class,
    /// That batch may catch up in, if it may.
    pub(crate) batch_time: Option<CostNs>,
}

impl Scheduler {
    /// Schedules a token of each stream that moves, and nothing of the other sequences.
    pub(super) fn schedule_streams(&mut self) -> StreamsOfStep {
        let better_catch_up = self.better_catch_up();
        let mut turns = mem::take(&mut self.turns);
        turns.clear();
        turns.reserve(self.running.len());
        let mut moving = Streams::default();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            sequence.num_scheduled = 0;
            if sequence.num_remaining() > 1 {
                continue;
            }
            let cost = self.costs.of_tokens(sequence.num_computed, 1);
            if is_of_batch(sequence) {
                turns.push((sequence.idle_since.is_none(), sequence.idle_since, index, cost));
            } else {
                sequence.num_scheduled = 1;
                moving = moving.with(cost);
            }
        }
        let better = moving;
        let (moving, batch_time) = if better.count > 0 {
            self.beside_streams(better, &mut turns)
        } else {
            let most = if better_catch_up { 0 } else { UNBOUNDED };
            self.give_turns(better, most, &mut turns)
        };
        self.turns = turns;
        let num_protected = if better_catch_up { better.count } else { moving.count };
        let worst_protected = if better.count > 0 { Class::Standard } else { Class::Batch };
        StreamsOfStep { moving, num_protected, worst_protected, batch_time }
    }

    /// All streams that move, and the time in which batch may catch up.
    fn beside_streams(&mut self, better: Streams, turns: &mut [Turn]) -> (Streams, Option<CostNs>) {
        self.steps_of_better += 1;
        if self.steps_of_better.is_multiple_of(STEPS_UNTIL_SAT_OUT) {
            return (better, None);
        }
        let took = self.overrun.of_streams(better);
        let (moving, batch_time) = self.give_turns(better, 2 * took, turns);
        // Whoever catches up reckons in prices.
        let in_prices = |time| self.overrun.budget(Duration::from_nanos(time));
        (moving, batch_time.map(|time| time.min(in_prices(time))))
    }

    /// As [`Self::beside_streams`].
    fn give_turns(&mut self, mut moving: Streams, most: CostNs, turns: &mut [Turn]) -> (Streams, Option<CostNs>) {
        if most < UNBOUNDED {
            turns.sort_unstable();
        }
        for (turn, &mut (_, _, index, cost)) in turns.iter_mut().enumerate() {
            let with = moving.with(cost);
            if turn > 0 && self.overrun.of_streams(with) > most {
                break;
            }
            self.running.at_mut(index).expect("it was found there").num_scheduled = 1;
            moving = with;
        }
        (moving, Some(most.saturating_sub(self.overrun.of_streams(moving))))
    }

    /// The one batch stream whose turn it was may have lost its place for want of blocks: then the first has the turn.
    pub(super) fn let_somebody_move(&mut self, batch: &mut ScheduledBatch) {
        if self.running.iter().any(|sequence| sequence.num_scheduled > 0) {
            return;
        }
        if let Some(first) = self.running.at_mut(0).filter(|first| first.num_remaining() == 1) {
            first.num_scheduled = 1;
            self.make_room(0, batch);
        }
    }

    /// Whether anybody better than batch has a prompt to run, or waits to.
    fn better_catch_up(&mut self) -> bool {
        let runs = self.running.iter().any(|sequence| sequence.num_remaining() > 1 && sequence.id.class < Class::Batch);
        runs || self.next_class().is_some_and(|class| class < Class::Batch)
    }
}

/// One that was raised while its prompt got nothing is again what it was asked as, once it generates: turns keep it from
/// starving.
fn is_of_batch(sequence: &Sequence) -> bool {
    sequence.share.class == Class::Batch
}
