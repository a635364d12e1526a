//! A long run: does the resident size or the latency creep upwards?

use super::{CheckError, Context, failures, require_answers};
use crate::arrivals::Arrivals;
use crate::figures::{ms, quantile};
use crate::http::Connect;
use crate::process::{Sample, Watch};
use crate::record::Record;
use crate::verdict::Verdict;

/// The first part of a soak fills caches and pools.
const WARM_SHARE: f64 = 0.25;
const WINDOWS: usize = 12;
const MAX_RSS_MIB_PER_HOUR: f64 = 16.0;
/// Of the mean p99, over the counted part of the run: what a shorter run cannot tell of an hour it does not claim.
const MAX_LATENCY_GROWTH: f64 = 0.25;
/// A slope is known to this many standard errors.
const SURE: f64 = 2.0;
const HOUR_S: f64 = 3600.0;
const MIB: f64 = 1024.0 * 1024.0;

pub async fn check<C: Connect>(context: &Context<'_, C>) -> Result<Verdict, CheckError> {
    let Some(pid) = context.server_pid else {
        return Err(CheckError::CannotTry("the server's process is not known (--server-pid)".to_owned()));
    };
    let mut verdict = Verdict::new(
        "soak",
        format!(
            "over time neither the resident size (at most {MAX_RSS_MIB_PER_HOUR} MiB an hour) nor the p99 (at most \
             {:.0} % over the run) grows",
            MAX_LATENCY_GROWTH * 100.0
        ),
    );
    let users = context.chats("users", Arrivals::Poisson { rate: context.options.rate }, context.options.lengths);
    let watch = Watch::start(Some(pid));
    let (_, run, figures) = context.run(vec![users]).await?;
    let (_, samples) = watch.finish();
    verdict.tried(format!(
        "{} requests over {:.0} s, the first {:.0} % of it not counted",
        figures.total.requests,
        context.options.duration.as_secs_f64(),
        WARM_SHARE * 100.0
    ));
    require_answers(&figures.total)?;
    judge_size(&mut verdict, &samples)?;
    judge_latency(&mut verdict, &run.records)?;
    let failed = failures(&mut verdict, &figures.total);
    verdict.require(failed == 0, || format!("errors: {:?}", figures.total.errors));
    let refused = figures.total.refused_count();
    if refused > 0 {
        verdict.cannot_tell(format!("what {refused} users would have waited who were refused: give a lower --rate"));
    }
    Ok(verdict)
}

pub(super) fn judge_size(verdict: &mut Verdict, samples: &[Sample]) -> Result<(), CheckError> {
    let end = samples.last().map_or(0.0, |sample| sample.at_s);
    let warm = samples.iter().filter(|sample| sample.at_s >= end * WARM_SHARE);
    let points: Vec<(f64, f64)> =
        warm.filter_map(|sample| Some((sample.at_s / HOUR_S, sample.server_rss_bytes? as f64 / MIB))).collect();
    let slope = Slope::of(&points).ok_or_else(too_short)?;
    verdict.figure("resident size", format!("{:.1} MiB, {slope} MiB an hour", slope.mean));
    slope.require_below(MAX_RSS_MIB_PER_HOUR, verdict, || format!("resident size grows by {slope} MiB an hour"));
    Ok(())
}

/// By the p99 of windows of equal length.
fn judge_latency(verdict: &mut Verdict, records: &[Record]) -> Result<(), CheckError> {
    let end = records.iter().map(|record| record.intended.as_secs_f64()).fold(0.0, f64::max);
    let start = end * WARM_SHARE;
    let width = (end - start) / WINDOWS as f64;
    let points: Vec<(f64, f64)> = (0..WINDOWS)
        .filter_map(|window| {
            let from = start + window as f64 * width;
            let inside = records
                .iter()
                .filter(|record| record.is_finished() && (from..from + width).contains(&record.intended.as_secs_f64()));
            let mut taken: Vec<f64> = inside.map(|record| ms(record.end_to_end())).collect();
            taken.sort_by(f64::total_cmp);
            (!taken.is_empty()).then(|| ((from + width / 2.0) / HOUR_S, quantile(&taken, 0.99)))
        })
        .collect();
    let slope = Slope::of(&points).ok_or_else(too_short)?;
    verdict.figure("end to end, p99", format!("{:.1} ms, {slope} ms an hour", slope.mean));
    let limit = slope.mean * MAX_LATENCY_GROWTH / ((end - start) / HOUR_S);
    slope.require_below(limit, verdict, || format!("p99 grows by {slope} ms an hour"));
    Ok(())
}

