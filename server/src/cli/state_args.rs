//! Where accounts and keys are kept, for the commands that change them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::config::{self, Config, Environment, Written, WrittenServer};
use passerelle::gateway::journal::UsageReader;
use passerelle::gateway::quota::{Calendar, UnixSeconds};
use passerelle::gateway::{DataDir, DataError, Directory, Quota};
use passerelle_engine::clock::{Clock, SystemClock};

use super::office::Office;

#[derive(Debug, Args)]
pub(super) struct StateArgs {
    /// Where accounts, keys and usage are kept [default: the user's data directory].
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// The server's configuration file, for its data directory and time zone.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

/// What administration works on.
pub(super) struct State {
    pub(super) directory: Directory,
    pub(super) data: DataDir,
    pub(super) calendar: Calendar,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) now: UnixSeconds,
    /// The `[limits]` of the configuration.
    pub(super) defaults: Quota,
}

impl State {
    pub(super) fn usage(&self) -> Result<UsageReader, DataError> {
        UsageReader::open(&self.data)
    }
}

impl StateArgs {
    pub(super) fn open(&self) -> Result<State> {
        let config = self.config()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let data = DataDir::open(&config.server.data_dir)?;
        Ok(State {
            now: UnixSeconds::of(clock.wall()),
            directory: Directory::open(&data, Arc::clone(&clock), "command line")?,
            clock,
            defaults: crate::serve::default_limits(&config)?,
            data,
            calendar: Calendar::in_zone(&config.ledger.time_zone).context("ledger.time_zone")?,
        })
    }

    /// Where accounts, keys and limits are changed, and usage is read.
    pub(super) fn office(&self) -> Result<Office> {
        let config = self.config()?;
        let calendar = Calendar::in_zone(&config.ledger.time_zone).context("ledger.time_zone")?;
        Office::open(&config.server.data_dir, calendar)
    }

    fn config(&self) -> Result<Config> {
        let file = self.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
        let server = WrittenServer { data_dir: self.data_dir.clone(), ..WrittenServer::default() };
        let written = Written { server, ..Written::default() };
        Ok(Config::check(written.over(file), &Environment::read())?)
    }
}
