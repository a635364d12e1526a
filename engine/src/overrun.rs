//! How much less than the prices say sequences may catch up in a step, or how much more, so that it really adds as much as it may
//! to the streams beside them. Prices are those of a few kinds of steps, of a quiet machine or one that was busy at the start;
//! what a stream waits for is the time that a step takes.
//!
//! Two things are learnt. What half of the steps take of what was planned for them, which says how good the prices are, whatever
//! holds up the other half. And a margin beyond it: a step that comes close to the bound widens it at once, each that does not
//! narrows it by very little, so that in the long run few steps come close, one in a hundred or so, however their times are
//! scattered. It has an end: where many steps are held up by others on the machine, shorter ones are held up as well, and prompts
//! would only wait.

use std::time::Duration;

use crate::batch::ScheduledBatch;
use crate::cost::{CostModel, CostNs};

/// A step comes close that adds more than the bound over this.
const HEADROOM: f64 = 1.1;
/// What one step can change: one that was held up tells little of the next.
const STEEPEST_RISE: f64 = 1.25;
const STEPS_TO_FORGET: f64 = 1024.0;
/// Of what half of the steps take, by one step.
const CHANGE: f64 = 1.0 / 16.0;
/// A plan that was used up to this part tells what more would take.
const USED: f64 = 0.6;
const WIDEST_MARGIN: f64 = 1.5;
const LEAST: f64 = 1.0 / MOST;
/// Where not even the shortest steps keep to the bound, prompts get on at a pace, and what held them up is forgotten soon.
const MOST: f64 = 4.0;
/// Steps in which nobody catches up, until one that was held up is forgotten.
const STEPS_ALONE: f64 = 32.0;
/// Numbers of streams are told apart by powers of two, this many.
const SIZES: usize = 12;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Overrun {
    costs: CostModel,
    /// What half of the steps take over what was planned. From [`LEAST`] to [`MOST`], below 1 only by steps that used most of
    /// what they were given, beside as many streams as have run alone.
    typical: f64,
    /// From 1 to [`WIDEST_MARGIN`].
    margin: f64,
    /// Steps in which nobody catches up, by the number of their streams.
    alone: [Alone; SIZES],
}

#[derive(Debug, Clone, Copy, Default)]
enum Alone {
    #[default]
    Unseen,
    /// It may have been held up.
    Once {
        took_over_modelled: f64,
    },
    Known(Known),
}

#[derive(Debug, Clone, Copy)]
struct Known {
    took_over_modelled: f64,
    /// Of the last one, in nanoseconds.
    modelled: f64,
}

/// Sequences that each run a token in one step, and the price of all of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Streams {
    pub(crate) count: usize,
    pub(crate) price: CostNs,
}

impl Streams {
    /// One more, of this price.
    #[must_use]
    pub(crate) fn with(self, price: CostNs) -> Self {
        Self { count: self.count + 1, price: self.price + price }
    }
}

impl Alone {
    /// Whatever holds up a step makes it longer, so a short one tells the truth.
    fn seen(self, took_over_modelled: f64, modelled: f64) -> Self {
        let took_over_modelled = match self {
            Self::Unseen => return Self::Once { took_over_modelled },
            Self::Once { took_over_modelled: before } => took_over_modelled.min(before),
            Self::Known(Known { took_over_modelled: known, .. }) => {
                let rise = (took_over_modelled - known).max(0.0) / STEPS_ALONE;
                took_over_modelled.min(known + rise)
            }
        };
        Self::Known(Known { took_over_modelled, modelled })
    }

    fn known(self) -> Option<Known> {
        if let Self::Known(known) = self { Some(known) } else { None }
    }
}

impl Known {
    fn took(self) -> f64 {
        self.modelled * self.took_over_modelled
    }
}

impl Overrun {
    pub(crate) fn new(costs: CostModel) -> Self {
        Self { costs, typical: 1.0, margin: 1.0, alone: [Alone::default(); SIZES] }
    }

    /// What may be spent of `most`, by the prices.
    pub(crate) fn budget(&self, most: Duration) -> CostNs {
        (most.as_nanos() as f64 / self.divisor()) as CostNs
    }

