//! What is compared.

use super::interval;
use super::{Better, Observed, Rates, Round, Row};
use crate::figures::quantile;

/// Below so many requests, how sure a tail is cannot be told: its p99 is one request or two.
const MIN_REQUESTS_OF_TAIL: usize = 100;

/// How a figure is taken from the requests of some rounds.
struct Measure {
    name: &'static str,
    better: Better,
    reach: Reach,
    of: fn(&[&Observed], &[Rates]) -> f64,
}

/// How many requests a figure hangs on.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    All,
    /// A few, so that it takes many to be sure.
    Tail,
    /// One, the worst: how sure it is cannot be told.
    Worst,
}

const MEASURES: [Measure; 18] = [
    lower("time to first token, p50 ms", Reach::All, |seen, _| of(seen, 0.5, |one| Some(one.ttft_ms))),
    lower("time to first token, p90 ms", Reach::All, |seen, _| of(seen, 0.9, |one| Some(one.ttft_ms))),
    lower("time to first token, p99 ms", Reach::Tail, |seen, _| of(seen, 0.99, |one| Some(one.ttft_ms))),
    lower("time to first token, max ms", Reach::Worst, |seen, _| of(seen, 1.0, |one| Some(one.ttft_ms))),
    lower("inter-token latency, p50 ms", Reach::All, |seen, _| of_gaps(seen, 0.5)),
    lower("inter-token latency, p90 ms", Reach::All, |seen, _| of_gaps(seen, 0.9)),
    lower("inter-token latency, p99 ms", Reach::Tail, |seen, _| of_gaps(seen, 0.99)),
    lower("inter-token latency, max ms", Reach::Worst, |seen, _| of_gaps(seen, 1.0)),
    lower("time per output token, p50 ms", Reach::All, |seen, _| of(seen, 0.5, |one| one.tpot_ms)),
    lower("time per output token, p90 ms", Reach::All, |seen, _| of(seen, 0.9, |one| one.tpot_ms)),
    lower("time per output token, p99 ms", Reach::Tail, |seen, _| of(seen, 0.99, |one| one.tpot_ms)),
    lower("time per output token, max ms", Reach::Worst, |seen, _| of(seen, 1.0, |one| one.tpot_ms)),
    lower("end to end, p50 ms", Reach::All, |seen, _| of(seen, 0.5, |one| Some(one.e2e_ms))),
    lower("end to end, p90 ms", Reach::All, |seen, _| of(seen, 0.9, |one| Some(one.e2e_ms))),
    lower("end to end, p99 ms", Reach::Tail, |seen, _| of(seen, 0.99, |one| Some(one.e2e_ms))),
    lower("end to end, max ms", Reach::Worst, |seen, _| of(seen, 1.0, |one| Some(one.e2e_ms))),
    higher("output tokens per second", |_, rates| mean(rates, |rates| rates.tokens_per_s)),
    higher("goodput, requests per second", |_, rates| mean(rates, |rates| rates.good_per_s)),
];

const fn lower(name: &'static str, reach: Reach, of: fn(&[&Observed], &[Rates]) -> f64) -> Measure {
    Measure { name, better: Better::Lower, reach, of }
}

const fn higher(name: &'static str, of: fn(&[&Observed], &[Rates]) -> f64) -> Measure {
    Measure { name, better: Better::Higher, reach: Reach::All, of }
}

/// `rounds` holds at least one.
pub(super) fn rows(rounds: &[Round]) -> Vec<Row> {
    MEASURES.iter().map(|measure| measure.row(rounds)).collect()
}

impl Measure {
    fn row(&self, rounds: &[Round]) -> Row {
        let contenders = rounds[0].observed.len();
        let requests: usize = rounds.iter().map(|round| round.observed[0].len()).sum();
        let is_sure = match self.reach {
            Reach::All => true,
            Reach::Tail => requests >= MIN_REQUESTS_OF_TAIL,
            Reach::Worst => false,
        };
        let ratio = |which| if is_sure { interval::ratio(rounds, 0, which, self.of) } else { None };
        Row {
            figure: self.name,
            better: self.better,
            values: (0..contenders).map(|which| self.value(rounds, which)).collect(),
            ratios: (1..contenders).map(ratio).collect(),
        }
    }

    fn value(&self, rounds: &[Round], which: usize) -> f64 {
        let observed: Vec<&Observed> = rounds.iter().flat_map(|round| &round.observed[which]).collect();
        let rates: Vec<Rates> = rounds.iter().map(|round| round.rates[which]).collect();
        (self.of)(&observed, &rates)
    }
}

fn of(observed: &[&Observed], share: f64, value: impl Fn(&Observed) -> Option<f64>) -> f64 {
    at(observed.iter().filter_map(|one| value(one)).collect(), share)
}

fn of_gaps(observed: &[&Observed], share: f64) -> f64 {
    at(observed.iter().flat_map(|one| one.gaps_ms.iter().copied()).collect(), share)
}

/// NaN where no request has such a value.
fn at(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    if values.is_empty() { f64::NAN } else { quantile(&values, share) }
}

fn mean(rates: &[Rates], value: impl Fn(&Rates) -> f64) -> f64 {
    rates.iter().map(value).sum::<f64>() / rates.len() as f64
}
