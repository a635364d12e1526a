use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use passerelle::config::Period;
use passerelle::gateway::account::{ModelAccess, Scopes, ServiceClass};
use passerelle::gateway::{AccountPath, Scope};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin_client::{AdminClient, Refused, in_path};
use super::limit_args::LimitArgs;
use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle key create alice                                  prints the key once; only its hash is kept
  passerelle key create ci --requests-per-minute 60 --concurrent-requests 2
  passerelle key create bob --account acme/vision --scope inference --model demo --valid-for 90d
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
        /// For how long the former secret is still accepted. The one before it is not any more.
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
    /// What it may be used for, more than once for several: inference, batch, admin, read-only, gateway [default:
    /// inference].
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<Scope>,
    /// A model that it may use, more than once for several [default: every model].
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// How urgent its requests are, unless they ask for less: interactive, standard or batch.
    #[arg(long, value_name = "CLASS", default_value_t)]
    class: ServiceClass,
    /// How long the key is accepted, like 90d [default: until revoked].
    #[arg(long, value_name = "PERIOD")]
    valid_for: Option<Period>,
    #[command(flatten, next_help_heading = "Limits of the account that is made")]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl KeyArgs {
    pub(crate) fn run(self) -> Result<()> {
        let admin = match &self.command {
            KeyCommand::Create { .. } => self.state.new_admin_client()?,
            _ => self.state.admin_client()?,
        };
        match self.command {
            KeyCommand::Create(args) => create(&admin, args),
            KeyCommand::List(output) => list(&admin, output),
            KeyCommand::Rotate { name, overlap, output } => {
                let path = format!("/admin/v1/keys/{}/rotate", in_path(&name));
                let made = admin.post(&path, &json!({"overlap_seconds": whole_seconds(overlap)}))?;
                show_once(&made, output)
            }
            KeyCommand::Revoke { name } => {
                let revoked = admin.delete(&format!("/admin/v1/keys/{}", in_path(&name)))?;
                output::line(format_args!("revoked {} ({})", text(&revoked, "name"), text(&revoked, "id")))
            }
        }
    }
}

fn create(admin: &AdminClient, args: CreateArgs) -> Result<()> {
    let scopes = if args.scopes.is_empty() { Scopes::default() } else { Scopes::new(args.scopes.iter().copied())? };
    let payer = Payer::of(admin, &args)?;
    let models =
        if args.models.is_empty() { ModelAccess::All } else { ModelAccess::Only(args.models.into_iter().collect()) };
    let valid_for = args.valid_for.map(whole_seconds);
    let new = json!({
        "account": payer.account(), "name": args.name, "scopes": scopes, "models": models, "class": args.class,
        "valid_for_seconds": valid_for,
    });
    let made = admin.post("/admin/v1/keys", &new).inspect_err(|_| payer.take_back(admin))?;
    let shown = show_once(&made, args.output);
    if let Some(warning) = made["warning"].as_str() {
        tell!("passerelle: {warning}");
    }
    if is_first(admin)? {
        tell!("This is the first key: a server that runs already asks for none until it is restarted.");
    }
    shown
}

fn is_first(admin: &AdminClient) -> Result<bool> {
    Ok(admin.get("/admin/v1/keys")?["data"].as_array().is_some_and(|keys| keys.len() == 1))
}

/// The account of a new key.
enum Payer {
    WasThere(AccountPath),
    /// Of the key's own name, for this key alone.
    IsNew(AccountPath),
}

impl Payer {
    /// The account that was named, or one of the key's own name with the limits that were stated.
    fn of(admin: &AdminClient, args: &CreateArgs) -> Result<Self> {
        let limits = args.limits.quota(&admin.calendar)?;
        let has_limits = !limits.limits().is_empty();
        if let Some(account) = &args.account {
            if has_limits {
                bail!("limits stand on accounts: `passerelle quota set {account} ...` states them");
            }
            return Ok(Self::WasThere(account.clone()));
        }
        let account: AccountPath =
            args.name.parse().with_context(|| format!("no account can be named after the key '{}'", args.name))?;
        match admin.post("/admin/v1/accounts", &json!({"path": account, "limits": limits})) {
            Err(error) if Refused::is_conflict(&error) && has_limits => {
                bail!("the account '{account}' exists: `passerelle quota set {account} ...` changes its limits")
            }
            Err(error) if Refused::is_conflict(&error) => Ok(Self::WasThere(account)),
            Err(error) => Err(error),
            Ok(_) => Ok(Self::IsNew(account)),
        }
    }

    fn account(&self) -> &AccountPath {
        match self {
            Self::WasThere(account) | Self::IsNew(account) => account,
        }
    }

    /// Where there is no key for it: a second attempt must find what the first one found.
    fn take_back(&self, admin: &AdminClient) {
        let Self::IsNew(account) = self else { return };
        if let Err(error) = admin.delete(&format!("/admin/v1/accounts/{account}")) {
            tell!("passerelle: the account '{account}' was made for the key, and stays: {error:#}");
        }
    }
}

/// No less, as a period of less than a second is more than none.
fn whole_seconds(period: Period) -> u64 {
    period.0.as_secs() + u64::from(period.0.subsec_nanos() > 0)
}

/// The key alone on standard output, so that a script can take it; what to know about it on standard error.
fn show_once(made: &Value, output: OutputArgs) -> Result<()> {
    if output.json {
        return output::json(made);
    }
    let (name, id) = (text(made, "name"), text(made, "id"));
    tell!("The key of `{name}` ({id}), shown this once; only its hash is kept:");
    output::line(text(made, "key"))
}

#[derive(Deserialize)]
struct ListedKey {
    name: String,
    id: String,
    account: AccountPath,
    status: String,
    scopes: Scopes,
}

fn list(admin: &AdminClient, output: OutputArgs) -> Result<()> {
    let answer = admin.get("/admin/v1/keys")?;
    if output.json {
        return output::json(&answer["data"]);
    }
    let keys: Vec<ListedKey> = admin.rows(answer)?;
    if keys.is_empty() {
        tell!("There are no keys; `passerelle key create NAME` makes one.");
        return Ok(());
    }
    output::line(format_args!("{:<24}{:<16}{:<24}{:<10}SCOPES", "NAME", "ID", "ACCOUNT", "STATUS"))?;
    keys.iter().try_for_each(|ListedKey { name, id, account, status, scopes }| {
        let scopes: Vec<_> = scopes.iter().map(Scope::as_str).collect();
        output::line(format_args!("{name:<24}{id:<16}{:<24}{status:<10}{}", account.as_str(), scopes.join(",")))
    })
}

fn text<'a>(answer: &'a Value, field: &str) -> &'a str {
    answer[field].as_str().unwrap_or_default()
}
