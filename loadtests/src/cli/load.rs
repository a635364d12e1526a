//! `run`.

use std::process::ExitCode;

use clap::Args;
use passerelle_loadtests::process::Watch;
use passerelle_loadtests::report::{About, Report};
use passerelle_loadtests::run::{RunOptions, run};

use super::options::{OutputArgs, ScenarioArgs, ServerArgs};
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
        let plan = session.plan(&scenario).await?;
        let options = RunOptions::default();
        let line = ProgressLine::show(options.progress.clone(), plan.jobs().count());
        let watch = Watch::start(self.server.watched_pid(&session));
        let done = run(&session.client, &plan, &options).await;
        let (machine, _) = watch.finish();
        drop(line);
        let about = About::now(&self.scenario.scenario, &self.server.url, &session.target.model);
        let report = Report::of(about, (&done, &plan), machine, usize::from(self.server.common.threads));
        self.output.deliver(&report.about, (&report.table(), &report.json()))?;
        Ok(ExitCode::SUCCESS)
    }
}
