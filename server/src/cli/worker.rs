use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand, value_parser};
use jiff::Timestamp;
use passerelle::config::Environment;
use passerelle::workers::Authority;

use super::output;
use super::serve::ServeArgs;
use super::state_args::StateArgs;
use crate::serve::{GatewayAddress, Lifeline, WorkerErrand, last_day, run_worker};

const HELP: &str = "\
`passerelle serve` starts one for each of [[partitions]], with the options that it was started with itself, and again when it
ends. SIGTERM lets what runs finish, and exits with 0; the server starts a successor at once. With --until, or inside a
Slurm job, it leaves by itself, server.drain_timeout before the end, and takes nothing before that would end later.";

/// Run the models of one partition in this process, for a gateway.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct WorkerArgs {
    #[command(subcommand)]
    command: Option<WorkerCommand>,
    /// One of [[partitions]] of the configuration.
    #[arg(long, value_name = "NAME", required = true)]
    partition: Option<String>,
    /// The gateway's socket for workers, unix:PATH, or its workers.listen, HOST:PORT.
    #[arg(long, value_name = "ADDRESS", required = true)]
    connect: Option<String>,
    /// The folder that `passerelle worker enrol` made, for HOST:PORT.
    #[arg(long, value_name = "DIR")]
    credentials: Option<PathBuf>,
    /// Finish before this instant, in seconds since 1970 or like 2026-12-01T08:00:00Z [default: the end of the Slurm job].
    #[arg(long, value_name = "TIME")]
    until: Option<Until>,
    /// End when the standard input does: a server that starts a worker holds the other end for as long as it lives.
    #[arg(long, hide = true)]
    end_with_input: bool,
    #[command(flatten)]
    served: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum WorkerCommand {
    Enrol(EnrolArgs),
}

/// Make what the worker of a partition on another machine proves itself with, and knows the gateway by. Run it where the
/// gateway's data directory is, and give the folder to nobody but that worker.
#[derive(Debug, Args)]
struct EnrolArgs {
    /// The partition that it may serve, and no other.
    #[arg(long, value_name = "NAME")]
    partition: String,
    /// The folder to make.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it is good for.
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = value_parser!(u32).range(1..))]
    days: u32,
    #[command(flatten)]
    state: StateArgs,
}

impl WorkerArgs {
    /// What `passerelle help worker` says beside the options.
    pub(super) const HELP: &str = HELP;

    pub(crate) fn run(self) -> Result<()> {
        if let Some(WorkerCommand::Enrol(args)) = self.command {
            return args.run();
        }
        let environment = Environment::read();
        let until = self.until.map(|until| until.0).or(environment.slurm_job_end.map(Duration::from_secs));
        let config = self.served.config(&environment)?;
        let (Some(partition), Some(connect)) = (self.partition, self.connect) else {
            bail!("--partition and --connect are required");
        };
        let lifeline = if self.end_with_input { Lifeline::Input } else { Lifeline::Stream };
        run_worker(&config, WorkerErrand { partition, gateway: gateway(connect, self.credentials)?, lifeline, until })
    }
}

fn gateway(connect: String, credentials: Option<PathBuf>) -> Result<GatewayAddress> {
    match (connect.strip_prefix("unix:"), credentials) {
        (Some(path), _) => Ok(GatewayAddress::Unix(path.into())),
        (None, Some(credentials)) => Ok(GatewayAddress::Tcp { address: connect, credentials }),
        (None, None) => bail!("--credentials: name the folder that `passerelle worker enrol` made"),
    }
}

impl EnrolArgs {
    fn run(self) -> Result<()> {
        // Made, if there is none.
        let _data = self.state.data()?;
        let authority = Authority::open(&self.state.data_dir()?)?;
        authority.enrol(&self.partition, last_day(self.days)?)?.write(&self.out)?;
        output::line(format_args!("enrolled: {}", self.out.display()))
    }
}

/// Since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Until(Duration);

impl FromStr for Until {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let instant = text.parse::<Timestamp>().map(Timestamp::as_second);
        let seconds = text.parse().or(instant).map_err(|_| "write seconds since 1970, or 2026-12-01T08:00:00Z")?;
        u64::try_from(seconds).map(|seconds| Self(Duration::from_secs(seconds))).map_err(|_| "is before 1970".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_written_as_slurm_or_as_people_write_it() {
        let until = |text: &str| text.parse::<Until>().map(|until| until.0.as_secs());
        assert_eq!(until("1796112000"), Ok(1_796_112_000));
        assert_eq!(until("2026-12-01T08:00:00Z"), Ok(1_796_112_000));
        assert!(until("soon").is_err() && until("-1").is_err());
    }
}
