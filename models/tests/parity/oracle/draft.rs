//! Checkpoints drawn at random, in the sizes that a configuration gives: another opinion needs no golden file, so every seed
//! and shape is a fixture.

use std::collections::HashMap;
use std::fs;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use passerelle_models::CheckpointFiles;
use passerelle_models::random::draw;
use serde_json::Value;
use tempfile::TempDir;

/// How a family's layers differ in their tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecoderParts {
    pub(super) norms: [&'static str; 2],
    pub(super) qkv_biased: bool,
    pub(super) output_biased: bool,
    pub(super) qk_norm: QkNorm,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum QkNorm {
    Absent,
    OfHeads,
    OfTokens,
}

pub(super) const LLAMA_PARTS: DecoderParts = DecoderParts {
    norms: ["input_layernorm", "post_attention_layernorm"],
    qkv_biased: false,
    output_biased: false,
    qk_norm: QkNorm::Absent,
};

/// A configuration and the tensors drawn for it.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) config: Value,
    tensors: HashMap<String, Tensor>,
    state: u64,
}

impl Draft {
    pub(super) fn decoder(config: Value, seed: u64, parts: DecoderParts) -> Self {
        let mut draft = Self { config, tensors: HashMap::new(), state: seed };
        let (hidden, vocab) = (draft.size("hidden_size"), draft.size("vocab_size"));
        let heads = draft.size("num_attention_heads");
        let head_dim = draft.config["head_dim"].as_u64().map_or(hidden / heads, |dim| dim as usize);
        let widths = [heads * head_dim, draft.size("num_key_value_heads") * head_dim];
        draft.table("model.embed_tokens.weight", vocab, hidden);
        draft.norm("model.norm", hidden, false);
        if draft.config["tie_word_embeddings"] != Value::Bool(true) {
            draft.linear("lm_head", vocab, hidden, false);
        }
        for layer in 0..draft.size("num_hidden_layers") {
            draft.decoder_layer(&format!("model.layers.{layer}"), widths, head_dim, parts);
        }
        draft
    }

    fn decoder_layer(&mut self, prefix: &str, [query, key]: [usize; 2], head_dim: usize, parts: DecoderParts) {
        let (hidden, intermediate) = (self.size("hidden_size"), self.size("intermediate_size"));
        for norm in parts.norms {
            self.norm(&format!("{prefix}.{norm}"), hidden, false);
        }
        for (name, rows) in [("q_proj", query), ("k_proj", key), ("v_proj", key)] {
            self.linear(&format!("{prefix}.self_attn.{name}"), rows, hidden, parts.qkv_biased);
        }
        self.linear(&format!("{prefix}.self_attn.o_proj"), hidden, query, parts.output_biased);
        if parts.qk_norm != QkNorm::Absent {
            for (name, width) in [("q_norm", query), ("k_norm", key)] {
                let width = if parts.qk_norm == QkNorm::OfHeads { head_dim } else { width };
                self.norm(&format!("{prefix}.self_attn.{name}"), width, false);
            }
        }
        self.linear(&format!("{prefix}.mlp.gate_proj"), intermediate, hidden, false);
        self.linear(&format!("{prefix}.mlp.up_proj"), intermediate, hidden, false);
        self.linear(&format!("{prefix}.mlp.down_proj"), hidden, intermediate, false);
    }

    /// BERT and what descends from it, without a head.
    pub(super) fn bert(config: Value, seed: u64) -> Self {
        let mut draft = Self { config, tensors: HashMap::new(), state: seed };
        let (hidden, intermediate) = (draft.size("hidden_size"), draft.size("intermediate_size"));
        for (table, rows) in [
            ("word_embeddings", "vocab_size"),
            ("position_embeddings", "max_position_embeddings"),
            ("token_type_embeddings", "type_vocab_size"),
        ] {
            draft.table(&format!("embeddings.{table}.weight"), draft.size(rows), hidden);
        }
        draft.norm("embeddings.LayerNorm", hidden, true);
        for layer in 0..draft.size("num_hidden_layers") {
            let prefix = format!("encoder.layer.{layer}");
            for name in ["self.query", "self.key", "self.value", "output.dense"] {
                draft.linear(&format!("{prefix}.attention.{name}"), hidden, hidden, true);
            }
            draft.linear(&format!("{prefix}.intermediate.dense"), intermediate, hidden, true);
            draft.linear(&format!("{prefix}.output.dense"), hidden, intermediate, true);
            draft.norm(&format!("{prefix}.attention.output.LayerNorm"), hidden, true);
            draft.norm(&format!("{prefix}.output.LayerNorm"), hidden, true);
        }
        draft
    }

