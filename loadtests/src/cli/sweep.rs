//! `sweep`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use passerelle_loadtests::arrivals::{Arrivals, MAX_USERS};
use passerelle_loadtests::report::About;
use passerelle_loadtests::run::RunOptions;
use passerelle_loadtests::scenario::{Objectives, Scenario};
use passerelle_loadtests::sweep::{Levels, SweepOptions, Until, sweep};

use super::adhoc::{AskedArgs, traffic};
use super::interrupt::Stopper;
use super::numbers;
use super::options::{OutputArgs, ServerArgs, measured};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct SweepArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Requests a second, from users who do not wait for each other: FROM..TO, or a list as 1,2,4
    #[arg(long, value_name = "LEVELS", required_unless_present = "concurrencies", conflicts_with = "concurrencies")]
    rates: Option<Span>,
    /// Users who wait for their answers: FROM..TO, or a list as 1,2,4
    #[arg(long, value_name = "LEVELS")]
    concurrencies: Option<Span>,
    /// How many levels FROM..TO has, each as many times the one before
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u8).range(2..=100))]
    steps: u8,
    #[command(flatten)]
    asked: AskedArgs,
    /// Send for so many seconds at each level: at least twice as long as an answer takes
    #[arg(long, value_name = "SECONDS", default_value_t = 20.0, value_parser = numbers::seconds)]
    duration: f64,
    /// Not counted at the start of each level
    #[arg(long, value_name = "SECONDS", default_value_t = 0.0, value_parser = numbers::warmup)]
    warmup: f64,
    /// Of words, lengths and times
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A good answer has its first token in this time
    #[arg(long, value_parser = numbers::milliseconds)]
    ttft_ms: Option<f64>,
    /// And each further token in this
    #[arg(long, value_parser = numbers::milliseconds)]
    tpot_ms: Option<f64>,
    /// Do not stop at the first level with which the server does not keep up
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: OutputArgs,
}

/// Levels as they are written.
#[derive(Debug, Clone, PartialEq)]
enum Span {
    Between(f64, f64),
    These(Vec<f64>),
}

impl SweepArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.server.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let (levels, load) = (self.levels()?, self.load()?);
        self.output.prepare()?;
        let session = self.server.common.open(&self.server.url).await?;
        let options = SweepOptions {
            until: if self.all { Until::End } else { Until::Saturation },
            run: RunOptions::default(),
            threads: usize::from(self.server.common.threads),
            server_pid: self.server.watched_pid(&session),
        };
        let line = ProgressLine::show(options.run.progress.clone());
        let stopper = Stopper::listen(Arc::clone(&options.run.stop))?;
        let swept = sweep(&session, &load, &levels, &options).await?;
        drop(line);
        let about = About::now("sweep", measured(&session, &self.server.url).await);
        self.output.deliver(about, &swept.table(), "sweep", serde_json::json!(&swept))?;
        Ok(match stopper.asked().filter(|_| swept.was_stopped) {
            Some(asked) => ExitCode::from(asked.exit_code()),
            None if swept.levels.iter().any(|level| level.report.figures.total.was_served()) => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        })
    }

    fn levels(&self) -> anyhow::Result<Levels> {
        let levels = match (&self.rates, &self.concurrencies) {
            (Some(rates), _) => Levels::Rates(rates.levels(self.steps)),
            (None, Some(users)) => Levels::Concurrencies(whole(&users.levels(self.steps))?),
            (None, None) => anyhow::bail!("one of --rates and --concurrencies is needed"),
        };
        Ok(levels)
    }

    /// Its arrivals are those of the levels.
    fn load(&self) -> anyhow::Result<Scenario> {
        let traffic = traffic("sweep", Arrivals::Closed { concurrency: 1 }, self.asked.workload());
        let objectives = Objectives { ttft_ms: self.ttft_ms, tpot_ms: self.tpot_ms, e2e_ms: None };
        let load = Scenario::of("as the command says, at several levels", self.duration, traffic);
        let load = Scenario { warmup_s: self.warmup, seed: self.seed, objectives, ..load };
        load.check().map_err(anyhow::Error::msg)?;
        Ok(load)
    }
}

impl Span {
    /// From the lowest to the highest.
    fn levels(&self, steps: u8) -> Vec<f64> {
        match self {
            Self::These(levels) => levels.clone(),
            Self::Between(from, to) => {
                let last = f64::from(steps - 1);
                (0..steps).map(|step| from * (to / from).powf(f64::from(step) / last)).collect()
            }
        }
    }
}

impl std::str::FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((from, to)) = text.split_once("..") {
            let (from, to) = (numbers::rate(from)?, numbers::rate(to)?);
            return if from < to { Ok(Self::Between(from, to)) } else { Err(format!("{from} is not below {to}")) };
        }
        let levels = text.split(',').map(|level| numbers::rate(level.trim())).collect::<Result<Vec<f64>, String>>()?;
        match levels.is_sorted_by(|one, next| one < next) {
            true => Ok(Self::These(levels)),
            false => Err("each level must be above the one before".to_owned()),
        }
    }
}

/// The nearest whole numbers, each once.
fn whole(levels: &[f64]) -> anyhow::Result<Vec<u32>> {
    let mut users = Vec::with_capacity(levels.len());
    for level in levels {
        let nearest = level.round();
        anyhow::ensure!((1.0..=MAX_USERS).contains(&nearest), "{level} users are not between 1 and {MAX_USERS}");
        users.push(nearest as u32);
    }
    users.dedup();
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_a_list_or_so_many_of_equal_ratio() {
        let levels = |text: &str, steps| text.parse::<Span>().map(|span| span.levels(steps));
        assert_eq!(levels("1, 2,8", 6), Ok(vec![1.0, 2.0, 8.0]));
        let between = levels("1..16", 5).unwrap();
        assert!(between.iter().zip([1.0, 2.0, 4.0, 8.0, 16.0]).all(|(one, other)| (one - other).abs() < 1e-9));
        assert_eq!(whole(&levels("1..4", 6).unwrap()).unwrap(), [1, 2, 3, 4]);
        for wrong in ["", "0..4", "4..1", "2,1", "1,x", "1..", "-1"] {
            assert!(wrong.parse::<Span>().is_err(), "{wrong}");
        }
        assert!(whole(&[0.2]).is_err());
    }
}
