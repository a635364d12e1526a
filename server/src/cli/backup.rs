use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::output;
use super::state_args::StateArgs;

const BACKUP_EXAMPLES: &str = "\
Examples:
  passerelle backup /backups/passerelle-2026-11-25.db        also while a server runs";

const RESTORE_EXAMPLES: &str = "\
Examples:
  passerelle restore /backups/passerelle-2026-11-25.db       while no server runs; what was there is kept beside it";

/// Copy accounts, keys and the ledger into a file.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct BackupArgs {
    /// The copy; it must not exist.
    file: PathBuf,
    #[command(flatten)]
    state: StateArgs,
}

/// Put a copy in the place of accounts, keys and the ledger.
#[derive(Debug, Args)]
#[command(after_help = RESTORE_EXAMPLES)]
pub(crate) struct RestoreArgs {
    /// A copy that `passerelle backup` made.
    file: PathBuf,
    #[command(flatten)]
    state: StateArgs,
}

impl BackupArgs {
    pub(crate) fn run(self) -> Result<()> {
        self.state.open()?.data.back_up(&self.file)?;
        output::line(format_args!("backed up to {}", self.file.display()))
    }
}

impl RestoreArgs {
    pub(crate) fn run(self) -> Result<()> {
        // The directory's own connection is closed first: the file is about to be another one.
        let data = self.state.open()?.data;
        data.restore(&self.file)?;
        output::line(format_args!("restored from {}", self.file.display()))?;
        output::line("what was there is kept beside it, as passerelle.db.before-restore")?;
        output::line("keys that were revoked since the copy was made work again: see `passerelle key list`")
    }
}
