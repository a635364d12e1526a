use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::StoredDtype;
use crate::config::{LayerSpec, PositionSpec, irrelevant};
use crate::weights::CheckpointFiles;

/// Fields that one family reads past, because its implementation does: each says why in the family's file.
const IGNORED: &[(&str, &str)] = &[("BloomForCausalLM", "pretraining_tp")];

fn decoder(config: &Value) -> Result<DecoderSpec, ModelError> {
    let bytes: &'static [u8] = config.to_string().into_bytes().leak();
    let files = CheckpointFiles::embedded("fixture", vec![("config.json", bytes)].leak());
    let file = ConfigFile::read(&files)?;
    let architecture = find(&file)?;
    file.decoder(architecture.read, architecture.other_inputs)
}

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).join("config.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn fixtures() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let folders = entries.filter(|entry| entry.path().join("config.json").is_file());
    folders.map(|entry| entry.file_name().into_string().unwrap()).map(|name| (name.clone(), fixture(&name))).collect()
}

fn with(name: &str, changes: Value) -> Result<DecoderSpec, ModelError> {
    let mut config = fixture(name);
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    decoder(&config)
}

fn refused(name: &str, key: &str, value: Value) {
    let error = with(name, Value::Object(Map::from_iter([(key.to_owned(), value)]))).unwrap_err().to_string();
    assert!(error.contains(&format!(": {key}")), "{name}: {error}");
}

/// JSON pointers to every field, also those of objects within, except what `known` tells to mean nothing.
fn pointers(object: &Map<String, Value>, prefix: &str, known: &dyn Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (key, value) in object.iter().filter(|(key, _)| !known(key)) {
        let pointer = format!("{prefix}/{key}");
        found.extend(value.as_object().map(|inner| pointers(inner, &pointer, known)).unwrap_or_default());
        found.push(pointer);
    }
    found
}

/// A field that is read cannot be an object of nonsense. One that can is not read, and must be known to mean nothing.
#[test]
fn every_field_of_every_fixture_is_read_or_known_to_be_irrelevant() {
    let fixtures = fixtures();
    assert!(fixtures.len() >= 20, "{} fixtures", fixtures.len());
    for (name, config) in fixtures {
        decoder(&config).unwrap();
        let class = config["architectures"][0].as_str().unwrap();
        let architecture = ARCHITECTURES.iter().find(|architecture| architecture.name == class).unwrap();
        let known = |key: &str| {
            let other_input = architecture.other_inputs.contains(&key);
            other_input || irrelevant::is_irrelevant(key) || IGNORED.contains(&(class, key))
        };
        for pointer in pointers(config.as_object().unwrap(), "", &known) {
            let mut damaged = config.clone();
            *damaged.pointer_mut(&pointer).unwrap() = json!({ "nonsense": true });
            assert!(decoder(&damaged).is_err(), "{name}: {pointer} is not read");
        }
        let mut unknown = config.clone();
        unknown["a_field_of_tomorrow"] = json!(1);
        let error = decoder(&unknown).unwrap_err().to_string();
        assert!(error.contains("a_field_of_tomorrow"), "{name}: {error}");
    }
}

#[test]
fn what_a_family_cannot_honour_is_refused_by_name() {
    refused("mistral_window", "layer_types", json!(["full_attention", "sliding_attention", "sliding_attention"]));
    refused("mistral_window", "sliding_window", json!(0));
    refused("qwen3", "layer_types", json!(["full_attention", "sliding_attention", "full_attention"]));
    refused("qwen3", "layer_types", json!(["full_attention"]));
    refused("olmo2", "mlp_bias", json!(true));
    refused("apertus", "hidden_act", json!("silu"));
    refused("apertus", "post_norm", json!(true));
    refused("apertus", "qk_norm", json!(false));
    refused("apertus", "rope_scaling", json!({ "llama_4_scaling_beta": 0.1 }));
    let tied = with("apertus_split", json!({ "tie_word_embeddings": true })).unwrap_err().to_string();
    assert!(tied.contains("output_vocab_size: a head tied"), "{tied}");
    refused("apertus_split", "output_vocab_size", json!(212));
    refused("apertus_split", "eos_token_id", json!(131));
    refused("nemotron", "hidden_act", json!("gelu"));
    refused("smollm3", "no_rope_layers", json!([1, 2, 1]));
    refused("smollm3", "no_rope_layers", json!([1]));
    refused("bloom", "apply_residual_connection_post_layernorm", json!(true));
    refused("bloom", "n_embed", json!(64));
    refused("bloom", "n_head", json!(5));
    refused("bloom", "n_head", json!(48));
    refused("bloom", "n_inner", json!(100));
}

