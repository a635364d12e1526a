//! A load that the command line describes, without a scenario.

use std::path::PathBuf;

use anyhow::ensure;
use clap::Args;
use passerelle_loadtests::arrivals::Arrivals;
use passerelle_loadtests::lengths::Lengths;
use passerelle_loadtests::scenario::{RequestFields, Scenario, Traffic, Workload};

use super::numbers;

/// Where something else ends the load: its requests, or its trace.
const LONG_S: f64 = 86_400.0;
const DURATION_S: f64 = 60.0;
const TOKENS: u32 = 64;

#[derive(Debug, Args)]
#[command(next_help_heading = "Instead of a scenario")]
pub(super) struct AdHocArgs {
    /// So many requests a second, from users who do not wait for each other
    #[arg(long, conflicts_with_all = ["scenario", "concurrency", "trace"], value_parser = numbers::rate)]
    rate: Option<f64>,
    /// So many users who wait for their answers
    #[arg(long, conflicts_with_all = ["scenario", "trace"])]
    concurrency: Option<u32>,
    /// The requests of this file, at its times: a JSON object a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenario", "prompt_tokens", "output_tokens", "dataset"])]
    trace: Option<PathBuf>,
    #[command(flatten)]
    asked: AskedArgs,
    /// At most so many
    #[arg(long)]
    requests: Option<usize>,
}

/// What each request asks.
#[derive(Debug, Args)]
pub(super) struct AskedArgs {
    /// A number, or a distribution as in a scenario: "{ kind = 'uniform', from = 16, to = 64 }" [default: 64]
    #[arg(long, value_name = "LENGTHS")]
    prompt_tokens: Option<Lengths>,
    /// The same [default: 64, or as long as the answers of the data set]
    #[arg(long, value_name = "LENGTHS")]
    output_tokens: Option<Lengths>,
    /// Prompts of this file, drawn by the seed: JSON objects with `prompt`, `messages` or ShareGPT's `conversations`
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    dataset: Option<PathBuf>,
}

impl AdHocArgs {
    /// `None` where a scenario is to be used.
    pub(super) fn scenario(&self) -> anyhow::Result<Option<Scenario>> {
        let arrivals = match (self.rate, self.concurrency, &self.trace) {
            (Some(rate), ..) => Arrivals::Poisson { rate },
            (_, Some(concurrency), _) => Arrivals::Closed { concurrency },
            (.., Some(_)) => Arrivals::Trace,
            (None, None, None) => {
                let is_bare = self.asked.is_bare() && self.requests.is_none();
                ensure!(is_bare, "lengths, --dataset and --requests need one of --rate, --concurrency and --trace");
                return Ok(None);
            }
        };
        let workload = match &self.trace {
            Some(file) => Workload::Trace { file: file.clone() },
            None => self.asked.workload(),
        };
        let duration_s = match (&arrivals, self.requests) {
            // As long as they surely take to arrive.
            (Arrivals::Poisson { rate }, Some(requests)) => DURATION_S + 2.0 * requests as f64 / rate,
            (Arrivals::Trace, _) | (_, Some(_)) => LONG_S,
            (_, None) => DURATION_S,
        };
        let traffic = Traffic { requests: self.requests, ..traffic(self.name(), arrivals, workload) };
        Ok(Some(Scenario::of("as the command says", duration_s, traffic)))
    }

    /// What its report is called.
    pub(super) fn name(&self) -> &'static str {
        match (self.rate, self.concurrency) {
            (Some(_), _) => "rate",
            (None, Some(_)) => "concurrency",
            (None, None) => "trace",
        }
    }
}

impl AskedArgs {
    pub(super) fn workload(&self) -> Workload {
        let tokens = |lengths: &Option<Lengths>| lengths.clone().unwrap_or(Lengths::fixed(TOKENS));
        match &self.dataset {
            Some(file) => Workload::Dataset {
                file: file.clone(),
                output_tokens: self.output_tokens.clone(),
                max_prompt_tokens: None,
            },
            None => Workload::Chat {
                prompt_tokens: tokens(&self.prompt_tokens),
                output_tokens: tokens(&self.output_tokens),
            },
        }
    }

    fn is_bare(&self) -> bool {
        self.prompt_tokens.is_none() && self.output_tokens.is_none() && self.dataset.is_none()
    }
}

/// Of nobody in particular, at temperature 0 and as long as asked.
pub(super) fn traffic(name: &str, arrivals: Arrivals, workload: Workload) -> Traffic {
    Traffic {
        name: name.to_owned(),
        tenant: None,
        arrivals,
        requests: None,
        workload,
        request: RequestFields { temperature: Some(0.0), ignore_eos: true, ..RequestFields::default() },
        leave: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Only {
        /// As `run` has it.
        #[arg(long)]
        scenario: Option<String>,
        #[command(flatten)]
        load: AdHocArgs,
    }

    fn scenario_of(arguments: &[&str]) -> anyhow::Result<Option<Scenario>> {
        let only = Only::try_parse_from([&["run"][..], arguments].concat())?;
        assert_eq!(only.scenario, None);
        only.load.scenario()
    }

    #[test]
    fn a_rate_or_a_concurrency_is_a_load_without_a_scenario() {
        let scenario = scenario_of(&["--rate", "3", "--prompt-tokens", "9"]).unwrap().unwrap();
        assert_eq!(
            (scenario.traffic[0].arrivals.clone(), scenario.duration_s),
            (Arrivals::Poisson { rate: 3.0 }, 60.0)
        );
        let lengths = "{ kind = 'uniform', from = 2, to = 4 }";
        let closed = ["--concurrency", "8", "--requests", "40", "--output-tokens", lengths];
        let scenario = scenario_of(&closed).unwrap().unwrap();
        assert_eq!((scenario.traffic[0].requests, scenario.check()), (Some(40), Ok(())));
        assert!(scenario_of(&[]).unwrap().is_none());
        let scenario = scenario_of(&["--rate", "3", "--dataset", "x.jsonl"]).unwrap().unwrap();
        assert!(matches!(&scenario.traffic[0].workload, Workload::Dataset { output_tokens: None, .. }));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for wrong in [
            &["--rate", "3", "--concurrency", "2"][..],
            &["--rate", "3", "--scenario", "closed"],
            &["--trace", "x.jsonl", "--prompt-tokens", "3"],
            &["--trace", "x.jsonl", "--dataset", "y.jsonl"],
            &["--rate", "3", "--dataset", "x.jsonl", "--prompt-tokens", "3"],
            &["--dataset", "x.jsonl"],
            &["--requests", "3"],
            &["--rate", "3", "--prompt-tokens", "many"],
            &["--rate", "-3"],
            &["--rate", "1e15"],
        ] {
            assert!(scenario_of(wrong).is_err(), "{wrong:?}");
        }
    }
}
