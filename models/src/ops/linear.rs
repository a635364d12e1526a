//! `y = x W^T + b`, the op where nearly all time goes.
//!
//! Order of the sum, on the CPU: `y[i][j]` starts at 0, takes one fused multiply-add per `k` in ascending order in f32,
//! and then adds the bias. Blocking for caches and the split over threads keep that order.

use candle_core::{D, DType, Tensor};

use super::cpu::panels::Panels;
use super::{Compute, KernelSet, cpu};
use crate::ModelError;

/// A weight matrix `[out_features, in_features]` of f32, f16 or bf16, kept in its dtype and packed once, at load, for the
/// device's bodies. On the CPU it lives in private memory: the file it came from may vanish afterwards.
#[derive(Debug)]
pub struct PackedWeight {
    out_features: usize,
    in_features: usize,
    dtype: DType,
    storage: WeightStorage,
}

/// Some rows of a matrix as a checkpoint stores them: row-major, little-endian, any alignment.
#[derive(Debug, Clone, Copy)]
pub struct WeightPart<'a> {
    /// f32, f16 or bf16
    pub dtype: DType,
    pub bytes: &'a [u8],
}

#[derive(Debug)]
pub(super) enum WeightStorage {
    Panels(Panels),
    Tensor(Tensor),
}

impl PackedWeight {
    /// Packs `parts`, one below the other, as one matrix of `dtype` (for example Q, K and V as one). Parts of another
    /// dtype are rounded to it. Reads each byte once and needs no memory besides the result.
    ///
    /// Errors when a dtype is not f32, f16 or bf16, when a part is not a whole number of rows, or when memory is short.
    pub fn pack(
        compute: &Compute,
        dtype: DType,
        in_features: usize,
        parts: &[WeightPart<'_>],
    ) -> Result<Self, ModelError> {
        check_float(dtype)?;
        let mut out_features = 0;
        for part in parts {
            check_float(part.dtype)?;
            let row_bytes = in_features * part.dtype.size_in_bytes();
            if row_bytes == 0 || part.bytes.is_empty() || part.bytes.len() % row_bytes != 0 {
                let len = part.bytes.len();
                return Err(ModelError::Input(format!("a weight of {len} bytes in rows of {row_bytes} bytes")));
            }
            out_features += part.bytes.len() / row_bytes;
        }
        if out_features == 0 {
            return Err(ModelError::Input("a weight without rows".into()));
        }
        let storage = match compute.kernels() {
            KernelSet::Reference => WeightStorage::Tensor(tensor_of(compute, dtype, in_features, parts)?),
            _ => WeightStorage::Panels(Panels::pack(compute, dtype, (out_features, in_features), parts)?),
        };
        Ok(Self { out_features, in_features, dtype, storage })
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Memory held, in bytes, padding included.
    pub fn size_bytes(&self) -> usize {
        match &self.storage {
            WeightStorage::Panels(panels) => panels.size_bytes(),
            WeightStorage::Tensor(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
        }
    }

    pub(super) fn storage(&self) -> &WeightStorage {
        &self.storage
    }
}

/// `x [m, in_features] f32` times the transposed weight, plus `bias [out_features] f32` if any: `[m, out_features] f32`.
pub fn linear(
    compute: &Compute,
    x: &Tensor,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let (m, k) = x.dims2()?;
    if k != weight.in_features {
        return Err(ModelError::Input(format!("rows of {k} for a weight of {} inputs", weight.in_features)));
    }
    if let Some(bias) = bias
        && bias.dims() != [weight.out_features]
    {
        let (shape, n) = (bias.dims(), weight.out_features);
        return Err(ModelError::Input(format!("a bias of shape {shape:?} for {n} outputs")));
    }
    match &weight.storage {
        WeightStorage::Panels(panels) if m > 0 => cpu::linear::linear(compute, x, panels, bias),
        WeightStorage::Panels(_) => Ok(Tensor::zeros((0, weight.out_features), DType::F32, compute.device())?),
        WeightStorage::Tensor(tensor) => reference(x, tensor, bias),
    }
}

fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let y = x.contiguous()?.matmul(&weight.to_dtype(DType::F32)?.transpose(0, D::Minus1)?)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

fn tensor_of(
    compute: &Compute,
    dtype: DType,
    in_features: usize,
    parts: &[WeightPart<'_>],
) -> Result<Tensor, ModelError> {
    let tensors = parts
        .iter()
        .map(|part| {
            let rows = part.bytes.len() / (in_features * part.dtype.size_in_bytes());
            let shape = [rows, in_features];
            Ok(Tensor::from_raw_buffer(part.bytes, part.dtype, &shape, compute.device())?.to_dtype(dtype)?)
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok(Tensor::cat(&tensors, 0)?)
}

fn check_float(dtype: DType) -> Result<(), ModelError> {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => Ok(()),
        other => Err(ModelError::Input(format!("a weight of dtype {other:?}, which is none of f32, f16, bf16"))),
    }
}
