use std::num::NonZeroUsize;

use anyhow::Result;
use clap::Args;

use super::model_args::ModelArgs;
use super::output::OutputArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle bench                                     the bundled demo model
  passerelle bench --model ./checkpoint --batch 1,8,32
  passerelle bench --model ./checkpoint --dtype q8_0 --json

Decoding reads every weight once a step, so its limit on a CPU is memory bandwidth. The bandwidth is measured on the
spot, and each row says which share of it the step reached.";

/// Measure the engine alone: tokens per second and the share of this machine's limit.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// A directory, a .gguf file, a hub id[@revision].
    #[arg(long, value_name = "SOURCE", default_value = "demo")]
    model: String,
    /// Prompt tokens of each sequence.
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    prompt: NonZeroUsize,
    /// Tokens each sequence generates.
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    generate: NonZeroUsize,
    /// How many sequences run at once; several sizes are measured one after the other.
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', default_value = "1,4,16")]
    batch: Vec<NonZeroUsize>,
    #[command(flatten)]
    model_args: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl BenchArgs {
    pub(crate) fn run(self) -> Result<()> {
        anyhow::bail!("not wired yet: {self:?}")
    }
}
