//! The families of GGUF files: how the metadata becomes a [`DecoderSpec`], and what the tensors are called there.
//!
//! The keys are those of `constants.py` in ggml-org/llama.cpp's gguf package, what they mean is what llama.cpp
//! computes. Each key of the architecture is honoured or refused by name. Biases and a head of its own are there when
//! their tensors are.

use serde_json::{Map, Value};

use super::common;
use crate::config::{
    Activation, AttentionSpec, DecoderSpec, Direction, FfnSpec, Fields, GateActivation, LayerSpec, MixerSpec, NormKind,
    NormPlacement, NormSpec, NormWeight, OutputHead, PositionSpec, QkNormScope, QkNormSpec, RopeScaling, RopeSpec,
    RopeStyle, YarnSpec, limits, yarn_mscale,
};
use crate::layers::{QkvNames, RotaryRows, WeightNames};
use crate::weights::{GgufMetadata, TensorIndex};
use crate::{ModelError, TokenId};

const NAMES: WeightNames = WeightNames {
    base_prefix: "",
    embedding: "token_embd",
    embedding_norm: "token_embd_norm",
    final_norm: "output_norm",
    output_head: "output",
    layers: "blk",
    mixer_norm: "attn_norm",
    qkv: QkvNames::Separate { query: "attn_q", key: "attn_k", value: "attn_v" },
    rotary_rows: RotaryRows::Halves,
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    attention_output: "attn_output",
    ffn_norm: "ffn_norm",
    gate: "ffn_gate",
    gate_up: None,
    up: "ffn_up",
    down: "ffn_down",
    activation: "",
    derived: &[ROPE_FACTORS],
    other_inputs: &[],
};
/// The tensor that a file's rotary frequencies are divided by. It is read with the metadata.
pub(crate) const ROPE_FACTORS: &str = "rope_freqs.weight";
const ARCHITECTURE_KEY: &str = "general.architecture";

/// An architecture of GGUF files that can be served.
#[derive(Debug)]
pub(crate) struct GgufFamily {
    /// As in `general.architecture`, and before the keys of the architecture.
    pub(crate) name: &'static str,
    pub(crate) names: WeightNames,
    read: fn(&mut Reader<'_>) -> Result<DecoderSpec, ModelError>,
}

static FAMILIES: [GgufFamily; 4] = [
    GgufFamily { name: "bloom", names: WeightNames { qkv: QkvNames::Stacked("attn_qkv"), ..NAMES }, read: read_bloom },
    // Llama and Mistral, whose queries and keys converters reorder.
    GgufFamily {
        name: "llama",
        names: WeightNames { rotary_rows: RotaryRows::Pairs, ..NAMES },
        read: |reader| read_rotary(reader, None),
    },
    GgufFamily { name: "qwen2", names: NAMES, read: |reader| read_rotary(reader, None) },
    GgufFamily { name: "qwen3", names: NAMES, read: |reader| read_rotary(reader, Some(QkNormScope::Head)) },
];

/// What the metadata and the table of tensors describe. `rope_factors` are the values of [`ROPE_FACTORS`], if any.
pub(crate) fn read(
    metadata: &GgufMetadata,
    index: &TensorIndex,
    rope_factors: Option<Vec<f32>>,
) -> Result<(&'static GgufFamily, DecoderSpec), ModelError> {
    let family = find(metadata)?;
    let prefix = format!("{}.", family.name);
    let mut keys = metadata.fields()?;
    keys.retain(|key, _| key.starts_with(&prefix));
    let fields = Fields::new(metadata.file(), &keys);
    let mut reader = Reader { family, fields, keys: &keys, metadata, index, rope_factors };
    let spec = (family.read)(&mut reader)?;
    reader.skip_irrelevant()?;
    reader.fields.finish()?;
    Ok((family, spec))
}

/// The key of the longest sequence.
pub(crate) fn context_key(family: &GgufFamily) -> String {
    format!("{}.context_length", family.name)
}

fn find(metadata: &GgufMetadata) -> Result<&'static GgufFamily, ModelError> {
    if let Some(kind) = metadata.text("general.type")?.filter(|kind| *kind != "model") {
        return Err(metadata.refuse("general.type", format!("{kind:.80} is not a whole model")));
    }
    let Some(wanted) = metadata.text(ARCHITECTURE_KEY)? else {
        return Err(metadata.refuse(ARCHITECTURE_KEY, "missing; the file is not a model"));
    };
    FAMILIES.iter().find(|family| family.name == wanted).ok_or_else(|| {
        let supported = FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", ");
        let problem = format!(
            "{wanted:.80} is not supported in GGUF files; supported: {supported}. The safetensors checkpoint of the same \
             model may be"
        );
        metadata.refuse(ARCHITECTURE_KEY, problem)
    })
}

