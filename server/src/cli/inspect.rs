use anyhow::Result;
use clap::Args;

use super::output::OutputArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle inspect ./checkpoint
  passerelle inspect demo --json";

/// Say what a checkpoint is, without loading it.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// A directory, a .gguf file, a hub id[@revision], or `demo`.
    source: String,
    /// Never touch the network.
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl InspectArgs {
    pub(crate) fn run(self) -> Result<()> {
        anyhow::bail!("not wired yet: {self:?}")
    }
}
