//! What loading a large checkpoint takes beside what is kept.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::binary::{Served, State};

const HIDDEN: usize = 1024;
const INTERMEDIATE: usize = 4096;
const LAYERS: usize = 4;
/// So many that the two tables are by far the largest matrices, as they are in small models of many languages.
const VOCAB: usize = 200_000;
const CONTEXT: usize = 64;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const EPS: f32 = 1e-5;
/// What is promised, and beside it what the program and the KV cache of this test take.
const MOST_KIB: u64 = (300 + 40) << 10;

/// A tensor's name in a GGUF file, its name in a checkpoint, and its shape.
type Tensor = (String, String, Vec<usize>);

/// Elements of a block and its bytes, and the type's number in a GGUF file.
#[derive(Clone, Copy)]
struct Stored {
    elements: usize,
    bytes: usize,
    kind: u32,
}

const F32: Stored = Stored { elements: 1, bytes: 4, kind: 0 };
const BF16: Stored = Stored { elements: 1, bytes: 2, kind: 30 };
const Q4_0: Stored = Stored { elements: 32, bytes: 18, kind: 2 };
const Q8_0: Stored = Stored { elements: 32, bytes: 34, kind: 8 };

impl Stored {
    fn size(self, shape: &[usize]) -> usize {
        shape.iter().product::<usize>() / self.elements * self.bytes
    }
}

fn tensors() -> Vec<Tensor> {
    let table = |gguf: &str, name: &str| (format!("{gguf}.weight"), format!("{name}.weight"), vec![VOCAB, HIDDEN]);
    let mut tensors = vec![table("token_embd", "model.embed_tokens"), table("output", "lm_head")];
    for layer in 0..LAYERS {
        let parts = [
            ("attn_q", "self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("attn_k", "self_attn.k_proj", vec![HIDDEN / 4, HIDDEN]),
            ("attn_v", "self_attn.v_proj", vec![HIDDEN / 4, HIDDEN]),
            ("attn_output", "self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("ffn_gate", "mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("ffn_up", "mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("ffn_down", "mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("attn_norm", "input_layernorm", vec![HIDDEN]),
            ("ffn_norm", "post_attention_layernorm", vec![HIDDEN]),
        ];
        tensors.extend(parts.map(|(gguf, name, shape)| {
            (format!("blk.{layer}.{gguf}.weight"), format!("model.layers.{layer}.{name}.weight"), shape)
        }));
    }
    tensors.push(("output_norm.weight".to_owned(), "model.norm.weight".to_owned(), vec![HIDDEN]));
    tensors
}

/// Bytes of all tensors where those with rows are stored in `matrices`.
fn size(matrices: Stored) -> u64 {
    let sizes = tensors().into_iter().map(|(_, _, shape)| held(matrices, &shape).size(&shape) as u64);
    sizes.sum()
}

/// Norms are f32, whatever the matrices are.
fn held(matrices: Stored, shape: &[usize]) -> Stored {
    if shape.len() == 1 { F32 } else { matrices }
}

/// Zeros in bf16 in the shape of a model, as a file with a hole.
fn write_checkpoint(folder: &Path) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT, "rms_norm_eps": EPS,
    });
    fs::write(folder.join("config.json"), config.to_string()).expect("the folder is writable");
    let mut end = 0;
    let header: Map<String, Value> = tensors()
        .into_iter()
        .map(|(_, name, shape)| {
            let start = end;
            end += BF16.size(&shape);
            (name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
        })
        .collect();
    let header = Value::Object(header).to_string();
    let head = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    write_with_hole(&folder.join("model.safetensors"), &head, end);
}

/// The same model as a GGUF file without a tokenizer.
fn write_gguf(path: &Path, matrices: Stored) {
    const VERSION: u32 = 3;
    const ALIGNMENT: usize = 32;
    const STRING: u32 = 8;
    const U32: u32 = 4;
    const FLOAT: u32 = 6;
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let count = |key: &str, value: usize| {
        [&text(&format!("llama.{key}"))[..], &U32.to_le_bytes(), &(value as u32).to_le_bytes()].concat()
    };
    let metadata = [
        [&text("general.architecture")[..], &STRING.to_le_bytes(), &text("llama")].concat(),
        [&text("llama.attention.layer_norm_rms_epsilon")[..], &FLOAT.to_le_bytes(), &EPS.to_le_bytes()].concat(),
        count("block_count", LAYERS),
        count("embedding_length", HIDDEN),
        count("feed_forward_length", INTERMEDIATE),
        count("context_length", CONTEXT),
        count("attention.head_count", HEADS),
        count("attention.head_count_kv", KV_HEADS),
    ];
    let tensors = tensors();
    let mut head = [&b"GGUF"[..], &VERSION.to_le_bytes()].concat();
    head.extend([tensors.len() as u64, metadata.len() as u64].map(u64::to_le_bytes).concat());
    head.extend(metadata.concat());
    let mut end = 0_usize;
    for (name, _, shape) in &tensors {
        let stored = held(matrices, shape);
        head.extend(text(name));
        head.extend((shape.len() as u32).to_le_bytes());
        // The side that runs fastest comes first.
        head.extend(shape.iter().rev().flat_map(|side| (*side as u64).to_le_bytes()));
        head.extend(stored.kind.to_le_bytes());
        head.extend((end as u64).to_le_bytes());
        end = (end + stored.size(shape)).next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    write_with_hole(path, &head, end);
}

fn write_with_hole(path: &Path, head: &[u8], zeros: usize) {
    let mut file = File::create(path).expect("the folder is writable");
    file.write_all(head).expect("the folder is writable");
    file.set_len((head.len() + zeros) as u64).expect("a file with a hole");
}

/// Serves `source`, of which `kept` bytes stay in memory.
fn peaks_little_above(kept: u64, state: &State, source: &Path, options: &[&str]) {
    let source = source.display().to_string();
    let fixed = ["--model", &source, "--kv-cache-memory", "8MiB", "--max-num-seqs", "1"];
    let served = Served::start(state, &[&fixed, options].concat());
    let peak = served.peak_memory_kib();
    let beside = peak.saturating_sub(kept >> 10);
    assert!(beside < MOST_KIB, "{source} {options:?}: {peak} KiB at most for {} KiB of weights", kept >> 10);
}

#[test]
#[ignore = "holds a model of 940 MB"]
fn loading_peaks_at_what_is_kept_and_little_more() {
    let state = State::new();
    let folder = state.path().join("large");
    fs::create_dir(&folder).expect("the folder is writable");
    write_checkpoint(&folder);
    peaks_little_above(size(BF16), &state, &folder, &[]);
    peaks_little_above(size(Q8_0), &state, &folder, &["--dtype", "q8_0"]);
    peaks_little_above(size(Q4_0), &state, &folder, &["--dtype", "q4_0"]);
    for (name, matrices) in [("bf16.gguf", BF16), ("q8_0.gguf", Q8_0), ("q4_0.gguf", Q4_0)] {
        let path = state.path().join(name);
        write_gguf(&path, matrices);
        peaks_little_above(size(matrices), &state, &path, &[]);
    }
    let path = state.path().join("bf16.gguf");
    peaks_little_above(size(Q8_0), &state, &path, &["--dtype", "q8_0"]);
}
