//! Shapes at which bodies are held against each other: by the self-test on the device, and by the tests that run the text of
//! the CUDA kernels on the CPU.

use std::ops::Range;

use super::qkv::{NormOf, QkvFlags};
use super::world::Shape;
use crate::config::alibi_slopes;
use crate::ops::{AttentionParams, Float, Gate, PositionTemperature};

const F32: (Float, Float) = (Float::F32, Float::F32);
const BF16: (Float, Float) = (Float::Bf16, Float::Bf16);

/// What a result may be off by, beside 1: sums in another order, and one rounding to bf16 at the end.
pub(crate) fn tolerance(float: Float) -> f32 {
    match float {
        Float::F32 => 2e-5,
        Float::Bf16 => 1.0 / 200.0,
    }
}

/// Single tokens at the edges of steps and splits, and chunks that begin and end inside them.
pub(crate) const SEQUENCES: [Range<usize>; 6] = [0..1, 31..32, 130..131, 256..257, 0..5, 120..139];

/// The last one has blocks longer than a tile.
pub(crate) const ATTENTION: [Shape; 17] = [
    shape(2, 1, 64, F32),
    shape(1, 4, 64, BF16),
    shape(2, 2, 128, BF16),
    shape(1, 8, 128, F32),
    shape(1, 5, 80, F32),
    shape(2, 3, 96, BF16),
    shape(1, 12, 64, F32),
    shape(1, 20, 64, BF16),
    shape(1, 5, 80, BF16),
    shape(1, 6, 192, BF16),
    shape(1, 6, 192, F32),
    shape(1, 2, 256, BF16),
    shape(1, 1, 24, F32),
    shape(1, 1, 7, F32),
    shape(1, 2, 64, (Float::F32, Float::Bf16)),
    shape(1, 2, 64, (Float::Bf16, Float::F32)),
    Shape { block_size: 48, ..shape(2, 2, 64, BF16) },
];

/// Where every flag of attention is tried.
pub(crate) const FLAGGED: [Shape; 2] = [shape(2, 2, 64, F32), shape(2, 2, 64, BF16)];

/// Without a direction the whole sequence is in the step.
pub(crate) const WHOLE_SEQUENCES: [Range<usize>; 3] = [0..1, 0..70, 0..17];

/// Every flag of attention alone, and all together.
pub(crate) fn flags_of_attention() -> Vec<AttentionParams> {
    let causal = AttentionParams::causal(FLAGGED[0].scale());
    let slopes = Some(alibi_slopes(FLAGGED[0].num_heads()).into());
    let sinks = Some(vec![0.5, -3.0, 8.0, 0.0].into());
    let temperature = Some(PositionTemperature { beta: 0.1, interval: 20 });
    vec![
        AttentionParams { window: Some(1), ..causal.clone() },
        AttentionParams { window: Some(40), ..causal.clone() },
        AttentionParams { window: Some(200), sinks: sinks.clone(), ..causal.clone() },
        AttentionParams { soft_cap: Some(2.0), ..causal.clone() },
        AttentionParams { alibi_slopes: slopes.clone(), ..causal.clone() },
        AttentionParams { sinks: sinks.clone(), ..causal.clone() },
        AttentionParams { temperature, ..causal.clone() },
        AttentionParams { window: Some(50), soft_cap: Some(3.0), alibi_slopes: slopes, sinks, temperature, ..causal },
    ]
}

/// To both sides, with a window and without.
pub(crate) fn two_sided_attention() -> [AttentionParams; 2] {
    let both = AttentionParams::bidirectional(FLAGGED[0].scale());
    [AttentionParams { window: Some(20), ..both.clone() }, both]
}

