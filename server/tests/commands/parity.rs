//! Checkpoints without a tokenizer, compared with the reference implementation through the API alone: token ids in,
//! token ids and log-probabilities out.

use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Value, json};

use super::binary::{self, Served, State, request};

const COMPLETIONS: &str = "/v1/completions";

/// What the reference computed from one checkpoint; see models/tests/fixtures/make.py.
struct Golden(Vec<u8>);

impl Golden {
    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let tensors = SafeTensors::deserialize(&self.0).expect("a golden file");
        tensors.tensor(name).expect("a golden tensor").data().as_chunks::<4>().0.to_vec()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }
}

fn fixtures() -> PathBuf {
    binary::root().join("models/tests/fixtures")
}

/// Every fixture as a checkpoint of its own inside `folder`; their names.
fn copy_fixtures(folder: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(fixtures()).expect("the fixtures are there") {
        let source = entry.expect("the folder is readable").path();
        if !source.join("golden.safetensors").is_file() {
            continue;
        }
        let name = source.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        let target = folder.join(&name);
        fs::create_dir(&target).expect("the folder is writable");
        for file in fs::read_dir(&source).expect("a folder") {
            let file = file.expect("the folder is readable").path();
            fs::copy(&file, target.join(file.file_name().expect("a file"))).expect("the folder is writable");
        }
        let has_weights = ["model.safetensors", "model.safetensors.index.json"].map(|file| target.join(file).is_file());
        if has_weights == [false, false] {
            let plain = fixtures().join("plain/model.safetensors");
            fs::copy(plain, target.join("model.safetensors")).expect("the folder is writable");
        }
        names.push(name);
    }
    names
}

fn close(found: f64, expected: f32) -> bool {
    let expected = f64::from(expected);
    (found - expected).abs() <= 2e-4 + 1e-3 * expected.abs()
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| (f64::from(logit - largest) - sum.ln()) as f32).collect()
}

#[test]
fn every_fixture_passes_through_the_api() {
    let state = State::new();
    let folder = state.path().join("models");
    fs::create_dir(&folder).expect("the folder is writable");
    let names = copy_fixtures(&folder);
    assert!(names.len() >= 20, "{names:?}");
    let options =
        ["--models-dir", folder.to_str().expect("a plain path"), "--kv-dtype", "f32", "--kv-cache-memory", "64MiB"];
    let served = Served::start(&state, &options);
    for name in &names {
        let golden =
            Golden(fs::read(fixtures().join(name).join("golden.safetensors")).expect("the fixture is readable"));
        greedy_tokens_and_their_neighbours(&served, name, &golden);
        the_prompt_s_own_tokens(&served, name, &golden);
    }
}

/// Files without a tokenizer, of every architecture and type.
#[test]
fn every_gguf_fixture_passes_through_the_api() {
    let state = State::new();
    let folder = state.path().join("models");
    fs::create_dir(&folder).expect("the folder is writable");
    let mut names = Vec::new();
    for entry in fs::read_dir(fixtures().join("gguf")).expect("the fixtures are there") {
        let path = entry.expect("the folder is readable").path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a plain name").to_owned();
            fs::copy(&path, folder.join(path.file_name().expect("a file"))).expect("the folder is writable");
            names.push(name);
        }
    }
    assert!(names.len() >= 15, "{names:?}");
    let options =
        ["--models-dir", folder.to_str().expect("a plain path"), "--kv-dtype", "f32", "--kv-cache-memory", "64MiB"];
    let served = Served::start(&state, &options);
    for name in &names {
        let golden = fixtures().join("gguf").join(format!("{name}.safetensors"));
        let golden = Golden(fs::read(golden).expect("the fixture is readable"));
        let body = json!({"model": name, "prompt": golden.ids("greedy_prompt"), "max_tokens": 24, "temperature": 0,
            "ignore_eos": true, "return_token_ids": true});
        assert_eq!(ask(&served, &body)["token_ids"], json!(golden.ids("greedy")), "{name}");
    }
}

fn ask(served: &Served, body: &Value) -> Value {
    let answer = request(&served.address, "POST", COMPLETIONS, body);
    assert_eq!(answer.status, 200, "{body}");
    answer.json()["choices"][0].clone()
}

fn greedy_tokens_and_their_neighbours(served: &Served, name: &str, golden: &Golden) {
    let choice = ask(
        served,
        &json!({"model": name, "prompt": golden.ids("greedy_prompt"), "max_tokens": 24, "temperature": 0,
            "ignore_eos": true, "logprobs": 5, "return_token_ids": true}),
    );
    assert_eq!(choice["token_ids"], json!(golden.ids("greedy")), "{name}");
    let (ids, logprobs) = (golden.ids("top_ids"), golden.floats("top_logprobs"));
    let top = choice["logprobs"]["top_logprobs"].as_array().expect("a list");
    assert_eq!(top.len(), 24, "{name}");
    for ((found, ids), logprobs) in top.iter().zip(ids.chunks(5)).zip(logprobs.chunks(5)) {
        for (id, expected) in ids.iter().zip(logprobs) {
            let found = found[format!("token_id:{id}")].as_f64();
            assert!(found.is_some_and(|found| close(found, *expected)), "{name}: {found:?}, not {expected}");
        }
    }
}

