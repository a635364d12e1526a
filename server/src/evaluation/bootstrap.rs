//! How sure a number is: the paired percentile bootstrap (Efron and Tibshirani, 1993, chapters 13 and 16; for comparing
//! systems on one test set, Koehn 2004). Items are drawn with replacement, and every checkpoint gets the same draws, so
//! that what makes an item easy for all of them does not blur how they differ.

use passerelle_models::random::draw;
use serde::Serialize;

use super::metric::Share;

const LOW: f64 = 0.025;
const HIGH: f64 = 0.975;

/// A value and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    pub value: f64,
    /// `None` of a single item, whose draws are all the same: how far another item would be is not known.
    #[serde(flatten)]
    pub bounds: Option<Bounds>,
}

/// With 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bounds {
    pub low: f64,
    pub high: f64,
}

/// One seed, one result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resampling {
    pub resamples: usize,
    pub seed: u64,
}

/// A metric of several checkpoints over the same items, drawn anew many times.
#[derive(Debug)]
pub struct Resampled {
    /// By checkpoint.
    values: Vec<f64>,
    num_items: usize,
    /// By checkpoint, then by resample.
    draws: Vec<Vec<f64>>,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { resamples: 2000, seed: 0 }
    }
}

impl Interval {
    /// The sign of a difference is sure.
    pub fn excludes_zero(&self) -> bool {
        self.bounds.is_some_and(|bounds| bounds.low > 0.0 || bounds.high < 0.0)
    }

    /// `[low, high]`, as `number` shows one.
    pub fn shown(&self, number: impl Fn(f64) -> String) -> String {
        match self.bounds {
            Some(Bounds { low, high }) => format!("[{}, {}]", number(low), number(high)),
            None => "[one item]".to_owned(),
        }
    }

    /// From where to where it is drawn.
    pub fn span(&self) -> [f64; 2] {
        self.bounds.map_or([self.value; 2], |bounds| [bounds.low, bounds.high])
    }
}

impl Resampled {
    /// `shares`: for each checkpoint what each item adds, in one order of items for all.
    pub fn new(shares: &[Vec<Share>], resampling: Resampling) -> Self {
        let num_items = shares.first().map_or(0, Vec::len);
        let values = shares.iter().map(|shares| ratio(shares.iter().map(|share| (share, 1)))).collect();
        let mut draws = vec![Vec::with_capacity(resampling.resamples); shares.len()];
        let mut chance = Chance(resampling.seed);
        let mut counts = vec![0_u32; num_items];
        for _ in 0..resampling.resamples {
            counts.fill(0);
            (0..num_items).for_each(|_| counts[chance.below(num_items)] += 1);
            for (draws, shares) in draws.iter_mut().zip(shares) {
                draws.push(ratio(shares.iter().zip(counts.iter().copied())));
            }
        }
        Self { values, num_items, draws }
    }

    pub fn interval(&self, checkpoint: usize) -> Interval {
        self.bounded(self.values[checkpoint], self.draws[checkpoint].clone())
    }

    /// Of `checkpoint` less `other`, draw by draw.
    pub fn difference(&self, checkpoint: usize, other: usize) -> Interval {
        let pairs = self.draws[checkpoint].iter().zip(&self.draws[other]);
        self.bounded(self.values[checkpoint] - self.values[other], pairs.map(|(one, other)| one - other).collect())
    }

    fn bounded(&self, value: f64, mut draws: Vec<f64>) -> Interval {
        draws.sort_by(f64::total_cmp);
        let bounds = (self.num_items > 1).then(|| Bounds { low: quantile(&draws, LOW), high: quantile(&draws, HIGH) });
        Interval { value, bounds }
    }
}

fn ratio<'a>(shares: impl Iterator<Item = (&'a Share, u32)>) -> f64 {
    let (amount, weight) = shares.fold((0.0, 0.0), |(amount, weight), (share, count)| {
        let count = f64::from(count);
        (amount + count * share.amount, weight + count * share.weight)
    });
    if weight > 0.0 { amount / weight } else { 0.0 }
}

/// Between the two nearest of `sorted` values, linearly. 0 of none.
fn quantile(sorted: &[f64], at: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let place = at * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * part
}

struct Chance(u64);

impl Chance {
    fn below(&mut self, count: usize) -> usize {
        // The high half of a product is below `count` (Lemire 2019); the bias is `count` in 2^64.
        ((u128::from(draw(&mut self.0)) * count as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESAMPLING: Resampling = Resampling { resamples: 2000, seed: 7 };

    /// Items whose difficulty varies far more than the checkpoints differ.
    fn shares(num_items: usize, gap: f64) -> Vec<Vec<Share>> {
        let mut chance = Chance(11);
        let hard: Vec<f64> = (0..num_items).map(|_| 1.0 + chance.below(1000) as f64 / 100.0).collect();
        let mut of = |add: f64| {
            let noisy = hard.iter().map(|hard| hard + add + chance.below(100) as f64 / 500.0);
            noisy.map(|amount| Share { amount, weight: 1.0 }).collect()
        };
        vec![of(0.0), of(gap)]
    }

    #[test]
    fn pairing_sees_a_difference_that_the_items_own_spread_would_hide() {
        let found = Resampled::new(&shares(100, 0.3), RESAMPLING);
        let difference = found.difference(1, 0);
        let [low, high] = difference.span();
        assert!(low > 0.2 && high < 0.4, "{difference:?}");
        assert!(found.interval(0).span()[1] > found.interval(1).span()[0], "each alone could be where the other is");
    }

    #[test]
    fn noise_is_not_called_a_difference() {
        assert!(!Resampled::new(&shares(100, 0.0), RESAMPLING).difference(1, 0).excludes_zero());
    }

    /// The standard error of a mean is known: the interval of 100 draws from 0 and 1 is about 0.5 +- 1.96 * 0.05.
    #[test]
    fn the_interval_of_a_share_is_as_wide_as_theory_says() {
        let coins = (0..100).map(|item| Share { amount: f64::from(item / 50), weight: 1.0 }).collect();
        let found = Resampled::new(&[coins], RESAMPLING).interval(0);
        let [low, high] = found.span();
        assert!((low - 0.402).abs() < 0.015 && (high - 0.598).abs() < 0.015, "{found:?}");
    }

    #[test]
    fn a_single_item_says_nothing_of_how_sure_it_is() {
        let found = Resampled::new(&shares(1, 0.3), RESAMPLING);
        assert!(found.interval(0).bounds.is_none() && !found.difference(1, 0).excludes_zero());
        assert!(Resampled::new(&shares(2, 0.3), RESAMPLING).interval(0).bounds.is_some());
    }

    #[test]
    fn the_same_seed_draws_the_same_items() {
        let of = |seed| Resampled::new(&shares(50, 0.1), Resampling { seed, ..RESAMPLING }).difference(0, 1);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn items_weigh_what_they_hold() {
        let shares = vec![vec![Share { amount: 10.0, weight: 1.0 }, Share { amount: 0.0, weight: 9.0 }]];
        assert!((Resampled::new(&shares, RESAMPLING).interval(0).value - 1.0).abs() < 1e-12);
    }
}
