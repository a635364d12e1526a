//! `check`.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use passerelle_loadtests::correctness;
use passerelle_loadtests::http::Network;
use passerelle_loadtests::process::{Watch, shown_cores};
use passerelle_loadtests::reliability::{
    ChatLengths, CheckOptions, Context, bombs, disconnects, idle_connections, long_prompts, neighbour, overload,
    poison, slow_readers, soak, storm,
};
use passerelle_loadtests::report::{About, bottlenecks};
use passerelle_loadtests::scenario::Objectives;
use passerelle_loadtests::verdict::Verdict;

use super::interrupt::{Asked, Signals};
use super::numbers;
use super::options::{OutputArgs, ScenarioArgs, ServerArgs, measured};
use super::watch::ProgressLine;

/// What a check that is stopped has to say what it saw.
const TO_JUDGE: Duration = Duration::from_secs(2);
/// The scenario of `correctness`: one in which answers are computed together.
const BATCHED: &str = "batched";

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Which promise
    name: Check,
    #[command(flatten)]
    server: ServerArgs,
    /// The load of `correctness`, and the length of every check's phases
    #[command(flatten)]
    scenario: ScenarioArgs,
    /// Users at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    users: u32,
    /// Requests per second of the users who should not notice
    #[arg(long, default_value_t = 1.0, value_parser = numbers::rate)]
    rate: f64,
    /// How many times what it can do the server is asked [default: 2,4,10 in `overload`, 2 in `storm`]
    #[arg(long, value_delimiter = ',', value_parser = numbers::factor)]
    factors: Vec<f64>,
    /// Held open in `idle-connections`
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    connections: u32,
    /// How long a connection may be idle and is not closed, in `idle-connections`
    #[arg(long, default_value_t = 25.0, value_name = "SECONDS", value_parser = numbers::seconds)]
    kept: f64,
    /// First token in time, in `overload`
    #[arg(long, default_value_t = 5000.0, value_parser = numbers::milliseconds)]
    ttft_ms: f64,
    /// Each further token in time, in `overload`
    #[arg(long, default_value_t = 250.0, value_parser = numbers::milliseconds)]
    tpot_ms: f64,
    /// Of each request, where no scenario says it
    #[arg(long, default_value_t = 64, value_parser = numbers::tokens())]
    prompt_tokens: u32,
    /// Of each answer, where no scenario says it
    #[arg(long, default_value_t = 48, value_parser = numbers::tokens())]
    output_tokens: u32,
    /// How long the server may take to give back what nobody waits for
    #[arg(long, default_value_t = 2.0, value_name = "SECONDS", value_parser = numbers::wait)]
    settle: f64,
    /// How much longer the light tenant may wait in `neighbour`
    #[arg(long, default_value_t = 3.0, value_parser = numbers::factor)]
    max_ratio: f64,
    /// Of each of the prompts in `long-prompts`
    #[arg(long, default_value_t = 1500, value_parser = numbers::tokens())]
    long_prompt_tokens: u32,
    /// What they may add to the p99 between two tokens of a stream
    #[arg(long, default_value_t = 250.0, value_parser = numbers::milliseconds)]
    max_added_ms: f64,
    #[command(flatten)]
    output: OutputArgs,
}

/// Which promise.
#[derive(Debug, Clone, Copy, PartialEq, ValueEnum)]
enum Check {
    /// At temperature 0, load changes no answer
    Correctness,
    /// Several times the capacity
    Overload,
    /// Users who go away in the middle of their answer
    Disconnects,
    /// Readers who do not read
    SlowReaders,
    /// Thousands of connections that say nothing
    IdleConnections,
    /// Headers and bodies that are too large or never end
    Bombs,
    /// Requests that make no sense
    Poison,
    /// A light tenant beside a greedy one
    Neighbour,
    /// Streams beside long prompts
    LongPrompts,
    /// A long run: does anything creep upwards?
    Soak,
    /// Twice the capacity for ten minutes, with users who leave and requests that make no sense
    Storm,
}

impl Check {
    /// Of one phase, where the command line does not say.
    fn default_duration_s(self) -> f64 {
        match self {
            Self::Soak | Self::Storm => 600.0,
            _ => 20.0,
        }
    }

    fn default_factors(self) -> Vec<f64> {
        if self == Self::Storm { vec![2.0] } else { CheckOptions::default().factors }
    }
}

