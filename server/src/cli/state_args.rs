//! Where accounts and keys are kept, for the commands that change them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use passerelle::config::{self, Config, Environment, Written, WrittenServer};
use passerelle::gateway::DataDir;

use super::admin_client::{AdminClient, NoLedger};

#[derive(Debug, Args)]
pub(super) struct StateArgs {
    /// Where accounts, keys and usage are kept [default: the user's data directory].
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
    /// The server's configuration file, for its data directory and time zone.
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl StateArgs {
    /// The directory itself, for what no server can do.
    pub(super) fn data(&self) -> Result<DataDir> {
        Ok(DataDir::open(&self.config()?.server.data_dir)?)
    }

    /// The folder.
    pub(super) fn data_dir(&self) -> Result<PathBuf> {
        Ok(self.config()?.server.data_dir)
    }

    /// Where accounts, keys and limits are made. There need not be any yet.
    pub(super) fn new_admin_client(&self) -> Result<AdminClient> {
        AdminClient::open(&self.config()?, NoLedger::Make, None)
    }

    /// Where accounts, keys and limits are changed, and usage is read.
    pub(super) fn admin_client(&self) -> Result<AdminClient> {
        AdminClient::open(&self.config()?, NoLedger::Refuse, None)
    }

    /// The same, to ask what a model's tokens are to limits.
    pub(super) fn admin_client_that_prices(&self, model: &str) -> Result<AdminClient> {
        AdminClient::open(&self.config()?, NoLedger::Refuse, Some(model))
    }

    fn config(&self) -> Result<Config> {
        let file = self.config.as_deref().map(config::read).transpose()?.unwrap_or_default();
        let server = WrittenServer { data_dir: self.data_dir.clone(), ..WrittenServer::default() };
        let written = Written { server, ..Written::default() };
        Ok(Config::check(written.over(file), &Environment::read())?)
    }
}
