//! What a checkpoint is, in words and as JSON, without its weights.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::binary::{self, State};

fn fixture(name: &str) -> PathBuf {
    binary::root().join("models/tests/fixtures").join(name)
}

fn inspect(source: &Path, options: &[&str]) -> String {
    let source = source.to_str().expect("a plain path");
    let output = State::new().command(&[&["inspect", source], options].concat()).output().expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn described(source: &Path) -> Value {
    serde_json::from_str(&inspect(source, &["--json", "--no-digest"])).expect("JSON")
}

/// Of its 89,952 numbers the table of tokens is one matrix, which is also the head.
#[test]
fn layers_that_differ_are_shown_as_runs() {
    let expected = "\
family      smollm3 (SmolLM3ForCausalLM)
parameters  89952
stored as   bf16, 175.7 KiB
context     128 tokens
vocabulary  211 tokens, tied embeddings
layers      3, 48 wide
            1 x full attention, rotary on 24 of 24 elements, base 10000, gated SiLU of 88
            1 x full attention, no rotary positions, gated SiLU of 88
            1 x full attention, rotary on 24 of 24 elements, base 10000, gated SiLU of 88
heads       4 for queries, 2 for keys and values, 24 wide
memory      175.7 KiB of weights as stored; KV cache 576 B a token in bf16
            247.7 KiB with one sequence of the whole context
ends with   [2, 7]
tokenizer   none: prompts are token ids alone; --tokenizer SOURCE gives one
template    none: completions alone; --chat-template FILE gives one
";
    assert_eq!(inspect(&fixture("smollm3"), &["--no-digest"]), expected);
    let turned = "full attention, rotary on 24 of 24 elements, base 10000, gated SiLU of 88";
    let runs = json!([
        {"count": 1, "layer": turned},
        {"count": 1, "layer": "full attention, no rotary positions, gated SiLU of 88"},
        {"count": 1, "layer": turned},
    ]);
    let expected = json!({
        "family": "smollm3", "architecture": "SmolLM3ForCausalLM", "num_parameters": 89_952, "stored_dtype": "bf16",
        "stored_bytes": 179_904, "max_position": 128, "vocab_size": 211, "hidden_size": 48, "num_layers": 3,
        "layer_runs": runs, "num_heads": 4, "num_kv_heads": 2, "head_dim": 24, "tied_embeddings": true,
        "bos_token_id": 1, "eos_token_ids": [2, 7], "kv_bytes_per_token_bf16": 576,
        "bytes_with_whole_context": 179_904 + 128 * 576, "tokenizer": null, "chat_template": null,
    });
    assert_eq!(described(&fixture("smollm3")), expected);
}

#[test]
fn a_gguf_file_shows_its_own_tokenizer_and_template() {
    let file = binary::root().join("server/tests/fixtures/gguf/tiny.gguf");
    let expected = "\
family      llama (llama)
parameters  127808
stored as   q8_0, 133.5 KiB
context     512 tokens
vocabulary  516 tokens, separate embeddings
layers      2, 64 wide
            2 x full attention, rotary on 32 of 32 elements, base 10000, gated SiLU of 96
heads       2 for queries, 1 for keys and values, 32 wide
memory      133.5 KiB of weights as stored; KV cache 256 B a token in bf16
            261.5 KiB with one sequence of the whole context
ends with   [514]
tokenizer   516 tokens, 3 of them special
template    yes; tool calls as json, no reasoning
";
    assert_eq!(inspect(&file, &["--no-digest"]), expected);
    let described = described(&file);
    assert_eq!(described["tokenizer"], json!({"vocab_size": 516}));
    assert_eq!(described["chat_template"], json!({"tool_calls": "json", "reasoning": null}));
    assert_eq!((&described["stored_dtype"], &described["bos_token_id"]), (&json!("q8_0"), &json!(512)));
}

#[test]
fn an_encoder_shows_what_it_gives() {
    let folder = fixture("encoders/bert");
    let expected = "\
family      bert (BertModel)
parameters  71016
stored as   f32, 277.4 KiB
context     100 tokens
vocabulary  211 tokens
layers      3, 48 wide
            3 x full attention, no rotary positions, GELU of 88, norms of each sum
heads       4, 12 wide
memory      277.4 KiB of weights as stored
gives       embeddings of 20 elements, of length 1
prompts     passage, query
tokenizer   106 tokens, 5 of them special
";
    assert_eq!(inspect(&folder, &["--no-digest"]), expected);
    let described = described(&folder);
    let gives = json!({"embedding_dimensions": 20, "normalized": true, "default_prompt": "passage",
        "prompts": {"passage": "passage: ", "query": "query: "}});
    assert_eq!((&described["gives"], &described["tokenizer"]), (&gives, &json!({"vocab_size": 106})));
}

#[test]
fn what_is_refused_was_not_hashed_first() {
    let state = State::new();
    fs::write(state.path().join("config.json"), "{}").expect("the folder is writable");
    fs::copy(fixture("plain/model.safetensors"), state.path().join("model.safetensors")).expect("the fixture");
    let output = state.command(&["inspect", "./"]).output().expect("the binary runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("config.json: architectures: "), "{said}");
    assert!(!state.path().join("passerelle/hashes.json").exists(), "its weights were read");
}

/// Everything but the weights themselves, whose headers say enough.
#[test]
fn no_weight_is_read() {
    let state = State::new();
    let whole = fs::read(fixture("plain/model.safetensors")).expect("the fixture");
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().expect("eight bytes")) as usize;
    fs::copy(fixture("plain/config.json"), state.path().join("config.json")).expect("the folder is writable");
    // A hole as long as the weights were.
    fs::write(state.path().join("model.safetensors"), &whole[..header]).expect("the folder is writable");
    let file = fs::OpenOptions::new().write(true).open(state.path().join("model.safetensors")).expect("it is there");
    file.set_len(whole.len() as u64).expect("a file with a hole");
    assert_eq!(described(&state.path()), described(&fixture("plain")));
}
