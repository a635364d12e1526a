//! Between which values a median lies, whatever the values are like.

use std::fmt;

/// Half of the 99 % quantile of a normal distribution: how many standard deviations of a rank lie on either side, of which
/// one is half the square root of the count.
const RANKS: f64 = 2.576 / 2.0;

/// With 99 % confidence, by the ranks of the values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) median: f64,
    pub(super) high: f64,
}

/// Where an interval lies beside a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Below,
    Above,
    /// It holds the bound.
    Unknown,
}

impl Interval {
    /// `None` where there are too few values.
    pub(super) fn of_median(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let (count, middle) = (values.len(), values.len() as f64 / 2.0);
        let low = middle - RANKS * (count as f64).sqrt();
        let low = (low >= 1.0).then(|| low as usize - 1)?;
        Some(Self { low: values[low], median: values[count / 2], high: values[count - 1 - low] })
    }

    pub(super) fn beside(&self, bound: f64) -> Verdict {
        match (self.high <= bound, self.low > bound) {
            (true, _) => Verdict::Below,
            (_, true) => Verdict::Above,
            _ => Verdict::Unknown,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Below => "below",
            Self::Above => "above",
            Self::Unknown => "cannot be told from",
        })
    }
}
