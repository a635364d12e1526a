use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use passerelle::config::Period;
use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::directory::{KeyInfo, NewKey};
use passerelle::gateway::keys::ApiKey;
use passerelle::gateway::{AccountPath, DirectoryError, Scope};
use serde_json::{Value, json};

use super::limit_args::LimitArgs;
use super::output::{self, OutputArgs};
use super::state_args::{State, StateArgs};

const EXAMPLES: &str = "\
Examples:
  passerelle key create alice                                  prints the key once; only its hash is kept
  passerelle key create ci --requests-per-minute 60 --concurrent-requests 2
  passerelle key create bob --account acme/vision --scope inference --model demo --valid-for 720h
  passerelle key rotate bob --overlap 24h                      a new secret; the former one works for another day
  passerelle key list
  passerelle key revoke alice";

/// Create, list, rotate and revoke API keys.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
    #[command(flatten)]
    state: StateArgs,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it, once.
    Create(CreateArgs),
    /// List keys: name, id, account, status and scopes, with --json also when they were made and end. Never the keys
    /// themselves.
    List(OutputArgs),
    /// Give a key a new secret and print it, once.
    Rotate {
        /// The name it was created with, or its id.
        name: String,
        /// For how long the former secret is still accepted.
        #[arg(long, value_name = "PERIOD", default_value = "24h")]
        overlap: Period,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Refuse a key from now on.
    Revoke {
        /// The name it was created with, or its id.
        name: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Whose key it is.
    name: String,
    /// The account that pays [default: one of the key's name, made if there is none].
    #[arg(long, value_name = "PATH")]
    account: Option<AccountPath>,
    /// What it may be used for, more than once for several: inference, batch, admin, read-only [default: inference].
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// A model that it may use, more than once for several [default: every model].
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// How urgent its requests are, unless they ask for less: interactive, standard or batch.
    #[arg(long, value_name = "CLASS", default_value_t)]
    class: ServiceClass,
    /// How long the key is accepted, like 720h [default: until revoked].
    #[arg(long, value_name = "PERIOD")]
    valid_for: Option<Period>,
    #[command(flatten, next_help_heading = "Limits of the account that is made")]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl KeyArgs {
    pub(crate) fn run(self) -> Result<()> {
        let state = self.state.open()?;
        match self.command {
            KeyCommand::Create(args) => create(&state, args),
            KeyCommand::List(output) => list(&state, output),
            KeyCommand::Rotate { name, overlap, output } => {
                let (key, info) = state.directory.rotate_key(&name, overlap.0)?;
                show_once(&key, &info, output)
            }
            KeyCommand::Revoke { name } => {
                let info = state.directory.revoke_key(&name)?;
                output::line(format_args!("revoked {} ({})", info.name, info.id))
            }
        }
    }
}

fn create(state: &State, args: CreateArgs) -> Result<()> {
    let account = account_of(state, &args)?;
    let scopes = if args.scopes.is_empty() { Scopes::default() } else { Scopes::new(args.scopes)? };
    let models =
        if args.models.is_empty() { ModelAccess::All } else { ModelAccess::Only(args.models.into_iter().collect()) };
    let valid_for: Option<Duration> = args.valid_for.map(|period| period.0);
    let new = NewKey { account, name: args.name, scopes, models, class: args.class, valid_for };
    let (key, info) = state.directory.create_key(new)?;
    let shown = show_once(&key, &info, args.output);
    eprintln!("A server that started before the first key was made asks for none: restart it.");
    shown
}

/// The account that was named, or one of the key's own name with the limits that were stated.
fn account_of(state: &State, args: &CreateArgs) -> Result<AccountPath> {
    let limits = args.limits.quota(&state.calendar)?;
    if let Some(account) = &args.account {
        if !limits.limits().is_empty() {
            bail!("limits stand on accounts: `passerelle quota set {account} ...` states them");
        }
        return Ok(account.clone());
    }
    let account: AccountPath = args.name.parse().with_context(|| format!("'{}' is no key name", args.name))?;
    match state.directory.create_account(&account, limits.clone()) {
        Err(DirectoryError::AccountExists(_)) if !limits.limits().is_empty() => {
            bail!("the account '{account}' exists: `passerelle quota set {account} ...` changes its limits")
        }
        Ok(()) | Err(DirectoryError::AccountExists(_)) => Ok(account),
        Err(error) => Err(error.into()),
    }
}

/// The key alone on standard output, so that a script can take it; what to know about it on standard error.
fn show_once(key: &ApiKey, info: &KeyInfo, output: OutputArgs) -> Result<()> {
    if output.json {
        let mut shown = serde_json::to_value(info)?;
        shown["key"] = json!(key.reveal());
        return output::json(&shown);
    }
    eprintln!("The key of `{}` ({}), shown this once; only its hash is kept:", info.name, info.id);
    output::line(key.reveal())
}

fn list(state: &State, output: OutputArgs) -> Result<()> {
    let keys = state.directory.list_keys()?;
    if output.json {
        let shown = |info: &KeyInfo| -> Result<Value> {
            let mut shown = serde_json::to_value(info)?;
            shown["status"] = json!(info.status(state.now));
            Ok(shown)
        };
        return output::json(&keys.iter().map(shown).collect::<Result<Vec<_>>>()?);
    }
    if keys.is_empty() {
        eprintln!("There are no keys; `passerelle key create NAME` makes one.");
        return Ok(());
    }
    output::line(format_args!("{:<24}{:<16}{:<24}{:<10}SCOPES", "NAME", "ID", "ACCOUNT", "STATUS"))?;
    keys.iter().try_for_each(|info| {
        let scopes: Vec<_> = info.scopes.iter().map(Scope::as_str).collect();
        let (id, account, status) = (info.id.as_str(), info.account.as_str(), info.status(state.now).as_str());
        output::line(format_args!("{:<24}{id:<16}{account:<24}{status:<10}{}", info.name, scopes.join(",")))
    })
}
