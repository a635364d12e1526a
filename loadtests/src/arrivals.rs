//! When requests arrive. Pure: a schedule is known before the first request is sent, and a slow server does not bend it.

use std::time::Duration;

use serde::Deserialize;

use crate::rng::Rng;

/// Requests per second; what no generator of one machine sends is a slip of the hand.
pub const MAX_RATE: f64 = 1e6;
/// At once.
pub const MAX_USERS: f64 = 100_000.0;

/// Rates are requests per second.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Arrivals {
    /// Independent users: exponential gaps.
    Poisson { rate: f64 },
    /// One every `1 / rate` seconds.
    Constant { rate: f64 },
    /// `size` at once, every `every_s` seconds.
    Burst { size: u32, every_s: f64 },
    /// Independent users whose rate goes linearly from `from` to `to` over the scenario.
    Ramp { from: f64, to: f64 },
    /// `concurrency` users who each wait for their answer before they ask again. Not an open loop: a slow server
    /// is asked less, so its latency looks better than what users of an open service would see.
    Closed { concurrency: u32 },
    /// As the trace says.
    Trace,
}

impl Arrivals {
    /// The offsets of the first `limit` arrivals in `duration`, in order; `None` where the server's answers set the pace or a
    /// trace does.
    pub fn offsets(&self, duration: Duration, limit: usize, rng: &mut Rng) -> Option<Vec<Duration>> {
        let seconds = duration.as_secs_f64();
        let offsets = match *self {
            Self::Poisson { rate } => ramp(rate, rate, seconds, limit, rng),
            Self::Constant { rate } => every(1.0 / rate, 1, seconds, limit),
            Self::Burst { size, every_s } => every(every_s, size, seconds, limit),
            Self::Ramp { from, to } => ramp(from, to, seconds, limit, rng),
            Self::Closed { .. } | Self::Trace => return None,
        };
        Some(offsets.into_iter().map(Duration::from_secs_f64).collect())
    }

    /// The same kind of arrivals, `factor` times as many.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        match *self {
            Self::Poisson { rate } => Self::Poisson { rate: rate * factor },
            Self::Constant { rate } => Self::Constant { rate: rate * factor },
            Self::Burst { size, every_s } => {
                Self::Burst { size: (f64::from(size) * factor).round().max(1.0) as u32, every_s }
            }
            Self::Ramp { from, to } => Self::Ramp { from: from * factor, to: to * factor },
            Self::Closed { concurrency } => {
                Self::Closed { concurrency: (f64::from(concurrency) * factor).round().max(1.0) as u32 }
            }
            Self::Trace => Self::Trace,
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: f64, most: f64| match value > 0.0 && value <= most {
            true => Ok(()),
            false => Err(format!("`{name}` must be above 0 and at most {most}, not {value}")),
        };
        match *self {
            Self::Poisson { rate } | Self::Constant { rate } => within("rate", rate, MAX_RATE),
            Self::Burst { size, every_s } => {
                within("size", size.into(), MAX_USERS).and_then(|()| within("every_s", every_s, f64::MAX))
            }
            Self::Ramp { from, to } if from >= 0.0 && to >= 0.0 => within("from + to", from + to, MAX_RATE),
            Self::Ramp { .. } => Err("`from` and `to` must not be negative".to_owned()),
            Self::Closed { concurrency } => within("concurrency", concurrency.into(), MAX_USERS),
            Self::Trace => Ok(()),
        }
    }
}

/// A Poisson process whose rate goes linearly from `from` to `to`: unit exponential gaps, mapped through the inverse of
/// the expected number of arrivals, `from * t + (to - from) * t^2 / (2 * seconds)`.
fn ramp(from: f64, to: f64, seconds: f64, limit: usize, rng: &mut Rng) -> Vec<f64> {
    let slope = (to - from) / seconds;
    let expected = (from + to) / 2.0 * seconds;
    let mut offsets = Vec::with_capacity((expected as usize + 16).min(limit));
    let mut count = rng.exponential();
    while count < expected && offsets.len() < limit {
        // The stable root: no cancellation when the slope is near 0.
        offsets.push(2.0 * count / (from + (from * from + 2.0 * slope * count).max(0.0).sqrt()));
        count += rng.exponential();
    }
    offsets
}

