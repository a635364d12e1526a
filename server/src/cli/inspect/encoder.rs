//! What an encoder's checkpoint is.

use anyhow::Result;
use passerelle::config::ByteSize;
use passerelle::text::TextModel;
use passerelle_models::{EncoderDescription, EncoderOutput};
use serde_json::{Value, json};

use crate::cli::output;

pub(super) fn print(is: &EncoderDescription, text: &TextModel) -> Result<()> {
    let model = &is.model;
    let mut lines = vec![
        ("family", format!("{} ({})", model.family, model.architecture)),
        ("parameters", model.num_parameters.to_string()),
        ("stored as", format!("{}, {}", model.stored_dtype, ByteSize(model.stored_bytes))),
        ("context", format!("{} tokens", model.max_position)),
        ("vocabulary", format!("{} tokens", model.vocab_size)),
        ("layers", format!("{}, {} wide", model.num_layers, model.hidden_size)),
    ];
    lines.extend(model.layer_runs.iter().map(|run| ("", format!("{} x {}", run.count, run.layer))));
    lines.push(("heads", format!("{}, {} wide", model.num_heads, model.head_dim)));
    lines.push(("memory", format!("{} of weights as stored", ByteSize(model.stored_bytes))));
    match &is.output {
        EncoderOutput::Embedding(embedding) => {
            let length = if embedding.normalized { ", of length 1" } else { "" };
            lines.push(("gives", format!("embeddings of {} elements{length}", embedding.dimensions)));
            let names: Vec<&str> = embedding.prompts.keys().map(String::as_str).collect();
            lines.push(("prompts", if names.is_empty() { "none".to_owned() } else { names.join(", ") }));
        }
        EncoderOutput::Scores(scores) => {
            lines.push(("gives", format!("{:?} of {}", scores.activation, scores.labels.join(", "))));
        }
    }
    lines.push(("tokenizer", super::tokenizer(text)));
    lines.iter().try_for_each(|(what, value)| output::line(format_args!("{what:<12}{value}")))
}

pub(super) fn as_json(is: &EncoderDescription, text: &TextModel) -> Value {
    let model = &is.model;
    let gives = match &is.output {
        EncoderOutput::Embedding(embedding) => json!({
            "embedding_dimensions": embedding.dimensions,
            "normalized": embedding.normalized,
            "prompts": embedding.prompts,
            "default_prompt": embedding.default_prompt,
        }),
        EncoderOutput::Scores(scores) => json!({ "labels": scores.labels }),
    };
    json!({
        "family": model.family,
        "architecture": model.architecture,
        "num_parameters": model.num_parameters,
        "stored_dtype": model.stored_dtype.to_string(),
        "stored_bytes": model.stored_bytes,
        "max_position": model.max_position,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "num_layers": model.num_layers,
        "layer_runs": super::runs_json(&model.layer_runs),
        "num_heads": model.num_heads,
        "head_dim": model.head_dim,
        "gives": gives,
        "tokenizer": super::tokenizer_json(text),
    })
}
