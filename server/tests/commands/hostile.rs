//! Hostile checkpoints given to the real program: a clean refusal by file, in seconds and in little memory, and never a
//! panic or a kill. What weights and configurations can do is tried by the hundred in models/tests/checkpoint.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use passerelle_engine::clock::{Clock, SystemClock};
use serde_json::{Value, json};

use super::binary::{self, State};

const MOST_TIME: Duration = Duration::from_secs(5);
/// Beyond the files themselves.
const MOST_MEMORY_KIB: u64 = 200 << 10;

/// The demo with one file more or another: name, content, and what the refusal must name.
type Case = (&'static str, Vec<u8>, &'static str);

fn tokenizer() -> Value {
    let text = fs::read(binary::root().join("models/demo/final/tokenizer.json")).expect("part of the repository");
    serde_json::from_slice(&text).expect("JSON")
}

/// The demo's tokenizer with one part replaced.
fn with_part(pointer: &str, value: Value) -> Vec<u8> {
    let mut json = tokenizer();
    *json.pointer_mut(pointer).expect("a part of it") = value;
    json.to_string().into_bytes()
}

fn cases() -> Vec<Case> {
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    let doubling = json!({"type": "Sequence", "normalizers": vec![double; 30]});
    let deep = |open: &str, close: &str| (open.repeat(5_000) + &close.repeat(5_000)).into_bytes();
    let weights = fs::read(binary::root().join("models/demo/final/model.safetensors")).expect("part of the repository");
    let header = |len: u64| [&len.to_le_bytes()[..], &weights[8..1 << 16]].concat();
    vec![
        ("tokenizer.json", b"[".repeat(1 << 20), "tokenizer.json"),
        ("tokenizer.json", b"{\"model\":".repeat(1 << 18), "tokenizer.json"),
        ("tokenizer.json", with_part("/model/vocab", json!({"bomb": u32::MAX})), "tokenizer.json"),
        ("tokenizer.json", with_part("/normalizer", doubling), "tokenizer.json"),
        ("tokenizer.json", with_part("/model/merges", json!(["no such"])), "tokenizer.json"),
        ("tokenizer_config.json", b"{\"a\":".repeat(1 << 18), "tokenizer_config.json"),
        ("chat_template.jinja", deep("{% if 1 %}", "{% endif %}"), "chat_template.jinja"),
        ("chat_template.jinja", deep("{{ (", ") }}"), "chat_template.jinja"),
        ("chat_template.jinja", vec![b'x'; 2 << 20], "chat_template.jinja"),
        ("config.json", b"[".repeat(1 << 20), "config.json"),
        ("config.json", vec![b' '; (32 << 20) + 1], "config.json"),
        ("generation_config.json", b"{\"a\":".repeat(1 << 18), "generation_config.json"),
        ("model.safetensors", header(u64::MAX), "model.safetensors"),
        ("model.safetensors", header(1 << 40), "model.safetensors"),
        ("model.safetensors", weights[..weights.len() / 2].to_vec(), "model.safetensors"),
        ("modules.json", b"[{\"idx\":".repeat(1 << 18), "modules.json"),
    ]
}

fn write(folder: &Path, (file, content, _): &Case) {
    fs::create_dir(folder).expect("the folder is writable");
    for entry in fs::read_dir(binary::root().join("models/demo/final")).expect("part of the repository") {
        let path = entry.expect("it is readable").path();
        fs::copy(&path, folder.join(path.file_name().expect("it is a file"))).expect("the folder is writable");
    }
    fs::write(folder.join(file), content).expect("the folder is writable");
}

#[test]
fn a_hostile_checkpoint_is_refused_by_file_in_time_and_in_little_memory() {
    let state = State::new();
    for (index, case) in cases().iter().enumerate() {
        let folder = state.path().join(format!("checkpoint-{index}"));
        write(&folder, case);
        let size_kib = case.1.len() as u64 >> 10;
        let source = folder.to_str().expect("a plain path");
        let clock = SystemClock::new();
        let mut command = state.command(&["inspect", source]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs");
        let (output, peak_kib) = binary::watched(child);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(clock.now() < MOST_TIME, "case {index}, {}: {:?}", case.0, clock.now());
        assert_eq!(output.status.code(), Some(1), "case {index}, {}: {said}", case.0);
        assert!(said.contains(case.2) && said.len() < 2000, "case {index}, {}: {said}", case.0);
        assert!(peak_kib < size_kib + MOST_MEMORY_KIB, "case {index}, {}: {peak_kib} KiB", case.0);
    }
}
