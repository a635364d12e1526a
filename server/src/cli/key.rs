use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::output::OutputArgs;

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
    /// List keys: name, when they were made, limits. Never the keys themselves.
    List(OutputArgs),
    /// Refuse a key from now on.
    Revoke {
        /// The name it was created with.
        name: String,
    },
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// Whose key it is.
    name: String,
    /// Requests this key may start per minute [default: no limit].
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u64>,
    /// Tokens, prompt and answer, this key may use per minute [default: no limit].
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u64>,
    /// Requests this key may have running at once [default: no limit].
    #[arg(long, value_name = "N")]
    concurrent_requests: Option<u64>,
    #[command(flatten)]
    output: OutputArgs,
}

impl KeyArgs {
    pub(crate) fn run(self) -> Result<()> {
        anyhow::bail!("not wired yet: {self:?}")
    }
}
