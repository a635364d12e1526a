use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::config::{Activation, FfnSpec, GateActivation, ScoreActivation, irrelevant};
use crate::weights::CheckpointFiles;

/// Written by exporters and read past: each says why in its family's file.
const IGNORED: &[&str] = &[
    "bos_token_id",
    "classifier_activation",
    "classifier_bias",
    "classifier_dropout",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "eos_token_id",
    "initializer_cutoff_factor",
    "mlp_dropout",
    "pad_token_id",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "tie_word_embeddings",
];

fn encoder(config: &Value) -> Result<EncoderSpec, ModelError> {
    let bytes: &'static [u8] = config.to_string().into_bytes().leak();
    let files = CheckpointFiles::embedded("fixture", vec![("config.json", bytes)].leak());
    Ok(read_encoder(&ConfigFile::read(&files)?)?.1)
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoders")
}

fn fixture(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folder().join(name).join("config.json")).unwrap()).unwrap()
}

fn with(name: &str, changes: Value) -> Result<EncoderSpec, ModelError> {
    let mut config = fixture(name);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    encoder(&config)
}

fn refused(name: &str, key: &str, value: Value) {
    let error = with(name, Value::Object(Map::from_iter([(key.to_owned(), value)]))).unwrap_err().to_string();
    assert!(error.contains(&format!(": {key}")), "{name}: {error}");
}

/// A field that is read cannot be an object of nonsense. One that can is not read, and must be known to mean nothing.
#[test]
fn every_field_of_every_encoder_is_read_or_known_to_be_irrelevant() {
    let names: Vec<_> = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(names.len() >= 8, "{} fixtures", names.len());
    for name in names {
        let name = name.to_str().unwrap();
        let config = fixture(name);
        encoder(&config).unwrap();
        let is_classifier = name.contains("classifier") || name.contains("reranker");
        for key in config.as_object().unwrap().keys() {
            let labels = ["id2label", "problem_type"].contains(&key.as_str());
            let ignored =
                IGNORED.contains(&key.as_str()) || irrelevant::is_irrelevant(key) || key == "position_embedding_type";
            if ignored && !(labels && is_classifier) {
                continue;
            }
            let mut damaged = config.clone();
            damaged[key] = json!({ "nonsense": true });
            assert!(encoder(&damaged).is_err(), "{name}: {key} is not read");
        }
        let mut unknown = config.clone();
        unknown["a_field_of_tomorrow"] = json!(1);
        let error = encoder(&unknown).unwrap_err().to_string();
        assert!(error.contains("a_field_of_tomorrow"), "{name}: {error}");
    }
}

#[test]
fn what_an_encoder_cannot_honour_is_refused_by_name() {
    refused("bert", "position_embedding_type", json!("relative_key"));
    refused("bert", "is_decoder", json!(true));
    refused("bert", "hidden_act", json!("quick_gelu"));
    refused("bert", "num_attention_heads", json!(5));
    refused("bert", "quantization_config", json!({ "quant_method": "gptq" }));
    refused("xlm_roberta", "max_position_embeddings", json!(2));
    refused("camembert_classifier", "id2label", json!({}));
    refused("camembert_classifier", "num_labels", json!(2));
    refused("camembert_classifier", "sbert_ce_default_activation_function", json!("torch.nn.ReLU"));
    refused("modernbert", "layer_types", json!(["full_attention"]));
    refused("modernbert", "hidden_activation", json!("relu"));
    refused("modernbert_classifier", "classifier_pooling", json!("max"));
    refused("qwen3_embedding", "is_causal", json!(false));
    refused("bert", "architectures", json!(["NomicBertModel"]));
}

#[test]
fn heads_that_no_step_can_take_are_refused_when_they_are_read() {
    for name in ["bert", "modernbert"] {
        refused(name, "num_attention_heads", json!(48));
    }
    let heads_of_three = json!({ "num_attention_heads": 16 });
    let odd = with("modernbert", heads_of_three.clone()).unwrap_err().to_string();
    assert!(odd.contains(": head_dim: 3 rotated elements"), "{odd}");
    // Nothing turns.
    with("bert", heads_of_three).unwrap();
}

#[test]
fn roberta_counts_its_positions_from_after_the_padding_token() {
    let spec = with("xlm_roberta", json!({})).unwrap();
    assert_eq!((spec.max_position, spec.position_table.unwrap().first), (126, 2));
    let spec = with("camembert_classifier", json!({})).unwrap();
    assert_eq!((spec.max_position, spec.position_table.unwrap().first), (123, 5));
    assert_eq!(with("bert", json!({})).unwrap().position_table.unwrap().first, 0);
}

