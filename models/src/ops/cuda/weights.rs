//! Matrices on the GPU.

use candle_core::Tensor;
use half::bf16;

use super::quantised::QuantisedWeight;
use crate::ops::linear::WeightStorage;
use crate::ops::{Compute, WeightPart, blocks};
use crate::{ModelError, StoredDtype};

/// Quantised where all of it is, or is to be, and f32 likewise; else bf16, to which f16 and the quantised parts of a
/// weight that has others too are rounded. Parts are below each other.
pub(crate) fn on_gpu(
    compute: &Compute,
    dtype: Option<StoredDtype>,
    in_features: usize,
    parts: &[WeightPart<'_>],
) -> Result<WeightStorage, ModelError> {
    let held: Vec<_> = parts.iter().map(|part| dtype.unwrap_or(part.dtype)).collect();
    if held.iter().all(|held| held.is_quantised()) {
        return Ok(WeightStorage::Quantised(QuantisedWeight::new(compute, in_features, parts, &held)?));
    }
    let all_f32 = held.iter().all(|held| *held == StoredDtype::F32);
    let tensors = parts.iter().map(|part| {
        let len = |len: usize| (len / in_features, in_features);
        if all_f32 {
            let values = blocks::widened(part.dtype, part.bytes);
            let shape = len(values.len());
            return Ok(Tensor::from_vec(values, shape, compute.device())?);
        }
        let values = as_bf16(part);
        let shape = len(values.len());
        Ok(Tensor::from_vec(values, shape, compute.device())?)
    });
    Ok(WeightStorage::Tensor(Tensor::cat(&tensors.collect::<Result<Vec<_>, ModelError>>()?, 0)?))
}

fn as_bf16(part: &WeightPart<'_>) -> Vec<bf16> {
    match part.dtype {
        StoredDtype::Bf16 => part.bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]])).collect(),
        _ => blocks::widened(part.dtype, part.bytes).into_iter().map(bf16::from_f32).collect(),
    }
}
