//! Checkpoints of published shapes whose weights are made up.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use passerelle_models::random::draw;
use serde_json::{Map, Value, json};

/// bf16 of 1.
const ONE: u16 = 0x3f80;
/// Where bf16 has its exponent, and what stands for 2^0.
const EXPONENT: (u32, i32) = (7, 127);
/// Sign and mantissa of bf16.
const FREE_BITS: u16 = 0x807f;
/// Weights that are written at once.
const PIECE: usize = 1 << 16;
/// Random numbers that are made: a prime, so that rows of a matrix are not each other's.
const NOISE: usize = 16_777_213;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    #[value(name = "qwen3-0.6b")]
    Qwen3,
    #[value(name = "llama-3.1-8b")]
    Llama,
    /// Of no model: to see the suite run anywhere.
    Tiny,
}

impl Shape {
    pub(super) const REAL: [Self; 2] = [Self::Qwen3, Self::Llama];

    /// As `--shape` takes it.
    pub(super) fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    /// Writes `config.json` and `model.safetensors`, in bf16, to `folder`. The same weights each time.
    pub(super) fn write(self, folder: &Path) -> Result<()> {
        let config: Value = serde_json::from_str(self.config()).context("a configuration that is compiled in")?;
        fs::write(folder.join("config.json"), self.config())?;
        let tensors = tensors(&config)?;
        let mut file = BufWriter::with_capacity(1 << 20, File::create(folder.join("model.safetensors"))?);
        let header = header(&tensors);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        let mut noise = Noise::new();
        for (_, shape) in &tensors {
            noise.write(shape, &mut file)?;
        }
        Ok(file.flush()?)
    }

    fn config(self) -> &'static str {
        match self {
            Self::Qwen3 => include_str!("../../../../models/tests/fixtures/shapes/qwen3-0.6b/config.json"),
            Self::Llama => include_str!("../../../../models/tests/fixtures/shapes/llama-3.1-8b/config.json"),
            Self::Tiny => include_str!("shape/tiny.json"),
        }
    }
}

/// Names and shapes, as Llama's and Qwen3's classes have them.
fn tensors(config: &Value) -> Result<Vec<(String, Vec<usize>)>> {
    let number = |name: &str| config[name].as_u64().with_context(|| name.to_owned()).map(|number| number as usize);
    let (hidden, ffn, heads) = (number("hidden_size")?, number("intermediate_size")?, number("num_attention_heads")?);
    let head_dim = number("head_dim").unwrap_or(hidden / heads);
    let (q, kv, vocab) = (heads * head_dim, number("num_key_value_heads")? * head_dim, number("vocab_size")?);
    let has_qk_norm = config["architectures"][0] == "Qwen3ForCausalLM";
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
    for layer in 0..number("num_hidden_layers")? {
        let mut add = |name: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[hidden]);
        add("self_attn.q_proj", &[q, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, q]);
        if has_qk_norm {
            add("self_attn.q_norm", &[head_dim]);
            add("self_attn.k_norm", &[head_dim]);
        }
        add("post_attention_layernorm", &[hidden]);
        add("mlp.gate_proj", &[ffn, hidden]);
        add("mlp.up_proj", &[ffn, hidden]);
        add("mlp.down_proj", &[hidden, ffn]);
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if config["tie_word_embeddings"] != true {
        tensors.push(("lm_head.weight".to_owned(), vec![vocab, hidden]));
    }
    Ok(tensors)
}

/// Of a safetensors file that has the tensors in this order.
fn header(tensors: &[(String, Vec<usize>)]) -> Vec<u8> {
    let mut end = 0;
    let entries = tensors.iter().map(|(name, shape)| {
        let start = end;
        end += shape.iter().product::<usize>() * size_of::<u16>();
        (name.clone(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}))
    });
    let header: Map<String, Value> = entries.collect();
    Value::Object(header).to_string().into_bytes()
}

/// Signs and mantissas of bf16 that no matrix begins at the same place of.
struct Noise {
    bits: Vec<u16>,
    next: usize,
}

impl Noise {
    fn new() -> Self {
        let mut state = 1;
        let bits = std::iter::repeat_with(|| draw(&mut state) as u16 & FREE_BITS).take(NOISE).collect();
        Self { bits, next: 0 }
    }

    /// A norm's ones, or a matrix of weights whose signs and mantissas are random, and whose size keeps a row of
    /// outputs near that of its inputs.
    fn write(&mut self, shape: &[usize], file: &mut impl Write) -> Result<()> {
        let len: usize = shape.iter().product();
        let &[_, columns] = shape else {
            return Ok(file.write_all(&ONE.to_le_bytes().repeat(len))?);
        };
        let exponent = EXPONENT.1 - ((columns as f64).sqrt().log2().ceil() as i32);
        let exponent = (exponent as u16) << EXPONENT.0;
        let (mut piece, mut left) = (Vec::new(), len);
        while left > 0 {
            let bits = &self.bits[self.next..];
            let bits = &bits[..bits.len().min(PIECE).min(left)];
            piece.clear();
            piece.extend(bits.iter().flat_map(|bits| (bits | exponent).to_le_bytes()));
            file.write_all(&piece)?;
            left -= bits.len();
            self.next = (self.next + bits.len()) % NOISE;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use passerelle_models::{CheckpointFiles, LoadOptions, load, unwatched};

    use super::*;

    /// Every tensor of it is used, and none is missing.
    #[test]
    fn a_made_up_checkpoint_is_one_that_can_be_served() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Shape::Tiny.write(folder.path()).expect("it is written");
        let files = CheckpointFiles::directory(folder.path()).expect("a folder");
        let compute = passerelle_models::ops::Compute::cpu(1);
        let model = load(&files, &compute, &LoadOptions::default(), &mut unwatched).expect("it loads").description;
        assert_eq!((model.num_layers, model.head_dim), (2, 32));
    }

    /// By the models' published numbers of parameters.
    #[test]
    fn the_real_shapes_are_those_of_the_models() {
        for (shape, parameters) in [(Shape::Qwen3, 596_049_920), (Shape::Llama, 8_030_261_248)] {
            let config: Value = serde_json::from_str(shape.config()).expect("JSON");
            let sizes =
                tensors(&config).expect("a shape").into_iter().map(|(_, shape)| shape.iter().product::<usize>());
            assert_eq!(sizes.sum::<usize>(), parameters, "{shape:?}");
        }
    }
}
