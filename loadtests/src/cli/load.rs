//! `run`.

use std::process::ExitCode;

use clap::Args;
use passerelle_loadtests::process::Watch;
use passerelle_loadtests::report::{About, Report};
use passerelle_loadtests::run::{RunOptions, run};

use super::options::{OutputArgs, ScenarioArgs, ServerArgs, measured};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl RunArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.server.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let scenario = self.scenario.load()?;
        let session = self.server.common.open(&self.server.url).await?;
        eprintln!("preparing the requests of {}", self.scenario.scenario);
        let options = RunOptions::default();
        let line = ProgressLine::show(options.progress.clone());
        let plan = session.plan_watched(&scenario, &options.progress).await?;
        let watch = Watch::start(self.server.watched_pid(&session));
        let done = run(&session.client, &plan, &options).await;
        let (machine, _) = watch.finish();
        drop(line);
        let report = Report::of(&done, &plan, machine, usize::from(self.server.common.threads));
        let about = About::now(&self.scenario.name(), measured(&session, &self.server.url).await);
        self.output.deliver(about, (&report.table(), "report", report.json()))?;
        let was_served =
            report.figures.total.requests == 0 || report.figures.total.error_count() < report.figures.total.requests;
        Ok(if was_served { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