#[test]
fn layers_of_modernbert_alternate_in_both_key_styles() {
    let windows = |changes| -> Vec<_> {
        let layers = with("modernbert", changes).unwrap().layers;
        layers.iter().map(|layer| layer.window()).collect()
    };
    let alternating = [None, Some(5), Some(5), None];
    assert_eq!(windows(json!({})), alternating);
    assert_eq!(windows(json!({ "layer_types": null })), alternating);
    let every_second = json!({ "layer_types": null, "global_attn_every_n_layers": 2 });
    assert_eq!(windows(every_second), [None, Some(5), None, Some(5)]);
}

#[test]
fn activations_are_those_that_the_file_names() {
    let of = |name| with("bert", json!({ "hidden_act": name })).unwrap().layers[0].ffn.clone();
    let is = |ffn, expected| matches!(ffn, FfnSpec::Plain { activation, .. } if activation == expected);
    assert!(is(of("gelu"), Activation::GeluErf) && is(of("gelu_new"), Activation::GeluTanh));
    assert!(is(of("relu"), Activation::Relu) && is(of("silu"), Activation::Silu));
    let gated = with("modernbert", json!({ "hidden_activation": "silu" })).unwrap().layers[0].ffn.clone();
    assert!(matches!(gated, FfnSpec::Gated { activation: GateActivation::Silu, .. }));
}

#[test]
fn scores_are_what_the_file_says_they_are() {
    let of = |name, changes| with(name, changes).unwrap().classifier.unwrap().scores;
    assert_eq!(of("bert_reranker", json!({})), ScoreActivation::Sigmoid);
    assert_eq!(of("camembert_classifier", json!({})), ScoreActivation::Sigmoid);
    assert_eq!(of("modernbert_classifier", json!({})), ScoreActivation::Softmax);
    let named =
        json!({ "sentence_transformers": { "activation_fn": "torch.nn.modules.linear.Identity", "version": "5" } });
    assert_eq!(of("bert_reranker", named), ScoreActivation::Identity);
    let old = json!({ "sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity" });
    assert_eq!(of("bert_reranker", old), ScoreActivation::Identity);
}

#[test]
fn a_function_of_scores_is_refused_with_those_that_are_read() {
    let named = |function: &str| {
        let function = format!("torch.nn.{function}");
        with("camembert_classifier", json!({ "sbert_ce_default_activation_function": function }))
    };
    let refusal = named("ReLU").unwrap_err().to_string();
    let supported: Vec<_> = refusal.rsplit("supported: ").next().unwrap().split(", ").collect();
    assert_eq!(supported, ["Identity", "Sigmoid", "Softmax"]);
    supported.into_iter().for_each(|function| drop(named(function).unwrap()));
}

/// Fields as published checkpoints write them.
#[test]
fn published_configurations_are_accepted() {
    let multilingual = json!({
        "directionality": "bidi", "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3,
        "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "position_embedding_type": "absolute",
        "gradient_checkpointing": false, "classifier_dropout": null, "output_past": true,
    });
    with("bert", multilingual).unwrap();
    let modern = json!({
        "reference_compile": true, "repad_logits_with_grad": false, "layer_norm_eps": 1e-5, "rope_parameters": null,
        "position_embedding_type": "absolute", "global_rope_theta": 160000.0, "local_rope_theta": 10000.0,
        "global_attn_every_n_layers": 3, "layer_types": null,
    });
    with("modernbert", modern).unwrap();
    let masked = json!({ "architectures": ["XLMRobertaForMaskedLM"] });
    with("xlm_roberta", masked).unwrap();
}

#[test]
fn the_readme_names_every_class_of_encoder_and_no_other() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    let table = readme.split("## Models").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
    let is_class = |text: &&str| {
        let endings = ["Model", "ForMaskedLM", "ForSequenceClassification"];
        endings.iter().any(|ending| text.len() > ending.len() && text.ends_with(ending))
    };
    let mut named: Vec<&str> = table.split('`').filter(is_class).collect();
    named.sort_unstable();
    named.dedup();
    let mut served: Vec<&str> = ENCODERS.iter().map(|encoder| encoder.name).collect();
    served.sort_unstable();
    assert_eq!(named, served);
}
