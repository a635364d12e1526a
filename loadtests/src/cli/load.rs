//! `run`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use passerelle_loadtests::process::Watch;
use passerelle_loadtests::report::{About, Report, write_rows};
use passerelle_loadtests::run::{RunOptions, run};
use tokio::sync::Notify;

use super::adhoc::AdHocArgs;
use super::options::{OutputArgs, ScenarioArgs, ServerArgs, measured};
use super::watch::ProgressLine;

/// As shells show an end by SIGINT.
const INTERRUPTED: i32 = 130;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    scenario: ScenarioArgs,
    #[command(flatten)]
    load: AdHocArgs,
    /// Also write what became of each request here, a JSON object a line
    #[arg(long, value_name = "FILE")]
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
        let session = self.server.common.open(&self.server.url).await?;
        eprintln!("preparing the requests of {name}");
        let options = RunOptions::default();
        let line = ProgressLine::show(options.progress.clone());
        let plan = session.plan_watched(&scenario, &options.progress).await?;
        let watch = Watch::start(self.server.watched_pid(&session));
        let interrupts = tokio::spawn(stop_at_interrupt(Arc::clone(&options.stop)));
        let done = run(&session.client, &plan, &options).await;
        interrupts.abort();
        let (machine, _) = watch.finish();
        drop(line);
        let report = Report::of(&done, (&scenario, &plan), machine, usize::from(self.server.common.threads));
        let about = About::now(&name, measured(&session, &self.server.url).await);
        if let Some(file) = &self.per_request {
            write_rows(file, &done, &plan).with_context(|| format!("{}", file.display()))?;
        }
        self.output.deliver(about, (&report.table(), "report", report.json()))?;
        Ok(if report.figures.total.was_served() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// The first Ctrl-C ends the run and what is there is reported; the second ends the program.
async fn stop_at_interrupt(stop: Arc<Notify>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        eprintln!("stopping: what has ended is reported");
        stop.notify_one();
    }
    if tokio::signal::ctrl_c().await.is_ok() {
        std::process::exit(INTERRUPTED);
    }
}
