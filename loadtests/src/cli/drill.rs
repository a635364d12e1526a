//! `drill`: checks that start, stop and kill the servers themselves.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use passerelle_loadtests::balancer::Balancer;
use passerelle_loadtests::ballast::Ballast;
use passerelle_loadtests::http::Network;
use passerelle_loadtests::process::{Watch, shown_cores};
use passerelle_loadtests::reliability::{ChatLengths, CheckOptions, Context, full_disk, ledger, rolling_restart};
use passerelle_loadtests::report::{About, Measured, bottlenecks};
use passerelle_loadtests::run::RunOptions;
use passerelle_loadtests::servers::{Fleet, Launch, RunningServer, ServerError};
use passerelle_loadtests::verdict::Verdict;

use super::interrupt::Signals;
use super::numbers;
use super::options::{CommonArgs, OutputArgs, measured};
use super::watch::ProgressLine;

#[derive(Debug, Args)]
pub(super) struct DrillArgs {
    /// Which promise
    name: Drill,
    #[command(flatten)]
    common: CommonArgs,
    /// Send for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = numbers::seconds)]
    duration: f64,
    /// Requests per second
    #[arg(long, default_value_t = 4.0, value_parser = numbers::rate)]
    rate: f64,
    /// Of each request
    #[arg(long, default_value_t = 64, value_parser = numbers::tokens())]
    prompt_tokens: u32,
    /// Of each answer
    #[arg(long, default_value_t = 48, value_parser = numbers::tokens())]
    output_tokens: u32,
    /// Servers behind one address in `rolling-restart`
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(2..=16))]
    servers: u8,
    /// Replaced at least, in `rolling-restart`
    #[arg(long, default_value_t = 20)]
    handovers: usize,
    /// Kills in `ledger`
    #[arg(long, default_value_t = 10)]
    kills: usize,
    /// Streams at once in `ledger`, refusals to wait for in `full-disk`
    #[arg(long, default_value_t = 8)]
    users: u32,
    /// Filled up in `full-disk`: where the server keeps its data, on a small file system of its own
    #[arg(long, value_name = "FOLDER")]
    fill: Option<PathBuf>,
    /// How a server is started; {port} becomes a free port, {index} the server's number
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which promise.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Drill {
    /// Servers behind one address are replaced one after the other while streams run
    RollingRestart,
    /// A server is killed in the middle of streams, and its ledger read afterwards; needs the key of an account
    Ledger,
    /// The disk under the data directory fills up and is freed again; needs the key of an account with a budget
    FullDisk,
}

impl DrillArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.common.runtime()?.block_on(self.run_until_asked())
    }

    /// A signal ends the servers that were started, gives the disk back, and shows what there is.
    async fn run_until_asked(self) -> anyhow::Result<ExitCode> {
        self.output.prepare()?;
        let mut signals = Signals::listen()?;
        let options = RunOptions::default();
        let progress = Arc::clone(&options.progress);
        // Whoever loses is dropped, and with the drill its servers and its ballast.
        let asked = tokio::select! {
            done = self.run(options) => return done,
            asked = signals.next() => asked,
        };
        eprintln!("stopping: the servers are ended, and what there is is reported");
        let name = self.name.to_possible_value().expect("no drill is hidden").get_name().to_owned();
        let verdict = Verdict::of_counts(name, progress.counts()).cut_short();
        let unknown = "unknown".to_owned();
        let measured = Measured { url: "servers of its own".to_owned(), model: unknown.clone(), server: unknown };
        let about = About::now(&format!("drill-{}", verdict.check), measured);
        self.output.deliver(about, &verdict.render(), "verdict", verdict.json())?;
        Ok(ExitCode::from(asked.exit_code()))
    }

    async fn run(&self, options: RunOptions) -> anyhow::Result<ExitCode> {
        let launch = Launch::new(self.command.clone())?;
        let servers = if self.name == Drill::RollingRestart { self.servers } else { 1 };
        let mut fleet = Processes::start(launch, usize::from(servers)).await?;
        let url = format!("http://{}", fleet.balancer.endpoint().authority);
        let session = self.common.open(&url).await?;
        let context = Context::new(&session, self.check_options(options), None);
        let line = ProgressLine::show(context.options.run.progress.clone());
        let watch = Watch::start(None);
        let mut verdict = self.carry_out(&context, &mut fleet).await?;
        let (machine, _) = watch.finish();
        drop(line);
        verdict.figure(
            "servers and other programs meanwhile",
            format!("{} of this machine's {} cores", shown_cores(machine.foreign_cpu_cores), machine.cores),
        );
        for why in bottlenecks(context.options.run.progress.counts(), &machine, self.common.threads.into()) {
            verdict.warn(why);
        }
        let about = About::now(&format!("drill-{}", verdict.check), measured(&session, &url).await);
        self.output.deliver(about, &verdict.render(), "verdict", verdict.json())?;
        Ok(super::exit_code(&verdict))
    }

    async fn carry_out(&self, context: &Context<'_, Network>, fleet: &mut Processes) -> anyhow::Result<Verdict> {
        Ok(match self.name {
            Drill::RollingRestart => rolling_restart::check(context, fleet, self.handovers).await?,
            Drill::Ledger => ledger::check(context, fleet, self.kills).await?,
            Drill::FullDisk => {
                let folder = self.fill.as_deref().context("full-disk needs --fill FOLDER")?;
                full_disk::check(context, fleet, &mut Ballast::in_folder(folder)).await?
            }
        })
    }

    fn check_options(&self, run: RunOptions) -> CheckOptions {
        CheckOptions {
            duration: Duration::from_secs_f64(self.duration),
            rate: self.rate,
            users: self.users,
            lengths: ChatLengths { prompt_tokens: self.prompt_tokens, output_tokens: self.output_tokens },
            run,
            ..CheckOptions::default()
        }
    }
}

/// Real processes behind a balancer.
#[derive(Debug)]
struct Processes {
    launch: Launch,
    balancer: Balancer,
    servers: Vec<Option<RunningServer>>,
}

impl Processes {
    async fn start(launch: Launch, count: usize) -> anyhow::Result<Self> {
        let balancer = Balancer::bind(count).await?;
        let mut fleet = Self { launch, balancer, servers: (0..count).map(|_| None).collect() };
        for index in 0..count {
            fleet.start_one(index).await?;
            eprintln!("server {} of {count} answers", index + 1);
        }
        Ok(fleet)
    }

    async fn start_one(&mut self, index: usize) -> Result<(), ServerError> {
        let server = self.launch.start(index).await?;
        self.balancer.put(index, &server.endpoint().authority);
        self.servers[index] = Some(server);
        Ok(())
    }
}

impl Fleet for Processes {
    fn size(&self) -> usize {
        self.servers.len()
    }

    async fn replace(&mut self, index: usize) -> Result<(), ServerError> {
        self.balancer.take_out(index);
        if let Some(server) = self.servers[index].take() {
            server.terminate().await?;
        }
        self.start_one(index).await
    }

    async fn crash(&mut self, index: usize) -> Result<(), ServerError> {
        self.balancer.take_out(index);
        if let Some(server) = self.servers[index].take() {
            server.kill().await?;
        }
        self.start_one(index).await
    }
}