/// Their names, sorted.
#[cfg(test)]
pub(super) fn architectures() -> Vec<String> {
    FAMILIES.iter().map(|family| family.name.to_owned()).collect()
}

struct Reader<'a> {
    family: &'static GgufFamily,
    fields: Fields<'a>,
    keys: &'a Map<String, Value>,
    metadata: &'a GgufMetadata,
    index: &'a TensorIndex,
    rope_factors: Option<Vec<f32>>,
}

/// What every decoder has.
struct Shape {
    vocab_size: usize,
    hidden_size: usize,
    num_layers: usize,
    intermediate_size: usize,
    num_heads: usize,
    num_kv_heads: usize,
    context: usize,
}

fn read_rotary(reader: &mut Reader<'_>, qk_norm: Option<QkNormScope>) -> Result<DecoderSpec, ModelError> {
    let shape = reader.shape()?;
    let eps = reader.number("attention.layer_norm_rms_epsilon", limits::NORM_EPS)? as f32;
    let norm = NormSpec { kind: NormKind::Rms, weight: NormWeight::Stored, eps };
    let head_dim = reader.head_dim(&shape)?;
    let position = PositionSpec::Rope(reader.rope(head_dim, shape.context)?);
    let max_position = common::reach(&position, shape.context);
    let attention = AttentionSpec {
        qk_norm: qk_norm.map(|scope| QkNormSpec { scope, norm }),
        window: reader.optional_count("attention.sliding_window", 0..=*limits::WINDOW.end())?.filter(|&size| size > 0),
        ..reader.attention(&shape, head_dim, position)?
    };
    let bias = reader.has("blk.0.ffn_up.bias").into();
    let ffn = FfnSpec::Gated { intermediate_size: shape.intermediate_size, activation: GateActivation::Silu, bias };
    let layer = LayerSpec { mixer: MixerSpec::Attention(attention), ffn, norm, placement: NormPlacement::Pre };
    reader.decoder(&shape, layer, max_position)
}

fn read_bloom(reader: &mut Reader<'_>) -> Result<DecoderSpec, ModelError> {
    let shape = reader.shape()?;
    if shape.num_kv_heads != shape.num_heads {
        return Err(reader.refuse("attention.head_count_kv", "this architecture has as many as query heads"));
    }
    reader.neutral("attention.max_alibi_bias", &[8.0.into()], "the slopes of this architecture are fixed")?;
    let eps = reader.number("attention.layer_norm_epsilon", limits::NORM_EPS)? as f32;
    let norm = NormSpec { kind: NormKind::Layer, weight: NormWeight::Stored, eps };
    let head_dim = reader.head_dim(&shape)?;
    let attention = reader.attention(&shape, head_dim, PositionSpec::Alibi)?;
    let bias = reader.has("blk.0.ffn_up.bias").into();
    let ffn = FfnSpec::Plain { intermediate_size: shape.intermediate_size, activation: Activation::GeluTanh, bias };
    let layer = LayerSpec { mixer: MixerSpec::Attention(attention), ffn, norm, placement: NormPlacement::Pre };
    let spec = reader.decoder(&shape, layer, shape.context)?;
    Ok(DecoderSpec { embedding_norm: Some(norm), ..spec })
}

