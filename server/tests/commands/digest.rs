//! One digest says which checkpoint it is, wherever it is named.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::binary::{self, Served, State, get_as, open_as};

fn demo() -> std::path::PathBuf {
    binary::root().join("models/demo/final")
}

fn run(state: &State, arguments: &[&str]) -> String {
    let output = state.command(arguments).output().expect("the binary runs");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As the documentation says that it is made: here every file of the folder is a part, in this order.
fn documented(folder: &Path) -> String {
    let names =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let mut text = "passerelle manifest 1\n".to_owned();
    for name in names {
        let content = fs::read(folder.join(name)).expect("the demo has it");
        text.push_str(&format!("{} {} {name}\n", hex(&content), content.len()));
    }
    format!("sha256:{}", hex(text.as_bytes()))
}

#[test]
fn one_digest_stands_in_inspect_in_the_list_of_models_in_answers_and_in_the_ledger() {
    let state = State::new();
    let (folder, digest) = (demo(), documented(&demo()));
    let source = folder.to_str().expect("a plain path");
    assert!(run(&state, &["inspect", source]).ends_with(&format!("digest      {digest}\n")));
    for source in [source, "demo"] {
        let described: Value = serde_json::from_str(&run(&state, &["inspect", source, "--json"])).expect("JSON");
        assert_eq!(described["digest"], json!(digest), "{source}");
    }
    let key = run(&state, &["key", "create", "alice"]).trim().to_owned();
    let mut served = Served::start_logging(&state, &["--model", &format!("final={source}"), "--model", "demo"], "info");
    let models = get_as(&served.address, "/v1/models", Some(&key)).json();
    let shown = |index: usize| (models["data"][index]["id"].clone(), models["data"][index]["digest"].clone());
    assert_eq!([shown(0), shown(1)], ["demo", "final"].map(|name| (json!(name), json!(digest))));
    let body = json!({"model": "final", "prompt": "Once", "max_tokens": 1});
    let answer = open_as(&served.address, "/v1/completions", &body, &key).whole().json();
    let fingerprint = answer["system_fingerprint"].as_str().expect("a text");
    assert!(fingerprint.starts_with(&format!("fp_{}_", &digest[7..19])), "{fingerprint}");
    served.signal("TERM");
    assert_eq!(served.exit_code(), Some(0));
    let csv = state.path().join("ledger.csv");
    run(&state, &["usage", "export", csv.to_str().expect("a plain path")]);
    let exported = fs::read_to_string(csv).expect("it was exported");
    let entry: Vec<&str> = exported.lines().nth(1).expect("one request").split(',').collect();
    assert_eq!((entry[4], entry[5]), ("final", digest.as_str()));
    let log = fs::read_to_string(state.log()).expect("it was written");
    assert_eq!(log.matches(&format!("digest={digest}")).count(), 2, "{log}");
}

/// The second start takes the hash that the first one kept, as a wrong one in its place shows.
#[test]
fn a_second_start_does_not_hash_again() {
    let state = State::new();
    let folder = demo();
    let model = format!("final={}", folder.display());
    let digest = || {
        let served = Served::start(&state, &["--model", &model]);
        get_as(&served.address, "/v1/models", None).json()["data"][0]["digest"].as_str().expect("a text").to_owned()
    };
    assert_eq!(digest(), documented(&folder));
    let kept = state.path().join("passerelle/hashes.json");
    let text = fs::read_to_string(&kept).expect("it was kept");
    let weights = hex(&fs::read(folder.join("model.safetensors")).expect("the demo has it"));
    assert!(text.contains(&weights));
    fs::write(&kept, text.replace(&weights, &"0".repeat(64))).expect("the folder is writable");
    assert_ne!(digest(), documented(&folder));
}
