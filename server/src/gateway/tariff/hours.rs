//! Where the time of a partition went, hour by hour, in normalised GPU time:
//!
//! ```text
//! billed + under-use + idle = elapsed
//! ```
//!
//! *Idle* is when nothing was computed. *Under-use* is what was computed and not billed: positive where batches were smaller
//! than at the tariff's reference load, negative where they were larger. What is billed counts in the hour in which its
//! request ended, and what is computed in the hour in which it was.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;
use passerelle_engine::{StepObserver, StepReport};
use serde::{Deserialize, Serialize};

use crate::gateway::quota::UnixSeconds;

const HOUR: Duration = Duration::from_secs(3600);
/// Older hours are forgotten: a week.
const KEPT_HOURS: usize = 168;

/// Of one partition; counts from its creation on.
#[derive(Debug)]
pub struct PartitionHours {
    clock: Arc<dyn Clock>,
    partition: Arc<str>,
    /// Normalised GPU time in a unit of this partition's time.
    factor: f64,
    began: Duration,
    counted: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    hours: VecDeque<Counted>,
    /// Of all hours, also of those that are forgotten; it starts where the counting does.
    in_all: Counted,
}

/// What happened in an hour.
#[derive(Debug, Clone, Copy)]
struct Counted {
    start: Duration,
    busy: Duration,
    billed_us: u64,
}

/// One hour of a partition, or the part of it that this server has seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HourUse {
    /// By its configured name; models that lie on none run on a `cpu` or on `cuda`.
    pub partition: String,
    pub hour: UnixSeconds,
    #[serde(flatten)]
    pub used: TimeUse,
}

/// In normalised GPU seconds. The first three add up to the last.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TimeUse {
    pub billed: f64,
    pub under_use: f64,
    pub idle: f64,
    pub elapsed: f64,
}

impl PartitionHours {
    pub fn new(clock: Arc<dyn Clock>, partition: &str, factor: f64) -> Self {
        let began = clock.wall();
        let in_all = Counted { start: began, busy: Duration::ZERO, billed_us: 0 };
        let counted = Mutex::new(Counts { hours: VecDeque::new(), in_all });
        Self { clock, partition: partition.into(), factor, began, counted }
    }

    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Something was computed for so long, until now.
    pub fn computed(&self, took: Duration) {
        let until = self.clock.wall();
        let mut from = until.saturating_sub(took).max(self.began);
        let mut counts = self.lock();
        while from < until {
            let end = (start_of_hour(from) + HOUR).min(until);
            hour_of(&mut counts.hours, from).busy += end - from;
            counts.in_all.busy += end - from;
            from = end;
        }
    }

    /// A request ended now, that costs so many normalised microseconds.
    pub fn billed(&self, micros: u64) {
        let mut counts = self.lock();
        counts.in_all.billed_us = counts.in_all.billed_us.saturating_add(micros);
        let hour = hour_of(&mut counts.hours, self.clock.wall());
        hour.billed_us = hour.billed_us.saturating_add(micros);
    }

    /// Every hour since the start, or of the last week; the one that runs comes last.
    pub fn rows(&self) -> Vec<HourUse> {
        let now = self.clock.wall();
        let mut counts = self.lock();
        hour_of(&mut counts.hours, now);
        let row = |counted: &Counted| {
            let seen = now.min(counted.start + HOUR).saturating_sub(self.began.max(counted.start));
            let (partition, hour) = (self.partition.to_string(), UnixSeconds::of(counted.start));
            HourUse { partition, hour, used: self.used(counted, seen) }
        };
        counts.hours.iter().map(row).collect()
    }

    /// Since the start.
    pub fn in_all(&self) -> TimeUse {
        self.used(&self.lock().in_all, self.clock.wall().saturating_sub(self.began))
    }

    /// Whether anything was computed or billed.
    pub(super) fn is_used(&self) -> bool {
        let Counted { busy, billed_us, .. } = self.lock().in_all;
        !busy.is_zero() || billed_us > 0
    }