impl Reader<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.family.name)
    }

    fn refuse(&self, key: &str, problem: impl Into<String>) -> ModelError {
        self.metadata.refuse(&self.key(key), problem)
    }

    fn count(&mut self, key: &str, range: std::ops::RangeInclusive<usize>) -> Result<usize, ModelError> {
        let key = self.key(key);
        self.fields.count(&key, range)
    }

    fn optional_count(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, ModelError> {
        let key = self.key(key);
        self.fields.optional_count(&key, range)
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<f64, ModelError> {
        let key = self.key(key);
        self.fields.number(&key, range)
    }

    fn optional_number(&mut self, key: &str, range: std::ops::RangeInclusive<f64>) -> Result<Option<f64>, ModelError> {
        let key = self.key(key);
        self.fields.optional_number(&key, range)
    }

    fn neutral(&mut self, key: &str, neutral: &[Value], why: &str) -> Result<(), ModelError> {
        let key = self.key(key);
        self.fields.neutral(&key, neutral, why)
    }

    fn has(&self, tensor: &str) -> bool {
        self.index.shape(tensor).is_some()
    }

    /// A count that may be written once for each layer. `None` where the key is absent.
    fn layer_count(
        &mut self,
        key: &str,
        range: std::ops::RangeInclusive<usize>,
        num_layers: usize,
    ) -> Result<Option<usize>, ModelError> {
        let full_key = self.key(key);
        let Some(Value::Array(counts)) = self.keys.get(&full_key) else { return self.optional_count(key, range) };
        self.fields.ignore(&[&full_key]);
        let count = counts.first().and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
        let alike = counts.len() == num_layers && counts.iter().all(|count| Some(count) == counts.first());
        match count.filter(|count| alike && range.contains(count)) {
            Some(count) => Ok(Some(count)),
            None => Err(self.refuse(key, "layers that differ are not served")),
        }
    }

    fn shape(&mut self) -> Result<Shape, ModelError> {
        let num_layers = self.count("block_count", limits::NUM_LAYERS)?;
        let hidden_size = self.count("embedding_length", limits::HIDDEN_SIZE)?;
        let num_heads = self.layer_count("attention.head_count", limits::NUM_HEADS, num_layers)?;
        let num_heads =
            num_heads.ok_or_else(|| self.refuse("attention.head_count", "missing; the file is incomplete"))?;
        let num_kv_heads = self.layer_count("attention.head_count_kv", limits::NUM_HEADS, num_layers)?;
        let num_kv_heads = num_kv_heads.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let problem = format!("{num_kv_heads} does not divide the {num_heads} attention heads");
            return Err(self.refuse("attention.head_count_kv", problem));
        }
        let intermediate_size = self.layer_count("feed_forward_length", limits::INTERMEDIATE_SIZE, num_layers)?;
        let intermediate_size =
            intermediate_size.ok_or_else(|| self.refuse("feed_forward_length", "missing; the file is incomplete"))?;
        let context = self.count("context_length", limits::MAX_POSITION)?;
        let vocab_size = self.vocab_size()?;
        Ok(Shape { vocab_size, hidden_size, num_layers, intermediate_size, num_heads, num_kv_heads, context })
    }

    /// As many as the embedding table has rows.
    fn vocab_size(&mut self) -> Result<usize, ModelError> {
        const TABLE: &str = "token_embd.weight";
        let vocab_size = match self.index.shape(TABLE) {
            Some([rows, _]) if limits::VOCAB_SIZE.contains(rows) => *rows,
            Some(shape) => return Err(self.metadata.refuse(TABLE, format!("{shape:?} is no table of embeddings"))),
            None => return Err(self.metadata.refuse(TABLE, "missing; the file is not a whole model")),
        };
        self.neutral("vocab_size", &[vocab_size.into()], &format!("{TABLE} has {vocab_size} rows"))?;
        Ok(vocab_size)
    }

    fn head_dim(&mut self, shape: &Shape) -> Result<usize, ModelError> {
        let head_dim = match self.optional_count("attention.key_length", limits::HEAD_DIM)? {
            Some(head_dim) => head_dim,
            None if shape.hidden_size.is_multiple_of(shape.num_heads) => shape.hidden_size / shape.num_heads,
            None => {
                let problem = format!("missing, and {} heads do not divide {}", shape.num_heads, shape.hidden_size);
                return Err(self.refuse("attention.key_length", problem));
            }
        };
        if !limits::HEAD_DIM.contains(&head_dim) {
            return Err(self.refuse("attention.head_count", format!("heads of {head_dim} elements are not served")));
        }
        self.neutral("attention.value_length", &[head_dim.into()], "values are as long as keys")?;
        Ok(head_dim)
    }

    fn attention(
        &mut self,
        shape: &Shape,
        head_dim: usize,
        position: PositionSpec,
    ) -> Result<AttentionSpec, ModelError> {
        const SCALE: std::ops::RangeInclusive<f64> = 1e-6..=1e3;
        let scale = self.optional_number("attention.scale", SCALE)?.map(|scale| scale as f32);
        let qkv_bias = self.has("blk.0.attn_q.bias") || self.has("blk.0.attn_qkv.bias");
        Ok(AttentionSpec {
            num_heads: shape.num_heads,
            num_kv_heads: shape.num_kv_heads,
            head_dim,
            qkv_bias: qkv_bias.into(),
            output_bias: self.has("blk.0.attn_output.bias").into(),
            qk_norm: None,
            scale: scale.unwrap_or_else(|| common::default_scale(head_dim)),
            direction: Direction::Causal,
            window: None,
            position,
            temperature: None,
        })
    }

    fn decoder(&self, shape: &Shape, layer: LayerSpec, max_position: usize) -> Result<DecoderSpec, ModelError> {
        Ok(DecoderSpec {
            vocab_size: shape.vocab_size,
            input_vocab_size: shape.vocab_size,
            hidden_size: shape.hidden_size,
            output_head: if self.has("output.weight") { OutputHead::Separate } else { OutputHead::Tied },
            max_position,
            eos_token_ids: self.token_ids(&["eos", "eot", "eom"], shape.vocab_size)?,
            bos_token_id: self.token_ids(&["bos"], shape.vocab_size)?.first().copied(),
            embedding_norm: None,
            final_norm: layer.norm,
            layers: vec![layer; shape.num_layers],
        })
    }

    fn token_ids(&self, names: &[&str], vocab_size: usize) -> Result<Vec<TokenId>, ModelError> {
        let mut ids = Vec::new();
        for name in names {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match self.metadata.count(&key)? {
                Some(id) if id >= vocab_size as u64 => {
                    let problem = format!("token {id} is outside the vocabulary of {vocab_size}");
                    return Err(self.metadata.refuse(&key, problem));
                }
                Some(id) if !ids.contains(&(id as TokenId)) => ids.push(id as TokenId),
                _ => {}
            }
        }
        Ok(ids)
    }

    fn rope(&mut self, head_dim: usize, context: usize) -> Result<RopeSpec, ModelError> {
        let dim = self.optional_count("rope.dimension_count", 2..=head_dim)?.unwrap_or(head_dim);
        if !dim.is_multiple_of(2) {
            return Err(self.refuse("rope.dimension_count", format!("{dim} is odd; elements turn in pairs")));
        }
        let theta = self.optional_number("rope.freq_base", limits::ROPE_THETA)?.unwrap_or(10_000.0);
        let mut scaling = self.rope_scaling(context)?;
        if let Some(factors) = self.rope_factors.take() {
            let usable = factors.len() == dim / 2 && factors.iter().all(|factor| factor.is_finite() && *factor > 0.0);
            if !usable || scaling != RopeScaling::Default {
                let problem = format!("expected {} positive numbers, and no other scaling of positions", dim / 2);
                return Err(self.metadata.refuse(ROPE_FACTORS, problem));
            }
            scaling = RopeScaling::Divided { factors };
        }
        Ok(RopeSpec { dim, style: RopeStyle::Half, theta, scaling })
    }

    fn rope_scaling(&mut self, context: usize) -> Result<RopeScaling, ModelError> {
        let old_factor = self.optional_number("rope.scale_linear", 0.0..=*limits::ROPE_FACTOR.end())?;
        let factor = self.optional_number("rope.scaling.factor", 0.0..=*limits::ROPE_FACTOR.end())?;
        let factor = factor.or(old_factor).filter(|factor| *factor != 0.0);
        let original = self.optional_count("rope.scaling.original_context_length", 0..=*limits::MAX_POSITION.end())?;
        let original = original.filter(|&length| length > 0).unwrap_or(context);
        // Whether the model was trained further after it was stretched.
        let finetuned = self.key("rope.scaling.finetuned");
        self.fields.flag(&finetuned, false)?;
        let kind_key = self.key("rope.scaling.type");
        // Without a kind, llama.cpp scales linearly.
        let scaling = match (self.fields.text(&kind_key)?.unwrap_or("linear"), factor) {
            ("none", _) | ("linear" | "yarn", None) => RopeScaling::Default,
            ("linear", Some(factor)) => RopeScaling::Linear { factor },
            ("yarn", Some(factor)) => RopeScaling::Yarn(self.yarn(factor, original)?),
            (other, _) => {
                let problem = format!("{other:.80} is not supported; supported: none, linear, yarn");
                return Err(self.metadata.refuse(&kind_key, problem));
            }
        };
        if !matches!(scaling, RopeScaling::Yarn(_)) {
            self.neutral("rope.scaling.attn_factor", &[1.0.into()], "only yarn scales attention")?;
        }
        Ok(scaling)
    }

    fn yarn(&mut self, factor: f64, original_max_position: usize) -> Result<YarnSpec, ModelError> {
        const BETA: std::ops::RangeInclusive<f64> = 0.0..=1e6;
        self.neutral("rope.scaling.yarn_ext_factor", &[1.0.into()], "the mix of frequencies is that of the paper")?;
        self.neutral("rope.scaling.yarn_log_multiplier", &[0.0.into()], "attention scales as in the paper")?;
        self.neutral("rope.scaling.yarn_attn_factor", &[1.0.into()], "attention scales as in the paper")?;
        let attention = self.optional_number("rope.scaling.attn_factor", limits::ROPE_FACTOR)?.unwrap_or(1.0);
        Ok(YarnSpec {
            factor,
            beta_fast: self.optional_number("rope.scaling.yarn_beta_fast", BETA)?.unwrap_or(32.0),
            beta_slow: self.optional_number("rope.scaling.yarn_beta_slow", BETA)?.unwrap_or(1.0),
            original_max_position,
            attention_factor: attention * yarn_mscale(factor, 1.0),
            truncate: true,
        })
    }

    /// What other tools write and no decoder here depends on, and what it may say at one value only.
    fn skip_irrelevant(&mut self) -> Result<(), ModelError> {
        for key in ["tensor_data_layout", "pooling_type"] {
            let key = self.key(key);
            self.fields.ignore(&[&key]);
        }
        let none = [0.into()];
        for key in ["expert_count", "expert_used_count", "expert_shared_count", "nextn_predict_layers"] {
            self.neutral(key, &none, "mixtures of experts and further heads are not served in GGUF files")?;
        }
        self.neutral("attention.causal", &[true.into()], "only causal decoders are served")?;
        self.neutral("use_parallel_residual", &[false.into()], "attention comes before the feed-forward network")?;
        self.neutral("logit_scale", &[1.0.into(), 0.0.into()], "logits are not scaled")
    }
}
