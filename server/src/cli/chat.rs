use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::model_args::ModelArgs;

const EXAMPLES: &str = "\
Examples:
  passerelle chat                                    the bundled demo model, loaded in this process
  passerelle chat --model ./checkpoint
  passerelle chat --url http://127.0.0.1:8080 --name mine

Inside: /reset forgets the conversation, /quit (or end of input) leaves.
With --url the key is read from OPENAI_API_KEY or --api-key-file.";

/// Talk to a model in this terminal.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ChatArgs {
    /// The model to load: a directory, a .gguf file, a hub id[@revision] [default: demo].
    #[arg(long, value_name = "SOURCE", conflicts_with = "url")]
    model: Option<String>,
    /// An OpenAI-compatible server to talk to instead.
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// The model's name on that server [default: the first it lists].
    #[arg(long, value_name = "NAME", requires = "url")]
    name: Option<String>,
    /// A file whose first line is the key for that server.
    #[arg(long, value_name = "FILE", requires = "url")]
    api_key_file: Option<PathBuf>,
    /// What the model is told first.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// 0 always takes the likeliest token [default: the model's choice].
    #[arg(long, value_name = "T")]
    temperature: Option<f32>,
    /// Longest answer, in tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 512)]
    max_tokens: u32,
    #[command(flatten)]
    model_args: ModelArgs,
}

impl ChatArgs {
    pub(crate) fn run(self) -> Result<()> {
        anyhow::bail!("not wired yet: {self:?}")
    }
}
