use std::sync::Arc;

use anyhow::Result;
use clap::{Args, Subcommand};
use passerelle::gateway::account::Tree;
use passerelle::gateway::quota::{Unit, WrittenLimit};
use passerelle::gateway::{Account, AccountPath, Ask, Caller, Ledger, LedgerParts, Limit, LimitName, Retry};
use serde_json::json;

use super::limit_args::GrantDates;
use super::output;
use super::state_args::{State, StateArgs};

const EXAMPLES: &str = "\
Examples:
  passerelle quota set acme tokens_per_day 2000000
  passerelle quota set acme/vision concurrent_requests 8 --model demo
  passerelle quota set acme gpu_seconds_granted 18000000 --from 2026-01-01 --until 2027-01-01
  passerelle quota set acme requests_per_minute 60 --dry-run      counted, and reported instead of refused
  passerelle quota remove acme tokens_per_day
  passerelle quota explain alice --tokens 4000                    which limit would refuse, and when it would pass
  passerelle quota set / concurrent_requests 200                  everybody together

Limits: requests, input_tokens, output_tokens, tokens and gpu_seconds, each _per_minute, _per_day, _per_month or _granted;
concurrent_requests, queued_requests, batch_tokens; context_tokens.";

/// Set and remove limits of accounts.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct QuotaArgs {
    #[command(subcommand)]
    command: QuotaCommand,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Subcommand)]
enum QuotaCommand {
    /// State a limit, or change the one of the same name and model. Takes effect within a second.
    Set {
        account: AccountPath,
        limit: LimitName,
        value: f64,
        /// For one model [default: all together].
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Count, and report what would be refused instead of refusing it.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        dates: GrantDates,
    },
    /// Say whether a request of a key would be admitted, else which limit refuses it and when it would pass. By what the
    /// ledger holds: rates and running requests are known to the server alone, which shows them in /v1/me/limits.
    Explain {
        /// A key's name or id.
        key: String,
        /// Prompt tokens.
        #[arg(long, value_name = "N")]
        tokens: u32,
        /// Tokens of the answer.
        #[arg(long, value_name = "N", default_value_t = 0)]
        output_tokens: u32,
        #[arg(long, value_name = "NAME", default_value = "")]
        model: String,
    },
    /// Take a limit away.
    Remove {
        account: AccountPath,
        limit: LimitName,
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
    },
}

impl QuotaArgs {
    pub(crate) fn run(self) -> Result<()> {
        match self.command {
            QuotaCommand::Set { account, limit, value, model, dry_run, dates } => {
                let office = self.state.office()?;
                let (from, until) = dates.instants(&office.calendar)?;
                let (from, until) = (from.map(|from| from.0), until.map(|until| until.0));
                let written = WrittenLimit { limit: limit.to_string(), value, model, from, until, dry_run };
                office.post("/admin/v1/limits", &json!({"account": account, "set": written}))?;
                output::line(format_args!("set {limit} of {account}"))
            }
            QuotaCommand::Explain { key, tokens, output_tokens, model } => {
                explain(&self.state.open()?, &key, Ask::new(&model, tokens, output_tokens))
            }
            QuotaCommand::Remove { account, limit, model } => {
                let removed = json!({"limit": limit.to_string(), "model": model});
                self.state.office()?.post("/admin/v1/limits", &json!({"account": account, "remove": removed}))?;
                output::line(format_args!("removed {limit} of {account}"))
            }
        }
    }
}

/// Limits that only a server which runs knows the state of.
fn not_looked_at(account: &Account, ask: &Ask) -> Result<()> {
    let is_unknown = |limit: &Limit| limit.name().is_rate() || limit.name().is_held() || limit.counts(Unit::GpuMicros);
    let unknown = account.limits().filter(|(_, limit)| limit.covers(ask.model.as_deref()) && is_unknown(limit));
    for (node, limit) in unknown {
        let (name, path) = (limit.name(), &node.path);
        output::line(format_args!("not looked at: {name} of {path}, which /v1/me/limits of a running server shows"))?;
    }
    Ok(())
}

fn explain(state: &State, key: &str, ask: Ask) -> Result<()> {
    let account = state.directory.find_key(key)?.account;
    let mut tree = Tree::new(state.directory.snapshot()?.accounts, &state.defaults);
    let caller = Arc::new(Caller::at_open_door(Arc::unwrap_or_clone(tree.account(&account))));
    let ledger = Ledger::new(LedgerParts {
        calendar: state.calendar.clone(),
        spent: Box::new(state.usage()?),
        ..LedgerParts::without_past(Arc::clone(&state.clock))
    });
    match ledger.reserve(&caller, &ask) {
        Ok(_) => {
            output::line(format_args!("{account}: every limit that was looked at has room for it"))?;
            not_looked_at(&caller.account, &ask)
        }
        Err(refusal) => {
            output::line(format_args!("{refusal}"))?;
            match refusal.retry {
                Retry::After(wait) => {
                    let passes = state.calendar.show(state.now.after(wait));
                    output::line(format_args!("it would pass at {passes}"))
                }
                Retry::Spent | Retry::Never => output::line("it would not pass as long as this limit stands"),
            }
        }
    }
}
