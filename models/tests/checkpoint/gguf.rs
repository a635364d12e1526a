//! Damaged and hostile GGUF files: each is refused with an error that names the file and what is wrong in it, or loads. None
//! panics, none takes long, none allocates what it merely claims.

use std::fs;

use passerelle_models::ops::Compute;
use passerelle_models::random::draw;
use passerelle_models::{CheckpointFiles, LoadOptions, ModelError, load, unwatched};
use tempfile::TempDir;

use crate::bounds::within_bounds;

/// A value of the metadata: its type and its bytes.
type Entry = (&'static str, u32, Vec<u8>);

const U32: u32 = 4;
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file written field by field, so that a test can lie anywhere in it.
#[derive(Debug, Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    /// `None` counts what is there.
    num_tensors: Option<u64>,
    num_entries: Option<u64>,
    entries: Vec<Entry>,
    tensors: Vec<Tensor>,
    alignment: usize,
}

#[derive(Debug, Clone)]
struct Tensor {
    name: String,
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
    num_bytes: usize,
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn list(element: u32, len: u64, bytes: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes(), bytes].concat()
}

impl File {
    /// One layer, everything of size 4, vocabulary 8, f32, all weights zero. It loads.
    fn new() -> Self {
        let entries = vec![
            ("general.architecture", STRING, text("llama")),
            ("llama.block_count", U32, number(1)),
            ("llama.context_length", U32, number(32)),
            ("llama.embedding_length", U32, number(4)),
            ("llama.feed_forward_length", U32, number(4)),
            ("llama.attention.head_count", U32, number(1)),
            ("llama.attention.head_count_kv", U32, number(1)),
            ("llama.attention.layer_norm_rms_epsilon", F32, 1e-5_f32.to_le_bytes().to_vec()),
            ("tokenizer.ggml.eos_token_id", U32, number(2)),
            ("tokenizer.ggml.tokens", ARRAY, list(STRING, 2, &[text("a"), text("b")].concat())),
        ];
        let mut file = Self {
            magic: *b"GGUF",
            version: 3,
            num_tensors: None,
            num_entries: None,
            entries,
            tensors: Vec::new(),
            alignment: 32,
        };
        let layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
        file.add("token_embd.weight", &[4, 8]);
        layer.iter().for_each(|name| file.add(&format!("blk.0.{name}.weight"), &[4, 4]));
        ["blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"]
            .iter()
            .for_each(|n| file.add(&format!("{n}.weight"), &[4]));
        file.add("output.weight", &[4, 8]);
        file
    }

    fn add(&mut self, name: &str, dimensions: &[u64]) {
        let end = self.tensors.last().map_or(0, |last| last.offset as usize + last.num_bytes);
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            kind: 0,
            offset: end.next_multiple_of(self.alignment) as u64,
            num_bytes: 4 * dimensions.iter().product::<u64>() as usize,
        });
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = [&self.magic[..], &self.version.to_le_bytes()].concat();
        bytes.extend(self.num_tensors.unwrap_or(self.tensors.len() as u64).to_le_bytes());
        bytes.extend(self.num_entries.unwrap_or(self.entries.len() as u64).to_le_bytes());
        for (key, kind, value) in &self.entries {
            bytes.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
        }
        for tensor in &self.tensors {
            bytes.extend([text(&tensor.name), (tensor.dimensions.len() as u32).to_le_bytes().to_vec()].concat());
            tensor.dimensions.iter().for_each(|side| bytes.extend(side.to_le_bytes()));
            bytes.extend([&tensor.kind.to_le_bytes()[..], &tensor.offset.to_le_bytes()].concat());
        }
        bytes.resize(bytes.len().next_multiple_of(self.alignment), 0);
        let data = self.tensors.iter().map(|tensor| tensor.offset.min(1 << 16) as usize + tensor.num_bytes).max();
        bytes.resize(bytes.len() + data.unwrap_or(0), 0);
        bytes
    }

    fn set(mut self, key: &'static str, kind: u32, value: Vec<u8>) -> Self {
        self.entries.retain(|(other, ..)| *other != key);
        self.entries.push((key, kind, value));
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.entries.retain(|(other, ..)| *other != key);
        self
    }

    fn tensor(mut self, name: &str, edit: impl FnOnce(&mut Tensor)) -> Self {
        edit(self.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap());
        self
    }
}

fn load_bytes(bytes: &[u8]) -> Result<(), ModelError> {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    within_bounds(|| {
        let files = CheckpointFiles::gguf(&path)?;
        load(&files, &Compute::cpu(1), &LoadOptions::default(), &mut unwatched).map(|_| ())
    })
}

fn refused(file: &File, what: &str, problem: &str) {
    refused_bytes(&file.encode(), what, problem);
}

