//! How sure a ratio is: the two-stage bootstrap (Davison and Hinkley, 1997, section 3.8). Rounds are drawn with
//! replacement, then requests within them; both servers get the same draws, because they had the same requests.

use serde::Serialize;

use super::{Observed, Rates, Round};
use crate::figures::quantile;
use crate::rng::Rng;

const RESAMPLES: usize = 1000;
const LOW: f64 = 0.025;
const HIGH: f64 = 0.975;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    pub estimate: f64,
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// Whether the interval leaves out 1: the servers differ.
    pub fn is_clear(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mark = if self.is_clear() { "" } else { " ~" };
        write!(formatter, "{:.3} [{:.3}, {:.3}]{mark}", self.estimate, self.low, self.high)
    }
}

/// Of `statistic` at the second of `pair` to the first.
pub(super) fn ratio(
    rounds: &[Round],
    pair: (usize, usize),
    seed: u64,
    statistic: impl Fn(&[&Observed], &[Rates]) -> f64,
) -> Ratio {
    let of = |sample: &Sample| {
        statistic(&sample.second, &sample.second_rates) / statistic(&sample.first, &sample.first_rates)
    };
    let mut rng = Rng::new(seed);
    let estimate = of(&Sample::whole(rounds, pair));
    let mut ratios: Vec<f64> = (0..RESAMPLES).map(|_| of(&Sample::draw(rounds, pair, &mut rng))).collect();
    ratios.sort_by(f64::total_cmp);
    Ratio { estimate, low: quantile(&ratios, LOW), high: quantile(&ratios, HIGH) }
}

#[derive(Default)]
struct Sample<'a> {
    first: Vec<&'a Observed>,
    second: Vec<&'a Observed>,
    first_rates: Vec<Rates>,
    second_rates: Vec<Rates>,
}

impl<'a> Sample<'a> {
    fn whole(rounds: &'a [Round], pair: (usize, usize)) -> Self {
        let mut sample = Self::default();
        for round in rounds {
            sample.add_rates(round, pair);
            sample.first.extend(&round.observed[pair.0]);
            sample.second.extend(&round.observed[pair.1]);
        }
        sample
    }

    fn draw(rounds: &'a [Round], pair: (usize, usize), rng: &mut Rng) -> Self {
        let mut sample = Self::default();
        for _ in 0..rounds.len() {
            let round = &rounds[rng.below(rounds.len())];
            sample.add_rates(round, pair);
            let count = round.observed[pair.0].len();
            for _ in 0..count {
                let request = rng.below(count);
                sample.first.push(&round.observed[pair.0][request]);
                sample.second.push(&round.observed[pair.1][request]);
            }
        }
        sample
    }

    fn add_rates(&mut self, round: &Round, pair: (usize, usize)) {
        self.first_rates.push(round.rates[pair.0]);
        self.second_rates.push(round.rates[pair.1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(factor: f64, noise: f64) -> Vec<Round> {
        let mut rng = Rng::new(11);
        let mut one = |scale: f64| {
            let ttft_ms = scale * 100.0 * (1.0 + noise * rng.normal());
            Observed { ttft_ms, tpot_ms: None, e2e_ms: 1.0, gaps_ms: Vec::new() }
        };
        let mut round = || {
            let observed = vec![(0..60).map(|_| one(1.0)).collect(), (0..60).map(|_| one(factor)).collect()];
            Round { observed, rates: vec![Rates::default(); 2], tenants: [].into() }
        };
        (0..4).map(|_| round()).collect()
    }

    fn mean_ttft(observed: &[&Observed], _: &[Rates]) -> f64 {
        observed.iter().map(|one| one.ttft_ms).sum::<f64>() / observed.len() as f64
    }

    #[test]
    fn a_real_difference_is_clear_and_its_interval_holds_it() {
        let found = ratio(&rounds(1.5, 0.2), (0, 1), 1, mean_ttft);
        assert!(found.is_clear() && found.low < 1.5 && 1.5 < found.high, "{found}");
        assert!(found.high - found.low < 0.2, "{found}");
    }

    #[test]
    fn noise_is_not_called_a_difference() {
        let found = ratio(&rounds(1.0, 0.3), (0, 1), 1, mean_ttft);
        assert!(!found.is_clear(), "{found}");
    }
}