    fn used(&self, counted: &Counted, seen: Duration) -> TimeUse {
        let elapsed = seen.as_secs_f64() * self.factor;
        let computed = counted.busy.as_secs_f64() * self.factor;
        let billed = counted.billed_us as f64 / 1e6;
        TimeUse { billed, under_use: computed - billed, idle: elapsed - computed, elapsed }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepObserver for PartitionHours {
    fn step(&self, report: &StepReport) {
        if report.num_sequences > 0 {
            self.computed(report.duration);
        }
    }
}

fn start_of_hour(at: Duration) -> Duration {
    Duration::from_secs(at.as_secs() / HOUR.as_secs() * HOUR.as_secs())
}

/// The one that holds `at`, after all that were idle since the last one. A clock that went back counts in the last one.
fn hour_of(hours: &mut VecDeque<Counted>, at: Duration) -> &mut Counted {
    let wanted = start_of_hour(at);
    let empty = |start| Counted { start, busy: Duration::ZERO, billed_us: 0 };
    let oldest = wanted.saturating_sub(HOUR * (KEPT_HOURS as u32 - 1));
    let mut next = hours.back().map_or(wanted, |last| (last.start + HOUR).max(oldest));
    while next <= wanted {
        hours.push_back(empty(next));
        next += HOUR;
    }
    while hours.len() > KEPT_HOURS {
        hours.pop_front();
    }
    let position = hours.iter().rposition(|hour| hour.start <= wanted).unwrap_or(0);
    &mut hours[position]
}

#[cfg(test)]
mod tests {
    use passerelle_engine::clock::ManualClock;

    use super::*;

    fn hours(factor: f64) -> (PartitionHours, ManualClock) {
        let clock = ManualClock::default();
        (PartitionHours::new(Arc::new(clock.clone()), "cpu", factor), clock)
    }

    fn adds_up(row: &HourUse) -> bool {
        let TimeUse { billed, under_use, idle, elapsed } = row.used;
        (billed + under_use + idle - elapsed).abs() < 1e-9
    }

    #[test]
    fn billed_under_use_and_idle_are_what_elapsed() {
        let (hours, clock) = hours(2.0);
        clock.advance(Duration::from_secs(1000));
        hours.computed(Duration::from_secs(300));
        hours.billed(400_000_000);
        clock.advance(Duration::from_secs(800));
        let used = hours.rows()[0].used;
        assert_eq!((used.billed, used.under_use, used.idle, used.elapsed), (400.0, 200.0, 3000.0, 3600.0));
        hours.billed(900_000_000);
        let row = &hours.rows()[0];
        assert_eq!(row.used.under_use, -700.0, "batches were fuller than the tariff's");
        assert!(adds_up(row) && hours.in_all() == row.used);
    }

    #[test]
    fn what_is_computed_across_the_hour_counts_in_both_and_idle_hours_are_there() {
        let (hours, clock) = hours(1.0);
        clock.advance(HOUR + Duration::from_secs(10));
        hours.computed(Duration::from_secs(30));
        clock.advance(HOUR * 2);
        let rows = hours.rows();
        let busy: Vec<f64> = rows.iter().map(|row| row.used.elapsed - row.used.idle).collect();
        assert_eq!(busy.iter().map(|seconds| seconds.round()).collect::<Vec<_>>(), [20.0, 10.0, 0.0, 0.0]);
        assert!(rows.iter().all(adds_up));
        assert_eq!(rows.iter().map(|row| row.used.elapsed.round()).sum::<f64>(), 3.0 * 3600.0 + 10.0);
    }

    #[test]
    fn a_week_is_kept_and_no_more() {
        let (hours, clock) = hours(1.0);
        hours.billed(5_000_000);
        clock.advance(HOUR * 1000);
        let rows = hours.rows();
        assert_eq!((rows.len(), rows[0].used.billed), (KEPT_HOURS, 0.0));
        assert_eq!((hours.in_all().billed, hours.in_all().elapsed), (5.0, 3_600_000.0), "in all, nothing is forgotten");
        assert!(rows.iter().all(adds_up));
    }
}