    /// What a step of these takes in which nobody catches up.
    pub(crate) fn of_streams(&self, streams: Streams) -> CostNs {
        let modelled = self.modelled(streams.count, streams.price as f64);
        size_of(streams.count).map_or(0.0, |size| self.took_alone(size, modelled)) as CostNs
    }

    /// The step that ran `batch` took so long.
    pub(crate) fn note(&mut self, batch: &ScheduledBatch, took: Duration) {
        let (took, most) = (took.as_nanos() as f64, batch.most_added.as_nanos() as f64);
        let price = batch.sequences.iter().map(|scheduled| scheduled.cost).sum::<CostNs>() - batch.catch_up_cost;
        let Some(size) = size_of(batch.num_one_behind) else { return };
        let modelled = self.modelled(batch.num_one_behind, price as f64);
        if batch.catch_up_cost == 0 {
            self.note_alone(size, took, modelled);
        } else {
            let of_streams = self.took_alone(size, modelled);
            let (added, planned) = (took - of_streams, batch.catch_up_cost as f64);
            self.note_typical(Added { added, planned, most }, self.alone[size].known().is_some());
            self.note_margin(added * HEADROOM / most);
        }
    }

    /// A step of so many streams and this price takes so long by the prices.
    fn modelled(&self, count: usize, price: f64) -> f64 {
        (price + self.costs.beyond_price(count)).max(0.0)
    }

    fn note_alone(&mut self, size: usize, took: f64, modelled: f64) {
        // A clock that stands still tells nothing.
        if modelled > 0.0 && took > 0.0 {
            self.alone[size] = self.alone[size].seen(took / modelled, modelled);
        }
    }

    /// What a step takes for so many streams. Where none of that size was seen: no less than fewer took, nor than by the model
    /// of more; where no more were seen either, what fewer took and the others by the model; before any was, the model.
    fn took_alone(&self, size: usize, modelled: f64) -> f64 {
        if let Some(alone) = self.alone[size].known() {
            return modelled * alone.took_over_modelled;
        }
        let fewer = self.alone[..size].iter().rev().find_map(|alone| alone.known());
        let more = self.alone[size + 1..].iter().find_map(|alone| alone.known());
        match (fewer, more) {
            (None, None) => modelled,
            (Some(fewer), None) => fewer.took() + (modelled - fewer.modelled).max(0.0),
            (fewer, Some(more)) => fewer.map_or(0.0, Known::took).max(modelled * more.took_over_modelled),
        }
    }

    /// A step that did not use what it was given tells only whether that is too much; while there are no others, what was
    /// learnt is forgotten.
    fn note_typical(&mut self, Added { added, planned, most }: Added, are_streams_known: bool) {
        let is_used = planned >= USED * most / self.divisor();
        let by = added / (planned * self.typical);
        let change = if is_used || (by > 1.0 && added * HEADROOM > most) {
            by.clamp(1.0 - CHANGE, 1.0 + CHANGE)
        } else {
            1.0 - 1.0 / STEPS_TO_FORGET
        };
        // Where it is not known what the streams take, a part of theirs may be held for what was added, or the other way round.
        let least = if is_used && are_streams_known { LEAST } else { self.typical.min(1.0) };
        self.typical = (self.typical * change).clamp(least, MOST);
    }

    /// `close` is 1 where a step comes close.
    fn note_margin(&mut self, close: f64) {
        let change = if close > 1.0 { close.min(STEEPEST_RISE) } else { 1.0 - 1.0 / STEPS_TO_FORGET };
        self.margin = (self.margin * change).clamp(1.0, WIDEST_MARGIN);
    }

    /// By how much less is planned.
    fn divisor(&self) -> f64 {
        (self.typical * self.margin).min(MOST)
    }
}

/// What catching up took of a step, what was planned for it by the prices, and the bound, in nanoseconds.
struct Added {
    added: f64,
    planned: f64,
    most: f64,
}

