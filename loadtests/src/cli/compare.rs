//! `compare`.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::compare::{CompareOptions, Contender, compare};
use passerelle_loadtests::http::Network;
use passerelle_loadtests::report::{About, Measured};
use passerelle_loadtests::run::RunOptions;

use super::options::{CommonArgs, OutputArgs, ScenarioArgs, listener, measured};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// The servers, as NAME=http://HOST:PORT; ratios are to the first
    #[arg(required = true, num_args = 2.., value_name = "NAME=URL", value_parser = parse_server)]
    servers: Vec<(String, String)>,
    /// How often each server gets the scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=1000))]
    rounds: u16,
    /// How far the servers' token counts of one request may be apart
    #[arg(long, default_value_t = 0, value_name = "TOKENS")]
    token_tolerance: u64,
    #[command(flatten)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl CompareArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let scenario = self.scenario.load()?;
        let mut contenders = Vec::with_capacity(self.servers.len());
        for (name, url) in &self.servers {
            let session = self.common.open(url).await.with_context(|| name.clone())?;
            contenders.push(Contender { name: name.clone(), pid: listener(&session), session });
        }
        let options = CompareOptions {
            rounds: usize::from(self.rounds),
            token_tolerance: self.token_tolerance,
            run: RunOptions::default(),
            threads: usize::from(self.common.threads),
        };
        let seconds = scenario.duration_s * f64::from(self.rounds) * contenders.len() as f64;
        eprintln!("{} rounds of {} servers: {seconds:.0} s or a little more", self.rounds, contenders.len());
        let line = ProgressLine::show(options.run.progress.clone());
        let comparison = compare(&contenders, &scenario, &options).await?;
        drop(line);
        let about = About::now(&format!("compare-{}", self.scenario.name()), self.measured(&contenders).await);
        self.output.deliver(about, (&comparison.table(), "comparison", serde_json::json!(&comparison)))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl CompareArgs {
    /// All servers, in one line each.
    async fn measured(&self, contenders: &[Contender<Network>]) -> Measured {
        let mut all = Vec::with_capacity(contenders.len());
        for (contender, (name, url)) in contenders.iter().zip(&self.servers) {
            let Measured { url, model, server } = measured(&contender.session, url).await;
            all.push(Measured { url: format!("{name}={url}"), model, server });
        }
        let joined = |part: fn(&Measured) -> &str| all.iter().map(part).collect::<Vec<_>>().join(", ");
        Measured { url: joined(|one| &one.url), model: joined(|one| &one.model), server: joined(|one| &one.server) }
    }
}

fn parse_server(text: &str) -> Result<(String, String), String> {
    let (name, url) = text.split_once('=').ok_or("expected NAME=URL")?;
    if name.is_empty() { Err("the name is empty".to_owned()) } else { Ok((name.to_owned(), url.to_owned())) }
}
