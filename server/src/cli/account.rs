use std::num::NonZeroU32;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use passerelle::gateway::quota::UnixSeconds;
use passerelle::gateway::{AccountPath, Quota};
use serde::Deserialize;
use serde_json::json;

use super::admin_client::AdminClient;
use super::apply::{ApplyArgs, apply};
use super::limit_args::LimitArgs;
use super::numbers::count;
use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle account create acme --gpu-hours 5000 --until 2027-01-01
  passerelle account create acme/vision --requests-per-minute 600
  passerelle key create alice --account acme/vision
  passerelle account list
  passerelle account apply accounts.toml --dry-run
  passerelle account audit                    who changed what, checked to be unbroken
  passerelle account audit --head HASH        and to hold the end that an earlier look printed";

const APPLY_EXAMPLES: &str = "\
In TOML:
  [[accounts]]
  path = \"acme/vision\"
  weight = 2                                     # its part of an engine beside others; left out: as it is
  [[accounts.limits]]
  limit = \"gpu_seconds_granted\"                # `passerelle quota set --help` lists them
  value = 18000000
  until = \"2027-01-01\"                         # model, from, until and dry_run where they are wanted

The same in CSV, one limit a line, with those of these columns that are wanted:
  path,weight,limit,value,model,from,until,dry_run
  acme/vision,2,gpu_seconds_granted,18000000,,,2027-01-01,false";

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
    Weight {
        /// Which account, like `acme/vision`.
        path: AccountPath,
        /// Beside the weights of the others; 1 is what an account has that was given none.
        #[arg(value_parser = count::<NonZeroU32>)]
        weight: NonZeroU32,
    },
    /// Make accounts and limits as a TOML or CSV file has them, all or none; accounts that are not in the file stay. Shows
    /// what changes.
    #[command(after_help = APPLY_EXAMPLES)]
    Apply(ApplyArgs),
    /// Remove an account that has no usable key and none below it. What it used stays in the ledger.
    Remove {
        /// Which account, like `acme/vision`.
        path: AccountPath,
    },
    /// Show every administrative act, and whether the log is unbroken. Prints the hash that its chain ends at: one that is kept
    /// elsewhere shows later, as --head, whether the log's end was cut off.
    Audit {
        /// The end of the chain as an earlier look printed it. The log must still hold it.
        #[arg(long, value_name = "HASH")]
        head: Option<String>,
        #[command(flatten)]
        output: OutputArgs,
    },
}

impl AccountArgs {
    pub(crate) fn run(self) -> Result<()> {
        let admin = match &self.command {
            AccountCommand::Create { .. } | AccountCommand::Apply(_) => self.state.new_admin_client()?,
            _ => self.state.admin_client()?,
        };
        match self.command {
            AccountCommand::Create { path, limits } => {
                let limits = limits.quota(&admin.calendar)?;
                admin.post("/admin/v1/accounts", &json!({"path": path, "limits": limits}))?;
                output::line(format_args!("created {path}"))
            }
            AccountCommand::List(output) => list(&admin, output),
            AccountCommand::Weight { path, weight } => {
                admin.post("/admin/v1/weights", &json!({"account": path, "weight": weight}))?;
                output::line(format_args!("set the weight of {path} to {weight}"))
            }
            AccountCommand::Apply(args) => apply(&admin, &args),
            AccountCommand::Remove { path } => {
                admin.delete(&format!("/admin/v1/accounts/{path}"))?;
                output::line(format_args!("removed {path}"))
            }
            AccountCommand::Audit { head, output } => audit(&admin, head.as_deref(), output),
        }
    }
}

#[derive(Deserialize)]
struct ListedAccount {
    path: AccountPath,
    weight: NonZeroU32,
    limits: Quota,
}

fn list(admin: &AdminClient, output: OutputArgs) -> Result<()> {
    let answer = admin.get("/admin/v1/accounts")?;
    if output.json {
        return output::json(&answer["data"]);
    }
    output::line(format_args!("{:<32}{:<8}LIMITS", "ACCOUNT", "WEIGHT"))?;
    admin.rows(answer)?.iter().try_for_each(|ListedAccount { path, weight, limits }| {
        let limits: Vec<_> = limits.limits().iter().map(|limit| limit.shown(&admin.calendar)).collect();
        let limits = if limits.is_empty() { "none".to_owned() } else { limits.join(", ") };
        output::line(format_args!("{:<32}{weight:<8}{limits}", path.as_str()))
    })
}

#[derive(Deserialize)]
struct ListedAct {
    at: UnixSeconds,
    actor: String,
    act: String,
    subject: String,
    detail: String,
    hash: String,
}

fn audit(admin: &AdminClient, head: Option<&str>, output: OutputArgs) -> Result<()> {
    let answer = admin.get("/admin/v1/audit")?;
    let is_unbroken = answer["unbroken"] == true;
    if output.json {
        output::json(&answer["data"])?;
    }
    let log: Vec<ListedAct> = admin.rows(answer)?;
    if !output.json {
        for ListedAct { at, actor, act, subject, detail, .. } in &log {
            output::line(format_args!("{}  {actor}: {act} {subject} {detail}", admin.calendar.show(*at)))?;
        }
    }
    if !is_unbroken {
        bail!("the audit log is broken: an entry was changed or taken out");
    }
    if let Some(head) = head.filter(|head| !log.iter().any(|act| act.hash == *head)) {
        bail!("the audit log is unbroken but does not hold {head}: its end was cut off, or it is another log");
    }
    let end = log.last().map_or("nothing", |act| &act.hash);
    tell!("{} acts, an unbroken chain that ends at {end}", log.len());
    Ok(())
}
