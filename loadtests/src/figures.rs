//! Records to figures. Percentiles are exact (all values are kept), with linear interpolation between ranks.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::plan::Plan;
use crate::record::{Delivery, Ending, Record};
use crate::run::Run;
use crate::scenario::Objectives;

/// Of one group of requests. Times are in milliseconds and count from the intended start.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub requests: u64,
    pub finished: u64,
    /// The generator closed the connection, as the scenario says.
    pub left: u64,
    /// In flight when the run was stopped; no part of the share that was good.
    pub interrupted: u64,
    /// Poison requests that were refused, as they should be.
    pub poison_refused: u64,
    /// By status and code.
    pub refused: BTreeMap<String, u64>,
    pub errors: BTreeMap<&'static str, u64>,
    /// Of the errors, those of the generator: it had no connection left to open, or too much in flight.
    pub own_errors: u64,
    /// To the first event with text.
    pub ttft_ms: Option<Quantiles>,
    /// Between two events of one request.
    pub itl_ms: Option<Quantiles>,
    /// Per request: from the first event to the end, over the tokens after the first.
    pub tpot_ms: Option<Quantiles>,
    pub e2e_ms: Option<Quantiles>,
    /// These and the next two: of answers that finished, and of those whose user left.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub prompt_tokens_per_s: f64,
    pub output_tokens_per_s: f64,
    pub requests_per_s: f64,
    /// Finished and within every objective.
    pub good: u64,
    pub good_per_s: f64,
    /// Of the requests whose answer the scenario wanted whole.
    pub good_share: f64,
    /// Answers whose tokens were counted by events, because the server told no usage.
    pub without_usage: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    pub count: usize,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

/// The figures of a run: of all, and of each part that has a name.
#[derive(Debug, Clone, Serialize)]
pub struct RunFigures {
    pub wall_s: f64,
    /// At one moment, those of the warm-up too.
    pub peak_in_flight: usize,
    pub total: Figures,
    pub traffic: BTreeMap<String, Figures>,
    pub tenants: BTreeMap<String, Figures>,
}

impl RunFigures {
    pub fn of(run: &Run, plan: &Plan) -> Self {
        let counted: Vec<&Record> = run.records.iter().filter(|record| record.intended >= plan.warmup).collect();
        let window = run.wall.saturating_sub(plan.warmup);
        let figures_of = |wanted: &dyn Fn(&Record) -> bool| {
            let records: Vec<&Record> = counted.iter().copied().filter(|record| wanted(record)).collect();
            Figures::of(&records, window, &plan.objectives)
        };
        let mut traffic = BTreeMap::new();
        for name in plan.traffic.iter().map(|label| &label.name) {
            let is_of_it = |record: &Record| plan.traffic[record.traffic].name == *name;
            traffic.entry(name.clone()).or_insert_with(|| figures_of(&is_of_it));
        }
        let mut tenants = BTreeMap::new();
        for tenant in plan.traffic.iter().filter_map(|label| label.tenant.as_ref()) {
            let is_theirs = |record: &Record| plan.traffic[record.traffic].tenant.as_ref() == Some(tenant);
            tenants.entry(tenant.clone()).or_insert_with(|| figures_of(&is_theirs));
        }
        Self {
            wall_s: window.as_secs_f64(),
            peak_in_flight: peak_in_flight(&run.records),
            total: Figures::of(&counted, window, &plan.objectives),
            traffic,
            tenants,
        }
    }
}

impl Figures {
    /// `window` is the time over which rates are taken.
    pub fn of(records: &[&Record], window: Duration, objectives: &Objectives) -> Self {
        let mut figures = Self { requests: records.len() as u64, ..Self::default() };
        for record in records {
            figures.count(record, objectives);
        }
        let answered: Vec<&Record> =
            records.iter().copied().filter(|record| matches!(record.ending, Ending::Finished | Ending::Left)).collect();
        let finished: Vec<&Record> = answered.iter().copied().filter(|record| record.is_finished()).collect();
        figures.ttft_ms = Quantiles::of(answered.iter().filter_map(|record| record.time_to_first_token()).map(ms));
        figures.itl_ms = Quantiles::of(answered.iter().flat_map(|record| record.inter_token_gaps()).map(ms));
        figures.tpot_ms = Quantiles::of(finished.iter().filter_map(|record| record.time_per_output_token()).map(ms));
        figures.e2e_ms = Quantiles::of(finished.iter().map(|record| ms(record.end_to_end())));
        let seconds = window.as_secs_f64();
        if seconds > 0.0 {
            figures.prompt_tokens_per_s = figures.prompt_tokens as f64 / seconds;
            figures.output_tokens_per_s = figures.output_tokens as f64 / seconds;
            figures.requests_per_s = figures.finished as f64 / seconds;
            figures.good_per_s = figures.good as f64 / seconds;
        }
        let wanted_whole = figures.requests - figures.left - figures.interrupted - figures.poison_refused;
        if wanted_whole > 0 {
            figures.good_share = figures.good as f64 / wanted_whole as f64;
        }
        figures
    }

