use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use passerelle::gateway::AccountPath;
use passerelle::gateway::directory::{AccountRecord, AuditEntry};

use super::apply::apply;
use super::limit_args::{LimitArgs, shown};
use super::output::{self, OutputArgs};
use super::state_args::{State, StateArgs};

const EXAMPLES: &str = "\
Examples:
  passerelle account create acme --gpu-hours 5000 --until 2027-01-01
  passerelle account create acme/vision --requests-per-minute 600
  passerelle key create alice --account acme/vision
  passerelle account list
  passerelle account apply accounts.toml --dry-run
  passerelle account audit                    who changed what, checked to be unbroken";

/// Create, list and remove accounts: organisations, their projects, their users.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AccountArgs {
    #[command(subcommand)]
    command: AccountCommand,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Subcommand)]
enum AccountCommand {
    /// Make an account; the one above it must exist.
    Create {
        /// Where it stands, like `acme/vision`.
        path: AccountPath,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List accounts with their limits.
    List(OutputArgs),
    /// Give an account another part of an engine beside others.
    Weight { path: AccountPath, weight: NonZeroU32 },
    /// Make accounts and limits as a TOML or CSV file has them; what is not in the file stays. Shows what changes.
    Apply {
        file: PathBuf,
        /// Show what would change, and change nothing.
        #[arg(long)]
        dry_run: bool,
    },
    /// Remove an account that has no usable key and none below it. What it used stays in the ledger.
    Remove { path: AccountPath },
    /// Show every administrative act, and whether the log is unbroken.
    Audit(OutputArgs),
}

impl AccountArgs {
    pub(crate) fn run(self) -> Result<()> {
        let state = self.state.open()?;
        match self.command {
            AccountCommand::Create { path, limits } => {
                state.directory.create_account(&path, limits.quota(&state.calendar)?)?;
                output::line(format_args!("created {path}"))
            }
            AccountCommand::List(output) => list(&state, output),
            AccountCommand::Weight { path, weight } => Ok(state.directory.set_weight(&path, weight)?),
            AccountCommand::Apply { file, dry_run } => apply(&state, &file, dry_run),
            AccountCommand::Remove { path } => {
                state.directory.remove_account(&path)?;
                output::line(format_args!("removed {path}"))
            }
            AccountCommand::Audit(output) => audit(&state, output),
        }
    }
}

fn list(state: &State, output: OutputArgs) -> Result<()> {
    let accounts = state.directory.snapshot()?.accounts;
    if output.json {
        return output::json(&accounts);
    }
    output::line(format_args!("{:<32}{:<8}LIMITS", "ACCOUNT", "WEIGHT"))?;
    accounts.iter().try_for_each(|AccountRecord { path, weight, limits, .. }| {
        let limits: Vec<_> = limits.limits().iter().map(|limit| shown(limit, &state.calendar)).collect();
        let limits = if limits.is_empty() { "none".to_owned() } else { limits.join(", ") };
        output::line(format_args!("{:<32}{weight:<8}{limits}", path.as_str()))
    })
}

fn audit(state: &State, output: OutputArgs) -> Result<()> {
    let log = state.directory.audit_log()?;
    if output.json {
        output::json(&log)?;
    } else {
        for AuditEntry { at, actor, act, subject, detail, .. } in &log {
            output::line(format_args!("{}  {actor}: {act} {subject} {detail}", state.calendar.show(*at)))?;
        }
    }
    if !AuditEntry::are_chained(&log) {
        bail!("the audit log is broken: an entry was changed or taken out");
    }
    eprintln!("{} acts, an unbroken chain.", log.len());
    Ok(())
}
