//! Fields that exporters write into `config.json` and that say nothing about what a decoder computes.

use serde_json::{Value, json};

use super::Fields;
use crate::ModelError;

/// How the checkpoint was made, stored or is to be shown.
const PROVENANCE: &[&str] = &[
    "architectures",
    "attn_implementation",
    "auto_map", // names Python code, which is never run
    "dtype",    // the tensors themselves say what they are
    "finetuning_task",
    "gradient_checkpointing",
    "initializer_range",
    "is_llama_config",
    "model_type",
    "prefix",
    "problem_type",
    "task_specific_params",
    "tf_legacy_loss",
    "tokenizer_class",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
];

/// Training and classification.
const TRAINING: &[&str] = &[
    "attention_dropout",
    "attention_probs_dropout_prob",
    "embd_pdrop",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "label2id",
    "num_labels",
    "pruned_heads",
    "resid_pdrop",
    "tie_encoder_decoder",
];

/// What the Python objects return, and which tokens pad.
const RUNTIME: &[&str] = &[
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "is_decoder",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "unk_token_id",
    "use_cache",
];

/// Generation defaults in their old place. The server reads those it honours from `generation_config.json`, and a request
/// says how long and in how many beams it runs.
const GENERATION: &[&str] = &[
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "length_penalty",
    "max_length",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "temperature",
    "top_k",
    "top_p",
];

/// Whether no family's arithmetic depends on the field.
#[cfg(test)]
pub(crate) fn is_irrelevant(key: &str) -> bool {
    let neutral = neutral_generation();
    [PROVENANCE, TRAINING, RUNTIME, GENERATION].concat().contains(&key) || neutral.iter().any(|(name, _)| *name == key)
}

/// Generation defaults that change which tokens may come, at the values that change nothing.
fn neutral_generation() -> [(&'static str, Vec<Value>); 10] {
    let none = || vec![json!([])];
    [
        ("bad_words_ids", none()),
        ("begin_suppress_tokens", none()),
        ("suppress_tokens", none()),
        ("encoder_no_repeat_ngram_size", vec![json!(0)]),
        ("no_repeat_ngram_size", vec![json!(0)]),
        ("min_length", vec![json!(0)]),
        ("exponential_decay_length_penalty", none()),
        ("forced_bos_token_id", none()),
        ("repetition_penalty", vec![json!(1), json!(1.0)]),
        ("typical_p", vec![json!(1), json!(1.0)]),
    ]
}

/// Marks every irrelevant field as read, and checks those that are harmless at one value only.
pub(super) fn skip(fields: &mut Fields<'_>) -> Result<(), ModelError> {
    for keys in [PROVENANCE, TRAINING, RUNTIME, GENERATION] {
        fields.ignore(keys);
    }
    // At the last token of the longest answer, which the limit of a request cuts anyway.
    fields.ignore(&["forced_eos_token_id"]);
    for (key, neutral) in neutral_generation() {
        fields.neutral(key, &neutral, "it changes what the model generates; set it in the request, or remove it")?;
    }
    let off = [Value::Bool(false)];
    fields.neutral("is_encoder_decoder", &off, "only decoders and encoders on their own are served")?;
    fields.neutral("add_cross_attention", &off, "only models without cross-attention are served")
}
