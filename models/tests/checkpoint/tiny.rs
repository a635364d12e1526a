//! A checkpoint of a few hundred bytes, written field by field and byte by byte so that a test can lie anywhere in it.

use std::collections::BTreeMap;
use std::fs;

use passerelle_models::ops::Compute;
use passerelle_models::{CheckpointFiles, LoadOptions, LoadedModel, ModelError, load, unwatched};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::bounds::within_bounds;

/// Files by name.
#[derive(Debug, Clone)]
pub(crate) struct Tiny {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
}

/// One entry of a safetensors header, as JSON text: names may repeat and values may be anything.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) value: Value,
}

impl Tiny {
    /// One layer, everything of size 4, vocabulary 8, f32, all weights zero. It loads.
    pub(crate) fn new() -> Self {
        let mut tiny = Self { files: BTreeMap::new() };
        tiny.set_config(&config());
        let (entries, len) = entries();
        tiny.files.insert("model.safetensors".into(), encode(&entries, len));
        tiny
    }

    pub(crate) fn set_config(&mut self, config: &Map<String, Value>) {
        self.files.insert("config.json".into(), Value::Object(config.clone()).to_string().into_bytes());
    }

    /// With one field of config.json replaced; `null` removes it.
    pub(crate) fn with_field(key: &str, value: Value) -> Self {
        let (mut tiny, mut config) = (Self::new(), config());
        if value.is_null() {
            config.remove(key);
        } else {
            config.insert(key.into(), value);
        }
        tiny.set_config(&config);
        tiny
    }

    /// With the header's entries changed.
    pub(crate) fn with_entries(edit: impl FnOnce(&mut Vec<Entry>)) -> Self {
        let mut tiny = Self::new();
        let (mut entries, len) = entries();
        edit(&mut entries);
        tiny.files.insert("model.safetensors".into(), encode(&entries, len));
        tiny
    }

    /// With another file beside or instead of the usual ones.
    pub(crate) fn with_file(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.files.insert(name.into(), bytes.into());
        self
    }

    pub(crate) fn without_file(mut self, name: &str) -> Self {
        self.files.remove(name);
        self
    }

    pub(crate) fn load(&self) -> Result<LoadedModel, ModelError> {
        self.load_with(&LoadOptions::default())
    }

    pub(crate) fn load_with(&self, options: &LoadOptions) -> Result<LoadedModel, ModelError> {
        let directory = TempDir::new().unwrap();
        for (name, bytes) in &self.files {
            fs::write(directory.path().join(name), bytes).unwrap();
        }
        within_bounds(|| {
            let files = CheckpointFiles::directory(directory.path())?;
            load(&files, &Compute::cpu(1), options, &mut unwatched)
        })
    }
}

pub(crate) fn config() -> Map<String, Value> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 8,
        "hidden_size": 4,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
    });
    config.as_object().unwrap().clone()
}

/// The header's entries in file order, and how many bytes of data they describe.
pub(crate) fn entries() -> (Vec<Entry>, usize) {
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![8, 4])];
    for name in ["q_proj", "k_proj", "v_proj", "o_proj"] {
        shapes.push((layer(&format!("self_attn.{name}")), vec![4, 4]));
    }
    for name in ["gate_proj", "up_proj", "down_proj"] {
        shapes.push((layer(&format!("mlp.{name}")), vec![4, 4]));
    }
    shapes.extend(["input_layernorm", "post_attention_layernorm"].map(|name| (layer(name), vec![4])));
    shapes.push(("model.norm.weight".into(), vec![4]));
    shapes.push(("lm_head.weight".into(), vec![8, 4]));
    let mut end = 0;
    let entries = shapes.into_iter().map(|(name, shape)| {
        let start = end;
        end += 4 * shape.iter().product::<usize>();
        Entry { name, value: json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, end] }) }
    });
    let entries = entries.collect();
    (entries, end)
}

/// A safetensors file with `data_len` zero bytes of data.
pub(crate) fn encode(entries: &[Entry], data_len: usize) -> Vec<u8> {
    let entries: Vec<String> =
        entries.iter().map(|entry| format!("{}:{}", Value::from(entry.name.as_str()), entry.value)).collect();
    raw(&format!("{{{}}}", entries.join(",")), data_len)
}

/// A safetensors file around any header text.
pub(crate) fn raw(header: &str, data_len: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    bytes.extend(vec![0; data_len]);
    bytes
}