fn the_prompt_s_own_tokens(served: &Served, name: &str, golden: &Golden) {
    let prompt = golden.ids("input_70");
    let choice = ask(
        served,
        &json!({"model": name, "prompt": prompt, "max_tokens": 0, "echo": true, "logprobs": 1, "return_token_ids": true}),
    );
    assert_eq!(choice["prompt_token_ids"], json!(prompt), "{name}");
    let found = choice["logprobs"]["token_logprobs"].as_array().expect("a list");
    assert_eq!((found.len(), &found[0]), (prompt.len(), &Value::Null), "{name}");
    let logits = golden.floats("logits_70");
    let rows = logits.chunks(logits.len() / prompt.len());
    for ((row, token), found) in rows.zip(&prompt[1..]).zip(&found[1..]) {
        // Tokens that a model reads and never writes have no probability.
        let Some(expected) = log_softmax(row).get(*token as usize).copied() else { continue };
        assert!(found.as_f64().is_some_and(|found| close(found, expected)), "{name}: {found}, not {expected}");
    }
}

#[test]
fn every_embedding_fixture_passes_through_the_api() {
    let state = State::new();
    let folder = state.path().join("encoders");
    fs::create_dir(&folder).expect("the folder is writable");
    let mut names = Vec::new();
    for entry in fs::read_dir(fixtures().join("encoders")).expect("the fixtures are there") {
        let source = entry.expect("the folder is readable").path();
        if source.join("modules.json").is_file() {
            let name = source.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
            copy_without_text_files(&source, &folder.join(&name));
            names.push(name);
        }
    }
    assert!(names.len() >= 2, "{names:?}");
    let served = Served::start(&state, &["--models-dir", folder.to_str().expect("a plain path")]);
    for name in &names {
        let source = fixtures().join("encoders").join(name);
        let golden = Golden(fs::read(source.join("golden.safetensors")).expect("the fixture is readable"));
        for length in [1, 7, 33, 70] {
            let body = json!({"model": name, "input": golden.ids(&format!("input_{length}"))});
            let answer = request(&served.address, "POST", "/v1/embeddings", &body).json();
            let found = answer["data"][0]["embedding"].as_array().expect("a list");
            let expected = golden.floats(&format!("output_{length}"));
            assert_eq!(found.len(), expected.len(), "{name}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.as_f64().is_some_and(|found| close(found, expected)), "{name}: {found}, not {expected}");
            }
        }
    }
}

fn copy_without_text_files(source: &Path, target: &Path) {
    fs::create_dir(target).expect("the folder is writable");
    for entry in fs::read_dir(source).expect("a folder") {
        let path = entry.expect("the folder is readable").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        if path.is_dir() {
            copy_without_text_files(&path, &target.join(name));
        } else if !name.starts_with("tokenizer") {
            fs::copy(&path, target.join(name)).expect("the folder is writable");
        }
    }
}

#[test]
fn a_checkpoint_without_text_files_says_how_to_give_them() {
    let state = State::new();
    let folder = state.path().join("plain");
    fs::create_dir(&folder).expect("the folder is writable");
    for file in ["config.json", "model.safetensors"] {
        fs::copy(fixtures().join("plain").join(file), folder.join(file)).expect("the folder is writable");
    }
    let served = Served::start(&state, &["--model", folder.to_str().expect("a plain path")]);
    let refused = |route: &str, body: Value, wanted: &str| {
        let refusal = request(&served.address, "POST", route, &body).refusal();
        assert!(refusal.contains(wanted), "{refusal}");
    };
    refused(COMPLETIONS, json!({"model": "plain", "prompt": "Bonjour"}), "--tokenizer SOURCE");
    let messages = json!([{"role": "user", "content": "Bonjour"}]);
    refused("/v1/chat/completions", json!({"model": "plain", "messages": messages}), "--chat-template FILE");
}

/// The demo's tokenizer has more tokens than the fixture, so what is asked is only that text goes in.
#[test]
fn a_tokenizer_and_a_template_can_come_from_elsewhere() {
    let state = State::new();
    let demo = binary::root().join("models/demo");
    let folder = state.path().join("bare");
    fs::create_dir(&folder).expect("the folder is writable");
    for file in ["config.json", "generation_config.json", "model.safetensors"] {
        fs::copy(demo.join("final").join(file), folder.join(file)).expect("the folder is writable");
    }
    let template = state.path().join("short.jinja");
    fs::write(&template, "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")
        .expect("the folder is writable");
    let (tokenizer, template) = (demo.join("early"), template.display().to_string());
    let options =
        ["--model", folder.to_str().expect("a plain path"), "--tokenizer", tokenizer.to_str().expect("a plain path")];
    let served = Served::start(&state, &[&options[..], &["--chat-template", &template]].concat());
    let body = json!({"model": "bare", "messages": [{"role": "user", "content": "What is 12 + 7?"}], "max_tokens": 4,
        "return_token_ids": true});
    let answer = request(&served.address, "POST", "/v1/chat/completions", &body);
    assert_eq!(answer.status, 200);
    let shown = json!({"model": "bare", "tokens": answer.json()["choices"][0]["prompt_token_ids"]});
    let text = request(&served.address, "POST", "/detokenize", &shown).json();
    assert_eq!(text["prompt"], "<|im_start|>user\nWhat is 12 + 7?<|im_end|>\n", "{text}");
}