    pub fn error_count(&self) -> u64 {
        self.errors.values().sum()
    }

    pub fn refused_count(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Whether anything at all got what it should; also where nothing was sent.
    pub fn was_served(&self) -> bool {
        self.requests == 0 || self.finished + self.left + self.poison_refused > 0
    }

    fn count(&mut self, record: &Record, objectives: &Objectives) {
        match &record.ending {
            Ending::Finished => {
                self.finished += 1;
                self.good += u64::from(objectives.are_kept_by(record));
            }
            Ending::Left => self.left += 1,
            Ending::Interrupted => self.interrupted += 1,
            Ending::RefusedAsExpected { .. } => self.poison_refused += 1,
            Ending::Refused { status, code } => {
                let label = code.as_ref().map_or_else(|| status.to_string(), |code| format!("{status} {code}"));
                *self.refused.entry(label).or_default() += 1;
            }
            Ending::Failed(kind) => {
                *self.errors.entry(kind.name()).or_default() += 1;
                self.own_errors += u64::from(kind.is_of_generator());
            }
        }
        // What a broken answer brought is of no use to anybody, and a server that breaks many is not fast.
        if matches!(record.ending, Ending::Finished | Ending::Left) {
            self.count_tokens(record);
        }
    }

    fn count_tokens(&mut self, record: &Record) {
        self.output_tokens += record.output_tokens();
        match record.usage {
            Some(usage) => {
                self.prompt_tokens += usage.prompt_tokens;
                self.cached_tokens += usage.cached_tokens;
            }
            None => self.without_usage += u64::from(record.is_finished()),
        }
    }
}

impl std::fmt::Display for Objectives {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { ttft_ms, tpot_ms, e2e_ms } = *self;
        let parts = [("first token", ttft_ms), ("each further token", tpot_ms), ("the whole", e2e_ms)];
        let parts: Vec<String> = parts
            .iter()
            .filter_map(|(name, limit)| limit.map(|limit| format!("{name} within {} ms", short(limit))))
            .collect();
        formatter.write_str(if parts.is_empty() { "whenever it comes".to_owned() } else { parts.join(", ") }.as_str())
    }
}

impl Objectives {
    pub fn are_kept_by(&self, record: &Record) -> bool {
        let within = |value: Duration, limit_ms: Option<f64>| limit_ms.is_none_or(|limit_ms| ms(value) <= limit_ms);
        // A single token has no time per further token; an answer without a first token keeps nothing.
        // Of an answer in one piece the first token is seen at its end.
        let seen = match record.delivery {
            Delivery::Streamed => record.time_to_first_token(),
            Delivery::Whole => Some(record.end_to_end()),
        };
        seen.is_some_and(|first| within(first, self.ttft_ms))
            && record.time_per_output_token().is_none_or(|each| within(each, self.tpot_ms))
            && within(record.end_to_end(), self.e2e_ms)
    }
}

impl Quantiles {
    /// `None` where there are no values.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let max = *values.last()?;
        Some(Self {
            count: values.len(),
            mean: values.iter().sum::<f64>() / values.len() as f64,
            p50: quantile(&values, 0.5),
            p90: quantile(&values, 0.9),
            p99: quantile(&values, 0.99),
            max,
        })
    }
}

