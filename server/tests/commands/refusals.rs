//! A checkpoint that cannot be served is one clear error before anything listens.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::binary::{self, State};

/// A copy of the demo that a test may break.
fn copy_of_demo(state: &State) -> PathBuf {
    let (from, to) = (binary::root().join("models/demo/final"), state.path().join("broken"));
    fs::create_dir(&to).expect("the folder is writable");
    for entry in fs::read_dir(from).expect("the demo is part of the repository") {
        let path = entry.expect("it is readable").path();
        fs::copy(&path, to.join(path.file_name().expect("it is a file"))).expect("the folder is writable");
    }
    to
}

fn set(file: &Path, field: &str, value: Value) {
    let text = fs::read_to_string(file).expect("it is there");
    let mut config: Value = serde_json::from_str(&text).expect("it is JSON");
    config[field] = value;
    fs::write(file, config.to_string()).expect("the folder is writable");
}

/// What is said of the demo after `break_it`.
fn refusal(break_it: impl FnOnce(&Path)) -> String {
    let state = State::new();
    let checkpoint = copy_of_demo(&state);
    break_it(&checkpoint);
    let output = state.command(&["serve", "--listen", "127.0.0.1:0", "--model", "./broken"]).output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(output.stdout.is_empty(), "nothing may look ready");
    assert_eq!(said.lines().filter(|line| line.starts_with("error:")).count(), 1, "{said}");
    said
}

#[test]
fn a_missing_tokenizer_is_named() {
    let said = refusal(|folder| fs::remove_file(folder.join("tokenizer.json")).expect("it is there"));
    assert!(said.contains("tokenizer.json"), "{said}");
}

#[test]
fn a_config_field_that_is_not_honoured_is_named() {
    let said = refusal(|folder| set(&folder.join("config.json"), "hidden_act", json!("softermax")));
    assert!(said.contains("config.json") && said.contains("hidden_act"), "{said}");
    let said = refusal(|folder| set(&folder.join("generation_config.json"), "top_p", json!(7)));
    assert!(said.contains("generation_config.json") && said.contains("top_p"), "{said}");
}

#[test]
fn truncated_weights_are_named() {
    let said = refusal(|folder| {
        let weights = fs::OpenOptions::new().write(true).open(folder.join("model.safetensors")).expect("it is there");
        weights.set_len(1_000_000).expect("the folder is writable");
    });
    assert!(said.contains("model.safetensors"), "{said}");
}

#[test]
fn a_device_that_this_build_cannot_use_is_refused_and_never_replaced() {
    for device in ["cuda:0", "MIG-5f36b2a0", "rocm:1"] {
        let output = State::new().command(&["serve", "--listen", "127.0.0.1:0", "--device", device]).output();
        let output = output.expect("it runs");
        let said = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(output.stdout.is_empty(), "nothing may look ready");
        assert!(said.lines().any(|line| line.contains(device) && line.contains("use cpu")), "{said}");
    }
}
