mod encoder;

use std::ops::ControlFlow;

use anyhow::Result;
use clap::Args;
use passerelle::config::{ByteSize, Config, Environment, ModelConfig, Written, WrittenServer};
use passerelle::hub::Wanted;
use passerelle::text::TextModel;
use passerelle_models::{
    CheckpointFiles, CheckpointKind, LayerRun, ModelDescription, ModelDigest, checkpoint_kind, describe_encoder,
};
use serde_json::{Value, json};

use super::output::{self, OutputArgs};
use crate::serve::{KeptHashes, find_files, load_text};

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
    /// Leave the digest out, for which every byte of a checkpoint is read that was not hashed before.
    #[arg(long)]
    no_digest: bool,
    #[command(flatten)]
    output: OutputArgs,
}

impl InspectArgs {
    pub(crate) fn run(self) -> Result<()> {
        let server = WrittenServer { offline: self.offline.then_some(true), ..WrittenServer::default() };
        let written = Written { server, ..Written::default() };
        let config = Config::check(written, &Environment::read())?;
        let files = find_files(&self.source, Wanted::CheckpointWithoutTokenizer, &config.hub)?;
        let model = ModelConfig::found("inspected".to_owned(), self.source, &config.engine);
        let text = || load_text(&model, &files, &config.hub);
        // Last: what is refused need not be read whole.
        let digest_of_all = || (!self.no_digest).then(|| digest(&files, &config)).transpose();
        if checkpoint_kind(&files)? == CheckpointKind::Encoder {
            let (is, text, digest) = (describe_encoder(&files)?, text()?, digest_of_all()?);
            return if self.output.json {
                output::json(&with_digest(encoder::as_json(&is, &text), digest))
            } else {
                encoder::print(&is, &text)?;
                print_digest(digest)
            };
        }
        let (is, text, digest) = (passerelle_models::describe(&files)?, text()?, digest_of_all()?);
        if self.output.json {
            return output::json(&with_digest(as_json(&is, &text), digest));
        }
        print(&is, &text)?;
        print_digest(digest)
    }
}

/// With what the server's data directory knows of the files.
fn digest(files: &CheckpointFiles, config: &Config) -> Result<ModelDigest> {
    let hashes = KeptHashes::open(&config.server.data_dir);
    Ok(hashes.digest_of(files, &|_| ControlFlow::Continue(()))?)
}

fn print_digest(digest: Option<ModelDigest>) -> Result<()> {
    digest.map_or(Ok(()), |digest| output::line(format_args!("{:<12}{digest}", "digest")))
}

fn with_digest(mut described: Value, digest: Option<ModelDigest>) -> Value {
    if let Some(digest) = digest {
        described["digest"] = json!(digest);
    }
    described
}

fn print(is: &ModelDescription, text: &TextModel) -> Result<()> {
    let heads = format!("{} for queries, {} for keys and values, {} wide", is.num_heads, is.num_kv_heads, is.head_dim);
    let embeddings = if is.tied_embeddings { "tied" } else { "separate" };
    let memory = Memory::of(is);
    let mut lines = vec![
        ("family", format!("{} ({})", is.family, is.architecture)),
        ("parameters", is.num_parameters.to_string()),
        ("stored as", format!("{}, {}", is.stored_dtype, ByteSize(is.stored_bytes))),
        ("context", format!("{} tokens", is.max_position)),
        ("vocabulary", format!("{} tokens, {embeddings} embeddings", is.vocab_size)),
        ("layers", format!("{}, {} wide", is.num_layers, is.hidden_size)),
    ];
    lines.extend(is.layer_runs.iter().map(|LayerRun { count, layer }| ("", format!("{count} x {layer}"))));
    lines.extend([
        ("heads", heads),
        ("memory", format!("{} of weights as stored; KV cache {} a token in bf16", memory.weights, memory.kv_token)),
        ("", format!("{} with one sequence of the whole context", memory.with_whole_context)),
        ("ends with", format!("{:?}", is.eos_token_ids)),
        ("tokenizer", tokenizer(text)),
        ("template", template(text)),
    ]);
    lines.iter().try_for_each(|(what, value)| output::line(format_args!("{what:<12}{value}")))
}

fn tokenizer(text: &TextModel) -> String {
    if text.tokenizer.is_absent() {
        return "none: prompts are token ids alone; --tokenizer SOURCE gives one".to_owned();
    }
    let special = text.tokenizer.special_strings().iter().count();
    format!("{} tokens, {special} of them special", text.tokenizer.vocab_size())
}

fn template(text: &TextModel) -> String {
    if text.template.is_none() {
        return "none: completions alone; --chat-template FILE gives one".to_owned();
    }
    let reasoning =
        text.answers.reasoning.map_or("no reasoning".to_owned(), |is| format!("reasoning as {}", is.name()));
    format!("yes; tool calls as {}, {reasoning}", text.answers.tools.name())
}

fn as_json(is: &ModelDescription, text: &TextModel) -> Value {
    let memory = Memory::of(is);
    let template = text.template.as_ref().map(|_| {
        json!({"tool_calls": text.answers.tools.name(), "reasoning": text.answers.reasoning.map(|format| format.name())})
    });
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
        "layer_runs": runs_json(&is.layer_runs),
        "num_heads": is.num_heads,
        "num_kv_heads": is.num_kv_heads,
        "head_dim": is.head_dim,
        "tied_embeddings": is.tied_embeddings,
        "bos_token_id": is.bos_token_id,
        "eos_token_ids": is.eos_token_ids,
        "kv_bytes_per_token_bf16": memory.kv_token.0,
        "bytes_with_whole_context": memory.with_whole_context.0,
        "tokenizer": tokenizer_json(text),
        "chat_template": template,
    })
}

/// `null` without one.
fn tokenizer_json(text: &TextModel) -> Value {
    if text.tokenizer.is_absent() { Value::Null } else { json!({"vocab_size": text.tokenizer.vocab_size()}) }
}

fn runs_json(runs: &[LayerRun]) -> Vec<Value> {
    runs.iter().map(|run| json!({"count": run.count, "layer": run.layer})).collect()
}

/// What serving takes, with weights as stored and keys and values in bf16.
struct Memory {
    weights: ByteSize,
    kv_token: ByteSize,
    with_whole_context: ByteSize,
}

impl Memory {
    fn of(is: &ModelDescription) -> Self {
        const K_AND_V: usize = 2;
        const BF16_BYTES: usize = 2;
        let kv_token = (K_AND_V * is.num_layers * is.num_kv_heads * is.head_dim * BF16_BYTES) as u64;
        let with_whole_context = is.stored_bytes.saturating_add(kv_token.saturating_mul(is.max_position as u64));
        Self {
            weights: ByteSize(is.stored_bytes),
            kv_token: ByteSize(kv_token),
            with_whole_context: ByteSize(with_whole_context),
        }
    }
}
