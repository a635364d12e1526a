//! What loading a large checkpoint takes beside what is kept.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::binary::{Served, State};

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const LAYERS: usize = 20;
const VOCAB: usize = 32_000;
/// What is promised, and beside it what the program and the KV cache of this test take.
const MOST_KIB: u64 = (300 + 40) << 10;

/// Zeros in the shape of a model, as a file with a hole; its size.
fn write_checkpoint(folder: &Path) -> u64 {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": 16,
        "num_key_value_heads": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("the folder is writable");
    let mut shapes =
        vec![("model.embed_tokens".to_owned(), vec![VOCAB, HIDDEN]), ("lm_head".into(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        shapes.extend([
            (name("self_attn.q_proj"), vec![HIDDEN, HIDDEN]),
            (name("self_attn.k_proj"), vec![HIDDEN / 4, HIDDEN]),
            (name("self_attn.v_proj"), vec![HIDDEN / 4, HIDDEN]),
            (name("self_attn.o_proj"), vec![HIDDEN, HIDDEN]),
            (name("mlp.gate_proj"), vec![INTERMEDIATE, HIDDEN]),
            (name("mlp.up_proj"), vec![INTERMEDIATE, HIDDEN]),
            (name("mlp.down_proj"), vec![HIDDEN, INTERMEDIATE]),
            (name("input_layernorm"), vec![HIDDEN]),
            (name("post_attention_layernorm"), vec![HIDDEN]),
        ]);
    }
    shapes.push(("model.norm".into(), vec![HIDDEN]));
    let mut end = 0;
    let header: Map<String, Value> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let start = end;
            end += 2 * shape.iter().product::<usize>();
            (format!("{name}.weight"), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
        })
        .collect();
    let header = Value::Object(header).to_string();
    let mut file = File::create(folder.join("model.safetensors")).expect("the folder is writable");
    file.write_all(&(header.len() as u64).to_le_bytes()).expect("the folder is writable");
    file.write_all(header.as_bytes()).expect("the folder is writable");
    file.set_len((8 + header.len() + end) as u64).expect("a file with a hole");
    end as u64
}

#[test]
#[ignore = "holds a model of 820 MB"]
fn loading_peaks_at_what_is_kept_and_little_more() {
    let state = State::new();
    let folder = state.path().join("large");
    fs::create_dir(&folder).expect("the folder is writable");
    let kept = write_checkpoint(&folder);
    let source = folder.display().to_string();
    let served = Served::start(&state, &["--model", &source, "--kv-cache-memory", "8MiB", "--max-num-seqs", "1"]);
    let peak = served.peak_memory_kib();
    let beside = peak.saturating_sub(kept >> 10);
    assert!(beside < MOST_KIB, "{peak} KiB at most for {} KiB of weights", kept >> 10);
}