fn size_of(num_streams: usize) -> Option<usize> {
    num_streams.checked_ilog2().map(|size| (size as usize).min(SIZES - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::ScheduledSequence;
    use crate::random::uniform;
    use crate::request::Class;
    use crate::sequence::SequenceId;

    const BOUND: Duration = Duration::from_millis(20);

    /// A stream that has its token, at 5 ms, and one that catches up, at `catch_up_ms`.
    fn batch(catch_up_ms: CostNs) -> ScheduledBatch {
        of_price(5, catch_up_ms)
    }

    fn of_price(streams_ms: CostNs, catch_up_ms: CostNs) -> ScheduledBatch {
        let scheduled = |arrival, ms: CostNs| {
            let id = SequenceId { class: Class::Standard, arrival, choice: 0 };
            ScheduledSequence { id, index: 0, num_tokens: 1, cost: ms * 1_000_000 }
        };
        ScheduledBatch {
            sequences: vec![scheduled(0, streams_ms), scheduled(1, catch_up_ms)],
            catch_up_cost: catch_up_ms * 1_000_000,
            num_one_behind: 1,
            most_added: BOUND,
            ..ScheduledBatch::default()
        }
    }

    /// Tells what is planned after it, in milliseconds.
    fn note(overrun: &mut Overrun, batch: &ScheduledBatch, took_ms: f64) -> f64 {
        overrun.note(batch, Duration::from_secs_f64(took_ms / 1e3));
        overrun.budget(BOUND) as f64 / 1e6
    }

    #[test]
    fn few_steps_go_beyond_the_bound_however_their_times_are_scattered() {
        let mut overrun = Overrun::new(CostModel::default());
        let (mut planned, mut beyond) = (20.0_f64, 0);
        for step in 0..20_000 {
            // From 0.7 to 1.3 times what was planned, and now and then 6 ms more.
            let chance = |what| uniform(what, step);
            let held_up = if chance(1) < 0.02 { 6.0 } else { 0.0 };
            let added = planned.floor() * (0.7 + 0.6 * chance(0)) + held_up;
            beyond += usize::from(step >= 100 && added > 20.0);
            planned = note(&mut overrun, &batch(planned as CostNs), 5.0 + added);
        }
        assert!(beyond < 199, "{beyond} of 19,900");
        assert!(planned > 8.0, "the time that is allowed is used: {planned}");
    }

    #[test]
    fn where_others_on_the_machine_hold_up_many_steps_prompts_get_on_with_half_of_the_time_at_least() {
        let mut overrun = Overrun::new(CostModel::default());
        let mut planned = 20.0_f64;
        for step in 0..5000 {
            // By five times the bound, whatever is planned, and prices are half of what is true.
            let held_up = if uniform(1, step) < 0.05 { 100.0 } else { 0.0 };
            planned = note(&mut overrun, &batch(planned as CostNs), 5.0 + 2.0 * planned.floor() + held_up);
            assert!(step < 40 || (5.5..11.0).contains(&planned), "step {step}: {planned} of 10");
        }
    }

    #[test]
    fn a_lone_stream_is_known_from_its_price_before_it_has_run_alone() {
        let ns = 1e6;
        let costs = CostModel { generated_token_ns: 5.0 * ns, lone_token_ns: 15.0 * ns, ..CostModel::default() };
        let mut overrun = Overrun::new(costs);
        assert_eq!(overrun.of_streams(Streams { count: 1, price: 5_000_000 }), 15_000_000);
        assert_eq!(note(&mut overrun, &batch(16), 31.0), 20.0, "16 of them are the prompt's");
        // A further one adds what eight add beyond one, over seven.
        let many = Streams { count: 36, price: 36 * 5_000_000 };
        assert_eq!(overrun.of_streams(many) / 1_000_000, (15 + 35 * 25 / 7) as CostNs);
    }

    #[test]
    fn a_step_that_was_held_up_changes_little_and_prompts_get_on_in_any_case() {
        let mut overrun = Overrun::new(CostModel::default());
        let once = note(&mut overrun, &batch(20), 3000.0);
        assert!((once * STEEPEST_RISE * (1.0 + CHANGE) / 20.0 - 1.0).abs() < 1e-3, "{once}");
        let endless = (0..40).fold(0.0, |_, _| note(&mut overrun, &batch(1), 90_000.0));
        assert_eq!(endless, 20.0 / MOST);
        let after = (0..2000).fold(0.0, |_, _| note(&mut overrun, &batch(1), 6.0));
        assert_eq!(after, 20.0, "and it is forgotten");
    }

    #[test]
    fn prices_that_were_too_dear_are_found_out_by_steps_that_use_all_they_are_given() {
        let mut overrun = Overrun::new(CostModel::default());
        let mut planned = 20.0;
        (0..2).for_each(|_| _ = note(&mut overrun, &batch(0), 5.0));
        for _ in 0..40 {
            planned = note(&mut overrun, &batch(planned as CostNs), 5.0 + planned / 5.0);
        }
        assert!((35.0..=80.0).contains(&planned), "{planned}");
        // A short prompt says nothing of a long one, and none anything beside streams that never ran alone.
        let mut overrun = Overrun::new(CostModel::default());
        assert_eq!((0..2000).fold(0.0, |_, _| note(&mut overrun, &batch(20), 9.0)), 20.0);
        (0..2).for_each(|_| _ = note(&mut overrun, &batch(0), 5.0));
        assert_eq!((0..2000).fold(0.0, |_, _| note(&mut overrun, &batch(2), 5.1)), 20.0);
    }

    #[test]
    fn a_step_without_a_stream_may_take_as_long_as_it_does() {
        let mut overrun = Overrun::new(CostModel::default());
        assert_eq!(note(&mut overrun, &ScheduledBatch { num_one_behind: 0, ..batch(500) }, 600.0), 20.0);
    }

    #[test]
    fn streams_that_are_dearer_than_their_price_are_not_held_against_prompts() {
        let mut overrun = Overrun::new(CostModel::default());
        (0..1000).for_each(|_| _ = note(&mut overrun, &batch(0), 50.0));
        assert_eq!(note(&mut overrun, &batch(16), 66.0), 20.0);
        // And many at once that are cheaper hide nothing.
        note(&mut overrun, &batch(0), 1.0);
        assert!(note(&mut overrun, &batch(16), 31.0) < 17.0);
    }

    #[test]
    fn what_streams_take_is_known_from_two_steps_of_which_the_shorter_counts() {
        let streams = Streams { count: 1, price: 5_000_000 };
        for (seen, expected) in [(vec![], 5), (vec![900.0], 5), (vec![900.0, 20.0], 20), (vec![20.0, 900.0], 20)] {
            let mut overrun = Overrun::new(CostModel::default());
            seen.iter().for_each(|&took| _ = note(&mut overrun, &batch(0), took));
            assert_eq!(overrun.of_streams(streams), expected * 1_000_000, "{seen:?}");
        }
    }

    #[test]
    fn a_step_of_many_streams_is_judged_by_steps_of_many_and_not_by_their_price() {
        let mut overrun = Overrun::new(CostModel::default());
        let many = |catch_up_ms| ScheduledBatch { num_one_behind: 32, ..batch(catch_up_ms) };
        // One stream takes twice its price, and many, by their price 5 ms, no more than it.
        (0..1000).for_each(|_| _ = note(&mut overrun, &batch(0), 10.0));
        // Not seen yet: what fewer took is theirs at least.
        assert_eq!(note(&mut overrun, &many(16), 26.0), 20.0);
        assert!(note(&mut overrun, &many(16), 34.0) < 17.0);
        (0..1000).for_each(|_| _ = note(&mut overrun, &many(0), 14.0));
        (0..2000).for_each(|_| _ = note(&mut overrun, &many(1), 15.0));
        assert_eq!(note(&mut overrun, &many(16), 30.0), 20.0);
    }

    #[test]
    fn a_step_of_a_number_that_never_runs_alone_is_judged_by_those_of_more() {
        let mut overrun = Overrun::new(CostModel::default());
        (0..1000).for_each(|_| _ = note(&mut overrun, &batch(0), 10.0));
        // In each place a stream, of 5 ms by its price: nobody can catch up.
        let full = ScheduledBatch { num_one_behind: 64, ..of_price(64 * 5, 0) };
        (0..1000).for_each(|_| _ = note(&mut overrun, &full, 200.0));
        // One place is free, so in every step somebody catches up.
        let but_one = ScheduledBatch { num_one_behind: 63, ..of_price(63 * 5, 16) };
        assert!(note(&mut overrun, &but_one, 213.0) > 19.5);
    }
}
