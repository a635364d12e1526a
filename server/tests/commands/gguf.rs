//! GGUF files, as their users name them. The model is that of fixtures/gguf/make.py.

use serde_json::{Value, json};

use super::binary::{Served, State, request};
use super::chat;

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/gguf/tiny.gguf");

fn complete(served: &Served, body: &Value) -> Value {
    request(&served.address, "POST", "/v1/completions", body).json()
}

#[test]
fn a_gguf_file_is_served_with_its_own_tokenizer_and_template() {
    let state = State::new();
    let served = Served::start(&state, &["--model", &format!("tiny={TINY}"), "--kv-dtype", "f32"]);
    let expected: Value = serde_json::from_str(include_str!("../fixtures/gguf/tiny.json")).unwrap();
    let body = json!({"model": "tiny", "prompt": expected["prompt"], "max_tokens": 16, "temperature": 0,
        "ignore_eos": true, "return_token_ids": true});
    let answer = complete(&served, &body);
    assert_eq!(answer["choices"][0]["token_ids"], expected["answer"], "{answer}");

    let text = json!({"model": "tiny", "prompt": "Où est l'été ? <|im_end|>", "max_tokens": 1, "echo": true});
    let answer = complete(&served, &text);
    let echoed = answer["choices"][0]["text"].as_str().unwrap_or_default();
    assert!(echoed.starts_with("Où est l'été ?"), "{answer}");

    let mut body = chat("Bonjour", 4);
    body["model"] = json!("tiny");
    let answer = request(&served.address, "POST", "/v1/chat/completions", &body).json();
    assert!(answer["usage"]["prompt_tokens"].as_u64() > Some(8), "the template frames the message: {answer}");
    assert!(answer["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
}

#[test]
fn inspect_reads_a_gguf_file() {
    let state = State::new();
    let output = state.command(&["inspect", TINY, "--json"]).output().expect("the binary runs");
    let described: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&described["family"], &described["stored_dtype"]), (&json!("llama"), &json!("q8_0")), "{described}");
    assert_eq!((&described["num_layers"], &described["max_position"]), (&json!(2), &json!(512)), "{described}");
}

#[test]
fn the_demo_model_still_answers_with_quantised_weights() {
    let state = State::new();
    let served = Served::start(&state, &["--dtype", "q8_0"]);
    let answer = request(&served.address, "POST", "/v1/chat/completions", &chat("What is 12 + 7?", 32)).json();
    let said = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(said.contains("19"), "{answer}");
}

#[test]
fn a_damaged_gguf_file_is_refused_by_file_and_field() {
    let state = State::new();
    let path = state.path().join("damaged.gguf");
    let mut bytes = std::fs::read(TINY).expect("the fixture");
    bytes.truncate(bytes.len() / 2);
    std::fs::write(&path, bytes).expect("the folder is writable");
    let path = path.to_str().expect("a plain path");
    let output = state
        .command(&["serve", "--listen", "127.0.0.1:0", "--model", &format!("m={path}")])
        .output()
        .expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("damaged.gguf") && said.contains("fetch the file again"),
        "{said}"
    );
    std::fs::write(state.path().join("damaged.gguf"), b"GGUF\0\0\0\0 nothing that is one")
        .expect("the folder is writable");
    let serve = format!("serve --listen 127.0.0.1:0 --model m={path}");
    let output = state.command(&serve.split(' ').collect::<Vec<_>>()).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("damaged.gguf: version") && !said.contains("tokenizer.json"), "{said}");
}