/// Where a missing field would mean a whole scaling, or another default than this reader's.
#[test]
fn what_implementations_would_fill_in_must_be_written() {
    for (name, key) in [
        ("apertus", "rope_scaling"),
        ("ministral3", "rope_parameters"),
        ("ministral3", "head_dim"),
        ("qwen3", "head_dim"),
        ("mistral", "sliding_window"),
    ] {
        let mut config = fixture(name);
        config.as_object_mut().unwrap().remove(key);
        let error = decoder(&config).unwrap_err().to_string();
        assert!(error.contains("missing"), "{name}, {key}: {error}");
    }
}

#[test]
fn a_well_known_class_is_refused_with_what_its_layers_need() {
    for (class, piece) in [
        ("NemotronHForCausalLM", "recurrent state"),
        ("DeepseekV3ForCausalLM", "latent attention"),
        ("Glm4MoeLiteForCausalLM", "latent attention"),
        ("Glm4MoeForCausalLM", "mixtures of experts"),
        ("Gemma2ForCausalLM", "soft-caps"),
    ] {
        let error = decoder(&json!({ "architectures": [class] })).unwrap_err().to_string();
        assert!(error.contains(class) && error.contains(piece) && error.contains("vLLM"), "{error}");
    }
}

#[test]
fn windows_follow_each_familys_own_rule() {
    let windows = |spec: DecoderSpec| -> Vec<_> { spec.layers.iter().map(LayerSpec::window).collect() };
    assert_eq!(windows(with("mistral_window", json!({})).unwrap()), [Some(9); 3]);
    assert_eq!(windows(with("mistral_window", json!({ "sliding_window": null })).unwrap()), [None; 3]);
    assert_eq!(windows(with("ministral", json!({})).unwrap()), [Some(17), None, Some(17)]);
    assert_eq!(windows(with("ministral", json!({ "layer_types": null })).unwrap()), [Some(17); 3]);
    let by_depth = json!({ "layer_types": null, "max_window_layers": 2 });
    assert_eq!(windows(with("qwen3_windows", by_depth).unwrap()), [None, None, Some(20)]);
    let by_list = json!({ "layer_types": ["sliding_attention", "full_attention", "full_attention"] });
    assert_eq!(windows(with("qwen3_windows", by_list).unwrap()), [Some(20), None, None]);
    let switched_off = json!({ "use_sliding_window": false, "layer_types": null });
    assert_eq!(windows(with("qwen3_windows", switched_off).unwrap()), [None; 3]);
    let unencoded = json!({ "use_sliding_window": true, "sliding_window": 7, "layer_types": null });
    assert_eq!(windows(with("smollm3", unencoded).unwrap()), [None, Some(7), None]);
}

#[test]
fn every_fourth_layer_of_smollm3_lacks_positions_unless_a_list_says_which() {
    let unencoded = |changes| -> Vec<_> {
        let layers = with("smollm3", changes).unwrap().layers;
        layers.iter().map(|layer| layer.attention().unwrap().position == PositionSpec::Unencoded).collect()
    };
    let four = json!({ "num_hidden_layers": 4, "layer_types": null, "no_rope_layers": null });
    assert_eq!(unencoded(four), [false, false, false, true]);
    let two = json!({ "no_rope_layer_interval": 2, "layer_types": null, "no_rope_layers": null });
    assert_eq!(unencoded(two), [false, true, false]);
}

