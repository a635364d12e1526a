use std::str::FromStr;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use jiff::Timestamp;
use passerelle::config::{Environment, Listen};

use super::serve::ServeArgs;
use crate::serve::{WorkerErrand, run_worker};

const HELP: &str = "\
`passerelle serve` starts one for each of [[partitions]], with the options that it was started with itself, and again when it
ends. SIGTERM lets what runs finish, and exits with 0; the server starts a successor at once. With --until, or inside a
Slurm job, it leaves by itself, server.drain_timeout before the end, and takes nothing before that would end later.";

/// Run the models of one partition in this process, for a gateway.
#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    /// One of [[partitions]] of the configuration.
    #[arg(long, value_name = "NAME")]
    partition: String,
    /// The gateway's socket for workers: unix:PATH.
    #[arg(long, value_name = "ADDRESS")]
    connect: Listen,
    /// Finish before this instant, in seconds since 1970 or like 2026-12-01T08:00:00Z [default: the end of the Slurm job].
    #[arg(long, value_name = "TIME")]
    until: Option<Until>,
    #[command(flatten)]
    served: ServeArgs,
}

impl WorkerArgs {
    /// What `passerelle help worker` says beside the options.
    pub(super) const HELP: &str = HELP;

    pub(crate) fn run(self) -> Result<()> {
        let environment = Environment::read();
        let until = self.until.map(|until| until.0).or(environment.slurm_job_end.map(Duration::from_secs));
        let config = self.served.config(&environment)?;
        run_worker(&config, WorkerErrand { partition: self.partition, gateway: self.connect, until })
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
