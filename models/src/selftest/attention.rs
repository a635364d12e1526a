use std::ops::Range;

use candle_core::DType;

use super::numbers::Random;
use super::qkv::{QkvFlags, QkvParameters};
use super::tables::{
    ATTENTION, FLAGGED, QKV, QKV_SEQUENCES, SEQUENCES, WHOLE_SEQUENCES, flags_of_attention, tolerance,
    two_sided_attention,
};
use super::trial::{Trial, placed, values};
use super::world::{Shape, World};
use crate::ModelError;
use crate::ops::{self, AttentionParams, AttentionPlan, QkvPreparation, RotaryEmbedding};

pub(super) fn check(trial: &mut Trial) -> Result<(), ModelError> {
    for shape in ATTENTION {
        attention(trial, "attention", shape, &AttentionParams::causal(shape.scale()), &SEQUENCES)?;
    }
    for shape in FLAGGED {
        for params in flags_of_attention() {
            attention(trial, "attention with flags", shape, &params, &SEQUENCES)?;
        }
        for params in two_sided_attention() {
            attention(trial, "attention to both sides", shape, &params, &WHOLE_SEQUENCES)?;
        }
    }
    QKV.iter().for_each(|(shape, flags)| prepared(trial, *shape, *flags));
    Ok(())
}

fn attention(
    trial: &mut Trial,
    what: &'static str,
    shape: Shape,
    params: &AttentionParams,
    sequences: &[Range<usize>],
) -> Result<(), ModelError> {
    let num_tokens = sequences.iter().map(Range::len).sum();
    let q = Random(shape.head_dim as u64).tensor(&[num_tokens, shape.num_heads(), shape.head_dim], shape.activations);
    let q = (q * 3.0)?.to_dtype(shape.activations.dtype())?.to_dtype(DType::F32)?;
    let at = format!("{}, {}", described(shape), flags(params));
    let allowed = trial.tolerance(shape.activations);
    trial.compare(what, at, allowed, &|compute| {
        let world = World::new(shape, sequences)?.with_keys(&mut Random(9))?;
        let mut world = world.on(compute.device())?;
        let (q, input) = (placed(compute, &q, shape.activations)?, world.input.clone());
        values(&ops::paged_attention(compute, &q, world.layer(), &AttentionPlan::new(&input), params)?)
    });
    Ok(())
}

/// Queries, and the cache afterwards: slots that no token of the step has must keep what they held, which is not a number
/// here.
fn prepared(trial: &mut Trial, shape: Shape, flags: QkvFlags) {
    let mut random = Random(shape.head_dim as u64);
    let num_tokens: usize = QKV_SEQUENCES.iter().map(Range::len).sum();
    let width = shape.num_heads() * shape.head_dim + 2 * shape.kv_width();
    let qkv = random.tensor(&[num_tokens, width], shape.activations);
    let parameters = QkvParameters::new(shape, flags, &mut random);
    let frequencies: Vec<f32> = (0..flags.rotary_dim / 2).map(|index| 0.7f32.powi(index as i32)).collect();
    let at = format!("{}, {flags:?}", described(shape));
    // Sums in another order may round to a neighbour in the cache's dtype.
    let allowed = trial.tolerance(shape.activations).max(tolerance(shape.cache));
    trial.compare("queries, keys and values", at, allowed, &|compute| {
        let mut world = World::new(shape, &QKV_SEQUENCES)?.on(compute.device())?;
        let (input, parameters) = (world.input.clone(), parameters.on(compute.device())?);
        let angles = RotaryEmbedding::new(frequencies.clone(), 1.1).angles(compute, input.positions())?;
        let preparation = QkvPreparation {
            num_heads: shape.num_heads(),
            bias: parameters.bias.as_ref(),
            norms: parameters.norms(),
            angles: (flags.rotary_dim > 0).then_some(&angles),
        };
        let (qkv, plan) = (placed(compute, &qkv, shape.activations)?, AttentionPlan::new(&input));
        let q = ops::prepare_qkv(compute, qkv.into(), &preparation, &plan, world.layer())?.into_tensor()?;
        let layer = world.layer();
        Ok([values(&q)?, values(&layer.k)?, values(&layer.v)?].concat())
    });
}

fn described(shape: Shape) -> String {
    let Shape { num_kv_heads, head_dim, block_size, activations, cache, .. } = shape;
    format!(
        "{} heads over {num_kv_heads} of {head_dim}, {activations:?} over {cache:?}, blocks of {block_size}",
        shape.num_heads()
    )
}

/// What is set besides the scale.
fn flags(params: &AttentionParams) -> String {
    let AttentionParams { window, alibi_slopes, soft_cap, sinks, temperature, .. } = params;
    let mut flags: Vec<String> = window.iter().map(|window| format!("window {window}")).collect();
    flags.extend(soft_cap.map(|cap| format!("soft cap {cap}")));
    let others =
        [(alibi_slopes.is_some(), "slopes"), (sinks.is_some(), "sinks"), (temperature.is_some(), "temperature")];
    flags.extend(others.iter().filter(|(is_set, _)| *is_set).map(|(_, name)| (*name).to_owned()));
    if flags.is_empty() { "plain".to_owned() } else { flags.join(", ") }
}