fn refused_bytes(bytes: &[u8], what: &str, problem: &str) {
    match load_bytes(bytes) {
        Err(ModelError::Checkpoint { file, what: found, problem: found_problem }) => {
            let error = format!("{found}: {found_problem}");
            assert!(file.ends_with("model.gguf"), "{}", file.display());
            assert!(
                found.contains(what) && found_problem.contains(problem),
                "expected {what}: {problem}, found {error}"
            );
            assert!(error.len() < 1000, "an error must not repeat the file: {} bytes", error.len());
        }
        other => panic!("expected {what}: {problem}, found {other:?}"),
    }
}

#[test]
fn the_unchanged_file_loads_in_both_versions() {
    for version in [2, 3] {
        load_bytes(&File { version, ..File::new() }.encode()).unwrap();
    }
}

#[test]
fn headers_that_break_the_format_are_refused() {
    refused(&File { magic: *b"GGML", ..File::new() }, "magic", "no GGUF file");
    refused(&File { version: 1, ..File::new() }, "version", "only 2 and 3");
    refused(&File { version: 4, ..File::new() }, "version", "only 2 and 3");
    refused(&File { version: 3_u32.swap_bytes(), ..File::new() }, "version", "big-endian");
    refused(&File { num_tensors: Some(u64::MAX), ..File::new() }, "tensor_count", "at most");
    refused(&File { num_entries: Some(u64::MAX), ..File::new() }, "metadata_kv_count", "at most");
    refused(&File { num_entries: Some(4000), ..File::new() }, "", "");
    refused(&File { num_tensors: Some(30_000), ..File::new() }, "", "");
    refused_bytes(b"", "magic", "0 left");
    refused_bytes(b"version https://git-lfs.github.com/spec/v1\n", "content", "git lfs pull");
    refused_bytes(b"GGUF\x03", "version", "1 left");
}

#[test]
fn alignments_that_are_none_are_refused() {
    for alignment in [0, 3, 48, 1 << 17, u32::MAX] {
        refused(&File::new().set("general.alignment", U32, number(alignment)), "general.alignment", "power of two");
    }
    refused(&File::new().set("general.alignment", STRING, text("32")), "general.alignment", "whole number");
}

#[test]
fn lengths_that_the_file_does_not_have_are_refused_before_anything_is_allocated() {
    let giant = |len: u64| [&len.to_le_bytes()[..], b"x"].concat();
    refused(&File::new().set("general.name", STRING, giant(u64::MAX)), "general.name", "at most");
    refused(&File::new().set("general.name", STRING, giant(1 << 19)), "general.name", "left");
    for element in [0, STRING, U32, 12] {
        for len in [u64::MAX, 1 << 62, 1 << 21] {
            let entry = list(element, len, b"");
            refused(&File::new().set("tokenizer.ggml.scores", ARRAY, entry), "tokenizer.ggml.scores", "at most");
        }
        let entry = list(element, 1 << 19, b"");
        refused(&File::new().set("tokenizer.ggml.scores", ARRAY, entry), "tokenizer.ggml.scores", "");
    }
    let nested = list(ARRAY, 1, &list(ARRAY, 1, &list(U32, 1, &number(1))));
    refused(&File::new().set("general.tags", ARRAY, nested), "general.tags", "type 9");
    refused(&File::new().set("general.tags", 13, number(1)), "general.tags", "type 13");
    refused(&File::new().set("general.flag", 7, vec![2]), "general.flag", "neither true nor false");
    refused(
        &File::new().set("general.name", STRING, [&2_u64.to_le_bytes()[..], &[0xc3, 0x28]].concat()),
        "general.name",
        "UTF-8",
    );
    let nan = f32::NAN.to_le_bytes().to_vec();
    refused(&File::new().set("llama.rope.freq_base", F32, nan), "llama.rope.freq_base", "finite");
}

#[test]
fn keys_that_cannot_be_honoured_are_refused_by_name() {
    let sizes = ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"];
    for (full, key) in sizes.map(|key| (format!("llama.{key}"), key)) {
        let full: &'static str = full.leak();
        refused(&File::new().without(full), full, "missing");
        for value in [0, u32::MAX] {
            refused(&File::new().set(full, U32, number(value)), full, "outside");
        }
        refused(&File::new().set(full, STRING, text(key)), full, "whole number");
    }
    let one = |key, kind, value, problem| refused(&File::new().set(key, kind, value), key, problem);
    one("general.architecture", STRING, text("mamba"), "supported: bloom, llama, qwen2, qwen3");
    one("general.type", STRING, text("adapter"), "whole model");
    one("split.count", 2, vec![2, 0], "merge them");
    one("llama.attention.head_count_kv", U32, number(3), "divide");
    one("llama.attention.value_length", U32, number(2), "as long as keys");
    one("llama.attention.key_length", U32, number(1 << 20), "outside");
    one("llama.vocab_size", U32, number(9), "has 8 rows");
    one("llama.expert_count", U32, number(8), "mixtures");
    one("llama.rope.scaling.type", STRING, text("longrope"), "supported: none, linear, yarn");
    one("llama.rope.dimension_count", U32, number(3), "odd");
    one("llama.rope.freq_base", F32, 0.0_f32.to_le_bytes().to_vec(), "outside");
    one("llama.logit_scale", F32, 8.0_f32.to_le_bytes().to_vec(), "not scaled");
    one("llama.attention.sliding_window_pattern", U32, number(2), "not known");
    one("llama.something_new", U32, number(2), "not known");
    one("llama.attention.head_count_kv", ARRAY, list(U32, 2, &[number(1), number(1)].concat()), "layers that differ");
    one("tokenizer.ggml.eos_token_id", U32, number(8), "outside the vocabulary of 8");
    let twice = File { entries: [File::new().entries, File::new().entries].concat(), ..File::new() };
    refused(&twice, "general.architecture", "occurs twice");
}