/// Between a merged product and attention.
pub(crate) const QKV: [(Shape, QkvFlags); 7] = [
    (shape(2, 2, 64, F32), NOTHING),
    (shape(2, 2, 64, F32), QkvFlags { rotary_dim: 64, ..NOTHING }),
    (shape(2, 2, 64, BF16), EVERYTHING),
    (shape(1, 3, 80, (Float::F32, Float::Bf16)), QkvFlags { rotary_dim: 32, ..EVERYTHING }),
    (shape(1, 1, 256, (Float::Bf16, Float::F32)), QkvFlags { rotary_dim: 256, ..EVERYTHING }),
    (shape(3, 2, 48, F32), QkvFlags { norm: Some(NormOf::Tokens), rotary_dim: 48, bias: true }),
    (shape(1, 5, 7, F32), QkvFlags { norm: Some(NormOf::TokensWithBias), rotary_dim: 6, bias: true }),
];
const NOTHING: QkvFlags = QkvFlags { bias: false, norm: None, rotary_dim: 0 };
const EVERYTHING: QkvFlags = QkvFlags { bias: true, norm: Some(NormOf::Heads), rotary_dim: 64 };

/// Positions of the sequences of [`QKV`].
pub(crate) const QKV_SEQUENCES: [Range<usize>; 3] = [5..6, 14..19, 0..3];

/// A norm over whole rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormCase {
    pub(crate) float: Float,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// A layer norm has one, a root-mean-square norm has none.
    pub(crate) has_bias: bool,
    /// Added before.
    pub(crate) has_residual: bool,
}

pub(crate) const NORMS: [NormCase; 8] = [
    norm(Float::F32, [3, 256], false, true),
    norm(Float::F32, [2, 1000], true, true),
    norm(Float::F32, [2, 7], true, false),
    norm(Float::F32, [1, 1], false, false),
    norm(Float::Bf16, [3, 300], false, true),
    norm(Float::Bf16, [2, 513], true, false),
    norm(Float::Bf16, [2, 8200], true, true),
    norm(Float::Bf16, [1, 17_000], false, true),
];

pub(crate) const GATES: [Gate; 3] = [Gate::Silu, Gate::GeluErf, Gate::GeluTanh];

/// Rows and width of what is activated; a gate and what it multiplies have half of it each.
pub(crate) const ACTIVATED: [[usize; 2]; 2] = [[5, 2 * 77], [3, 2 * 2056]];

/// Rows and width of what is gathered from, and which rows are.
pub(crate) const GATHERED: ([usize; 2], [usize; 4]) = ([7, 301], [6, 0, 0, 3]);

/// Rows of logits that are asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogitCase {
    pub(crate) float: Float,
    pub(crate) rows: usize,
    pub(crate) vocab_size: usize,
    pub(crate) landscape: Landscape,
}

/// What a row looks like from aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Landscape {
    Hills,
    /// The likely tokens are neighbours, so that few threads see them all.
    Mountain,
    /// Every token has equals, also among its neighbours.
    Plain,
    /// Most tokens cannot be.
    Islands,
    /// One row has a logit that is no number, one an infinite one, and in one no token can be.
    Broken,
}

/// Vocabularies that are a whole number of loads, and some that are not.
pub(crate) const LOGITS: [LogitCase; 8] = [
    logits(Float::F32, [1, 1000], Landscape::Hills),
    logits(Float::Bf16, [2, 4104], Landscape::Hills),
    logits(Float::Bf16, [1, 257], Landscape::Hills),
    logits(Float::F32, [2, 3], Landscape::Hills),
    logits(Float::Bf16, [1, 12_000], Landscape::Mountain),
    logits(Float::Bf16, [1, 3001], Landscape::Plain),
    logits(Float::F32, [1, 2050], Landscape::Islands),
    logits(Float::Bf16, [3, 520], Landscape::Broken),
];

const fn shape(num_kv_heads: usize, group: usize, head_dim: usize, (activations, cache): (Float, Float)) -> Shape {
    Shape { num_kv_heads, group, head_dim, block_size: 16, activations, cache }
}

const fn logits(float: Float, [rows, vocab_size]: [usize; 2], landscape: Landscape) -> LogitCase {
    LogitCase { float, rows, vocab_size, landscape }
}

const fn norm(float: Float, [rows, width]: [usize; 2], has_bias: bool, has_residual: bool) -> NormCase {
    NormCase { float, rows, width, has_bias, has_residual }
}
