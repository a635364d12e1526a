//! One kind of load at several levels, one after the other, up to the first at which the server no longer keeps up.

mod table;

use std::time::Duration;

use serde::Serialize;

use crate::arrivals::Arrivals;
use crate::figures::{Figures, ms};
use crate::http::Connect;
use crate::plan::{Plan, PlanError};
use crate::process::Watch;
use crate::report::Report;
use crate::run::{Run, RunOptions, run};
use crate::scenario::Scenario;
use crate::session::Session;

/// Of the requests, so many may be refused or fail while a server is said to keep up.
const MAX_UNSERVED_SHARE: f64 = 0.1;
/// And of those that come, so many more may be on their way at the end than were in the middle.
const MAX_BACKLOG_SHARE: f64 = 0.1;
/// More users must gain such a share of what they are more.
const MIN_GAIN: f64 = 0.1;

/// At least one level, from the lowest to the highest.
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// Requests per second, from users who do not wait for each other.
    Rates(Vec<f64>),
    /// Users who each wait for their answer.
    Concurrencies(Vec<u32>),
}

#[derive(Debug, Clone)]
pub struct SweepOptions {
    pub until: Until,
    pub run: RunOptions,
    /// Of the generator.
    pub threads: usize,
    /// On this machine, where it is known.
    pub server_pid: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    Saturation,
    /// Every level, whatever the server does.
    End,
}

#[derive(Debug, Serialize)]
pub struct Sweep {
    /// What `offered` of the levels is.
    pub of: &'static str,
    /// Those that are whole.
    pub levels: Vec<Level>,
    /// The place among `levels` of the highest that the server kept up with; of closed users, of that with the most tokens
    /// among those at which it served them.
    pub best: Option<usize>,
    /// Stopped in the middle of a level, which is left out.
    pub was_stopped: bool,
}

#[derive(Debug, Serialize)]
pub struct Level {
    pub offered: f64,
    /// Why the server is said not to keep up, if it is.
    pub saturated: Option<String>,
    pub report: Report,
}

/// Sends `load`, whose arrivals do not matter, at each of `levels`. Each has words of its own, so that a prefix cache does
/// not make the later ones look quicker.
pub async fn sweep<C: Connect>(
    session: &Session<C>,
    load: &Scenario,
    levels: &Levels,
    options: &SweepOptions,
) -> Result<Sweep, PlanError> {
    let mut sweep = Sweep { of: levels.unit(), levels: Vec::new(), best: None, was_stopped: false };
    for (number, (offered, arrivals)) in levels.each().into_iter().enumerate() {
        let mut scenario = Scenario { seed: load.seed.wrapping_add(number as u64), ..load.clone() };
        scenario.traffic.iter_mut().for_each(|traffic| traffic.arrivals = arrivals.clone());
        let plan = session.plan_watched(&scenario, &options.run.progress).await?;
        let watch = Watch::start(options.server_pid);
        let done = run(&session.client, &plan, &options.run).await;
        let (machine, _) = watch.finish();
        if done.was_stopped {
            sweep.was_stopped = true;
            break;
        }
        let report = Report::of(&done, &scenario, &plan, machine, options.threads);
        let figures = &report.figures.total;
        let saturated = unserved(figures).or_else(|| match levels {
            Levels::Rates(_) => backlog(&done, &plan, sweep.idle_latency_s().unwrap_or(latency_s(figures)), offered),
            Levels::Concurrencies(_) => sweep.levels.last().and_then(|before| no_gain(before, offered, figures)),
        });
        let is_over = saturated.is_some() && options.until == Until::Saturation;
        sweep.levels.push(Level { offered, saturated, report });
        if is_over {
            break;
        }
    }
    sweep.best = sweep.find_best(levels);
    Ok(sweep)
}

impl Levels {
    fn unit(&self) -> &'static str {
        match self {
            Self::Rates(_) => "requests/s",
            Self::Concurrencies(_) => "users",
        }
    }

    fn each(&self) -> Vec<(f64, Arrivals)> {
        match self {
            Self::Rates(rates) => rates.iter().map(|rate| (*rate, Arrivals::Poisson { rate: *rate })).collect(),
            Self::Concurrencies(users) => {
                users.iter().map(|users| (f64::from(*users), Arrivals::Closed { concurrency: *users })).collect()
            }
        }
    }
}

impl Sweep {
    /// What an answer takes where nearly nobody else asks.
    fn idle_latency_s(&self) -> Option<f64> {
        self.levels.first().map(|level| latency_s(&level.report.figures.total))
    }

    fn find_best(&self, levels: &Levels) -> Option<usize> {
        let numbered = || self.levels.iter().enumerate();
        match levels {
            Levels::Rates(_) => numbered().take_while(|(_, level)| level.saturated.is_none()).last(),
            // One at which many are turned away is no best, however many tokens the others get.
            Levels::Concurrencies(_) => numbered()
                .filter(|(_, level)| unserved(&level.report.figures.total).is_none())
                .max_by(|(_, one), (_, other)| one.output().total_cmp(&other.output())),
        }
        .map(|(number, _)| number)
    }
}

impl Level {
    fn output(&self) -> f64 {
        self.report.figures.total.output_tokens_per_s
    }
}

fn latency_s(figures: &Figures) -> f64 {
    figures.e2e_ms.map_or(0.0, |taken| taken.p50 / 1000.0)
}

fn unserved(figures: &Figures) -> Option<String> {
    let unserved = figures.requests - figures.finished;
    let share = unserved as f64 / figures.requests.max(1) as f64;
    (share > MAX_UNSERVED_SHARE).then(|| format!("{:.0} % of the requests were refused or failed", share * 100.0))
}

/// Whether more and more requests are on their way: at the end of the time in which requests are sent, against the middle.
/// Without a limit to it, how many are on their way hangs on how long one waits.
fn backlog(done: &Run, plan: &Plan, idle_latency_s: f64, rate: f64) -> Option<String> {
    let (middle, end) = ((plan.warmup + plan.duration) / 2, plan.duration);
    let in_flight =
        |at: Duration| done.records.iter().filter(|record| record.intended <= at && at < record.end).count() as f64;
    let came = done.records.iter().filter(|record| (middle..end).contains(&record.intended)).count() as f64;
    let grown = in_flight(end) - in_flight(middle);
    // Independent users are now more and now fewer, by about the root of how many there are.
    let by_chance = 1.0 + 2.0 * (2.0 * rate * idle_latency_s).sqrt();
    (grown > MAX_BACKLOG_SHARE * came && grown > by_chance).then(|| {
        let seconds = ms(end.saturating_sub(middle)) / 1000.0;
        format!("{grown:.0} more requests were on their way after the last {seconds:.0} s, in which {came:.0} came")
    })
}

/// Whether the further users only waited for each other.
fn no_gain(before: &Level, users: f64, figures: &Figures) -> Option<String> {
    let more = users / before.offered - 1.0;
    let gain = figures.output_tokens_per_s / before.output().max(f64::EPSILON) - 1.0;
    // Plus nothing, so that a little less is not told as -0.
    let percent = |share: f64| (share * 100.0).round() + 0.0;
    (gain < MIN_GAIN * more).then(|| format!("{} % more users got {} % more tokens", percent(more), percent(gain)))
}