#[test]
fn tensors_that_cannot_be_are_refused_by_name() {
    let one = |edit: fn(&mut Tensor), problem: &str| {
        refused(&File::new().tensor("blk.0.attn_q.weight", edit), "blk.0.attn_q.weight", problem);
    };
    one(|tensor| tensor.dimensions = vec![], "0 dimensions");
    one(|tensor| tensor.dimensions = vec![1; 5], "5 dimensions");
    one(|tensor| tensor.dimensions = vec![1 << 33, 1 << 33], "more elements than any file");
    one(|tensor| tensor.dimensions = vec![u64::MAX, 2], "more elements than any file");
    one(|tensor| tensor.dimensions = vec![1 << 62], "more elements than any file");
    one(|tensor| tensor.dimensions = vec![1 << 61], "fetch the file again");
    one(|tensor| tensor.dimensions = vec![1 << 40], "fetch the file again");
    one(|tensor| tensor.dimensions = vec![4, 2], "its metadata asks for");
    one(|tensor| tensor.dimensions = vec![16], "its metadata asks for");
    one(|tensor| tensor.dimensions = vec![0, 4], "its metadata asks for");
    one(|tensor| tensor.kind = 13, "Q5_K is not served");
    one(|tensor| tensor.kind = 40, "type 40 is not known");
    one(|tensor| tensor.kind = 8, "no whole number of q8_0 blocks");
    one(|tensor| tensor.kind = 6, "no whole number of q8_0 blocks");
    one(|tensor| tensor.offset += 4, "no multiple of 32");
    one(|tensor| tensor.offset = u64::MAX - 31, "beyond any file");
    one(|tensor| tensor.offset = 1 << 40, "fetch the file again");
    one(|tensor| tensor.offset = 0, "begin inside");
    let in_blocks = |tensor: &mut Tensor| (tensor.kind, tensor.dimensions) = (8, vec![32]);
    refused(&File::new().tensor("output_norm.weight", in_blocks), "output_norm.weight", "vectors are read as");
    refused(
        &File::new().tensor("blk.0.attn_q.weight", |tensor| tensor.name = "output.weight".into()),
        "output.weight",
        "twice",
    );
    refused(
        &File::new().tensor("output.weight", |tensor| tensor.name = "extra.weight".into()),
        "extra.weight",
        "does not describe",
    );
    refused(
        &File::new().tensor("token_embd.weight", |tensor| tensor.name = "x".into()),
        "token_embd.weight",
        "missing",
    );
    refused(
        &File::new().tensor("token_embd.weight", |tensor| tensor.dimensions = vec![32]),
        "token_embd.weight",
        "no table",
    );
}

fn next(state: &mut u64) -> usize {
    (draw(state) >> 1) as usize
}

/// A mutated file loads or is refused; the process neither panics nor grows.
#[test]
fn mutated_files_are_refused_or_load() {
    const CASES: u64 = 400;
    let whole = File::new().encode();
    let header = whole.len() - 1024;
    let mut num_refused = 0;
    for seed in 0..CASES {
        let mut state = seed;
        let mut bytes = whole.clone();
        match seed % 4 {
            0 => bytes.truncate(next(&mut state) % whole.len()),
            1 => (0..1 + next(&mut state) % 8)
                .for_each(|_| bytes[next(&mut state) % header] ^= 1 << (next(&mut state) % 8)),
            2 => {
                let at = next(&mut state) % (header - 8);
                let value = [u64::MAX, 1 << 63, 1 << 32, 0, 1 << 20][next(&mut state) % 5];
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            _ => {
                let (at, len) = (next(&mut state) % header, 1 + next(&mut state) % 64);
                let piece = bytes[at..(at + len).min(header)].to_vec();
                let to = next(&mut state) % header;
                bytes.splice(to..to, piece);
            }
        }
        match load_bytes(&bytes) {
            Ok(()) => {}
            Err(ModelError::Checkpoint { file, what, problem }) => {
                assert!(file.ends_with("model.gguf") && !what.is_empty() && !problem.is_empty(), "seed {seed}: {what}");
                num_refused += 1;
            }
            Err(other) => panic!("seed {seed}: {other:?} names no field"),
        }
    }
    assert!(num_refused > CASES / 2, "{num_refused} of {CASES}");
}
