//! What a checkpoint may hold and how it is described.

use std::ops::ControlFlow;

use passerelle_models::ops::Compute;
use passerelle_models::{
    CheckpointFiles, KvDtype, KvFormat, LoadOptions, LoadProgress, ModelError, StoredDtype, WeightDtype,
    demo_checkpoint, describe, load,
};
use serde_json::{Value, json};

use crate::tiny::{Entry, Tiny, config, encode, entries};

#[test]
fn fields_that_say_nothing_about_the_arithmetic_are_accepted() {
    let mut config = config();
    let exported = json!({
        "_name_or_path": "x", "auto_map": { "AutoModel": "evil.py" }, "attention_dropout": 0.1, "dtype": "bfloat16",
        "initializer_range": 0.02, "model_type": "llama", "pretraining_tp": 1, "sliding_window": null,
        "transformers_version": "4.40.0", "use_cache": true, "pad_token_id": -1, "torch_dtype": "float16",
        "rope_theta": 500_000, "rope_scaling": null, "layer_types": ["full_attention"], "hidden_act": "silu",
        "is_encoder_decoder": false, "head_dim": 4, "max_sequence_length": 32,
        "rope_interleaved": false, "use_mrope": false, "is_llama_config": true, "transformers.js_config": {}, "id2label": { "0": "LABEL_0" },
    });
    config.extend(exported.as_object().unwrap().clone());
    let mut tiny = Tiny::new();
    tiny.set_config(&config);
    tiny.load().unwrap();
}

#[test]
fn every_end_token_of_both_files_ends_an_answer() {
    let tiny = Tiny::with_field("eos_token_id", json!([3, 1])).with_file(
        "generation_config.json",
        json!({ "eos_token_id": [1, 5], "temperature": 0.6, "anything": null }).to_string(),
    );
    assert_eq!(tiny.load().unwrap().description.eos_token_ids, [3, 1, 5]);
    assert_eq!(Tiny::with_field("eos_token_id", json!(7)).load().unwrap().description.eos_token_ids, [7]);
    assert!(Tiny::new().load().unwrap().description.eos_token_ids.is_empty());
}

#[test]
fn a_nested_text_config_is_read() {
    let mut inner = config();
    inner.remove("architectures");
    let outer = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "x", "text_config": inner });
    let mut tiny = Tiny::new();
    tiny.set_config(outer.as_object().unwrap());
    assert_eq!(tiny.load().unwrap().description.hidden_size, 4);
}

#[test]
fn derived_tables_and_copies_of_a_tied_head_are_left_alone() {
    let surplus = |entries: &mut Vec<Entry>| {
        let end = entries[11].value["data_offsets"][1].clone();
        let value = json!({ "dtype": "F32", "shape": [0], "data_offsets": [end.clone(), end] });
        entries.push(Entry { name: "model.layers.0.self_attn.rotary_emb.inv_freq".into(), value });
    };
    let mut tiny = Tiny::with_entries(surplus);
    assert_eq!(tiny.load().unwrap().description.num_parameters, 188);
    let mut tied = config();
    tied.insert("tie_word_embeddings".into(), true.into());
    tiny.set_config(&tied);
    let description = tiny.load().unwrap().description;
    assert!(description.tied_embeddings);
    assert_eq!(description.num_parameters, 188 - 32);
}

#[test]
fn the_longest_sequence_follows_the_rope_scaling() {
    let reach = |scaling: Value| Tiny::with_field("rope_scaling", scaling).load().unwrap().description.max_position;
    assert_eq!(reach(json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 })), 128);
    assert_eq!(reach(json!({ "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8 })), 32);
    assert_eq!(reach(json!({ "type": "dynamic", "factor": 4.0 })), 32);
    assert_eq!(reach(json!({ "type": "linear", "factor": 4.0 })), 32);
}

#[test]
fn the_cache_is_as_wide_as_the_weights_unless_told_otherwise() {
    let cases = [
        (WeightDtype::Auto, KvDtype::Auto, KvFormat::F32),
        (WeightDtype::Bf16, KvDtype::Auto, KvFormat::Bf16),
        (WeightDtype::F16, KvDtype::F32, KvFormat::F32),
        (WeightDtype::F32, KvDtype::Bf16, KvFormat::Bf16),
        (WeightDtype::Auto, KvDtype::Int8, KvFormat::Int8),
    ];
    for (dtype, kv_dtype, expected) in cases {
        let options = LoadOptions { dtype, kv_dtype, ..LoadOptions::default() };
        let loaded = Tiny::new().load_with(&options).unwrap();
        assert_eq!(loaded.model.kv_cache_spec().format, expected, "{dtype:?} {kv_dtype:?}");
    }
}

#[test]
fn a_load_ends_where_its_watch_says_so() {
    let files = demo_checkpoint();
    let mut calls = 0;
    let mut watch = |_: LoadProgress| {
        calls += 1;
        if calls == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let ended = load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut watch).unwrap_err();
    let is_interrupted =
        matches!(&ended, ModelError::Io { source, .. } if source.kind() == std::io::ErrorKind::Interrupted);
    assert!(is_interrupted, "{ended}");
    assert_eq!(calls, 2);
}

#[test]
fn embedded_files_load_like_a_directory_and_describe_without_weights() {
    let (entries, len) = entries();
    let config: &'static [u8] = Value::Object(config()).to_string().into_bytes().leak();
    let weights: &'static [u8] = encode(&entries, len).leak();
    let files = CheckpointFiles::embedded("demo", vec![("config.json", config), ("model.safetensors", weights)].leak());
    let described = describe(&files).unwrap();
    assert_eq!((described.resident_bytes, described.stored_dtype), (None, StoredDtype::F32));
    assert_eq!(described.stored_bytes, len as u64);
    let mut done = Vec::new();
    let mut watch = |progress: LoadProgress| {
        done.push(progress);
        ControlFlow::Continue(())
    };
    let loaded = load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut watch).unwrap();
    assert!(loaded.description.resident_bytes.unwrap() >= described.stored_bytes);
    assert!(done.is_sorted_by_key(|progress| progress.bytes_done));
    assert_eq!(done.last().unwrap().bytes_done, len as u64);
    assert_eq!(files.names().unwrap(), ["config.json", "model.safetensors"]);
    assert!(files.read("config.json", 10).is_err());
    assert_eq!(files.read("absent.json", 10).unwrap(), None);
}
