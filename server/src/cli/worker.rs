use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand, value_parser};
use jiff::Timestamp;
use passerelle::config::{Environment, SLURM_JOB_END, check_partition_name};
use passerelle::workers::Authority;

use super::output;
use super::serve::ServeArgs;
use super::state_args::StateArgs;
use crate::serve::{GatewayAddress, Lifeline, Sight, Until, WorkerAssignment, last_day, run_worker};

/// A hundred years: no certificate counts to the end of time.
const MOST_DAYS: i64 = 36_500;

const HELP: &str = "\
`passerelle serve` starts one for each of [[partitions]], with the options that it was started with itself, and again when it
ends. SIGTERM lets what runs finish, and exits with 0; the server starts a successor half a second later. With --until, or inside a
Slurm job if somebody else started it, it leaves by itself, server.drain_timeout before the end, and takes nothing before that
would end later.";

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
    until: Option<Instant>,
    /// End when the standard input does: a server that starts a worker holds the other end for as long as it lives.
    #[arg(long, hide = true)]
    end_with_input: bool,
    /// The environment shows the device of the partition and no other.
    #[arg(long, hide = true)]
    sees_one_device: bool,
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
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = value_parser!(u32).range(1..=MOST_DAYS))]
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
        let config = self.served.config(&environment)?;
        let (Some(partition), Some(connect)) = (self.partition, self.connect) else {
            bail!("--partition and --connect are required");
        };
        let lifeline = if self.end_with_input { Lifeline::Input } else { Lifeline::Stream };
        let until = until(self.until, lifeline, environment.slurm_job_end.as_deref())?;
        let sight = if self.sees_one_device { Sight::OneDevice } else { Sight::Inherited };
        let gateway = gateway(connect, self.credentials)?;
        run_worker(&config, WorkerAssignment { partition, gateway, lifeline, until, sight })
    }
}

/// A worker whose server started it ends when its server does, and so leaves the end of the job to it.
fn until(written: Option<Instant>, lifeline: Lifeline, slurm_job_end: Option<&str>) -> Result<Option<Until>> {
    let until = |Instant(at), said_by| Some(Until { at, said_by });
    match (written, slurm_job_end) {
        (Some(instant), _) => Ok(until(instant, "--until")),
        (None, Some(end)) if lifeline == Lifeline::Stream => {
            let instant = end.parse::<Instant>().map_err(|error| anyhow!("{SLURM_JOB_END}: `{end}`: {error}"))?;
            Ok(until(instant, SLURM_JOB_END))
        }
        (None, _) => Ok(None),
    }
}

fn gateway(connect: String, credentials: Option<PathBuf>) -> Result<GatewayAddress> {
    match (connect.strip_prefix("unix:"), credentials) {
        (Some(path), _) => Ok(GatewayAddress::Unix(path.into())),
        (None, _) if !has_port(&connect) => {
            bail!("--connect: `{connect}` has no port; write HOST:PORT, like gateway.example:9443, or unix:PATH")
        }
        (None, Some(credentials)) => Ok(GatewayAddress::Tcp { address: connect, credentials }),
        (None, None) => bail!("--credentials: name the folder that `passerelle worker enrol` made"),
    }
}

/// An IPv6 address alone ends with a colon and digits too, and needs brackets.
fn has_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else { return false };
    let is_whole = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
    is_whole && !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl EnrolArgs {
    fn run(self) -> Result<()> {
        check_partition_name("--partition", &self.partition)?;
        // Made, if there is none.
        let _data = self.state.data()?;
        let authority = Authority::open(&self.state.data_dir()?)?;
        authority.enrol(&self.partition, last_day(self.days)?)?.write(&self.out)?;
        output::line(format_args!("enrolled: {}", self.out.display()))?;
        tell!(
            "On the other machine: passerelle worker --partition {} --connect GATEWAY:PORT --credentials FOLDER --config FILE, \
             PORT being that of workers.listen and FOLDER a copy of this one, which only that worker should have.",
            self.partition
        );
        Ok(())
    }
}

/// Since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instant(Duration);

impl FromStr for Instant {
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
        let until = |text: &str| text.parse::<Instant>().map(|until| until.0.as_secs());
        assert_eq!(until("1796112000"), Ok(1_796_112_000));
        assert_eq!(until("2026-12-01T08:00:00Z"), Ok(1_796_112_000));
        assert!(until("soon").is_err() && until("-1").is_err());
    }

    #[test]
    fn the_end_of_the_job_is_for_workers_that_no_server_started_and_errors_name_what_said_it() {
        let said = |seconds, said_by| Some(Until { at: Duration::from_secs(seconds), said_by });
        let until =
            |written, lifeline, job: &str| until(written, lifeline, Some(job)).map_err(|error| error.to_string());
        assert_eq!(until(None, Lifeline::Stream, "1796112000"), Ok(said(1_796_112_000, SLURM_JOB_END)));
        assert_eq!(until(None, Lifeline::Input, "1796112000"), Ok(None));
        let written = Some(Instant(Duration::from_secs(7)));
        assert_eq!(until(written, Lifeline::Stream, "odd"), Ok(said(7, "--until")));
        let odd = until(None, Lifeline::Stream, "odd").expect_err("that is no time");
        assert!(odd.contains(SLURM_JOB_END) && odd.contains("`odd`"), "{odd}");
    }

    #[test]
    fn an_address_without_a_port_is_refused_before_anything_is_loaded() {
        let refused = |address: &str| gateway(address.to_owned(), Some("papers".into())).is_err();
        for address in ["gateway", "gateway:", "gateway:0", "gateway:https", "10.0.0.1", "fe80::1", ":9443", ""] {
            assert!(refused(address), "{address}");
        }
        for address in ["gateway:9443", "10.0.0.1:9443", "[fe80::1]:9443"] {
            assert!(!refused(address), "{address}");
        }
        let error = gateway("gateway".to_owned(), None).expect_err("it has no port").to_string();
        assert!(error.contains("gateway.example:9443"), "{error}");
    }
}