/// Fields as the published checkpoints write them.
#[test]
fn published_configurations_are_accepted() {
    let bloom = json!({
        "attention_softmax_in_fp32": true, "bias_dropout_fusion": true, "masked_softmax_fusion": true, "n_inner": null,
        "offset_alibi": 100, "pretraining_tp": 4, "seq_length": 1024, "skip_bias_add": true, "skip_bias_add_qkv": false,
        "unk_token_id": 0, "n_embed": 48, "num_attention_heads": 6,
    });
    assert_eq!(with("bloom", bloom).unwrap().max_position, 1024);
    let apertus = json!({ "mlp_bias": false, "post_norm": false, "qk_norm": true, "hidden_dropout": 0.0 });
    with("apertus", apertus).unwrap();
    let smollm3 = json!({ "pretraining_tp": 2, "max_window_layers": 28, "rope_scaling": null, "sliding_window": null });
    with("smollm3", smollm3).unwrap();
    let nemotron = json!({ "rope_parameters": null, "partial_rotary_factor": 0.5, "rope_theta": 2_000_000.0 });
    with("nemotron", nemotron).unwrap();
}

/// The part of the README about models.
fn readme() -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
    readme.split("## Models").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap().to_owned()
}

/// What stands between backquotes, sorted.
fn quoted(cell: &str) -> Vec<String> {
    let mut quoted: Vec<_> = cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    quoted.sort_unstable();
    quoted
}

#[test]
fn the_readme_names_every_format_with_its_types_and_architectures() {
    let readme = readme();
    let row = |begin: &str| -> Vec<&str> {
        let line = readme.lines().find(|line| line.starts_with(begin)).unwrap();
        line.trim_matches('|').split('|').collect()
    };
    let names = |keep: &dyn Fn(&StoredDtype) -> bool| {
        let mut names: Vec<_> = StoredDtype::ALL.into_iter().filter(keep).map(|dtype| dtype.to_string()).collect();
        names.sort_unstable();
        names
    };
    let [folder, quantised, gguf] = ["| safetensors, a folder", "| safetensors, quantised", "| GGUF"].map(row);
    assert_eq!(quoted(folder[1]), names(&|dtype| !dtype.is_quantised()));
    assert_eq!(quoted(quantised[1]), names(&|dtype| matches!(dtype, StoredDtype::Q8_0 | StoredDtype::Q4_0)));
    assert_eq!(quoted(gguf[1]), names(&|_| true));
    assert_eq!(quoted(gguf[2]), gguf::architectures());
    for row in [folder, quantised, gguf] {
        assert!(row.len() == 4 && !row[3].trim().is_empty(), "{row:?} names no model");
    }
}

/// A row for each class or several, with what it adds and published models that are of it.
#[test]
fn every_class_of_the_readme_names_models_that_are_of_it() {
    let readme = readme();
    let rows = readme.lines().filter(|line| line.starts_with("| `"));
    let models: Vec<_> = rows.map(|row| row.trim_matches('|').split('|').nth(2).map(str::trim)).collect();
    assert!(models.len() >= 15 && models.iter().all(|models| models.is_some_and(|models| !models.is_empty())));
}

#[test]
fn the_readme_names_every_class_that_is_served_and_no_other() {
    let table = readme();
    let mut named: Vec<&str> = table
        .split('`')
        .filter(|text| text.ends_with("ForCausalLM") || text.ends_with("ForConditionalGeneration"))
        .collect();
    named.sort_unstable();
    named.dedup();
    let mut served: Vec<&str> = ARCHITECTURES.iter().map(|architecture| architecture.name).collect();
    served.sort_unstable();
    assert_eq!(named, served);
}
