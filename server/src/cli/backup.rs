use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::gateway::{DataDir, Directory, Restored};
use passerelle_engine::clock::SystemClock;

use super::output;
use super::state_args::StateArgs;

const BACKUP_EXAMPLES: &str = "\
Examples:
  passerelle backup /backups/passerelle-2026-11-25.db        also while a server runs";

const RESTORE_EXAMPLES: &str = "\
Examples:
  passerelle restore /backups/passerelle-2026-11-25.db       while no server runs; what was there is kept beside it";

/// What a copy holds is for its owner only.
const OWNER_ONLY: u32 = 0o600;

/// Copy accounts, keys and the ledger into a file.
#[derive(Debug, Args)]
#[command(after_help = BACKUP_EXAMPLES)]
pub(crate) struct BackupArgs {
    /// The copy; it must not exist.
    file: PathBuf,
    #[command(flatten)]
    state: StateArgs,
}

/// Put a copy in the place of accounts, keys and the ledger. Keys that were revoked since stay revoked.
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
        let file = &self.file;
        let named = || format!("cannot write {}", file.display());
        // Before anybody is asked for it.
        let copy = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(file);
        let mut copy = copy.map_err(output::must_be_new).with_context(named)?;
        let copied = self.state.admin_client().and_then(|admin| {
            std::io::copy(&mut admin.download("/admin/v1/backup")?, &mut copy).with_context(named)?;
            copy.sync_all().with_context(named)
        });
        if let Err(error) = copied {
            // Half a copy is none.
            std::fs::remove_file(file).with_context(named)?;
            return Err(error);
        }
        output::line(format_args!("backed up to {}", file.display()))
    }
}

impl RestoreArgs {
    pub(crate) fn run(self) -> Result<()> {
        let (data, Restored { kept, revoked }) = DataDir::restore(&self.state.data_dir()?, &self.file)?;
        output::line(format_args!("restored from {}", self.file.display()))?;
        let kept = kept.map_or_else(
            || "nothing was there".to_owned(),
            |kept| format!("what was there is kept as {}", kept.display()),
        );
        output::line(&kept)?;
        let directory = Directory::open(&data, Arc::new(SystemClock::new()), "command line")?;
        for id in revoked {
            let key = directory.revoke_key(&id)?;
            output::line(format_args!("revoked again: {} of {} ({})", key.name, key.account, key.id))?;
        }
        // So that the audit log of the copy says so too; after the keys, because it can fail.
        let from = format!("from {}; {kept}", self.file.display());
        directory.note("restore", "everything", &from)?;
        output::line("accounts, limits and secrets that were changed since the copy was made are as they were in it")
    }
}
