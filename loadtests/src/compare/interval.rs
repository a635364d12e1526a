//! How sure a ratio is. Rounds are what is independent: the requests of one round share whatever disturbed it. So each round
//! is left out once (Kott, "The Delete-a-Group Jackknife", Journal of Official Statistics 17, 2001), and Student's t tells how
//! far from the truth so few rounds may be.

use serde::Serialize;

use super::{Observed, Rates, Round};

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Ratio {
    pub estimate: f64,
    /// Of a mean, a rate or a median about 95 % of such intervals hold the true ratio; of a tail fewer, where rounds differ much.
    pub low: f64,
    pub high: f64,
}

/// Of `statistic` at the `second` to the `first`; `None` of fewer than two rounds, which tell nothing of how sure it is.
pub(super) fn ratio(
    rounds: &[Round],
    first: usize,
    second: usize,
    statistic: impl Fn(&[&Observed], &[Rates]) -> f64,
) -> Option<Ratio> {
    if rounds.len() < 2 {
        return None;
    }
    let value = |which: usize, left_out: Option<usize>| {
        let kept =
            || rounds.iter().enumerate().filter(move |(number, _)| Some(*number) != left_out).map(|(_, round)| round);
        let observed: Vec<&Observed> = kept().flat_map(|round| &round.observed[which]).collect();
        let rates: Vec<Rates> = kept().map(|round| round.rates[which]).collect();
        statistic(&observed, &rates)
    };
    let of = |left_out| value(second, left_out) / value(first, left_out);
    let without: Vec<f64> = (0..rounds.len()).map(|number| of(Some(number))).collect();
    Some(Ratio::around(of(None), &without))
}

impl Ratio {
    /// Whether the interval leaves out 1: the servers differ.
    pub fn is_clear(&self) -> bool {
        self.low > 1.0 || self.high < 1.0
    }

    /// `without` are the ratios with each of the rounds left out, at least two of them.
    fn around(estimate: f64, without: &[f64]) -> Self {
        // Also of 0, which has no logarithm: nothing was good in any round.
        if without.iter().all(|ratio| ratio.total_cmp(&estimate).is_eq()) {
            return Self { estimate, low: estimate, high: estimate };
        }
        let count = without.len() as f64;
        let logs: Vec<f64> = without.iter().map(|ratio| ratio.ln()).collect();
        let mean = logs.iter().sum::<f64>() / count;
        let squares: f64 = logs.iter().map(|log| (log - mean).powi(2)).sum();
        let half = student_t(without.len() - 1) * ((count - 1.0) / count * squares).sqrt();
        match half.is_finite() {
            true => Self { estimate, low: estimate * (-half).exp(), high: estimate * half.exp() },
            false => Self { estimate, low: 0.0, high: f64::INFINITY },
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mark = if self.is_clear() { "" } else { " ~" };
        write!(formatter, "{:.3} [{:.3}, {:.3}]{mark}", self.estimate, self.low, self.high)
    }
}

/// What Student's t exceeds with a chance of 2.5 %, of so many degrees of freedom (at least 1). From the fifth on by the
/// expansion in the normal quantile (Abramowitz and Stegun, 1964, 26.7.5), to within 0.2 %.
fn student_t(freedom: usize) -> f64 {
    const EXACT: [f64; 4] = [12.706, 4.303, 3.182, 2.776];
    const Z: f64 = 1.959_964;
    if let Some(exact) = EXACT.get(freedom - 1) {
        return *exact;
    }
    let per = 1.0 / freedom as f64;
    let first = (Z.powi(3) + Z) / 4.0;
    let second = (5.0 * Z.powi(5) + 16.0 * Z.powi(3) + 3.0 * Z) / 96.0;
    let third = (3.0 * Z.powi(7) + 19.0 * Z.powi(5) + 17.0 * Z.powi(3) - 15.0 * Z) / 384.0;
    Z + per * (first + per * (second + per * third))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    /// `count` rounds of 60 requests to two servers, of which the second takes `factor` as long; `noise` is of each request and
    /// `shared` of all requests of one server in one round.
    fn rounds(count: usize, factor: f64, noise: f64, shared: f64, rng: &mut Rng) -> Vec<Round> {
        let mut turn = |scale: f64| -> Vec<Observed> {
            let scale = scale * (1.0 + shared * rng.normal());
            let mut one = || {
                let ttft_ms = scale * 100.0 * (1.0 + noise * rng.normal());
                Observed { ttft_ms, tpot_ms: None, e2e_ms: 1.0, gaps_ms: Vec::new() }
            };
            (0..60).map(|_| one()).collect()
        };
        let mut round = || {
            let observed = vec![turn(1.0), turn(factor)];
            Round { observed, rates: vec![Rates::default(); 2], tenants: [].into() }
        };
        (0..count).map(|_| round()).collect()
    }

    fn mean_ttft(observed: &[&Observed], _: &[Rates]) -> f64 {
        observed.iter().map(|one| one.ttft_ms).sum::<f64>() / observed.len() as f64
    }

    #[test]
    fn a_real_difference_is_clear_and_its_interval_holds_it() {
        let found = ratio(&rounds(4, 1.5, 0.2, 0.0, &mut Rng::new(11)), 0, 1, mean_ttft).unwrap();
        assert!(found.is_clear() && found.low < 1.5 && 1.5 < found.high, "{found}");
        assert!(found.high - found.low < 0.2, "{found}");
    }

    #[test]
    fn of_a_hundred_intervals_about_95_hold_the_truth_however_few_the_rounds_and_whatever_they_share() {
        const COMPARISONS: usize = 400;
        let mut rng = Rng::new(11);
        for (noise, shared) in [(0.3, 0.0), (0.1, 0.1), (0.02, 0.1)] {
            for count in [2, 3, 5, 8] {
                let holds = |_: &usize| {
                    let found = ratio(&rounds(count, 1.0, noise, shared, &mut rng), 0, 1, mean_ttft);
                    !found.expect("there are two rounds or more").is_clear()
                };
                let held = (0..COMPARISONS).filter(holds).count() as f64 / COMPARISONS as f64;
                assert!((0.91..=0.98).contains(&held), "{held} of {count} rounds with {noise} and {shared}");
            }
        }
    }

    #[test]
    fn one_round_has_no_interval_and_a_server_of_which_nothing_was_good_is_clearly_worse() {
        let mut rounds = rounds(3, 1.0, 0.1, 0.0, &mut Rng::new(11));
        let good = |_: &[&Observed], rates: &[Rates]| rates.iter().map(|rates| rates.good_per_s).sum::<f64>();
        for (round, good_per_s) in rounds.iter_mut().zip([2.0, 3.0, 4.0]) {
            round.rates[0].good_per_s = good_per_s;
        }
        assert_eq!(ratio(&rounds[..1], 0, 1, good), None);
        let found = ratio(&rounds, 0, 1, good).unwrap();
        assert_eq!((found.estimate, found.low, found.high, found.is_clear()), (0.0, 0.0, 0.0, true));
        rounds[0].rates[1].good_per_s = 1.0;
        let found = ratio(&rounds, 0, 1, good).unwrap();
        assert!(found.estimate > 0.0 && !found.is_clear() && found.high.is_infinite(), "{found}");
    }

    #[test]
    fn students_t_is_that_of_its_tables() {
        for (freedom, tabled) in [(1, 12.706), (4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045), (999, 1.962)] {
            let found = student_t(freedom);
            assert!((found / tabled - 1.0).abs() < 0.002, "{freedom}: {found}");
        }
    }
}
