use half::bf16;

use crate::config::{
    AttentionSpec, Bias, DecoderSpec, EncoderSpec, FfnSpec, LayerSpec, NormKind, NormPlacement, NormSpec, OutputHead,
};
use crate::config::{QkNormScope, QkNormSpec};
use crate::ops::{BlockPlanes, Float, KernelSet, RoundedUnit, packed_bytes, scratch_bytes};
use crate::weights::{StoredTensor, packed_dtype};
use crate::{ActivationDtype, KvFormat, StoredDtype, WeightDtype};

/// Norms and biases are f32 wherever they lie.
pub(super) const VECTOR_ELEMENT_BYTES: u64 = 4;

/// How matrices lie in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// In panels of 16 rows, as the CPU bodies read them ([`crate::ops::PackedWeight`]).
    Panels,
    /// Row by row, without padding, as devices take them: what is neither f32 nor quantised becomes bf16 there.
    Rows,
}

/// `[rows, columns]`
pub(super) type Shape = [usize; 2];

impl WeightLayout {
    /// Of the `stored` matrices, some of which are held as one: as those of `merged`. With what quantised ones are dequantised to
    /// before they are multiplied, where they lie on a device.
    pub(super) fn bytes(
        self,
        wanted: WeightDtype,
        stored: impl Iterator<Item = (StoredDtype, Shape)>,
        merged: impl Iterator<Item = Shape>,
    ) -> u64 {
        let scratch_of = |[rows, columns]: Shape| scratch_bytes(rows, columns);
        let (mut sum, mut is_quantised, mut scratch) = (0, false, merged.map(scratch_of).max().unwrap_or(0));
        for (dtype, shape) in stored {
            let dtype = packed_dtype(wanted, shape[1]).unwrap_or(dtype);
            is_quantised |= dtype.is_quantised();
            scratch = scratch.max(scratch_of(shape));
            sum += self.matrix_bytes(dtype, shape) as u64;
        }
        if is_quantised && self == Self::Rows { sum + scratch as u64 } else { sum }
    }

    /// What products round activations to, given what most weights are held as, and keys and values.
    pub(super) fn rounded_unit(self, held: StoredDtype, kv: KvFormat, integers: ActivationDtype) -> RoundedUnit {
        match self {
            Self::Panels => RoundedUnit::on_cpu(held, KernelSet::detect().factors_beside(kv, Float::F32), integers),
            Self::Rows => RoundedUnit::default(),
        }
    }

    fn matrix_bytes(self, dtype: StoredDtype, [rows, columns]: Shape) -> usize {
        match self {
            Self::Panels => packed_bytes(dtype, rows, columns),
            Self::Rows if dtype.is_quantised() => BlockPlanes { dtype, rows, columns }.size_bytes(),
            Self::Rows if dtype == StoredDtype::F32 => rows * columns * size_of::<f32>(),
            Self::Rows => rows * columns * size_of::<bf16>(),
        }
    }
}

/// What is stored, where that is a matrix; [`vector_bytes`] counts whatever else is.
pub(super) fn matrix(tensor: &StoredTensor) -> Option<(StoredDtype, Shape)> {
    match *tensor.shape {
        [rows, columns] => Some((tensor.dtype, [rows, columns])),
        _ => None,
    }
}

/// Every matrix that a decoder holds.
pub(super) fn matrices(spec: &DecoderSpec) -> impl Iterator<Item = Shape> {
    let head = match spec.output_head {
        OutputHead::Tied => None,
        OutputHead::Separate => Some([spec.vocab_size, spec.hidden_size]),
    };
    let layers = spec.layers.iter().flat_map(move |layer| of_layer(layer, spec.hidden_size));
    std::iter::once([spec.input_vocab_size, spec.hidden_size]).chain(head).chain(layers)
}

