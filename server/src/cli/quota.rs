use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};
use passerelle::gateway::quota::{UnixSeconds, WrittenLimit};
use passerelle::gateway::{AccountPath, LimitName};
use serde_json::{Value, json};

use super::admin_client::AdminClient;
use super::limit_args::GrantDates;
use super::numbers::number;
use super::output::{self, OutputArgs};
use super::state_args::StateArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle quota set acme tokens_per_day 2000000
  passerelle quota set acme/vision concurrent_requests 8 --model demo
  passerelle quota set acme gpu_seconds_granted 18000000 --from 2026-01-01 --until 2027-01-01
  passerelle quota set acme requests_per_minute 60 --dry-run      counted, and reported instead of refused
  passerelle quota remove acme tokens_per_day
  passerelle quota remove acme requests_per_minute --dry-run      end its trial
  passerelle quota explain alice --tokens 4000                    which limit would refuse, and when it would pass
  passerelle quota explain alice --tokens 4000 --json >/dev/null || echo refused      its exit status says the same
  passerelle quota set / concurrent_requests 200                  everybody together

`passerelle quota set --help` lists the limits.";

const LIMITS: &str = "\
Examples:
  passerelle quota set acme tokens_per_day 2000000
  passerelle quota set acme gpu_seconds_granted 18000000 --until 2027-01-01

Limits: requests, input_tokens, output_tokens, tokens and gpu_seconds, each _per_minute, _per_day, _per_month or _granted;
concurrent_requests, queued_requests, batch_tokens; context_tokens.";

/// Of `explain`, where the request would be refused. An error is 1, and what cannot be read of the command line 2.
const WOULD_BE_REFUSED: u8 = 3;

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
    /// State a limit, or change the one of the same name and model. A limit on trial stands beside the one that is
    /// enforced, until it is enforced itself or removed.
    #[command(after_help = LIMITS)]
    Set {
        /// Like `acme/vision`; `/` is everybody together.
        account: AccountPath,
        /// Its name, like `tokens_per_day`; all of them are listed below.
        #[arg(value_parser = limit_name, allow_hyphen_values = true)]
        limit: LimitName,
        /// Requests, tokens or seconds of normalised GPU time.
        #[arg(value_parser = number, allow_negative_numbers = true)]
        value: f64,
        /// For one model [default: all together].
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// Count what would be refused, instead of refusing it; `quota explain` and /v1/me/limits tell how much that was.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        dates: GrantDates,
    },
    /// Say whether a request of a key would be admitted now, else what refuses it: the key's scopes, its list of models, the
    /// model's context length, or which limit and when it would pass. Asks the server that runs, which knows rates, what runs
    /// and who waits; where none runs, what the ledger holds. Exits with 0 if nothing that was looked at refuses it, with 3 if
    /// something does, and with 1 if nothing could be looked at.
    Explain {
        /// A key's name or id.
        key: String,
        /// Prompt tokens.
        #[arg(long, value_name = "N")]
        tokens: u32,
        /// Tokens of the answer.
        #[arg(long, value_name = "N", default_value_t = 0)]
        output_tokens: u32,
        /// The model that is asked [default: none, so that nothing of a model is looked at].
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        model: String,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Take a limit away.
    Remove {
        /// Like `acme/vision`; `/` is everybody together.
        account: AccountPath,
        /// Its name, as `account list` shows it.
        #[arg(value_parser = limit_name, allow_hyphen_values = true)]
        limit: LimitName,
        /// The model that it is for [default: the limit of all together].
        #[arg(long, value_name = "NAME")]
        model: Option<String>,
        /// The limit on trial, and not the one that is enforced.
        #[arg(long)]
        dry_run: bool,
    },
}