impl CheckArgs {
    pub(super) fn execute(self) -> anyhow::Result<ExitCode> {
        self.server.common.runtime()?.block_on(self.run())
    }

    async fn run(self) -> anyhow::Result<ExitCode> {
        self.output.prepare()?;
        let session = self.server.common.open(&self.server.url).await?;
        let server_pid = self.server.watched_pid(&session);
        let context = Context::new(&session, self.check_options(), server_pid);
        let line = ProgressLine::show(context.options.run.progress.clone());
        let watch = Watch::start(server_pid);
        let (mut verdict, asked) = self.try_until_asked(&context).await?;
        let (machine, _) = watch.finish();
        drop(line);
        verdict.figure(
            "other programs meanwhile",
            format!("{} of this machine's {} cores", shown_cores(machine.foreign_cpu_cores), machine.cores),
        );
        match machine.own_cpu_cores {
            Some(cores) => verdict.number("this program meanwhile", cores, "cores"),
            None => verdict.figure("this program meanwhile", "unknown"),
        }
        let counts = context.options.run.progress.counts();
        // Without the server's process, what others use may be the server's.
        let foreign = machine.warning().filter(|_| server_pid.is_some());
        for why in bottlenecks(counts, &machine, self.server.common.threads.into()).into_iter().chain(foreign) {
            verdict.warn(why);
        }
        let about = About::now(&format!("check-{}", verdict.check), measured(&session, &self.server.url).await);
        self.output.deliver(about, &verdict.render(), "verdict", verdict.json())?;
        Ok(asked.map_or_else(|| super::exit_code(&verdict), |asked| ExitCode::from(asked.exit_code())))
    }

    /// A signal stops the check, and what it has is its verdict.
    async fn try_until_asked(&self, context: &Context<'_, Network>) -> anyhow::Result<(Verdict, Option<Asked>)> {
        let mut signals = Signals::listen()?;
        let mut trying = std::pin::pin!(self.try_to_break(context));
        let asked = tokio::select! {
            tried = &mut trying => return Ok((tried?, None)),
            asked = signals.next() => asked,
        };
        eprintln!("stopping: what there is is reported");
        context.options.run.stop.notify_one();
        let name = self.name.to_possible_value().expect("no check is hidden").get_name().to_owned();
        let judged = match tokio::time::timeout(TO_JUDGE, trying).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(_)) | Err(_) => Verdict::of_counts(name, context.options.run.progress.counts()),
        };
        Ok((judged.cut_short(), Some(asked)))
    }

    async fn try_to_break(&self, context: &Context<'_, Network>) -> anyhow::Result<Verdict> {
        Ok(match self.name {
            Check::Correctness => {
                correctness::check(context.session, &self.scenario.load_or(BATCHED)?, &context.options.run).await?
            }
            Check::Overload => overload::check(context).await?,
            Check::Disconnects => disconnects::check(context).await?,
            Check::SlowReaders => slow_readers::check(context).await?,
            Check::IdleConnections => idle_connections::check(context).await?,
            Check::Bombs => bombs::check(context).await?,
            Check::Poison => poison::check(context).await?,
            Check::Neighbour => neighbour::check(context).await?,
            Check::LongPrompts => long_prompts::check(context).await?,
            Check::Soak => soak::check(context).await?,
            Check::Storm => storm::check(context).await?,
        })
    }

    fn check_options(&self) -> CheckOptions {
        let seconds = self.scenario.duration().unwrap_or(self.name.default_duration_s());
        CheckOptions {
            duration: Duration::from_secs_f64(seconds),
            users: self.users,
            rate: self.rate,
            factors: if self.factors.is_empty() { self.name.default_factors() } else { self.factors.clone() },
            connections: self.connections as usize,
            kept: Duration::from_secs_f64(self.kept),
            objectives: Objectives { ttft_ms: Some(self.ttft_ms), tpot_ms: Some(self.tpot_ms), e2e_ms: None },
            lengths: ChatLengths { prompt_tokens: self.prompt_tokens, output_tokens: self.output_tokens },
            settle: Duration::from_secs_f64(self.settle),
            max_ratio: self.max_ratio,
            long_prompt_tokens: self.long_prompt_tokens,
            max_added_ms: self.max_added_ms,
            ..CheckOptions::default()
        }
    }
}