/// As they are multiplied.
pub(super) fn of_layer(layer: &LayerSpec, hidden: usize) -> Vec<Shape> {
    let attention = layer.attention().map(|attention| {
        let queries = attention.num_heads * attention.head_dim;
        [[qkv_width(attention), hidden], [hidden, queries]]
    });
    let ffn = match layer.ffn {
        FfnSpec::Gated { intermediate_size: width, .. } => [[2 * width, hidden], [hidden, width]],
        FfnSpec::Plain { intermediate_size: width, .. } => [[width, hidden], [hidden, width]],
    };
    attention.into_iter().flatten().chain(ffn).collect()
}

/// Outputs of the queries, keys and values of one layer together.
pub(super) fn qkv_width(attention: &AttentionSpec) -> usize {
    (attention.num_heads + 2 * attention.num_kv_heads) * attention.head_dim
}

/// Of all norms and biases of a decoder.
pub(super) fn vector_bytes(spec: &DecoderSpec) -> u64 {
    let outer = [spec.embedding_norm, Some(spec.final_norm)];
    let outer: usize = outer.iter().flatten().map(|norm| norm_len(norm, spec.hidden_size)).sum();
    let layers: usize = spec.layers.iter().map(|layer| vector_len(layer, spec.hidden_size)).sum();
    (outer + layers) as u64 * VECTOR_ELEMENT_BYTES
}

/// Of what the norms of an encoder hold and its files do not.
pub(super) fn unstored_bytes(spec: &EncoderSpec) -> u64 {
    let classifier = spec.classifier.as_ref().and_then(|classifier| classifier.norm);
    let outer = [spec.embedding_norm, spec.final_norm, classifier];
    let outer: usize = outer.iter().flatten().map(|norm| unstored_len(norm, spec.hidden_size)).sum();
    let in_layer = |layer: &LayerSpec| {
        let attention = layer.attention();
        let qk_norm = attention.and_then(|attention| Some((attention.qk_norm?, attention)));
        let qk_norm = qk_norm.map_or(0, |(is, attention)| unstored_len(&is.norm, qk_norm_width(&is, attention)));
        num_norms(layer) * unstored_len(&layer.norm, spec.hidden_size) + qk_norm
    };
    (outer + spec.layers.iter().map(in_layer).sum::<usize>()) as u64 * VECTOR_ELEMENT_BYTES
}

fn num_norms(layer: &LayerSpec) -> usize {
    if layer.placement == NormPlacement::PreFfnOnly { 1 } else { 2 }
}

fn vector_len(layer: &LayerSpec, hidden: usize) -> usize {
    let attention = layer.attention().map_or(0, |attention| {
        let biases = of_bias(attention.qkv_bias, qkv_width(attention)) + of_bias(attention.output_bias, hidden);
        biases + attention.qk_norm.as_ref().map_or(0, |is| norm_len(&is.norm, qk_norm_width(is, attention)))
    });
    let ffn = match layer.ffn {
        FfnSpec::Gated { intermediate_size, bias, .. } => of_bias(bias, 2 * intermediate_size + hidden),
        FfnSpec::Plain { intermediate_size, bias, .. } => of_bias(bias, intermediate_size + hidden),
    };
    num_norms(layer) * norm_len(&layer.norm, hidden) + attention + ffn
}

/// Of queries and keys together.
fn qk_norm_width(is: &QkNormSpec, attention: &AttentionSpec) -> usize {
    match is.scope {
        QkNormScope::Head => 2 * attention.head_dim,
        QkNormScope::Token => (attention.num_heads + attention.num_kv_heads) * attention.head_dim,
    }
}

/// A layer norm holds a bias, also one of zeros.
fn norm_len(norm: &NormSpec, width: usize) -> usize {
    match norm.kind {
        NormKind::Rms => width,
        NormKind::Layer | NormKind::LayerUnbiased => 2 * width,
    }
}

/// The zeros of a layer norm without a bias.
fn unstored_len(norm: &NormSpec, width: usize) -> usize {
    match norm.kind {
        NormKind::Rms | NormKind::Layer => 0,
        NormKind::LayerUnbiased => width,
    }
}

fn of_bias(bias: Bias, len: usize) -> usize {
    match bias {
        Bias::Absent => 0,
        Bias::Present => len,
    }
}
