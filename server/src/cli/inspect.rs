mod encoder;

use anyhow::Result;
use clap::Args;
use passerelle::config::{ByteSize, Config, Environment, Written, WrittenServer};
use passerelle_models::{CheckpointKind, ModelDescription, checkpoint_kind, describe_encoder};
use serde_json::{Value, json};

use super::output::{self, OutputArgs};
use crate::serve::find_files;

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
        let server = WrittenServer { offline: self.offline.then_some(true), ..WrittenServer::default() };
        let written = Written { server, ..Written::default() };
        let config = Config::check(written, &Environment::read())?;
        let files = find_files(&self.source, &config.hub)?;
        if checkpoint_kind(&files)? == CheckpointKind::Encoder {
            let description = describe_encoder(&files)?;
            return if self.output.json {
                output::json(&encoder::as_json(&description))
            } else {
                encoder::print(&description)
            };
        }
        let description = passerelle_models::describe(&files)?;
        if self.output.json { output::json(&as_json(&description)) } else { print(&description) }
    }
}

fn print(is: &ModelDescription) -> Result<()> {
    let heads = format!("{} for queries, {} for keys and values, {} wide", is.num_heads, is.num_kv_heads, is.head_dim);
    let embeddings = if is.tied_embeddings { "tied" } else { "separate" };
    let lines = [
        ("family", format!("{} ({})", is.family, is.architecture)),
        ("parameters", is.num_parameters.to_string()),
        ("stored as", format!("{}, {}", is.stored_dtype, ByteSize(is.stored_bytes))),
        ("context", format!("{} tokens", is.max_position)),
        ("vocabulary", format!("{} tokens, {embeddings} embeddings", is.vocab_size)),
        ("layers", format!("{}, {} wide", is.num_layers, is.hidden_size)),
        ("heads", heads),
        ("KV cache", format!("{} a token in bf16", ByteSize(kv_bytes_per_token(is)))),
        ("ends with", format!("{:?}", is.eos_token_ids)),
    ];
    lines.iter().try_for_each(|(what, value)| output::line(format_args!("{what:<12}{value}")))
}

fn as_json(is: &ModelDescription) -> Value {
    json!({
        "family": is.family,
        "architecture": is.architecture,
        "num_parameters": is.num_parameters,
        "stored_dtype": is.stored_dtype.to_string(),
        "stored_bytes": is.stored_bytes,
        "max_position": is.max_position,
        "vocab_size": is.vocab_size,
        "hidden_size": is.hidden_size,
        "num_layers": is.num_layers,
        "num_heads": is.num_heads,
        "num_kv_heads": is.num_kv_heads,
        "head_dim": is.head_dim,
        "tied_embeddings": is.tied_embeddings,
        "bos_token_id": is.bos_token_id,
        "eos_token_ids": is.eos_token_ids,
        "kv_bytes_per_token_bf16": kv_bytes_per_token(is),
    })
}

fn kv_bytes_per_token(is: &ModelDescription) -> u64 {
    const K_AND_V: usize = 2;
    const BF16_BYTES: usize = 2;
    (K_AND_V * is.num_layers * is.num_kv_heads * is.head_dim * BF16_BYTES) as u64
}
