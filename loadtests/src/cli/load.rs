//! `run`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::process::Watch;
use passerelle_loadtests::report::{About, Report, write_rows};
use passerelle_loadtests::run::{RunOptions, run};

use super::adhoc::AdHocArgs;
use super::interrupt::Stopper;
use super::options::{OutputArgs, ScenarioArgs, ServerArgs, measured};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    load: AdHocArgs,
    /// Also write what became of each request here, a JSON object a line
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    per_request: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

impl RunArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.server.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        let (name, scenario) = match self.load.scenario()? {
            Some(scenario) => (self.load.name().to_owned(), self.scenario.adjust(scenario)?),
            None => (self.scenario.name(), self.scenario.load()?),
        };
        // Whatever cannot be kept is told before anything is measured.
        let per_request = self.per_request.as_deref().map(create).transpose()?;
        self.output.prepare()?;
        let session = self.server.common.open(&self.server.url).await?;
        eprintln!("preparing the requests of {name}");
        let options = RunOptions::default();
        let line = ProgressLine::show(options.progress.clone());
        let plan = session.plan_watched(&scenario, &options.progress).await?;
        let watch = Watch::start(self.server.watched_pid(&session));
        let stopper = Stopper::listen(Arc::clone(&options.stop))?;
        let done = run(&session.client, &plan, &options).await;
        let (machine, _) = watch.finish();
        drop(line);
        let report = Report::of(&done, &scenario, &plan, machine, usize::from(self.server.common.threads));
        let about = About::now(&name, measured(&session, &self.server.url).await);
        if let Some(file) = per_request {
            write_rows(file, &done, &plan).context("--per-request")?;
        }
        self.output.deliver(about, &report.table(), "report", report.json())?;
        Ok(match stopper.asked().filter(|_| done.was_stopped) {
            Some(asked) => ExitCode::from(asked.exit_code()),
            None if report.figures.total.was_served() => ExitCode::SUCCESS,
            None => ExitCode::FAILURE,
        })
    }
}

fn create(file: &Path) -> anyhow::Result<File> {
    File::create(file).with_context(|| format!("{}", file.display()))
}
