//! The commands and their options. Each command is a file: what may be written, and a `run` that calls the rooms.

mod account;
mod admin_client;
mod apply;
mod backup;
mod bench;
mod bundle;
mod chat;
mod compare;
mod import;
mod inspect;
mod key;
mod limit_args;
mod model;
mod model_args;
mod numbers;
pub(crate) mod output;
mod plan;
mod quota;
mod reload;
mod score;
mod selftest;
mod serve;
mod sign;
mod source_args;
mod state_args;
mod usage;
mod worker;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Start here:
  passerelle serve                                   the bundled demo model on http://127.0.0.1:8080
  passerelle chat                                    talk to the demo model in this terminal

Your own model:
  passerelle inspect ./my-checkpoint                 what it is, without loading it
  passerelle serve --model mine=./my-checkpoint      a folder in Hugging Face layout
  passerelle serve --model Qwen/Qwen2.5-0.5B-Instruct  downloaded once, then served from the cache

`passerelle help COMMAND` explains a command's options.";

/// Serves open-weight models behind a quota-aware, OpenAI-compatible gateway.
#[derive(Debug, Parser)]
#[command(version, after_help = EXAMPLES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Chat(chat::ChatArgs),
    Inspect(inspect::InspectArgs),
    Plan(plan::PlanArgs),
    Bench(bench::BenchArgs),
    Selftest(selftest::SelftestArgs),
    Score(score::ScoreArgs),
    Compare(compare::CompareArgs),
    Account(account::AccountArgs),
    Backup(backup::BackupArgs),
    Bundle(bundle::BundleArgs),
    Import(import::ImportArgs),
    Key(key::KeyArgs),
    Model(model::ModelArgs),
    Quota(quota::QuotaArgs),
    Reload(reload::ReloadArgs),
    Restore(backup::RestoreArgs),
    Sign(sign::SignArgs),
    Usage(usage::UsageArgs),
    #[command(about = "Run the models of one partition in this process, for a gateway", after_help = worker::WorkerArgs::HELP)]
    Worker(worker::WorkerArgs),
}

impl Cli {
    /// The status to exit with, which of a question may be its answer.
    pub(crate) fn run(self) -> Result<ExitCode> {
        let done = match self.command {
            Command::Serve(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::Plan(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Selftest(args) => args.run(),
            Command::Score(args) => args.run(),
            Command::Compare(args) => args.run(),
            Command::Account(args) => args.run(),
            Command::Backup(args) => args.run(),
            Command::Bundle(args) => args.run(),
            Command::Import(args) => args.run(),
            Command::Key(args) => args.run(),
            Command::Model(args) => args.run(),
            Command::Quota(args) => return args.run(),
            Command::Reload(args) => args.run(),
            Command::Restore(args) => args.run(),
            Command::Sign(args) => args.run(),
            Command::Usage(args) => args.run(),
            Command::Worker(args) => args.run(),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests;
