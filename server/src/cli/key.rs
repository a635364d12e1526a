use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand};
use passerelle::config::{Config, Environment, Period, Written, WrittenServer};
use passerelle::gateway::keys::{ApiKey, KeyInfo, KeyStatus, KeyStore, NewKey, UnixSeconds};
use passerelle::gateway::{Limit, Quota};
use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use super::output::{self, OutputArgs};

const EXAMPLES: &str = "\
Examples:
  passerelle key create alice                                  prints the key once; only its hash is kept
  passerelle key create ci --requests-per-minute 60 --concurrent-requests 2
  passerelle key list
  passerelle key revoke alice";

/// Create, list and revoke API keys.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    command: KeyCommand,
    /// Where keys are kept [default: the user's data directory].
    #[arg(long, value_name = "DIR", global = true)]
    data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Make a key and print it, once.
    Create(CreateArgs),
    /// List keys: name, id, status and limits, with --json also when they were made and end. Never the keys themselves.
    List(OutputArgs),
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
    /// Requests this key may start per minute [default: the server's [limits]].
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<NonZeroU32>,
    /// Tokens, prompt and answer, this key may use per minute [default: the server's [limits]].
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<NonZeroU32>,
    /// Requests this key may have running at once [default: the server's [limits]].
    #[arg(long, value_name = "N")]
    concurrent_requests: Option<NonZeroU32>,
    /// How long the key is accepted, like 720h [default: until revoked].
    #[arg(long, value_name = "PERIOD")]
    valid_for: Option<Period>,
    #[command(flatten)]
    output: OutputArgs,
}

impl KeyArgs {
    pub(crate) fn run(self) -> Result<()> {
        let server = WrittenServer { data_dir: self.data_dir, ..WrittenServer::default() };
        let config = Config::check(Written { server, ..Written::default() }, &Environment::read())?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let store = KeyStore::open(&config.server.data_dir, Arc::clone(&clock))?;
        let now = UnixSeconds(clock.wall().as_secs());
        match self.command {
            KeyCommand::Create(args) => create(&store, args),
            KeyCommand::List(output) => list(&store.list()?, output, now),
            KeyCommand::Revoke { name } => {
                let info = store.revoke(&name)?;
                output::line(format_args!("revoked {} ({})", info.name, info.id))
            }
        }
    }
}

fn create(store: &KeyStore, args: CreateArgs) -> Result<()> {
    let limits = [
        args.requests_per_minute.map(Limit::RequestsPerMinute),
        args.tokens_per_minute.map(Limit::TokensPerMinute),
        args.concurrent_requests.map(Limit::ConcurrentRequests),
    ];
    let limits = Quota::new(limits.into_iter().flatten().collect())?;
    let valid_for: Option<Duration> = args.valid_for.map(|period| period.0);
    let (key, info) = store.create(NewKey { name: args.name, limits, valid_for })?;
    let shown = show_once(&key, &info, args.output);
    eprintln!("A server that started before the first key was made asks for none: restart it.");
    shown
}

/// The key alone on standard output, so that a script can take it; what to know about it on standard error.
fn show_once(key: &ApiKey, info: &KeyInfo, output: OutputArgs) -> Result<()> {
    if output.json {
        let mut shown = as_json(info);
        shown["key"] = json!(key.reveal());
        return output::json(&shown);
    }
    eprintln!("The key of `{}` ({}), shown this once; only its hash is kept:", info.name, info.id);
    output::line(key.reveal())
}

fn list(keys: &[KeyInfo], output: OutputArgs, now: UnixSeconds) -> Result<()> {
    if output.json {
        let shown = |info: &KeyInfo| {
            let mut shown = as_json(info);
            shown["status"] = json!(status(info, now));
            shown
        };
        return output::json(&keys.iter().map(shown).collect::<Vec<_>>());
    }
    if keys.is_empty() {
        eprintln!("There are no keys; `passerelle key create NAME` makes one.");
        return Ok(());
    }
    output::line(format_args!("{:<24}{:<20}{:<10}LIMITS", "NAME", "ID", "STATUS"))?;
    keys.iter().try_for_each(|info| {
        let limits: Vec<String> =
            info.limits.limits().iter().map(|limit| format!("{} {}", limit.name(), limit.value())).collect();
        let limits = if limits.is_empty() { "none".to_owned() } else { limits.join(", ") };
        output::line(format_args!("{:<24}{:<20}{:<10}{limits}", info.name, info.id.as_str(), status(info, now)))
    })
}

fn status(info: &KeyInfo, now: UnixSeconds) -> &'static str {
    match info.status(now) {
        KeyStatus::Active => "active",
        KeyStatus::Expired => "expired",
        KeyStatus::Revoked => "revoked",
    }
}

fn as_json(info: &KeyInfo) -> Value {
    json!({
        "id": info.id.as_str(),
        "name": info.name,
        "limits": info.limits,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "revoked_at": info.revoked_at,
    })
}