impl QuotaArgs {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let done = match self.command {
            QuotaCommand::Set { account, limit, value, model, dry_run, dates } => {
                let admin = self.state.new_admin_client()?;
                let (from, until) = dates.instants(&admin.calendar)?;
                let (from, until) = (from.map(|from| from.0), until.map(|until| until.0));
                let written = WrittenLimit { limit: limit.to_string(), value, model, from, until, dry_run };
                let answer = admin.post("/admin/v1/limits", &json!({"account": account, "set": written}))?;
                if let Some(warning) = answer["warning"].as_str() {
                    tell!("passerelle: {warning}");
                }
                output::line(format_args!("set {limit} of {account}{}", on_trial(dry_run)))
            }
            QuotaCommand::Explain { key, tokens, output_tokens, model, output } => {
                let admin = self.state.admin_client_that_prices(&model)?;
                let asked =
                    json!({"key": key, "prompt_tokens": tokens, "output_tokens": output_tokens, "model": model});
                return explain(&admin, &asked, output);
            }
            QuotaCommand::Remove { account, limit, model, dry_run } => {
                let removed = json!({"limit": limit.to_string(), "model": model, "dry_run": dry_run});
                self.state.admin_client()?.post("/admin/v1/limits", &json!({"account": account, "remove": removed}))?;
                output::line(format_args!("removed {limit} of {account}{}", on_trial(dry_run)))
            }
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// Also as the option that `account create` has for it.
fn limit_name(text: &str) -> Result<LimitName, String> {
    text.strip_prefix("--").map_or_else(|| text.parse(), |option| option.replace('-', "_").parse())
}

fn on_trial(dry_run: bool) -> &'static str {
    if dry_run { " (on trial)" } else { "" }
}

fn explain(admin: &AdminClient, asked: &Value, output: OutputArgs) -> Result<ExitCode> {
    let answer = admin.post("/admin/v1/explain", asked)?;
    if output.json {
        output::json(&answer)?;
    } else {
        show(admin, &answer, asked["model"] == "")?;
    }
    Ok(if answer["fits"] == true { ExitCode::SUCCESS } else { ExitCode::from(WOULD_BE_REFUSED) })
}

fn show(admin: &AdminClient, answer: &Value, is_unnamed: bool) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let account = text(&answer["account"]);
    let barred = answer["barred"].as_array().map_or(&[][..], Vec::as_slice);
    barred.iter().try_for_each(|bar| output::line(text(&bar["message"])))?;
    if answer["fits"] == true {
        let overrun = answer["overrun"].as_array().map_or(&[][..], Vec::as_slice);
        overrun.iter().try_for_each(|grant| {
            let (name, scope) = (text(&grant["limit"]), text(&grant["scope"]));
            let left = grant["remaining"].as_f64().unwrap_or_default();
            output::line(format_args!(
                "beyond {name} of {scope}: it would run as overrun, in the class batch; of it is left: {left}"
            ))
        })?;
        let limit = if overrun.is_empty() { "limit" } else { "other limit" };
        output::line(format_args!("{account}: every {limit} that was looked at has room for it"))?;
    } else if let Some(closed) = answer["closed"].as_str() {
        output::line(format_args!("{account}: nothing is admitted at the moment, because {closed}"))?;
    } else if answer["refusal"].is_object() {
        show_refusal(admin, &answer["refusal"])?;
    }
    answer["not_looked_at"].as_array().into_iter().flatten().try_for_each(|limit| {
        let (name, scope) = (text(&limit["limit"]), text(&limit["scope"]));
        let why = match limit["why"].as_str() {
            Some("needs_price") if is_unnamed => {
                "because no price is known of what was asked: name a model with --model"
            }
            Some("needs_price") => "because no price of this model is known without a server that runs it",
            Some("needs_model") => "because no model was named: name one with --model",
            Some("not_in_memory") => "which is known while the model is in memory",
            Some("not_known_here") => "which only the server that runs the model knows",
            _ => "which only a running server knows",
        };
        output::line(format_args!("not looked at: {name} of {scope}, {why}"))
    })?;
    answer["on_trial"].as_array().into_iter().flatten().try_for_each(|limit| {
        let (name, scope, refused) = (text(&limit["limit"]), text(&limit["scope"]), &limit["would_have_refused"]);
        output::line(format_args!("on trial: {name} of {scope} would have refused {refused} requests since the start"))
    })
}

fn show_refusal(admin: &AdminClient, refusal: &Value) -> Result<()> {
    output::line(refusal["message"].as_str().unwrap_or_default())?;
    match refusal["passes_at"].as_u64() {
        Some(at) => output::line(format_args!("it would pass at {}", admin.calendar.show(UnixSeconds(at))))?,
        None => output::line("it would not pass as long as this limit stands")?,
    }
    match refusal["largest_output_tokens"].as_u64() {
        Some(tokens) => output::line(format_args!("with an answer of at most {tokens} tokens it could pass")),
        None => Ok(()),
    }
}