/// Of values in order, at least one.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = share * (sorted.len() - 1) as f64;
    let (below, above) = (rank.floor() as usize, rank.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

/// For a table: at least three significant digits, and one decimal but for a whole number of them; `-` for what is no
/// number.
pub fn short(value: f64) -> String {
    const MOST_DECIMALS: f64 = 6.0;
    if !value.is_finite() {
        return "-".to_owned();
    }
    if value.fract() == 0.0 && value.abs() >= 100.0 {
        return format!("{value:.0}");
    }
    let wanted = if value == 0.0 { 1.0 } else { (2.0 - value.abs().log10().floor()).clamp(1.0, MOST_DECIMALS) };
    let decimals = wanted as usize;
    format!("{value:.decimals$}")
}

/// The most requests that were on their way at one moment.
pub fn peak_in_flight(records: &[Record]) -> usize {
    let mut changes: Vec<(Duration, isize)> =
        records.iter().flat_map(|record| [(record.sent, 1), (record.end, -1)]).collect();
    // Whoever ends at a moment is gone before whoever starts at it.
    changes.sort_unstable();
    let in_flight = changes.iter().scan(0, |in_flight, (_, change)| {
        *in_flight += change;
        Some(*in_flight)
    });
    in_flight.max().map_or(0, |peak| peak.try_into().unwrap_or(0))
}

pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ErrorKind, Usage};

    /// Intended at 1 s, sent 10 ms late, `events` in ms after the intended start.
    fn record(events: &[u64], output_tokens: u64) -> Record {
        let at = |after: u64| Duration::from_millis(1000 + after);
        Record {
            index: 0,
            lap: 0,
            turn: 0,
            traffic: 0,
            intended: at(0),
            sent: at(10),
            events: events.iter().map(|after| at(*after)).collect(),
            end: at(events.last().copied().unwrap_or(0) + 5),
            ending: Ending::Finished,
            delivery: Delivery::Streamed,
            usage: Some(Usage { prompt_tokens: 7, cached_tokens: 2, output_tokens }),
            text: String::new(),
        }
    }

    #[test]
    fn quantiles_interpolate_between_ranks() {
        let quantiles = Quantiles::of((1..=101).map(f64::from)).unwrap();
        assert_eq!((quantiles.p50, quantiles.p90, quantiles.p99, quantiles.max), (51.0, 91.0, 100.0, 101.0));
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert!(Quantiles::of(std::iter::empty()).is_none());
    }

    #[test]
    fn small_numbers_keep_three_digits_and_none_is_a_dash() {
        let shown = [1234.56, 4000.0, 24.57, 1.234, 0.01234, 0.0, f64::NAN, f64::INFINITY].map(short);
        assert_eq!(shown, ["1234.6", "4000", "24.6", "1.23", "0.0123", "0.0", "-", "-"]);
    }

    #[test]
    fn the_peak_in_flight_is_what_overlaps() {
        // Each from 1010 ms to 5 ms after its last event.
        let apart = Record { sent: Duration::from_millis(1105), ..record(&[300], 1) };
        assert_eq!(peak_in_flight(&[]), 0);
        assert_eq!(peak_in_flight(&[record(&[100], 1), apart.clone()]), 1, "the second starts when the first ends");
        assert_eq!(peak_in_flight(&[record(&[200], 1), record(&[100], 1), apart]), 2);
    }

    #[test]
    fn latency_counts_from_the_intended_start() {
        let records = [record(&[100, 120, 160], 5)];
        let figures = Figures::of(&records.iter().collect::<Vec<_>>(), Duration::from_secs(2), &Objectives::default());
        assert_eq!(figures.ttft_ms.unwrap().p50, 100.0);
        assert_eq!(figures.itl_ms.unwrap().max, 40.0);
        assert_eq!(figures.tpot_ms.unwrap().p50, 16.25, "65 ms over the four tokens after the first");
        assert_eq!(figures.e2e_ms.unwrap().p50, 165.0);
        assert_eq!((figures.output_tokens_per_s, figures.requests_per_s), (2.5, 0.5));
    }

    #[test]
    fn goodput_counts_what_keeps_every_objective() {
        let refused = Record { ending: Ending::Refused { status: 503, code: None }, ..record(&[], 0) };
        let failed = Record { ending: Ending::Failed(ErrorKind::Timeout), ..record(&[50], 1) };
        let left = Record { ending: Ending::Left, ..record(&[50, 60], 2) };
        let silent = record(&[], 0);
        let records = [record(&[100, 110], 2), record(&[300, 310], 2), silent, refused, failed, left];
        let objectives = Objectives { ttft_ms: Some(200.0), tpot_ms: Some(20.0), e2e_ms: None };
        let figures = Figures::of(&records.iter().collect::<Vec<_>>(), Duration::from_secs(1), &objectives);
        assert_eq!((figures.good, figures.good_share), (1, 0.2), "of five whose answer was wanted whole");
        assert_eq!((figures.refused["503"], figures.errors["timeout"], figures.left), (1, 1, 1));
    }

    #[test]
    fn what_a_broken_answer_brought_is_no_throughput() {
        let ended = |ending| Record { ending, ..record(&[50, 60], 2) };
        let cut = ended(Ending::Failed(ErrorKind::StreamCut));
        let records = [record(&[100, 110], 2), ended(Ending::Left), cut];
        let figures = Figures::of(&records.iter().collect::<Vec<_>>(), Duration::from_secs(1), &Objectives::default());
        assert_eq!((figures.output_tokens, figures.prompt_tokens, figures.output_tokens_per_s), (4, 14, 4.0));
    }

    #[test]
    fn errors_of_the_generator_are_told_from_the_servers() {
        let failed = |kind| Record { ending: Ending::Failed(kind), ..record(&[], 0) };
        let records = [ErrorKind::NotSent, ErrorKind::OutOfFiles, ErrorKind::Connect].map(failed);
        let figures = Figures::of(&records.iter().collect::<Vec<_>>(), Duration::from_secs(1), &Objectives::default());
        assert_eq!((figures.error_count(), figures.own_errors), (3, 2));
    }
}