fn too_short() -> CheckError {
    CheckError::CannotTry("the soak is too short for a slope; give a longer --duration".to_owned())
}

/// Least squares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    pub per_hour: f64,
    pub standard_error: f64,
    pub mean: f64,
}

impl Slope {
    /// `points` are (hours, value); `None` below four of them, or where all have the same time.
    pub fn of(points: &[(f64, f64)]) -> Option<Self> {
        let count = points.len() as f64;
        let (sum_x, sum_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
        let (mean_x, mean) = (sum_x / count, sum_y / count);
        let spread: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        if points.len() < 4 || spread <= 0.0 {
            return None;
        }
        let per_hour = points.iter().map(|(x, y)| (x - mean_x) * (y - mean)).sum::<f64>() / spread;
        let residuals: f64 = points.iter().map(|(x, y)| (y - mean - per_hour * (x - mean_x)).powi(2)).sum();
        let standard_error = (residuals / (count - 2.0) / spread).sqrt();
        Some(Self { per_hour, standard_error, mean })
    }

    pub fn is_above(&self, limit: f64) -> bool {
        self.per_hour - SURE * self.standard_error > limit
    }

    /// Surely, that is: also where the slope is as steep as it can be.
    pub fn is_below(&self, limit: f64) -> bool {
        self.per_hour + SURE * self.standard_error <= limit
    }

    /// Undecided where the run says neither.
    fn require_below(&self, limit: f64, verdict: &mut Verdict, otherwise: impl Fn() -> String) {
        if self.is_above(limit) || self.is_below(limit) {
            verdict.require(self.is_below(limit), otherwise);
        } else {
            let remedy = "give a longer --duration or a quieter machine";
            verdict.cannot_tell(format!("{}, and {limit:.1} are allowed: {remedy}", otherwise()));
        }
    }
}

impl std::fmt::Display for Slope {
    fn fmt(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(formatter, "{:+.1} ± {:.1}", self.per_hour, SURE * self.standard_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::verdict::Outcome;

    fn noisy(slope: f64) -> Slope {
        let mut rng = Rng::new(2);
        let points: Vec<(f64, f64)> =
            (0..200).map(|step| f64::from(step) / 100.0).map(|x| (x, 100.0 + slope * x + rng.normal())).collect();
        Slope::of(&points).unwrap()
    }

    #[test]
    fn a_leak_is_told_from_noise() {
        let leak = noisy(40.0);
        assert!((leak.per_hour - 40.0).abs() < 1.0 && leak.is_above(16.0), "{leak}");
        assert!(!noisy(0.0).is_above(1.0) && noisy(0.0).is_below(1.0));
    }

    #[test]
    fn a_run_that_cannot_tell_says_so_instead_of_holding() {
        let unsure = Slope { per_hour: 5.0, standard_error: 20.0, mean: 70.0 };
        let judged = |slope: Slope, limit| {
            let mut verdict = Verdict::new("soak", "");
            slope.require_below(limit, &mut verdict, || "it grows".to_owned());
            verdict
        };
        let verdict = judged(unsure, 10.0);
        assert_eq!(verdict.outcome(), Outcome::CannotTell);
        assert!(verdict.undecided[0].contains("it grows, and 10.0 are allowed"), "{:?}", verdict.undecided);
        assert!(judged(unsure, 100.0).holds());
        assert_eq!(judged(Slope { per_hour: 80.0, ..unsure }, 10.0).outcome(), Outcome::FallsShort);
    }

    #[test]
    fn a_line_has_its_slope() {
        let slope = Slope::of(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0), (3.0, 7.0)]).unwrap();
        assert_eq!((slope.per_hour, slope.mean), (2.0, 4.0));
        assert!(slope.standard_error < 1e-9);
        assert!(Slope::of(&[(0.0, 1.0), (1.0, 2.0)]).is_none());
    }
}