    pub(super) fn modernbert(config: Value, seed: u64) -> Self {
        let mut draft = Self { config, tensors: HashMap::new(), state: seed };
        let (hidden, intermediate) = (draft.size("hidden_size"), draft.size("intermediate_size"));
        draft.table("model.embeddings.tok_embeddings.weight", draft.size("vocab_size"), hidden);
        draft.norm("model.embeddings.norm", hidden, false);
        draft.norm("model.final_norm", hidden, false);
        for layer in 0..draft.size("num_hidden_layers") {
            let prefix = format!("model.layers.{layer}");
            if layer > 0 {
                draft.norm(&format!("{prefix}.attn_norm"), hidden, false);
            }
            draft.norm(&format!("{prefix}.mlp_norm"), hidden, false);
            draft.linear(&format!("{prefix}.attn.Wqkv"), 3 * hidden, hidden, false);
            draft.linear(&format!("{prefix}.attn.Wo"), hidden, hidden, false);
            draft.linear(&format!("{prefix}.mlp.Wi"), 2 * intermediate, hidden, false);
            draft.linear(&format!("{prefix}.mlp.Wo"), hidden, intermediate, false);
        }
        draft
    }

    /// The same tensors for the other implementation.
    pub(super) fn variables(&self) -> VarBuilder<'static> {
        VarBuilder::from_tensors(self.tensors.clone(), DType::F32, &Device::Cpu)
    }

    /// The configuration as the other implementation reads it.
    pub(super) fn read<C: serde::de::DeserializeOwned>(&self) -> C {
        serde_json::from_value(self.config.clone()).unwrap()
    }

    /// As a checkpoint on the disk, which goes with the folder.
    pub(super) fn write(&self) -> (TempDir, CheckpointFiles) {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        candle_core::safetensors::save(&self.tensors, folder.path().join("model.safetensors")).unwrap();
        let files = CheckpointFiles::directory(folder.path()).unwrap();
        (folder, files)
    }

    /// `len` token ids of the vocabulary, but for the first few, which pad and frame.
    pub(super) fn ids(&mut self, len: usize) -> Vec<u32> {
        const SPECIAL: usize = 5;
        let range = self.size("vocab_size") - SPECIAL;
        (0..len).map(|_| (SPECIAL + (self.uniform() * range as f32) as usize) as u32).collect()
    }

    fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) {
        self.draw(name.to_owned(), &[rows, width], 0.0, 1.0);
    }

    fn linear(&mut self, name: &str, rows: usize, width: usize, biased: bool) {
        self.draw(format!("{name}.weight"), &[rows, width], 0.0, 1.3 / (width as f32).sqrt());
        if biased {
            self.draw(format!("{name}.bias"), &[rows], 0.0, 0.3);
        }
    }

    fn norm(&mut self, name: &str, width: usize, biased: bool) {
        self.draw(format!("{name}.weight"), &[width], 1.0, 0.3);
        if biased {
            self.draw(format!("{name}.bias"), &[width], 0.0, 0.3);
        }
    }

    /// Numbers of mean `mean` and standard deviation `deviation`.
    fn draw(&mut self, name: String, shape: &[usize], mean: f32, deviation: f32) {
        // Of the sum of twelve uniform numbers the variance is 1.
        let mut normal = || (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0;
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| mean + deviation * normal()).collect();
        self.tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
    }

    /// From 0 to 1.
    fn uniform(&mut self) -> f32 {
        (draw(&mut self.state) >> 40) as f32 / (1_u64 << 24) as f32
    }
}