fn every(gap: f64, size: u32, seconds: f64, limit: usize) -> Vec<f64> {
    let moments = (0u32..).map(|index| f64::from(index) * gap).take_while(|at| *at < seconds);
    moments.flat_map(|at| std::iter::repeat_n(at, size as usize)).take(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(arrivals: &Arrivals, seconds: u64) -> Vec<f64> {
        let offsets =
            arrivals.offsets(Duration::from_secs(seconds), usize::MAX, &mut Rng::new(7)).expect("an open loop");
        offsets.iter().map(Duration::as_secs_f64).collect()
    }

    #[test]
    fn poisson_gaps_have_the_mean_and_the_spread_of_an_exponential() {
        let times = offsets(&Arrivals::Poisson { rate: 50.0 }, 400);
        assert!((times.len() as f64 / 20_000.0 - 1.0).abs() < 0.03, "{} arrivals", times.len());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.0006, "mean {mean}");
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.03, "deviation {}", variance.sqrt());
        let beyond_mean = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((beyond_mean - (-1.0f64).exp()).abs() < 0.02, "share beyond the mean {beyond_mean}");
    }

    #[test]
    fn a_ramp_follows_its_rate() {
        let times = offsets(&Arrivals::Ramp { from: 0.0, to: 100.0 }, 200);
        let half = times.iter().filter(|at| **at < 100.0).count() as f64;
        assert!((times.len() as f64 / 10_000.0 - 1.0).abs() < 0.04, "{} arrivals", times.len());
        assert!((half / times.len() as f64 - 0.25).abs() < 0.02, "a quarter of the arrivals are in the first half");
    }

    #[test]
    fn constant_and_burst_are_on_time() {
        assert_eq!(offsets(&Arrivals::Constant { rate: 4.0 }, 1), [0.0, 0.25, 0.5, 0.75]);
        assert_eq!(offsets(&Arrivals::Burst { size: 2, every_s: 0.5 }, 1), [0.0, 0.0, 0.5, 0.5]);
    }

    #[test]
    fn a_seed_is_one_schedule_in_order() {
        let arrivals = Arrivals::Poisson { rate: 9.0 };
        let times = offsets(&arrivals, 30);
        assert_eq!(times, offsets(&arrivals, 30));
        assert!(times.is_sorted() && times.iter().all(|at| *at < 30.0));
    }

    #[test]
    fn scaling_offers_that_many_more() {
        let twice = offsets(&Arrivals::Poisson { rate: 20.0 }.scaled(2.0), 100).len() as f64;
        assert!((twice / 4000.0 - 1.0).abs() < 0.06, "{twice}");
        assert_eq!(Arrivals::Burst { size: 3, every_s: 1.0 }.scaled(2.0), Arrivals::Burst { size: 6, every_s: 1.0 });
    }

    #[test]
    fn no_more_arrivals_are_made_than_are_wanted() {
        let ages = Duration::from_secs(1 << 30);
        for arrivals in [
            Arrivals::Poisson { rate: MAX_RATE },
            Arrivals::Constant { rate: MAX_RATE },
            Arrivals::Burst { size: u32::MAX, every_s: 1e-9 },
        ] {
            assert_eq!(arrivals.offsets(ages, 10, &mut Rng::new(7)).map(|offsets| offsets.len()), Some(10));
        }
    }

    #[test]
    fn a_number_that_no_load_has_is_refused() {
        for rate in [-1.0, f64::NAN, f64::INFINITY, 1e15] {
            assert!(Arrivals::Constant { rate }.check().is_err(), "{rate}");
        }
        assert!(Arrivals::Ramp { from: f64::NAN, to: 1.0 }.check().is_err());
        assert!(Arrivals::Closed { concurrency: u32::MAX }.check().is_err());
    }

    #[test]
    fn a_rate_of_nothing_is_refused() {
        assert!(Arrivals::Poisson { rate: 0.0 }.check().is_err());
        assert!(Arrivals::Burst { size: 1, every_s: -1.0 }.check().is_err());
        assert!(Arrivals::Ramp { from: 0.0, to: 0.0 }.check().is_err());
        assert!(Arrivals::Ramp { from: 0.0, to: 1.0 }.check().is_ok());
    }
}
