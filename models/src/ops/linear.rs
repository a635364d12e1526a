//! `y = x W^T + b`, the op where nearly all time goes.
//!
//! Order of the sum, on the CPU: `y[i][j]` starts at 0, takes one fused multiply-add per `k` in ascending order in f32,
//! and then adds the bias. Blocking for caches and the split over threads keep that order.
//!
//! Where the compute dtype is bf16 and the CPU has an instruction for it ([`Compute::with_bf16_products`]), `x` is
//! rounded to bf16 when it meets bf16 weights, and the steps of the sum are pairs of neighbouring `k`: as Intel's
//! manual has it, the odd one first, one fused multiply-add each, without subnormal numbers. The order is the
//! processor's; it is the same for every row.
//!
//! With quantised weights a row of `x` is rounded to 16-bit integers, 32 neighbours by one f32 scale. The integer
//! products of every 32 inputs (16 for q6_k, which has a scale for so many) are summed exactly and enter the sum by one
//! fused multiply-add with the product of both scales, in ascending order; q4_k's minimum follows by another one.
//!
//! On a GPU, up to 8 rows are multiplied by the weights that the quants stand for, in f32; for more, the weights are
//! rounded to bf16, and so is `x`.

use candle_core::{D, DType, Tensor};

use super::cpu::packed::PackedPart;
use super::{Compute, Float, Gate, KernelSet, Matrix, MatrixView, Op, Operand, blocks, cpu, gate_mul};
use crate::{ModelError, StoredDtype};

/// A weight matrix `[out_features, in_features]`, packed once, at load, for the device's bodies. Rows may differ in their
/// dtype, as they do where a file quantises values with more bits than queries. On the CPU it lives in private memory: the
/// file it came from may vanish afterwards.
#[derive(Debug)]
pub struct PackedWeight {
    out_features: usize,
    in_features: usize,
    storage: WeightStorage,
}

/// Some rows of a matrix as a checkpoint stores them: row-major, little-endian, any alignment.
#[derive(Debug, Clone, Copy)]
pub struct WeightPart<'a> {
    pub dtype: StoredDtype,
    pub bytes: &'a [u8],
}

/// How products take activations. Bytes are of [`blocks::UNIT`] of them, and 0 where they are not rounded and where the device
/// does it on its way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RoundedUnit {
    pub(crate) element_bytes: usize,
    /// What is known of the elements together, their scale for one.
    pub(crate) facts_bytes: usize,
    /// Whether the ops before products hand them on so, instead of in f32.
    pub(crate) is_handed_on: bool,
    /// Whether gates, and what they are multiplied with, go no further than a cache.
    pub(crate) gates_stay: bool,
}

/// Told which bytes of a [`WeightPart`] were read.
pub(crate) type Copied<'a> = &'a (dyn Fn(&[u8]) + Sync);

#[derive(Debug)]
pub(super) enum WeightStorage {
    Packed(Vec<PackedPart>),
    /// f32, or the one float dtype of all rows.
    Tensor(Tensor),
    #[cfg(feature = "cuda")]
    Quantised(super::cuda::quantised::QuantisedWeight),
}

impl PackedWeight {
    /// Packs `parts`, one below the other, as one matrix (for example Q, K and V as one). Each is kept as it is stored, or
    /// rounded to `dtype` where one is given: a float, q8_0 or q4_0. Reads each byte once and needs no memory besides the
    /// result.
    ///
    /// Errors when a part is not a whole number of rows, when a row is not a whole number of blocks, when nothing can be
    /// rounded to `dtype`, or when memory is short.
    pub fn pack(
        compute: &Compute,
        dtype: Option<StoredDtype>,
        in_features: usize,
        parts: &[WeightPart<'_>],
    ) -> Result<Self, ModelError> {
        Self::pack_telling(compute, dtype, in_features, parts, &|_| ())
    }

    /// As [`Self::pack`]; `copied` is told which bytes of `parts` were read and will not be again, some megabytes at a time,
    /// so that whoever maps a file can let go of them before the whole matrix is packed.
    pub(crate) fn pack_telling(
        compute: &Compute,
        dtype: Option<StoredDtype>,
        in_features: usize,
        parts: &[WeightPart<'_>],
        copied: Copied<'_>,
    ) -> Result<Self, ModelError> {
        let mut out_features = 0;
        for part in parts {
            check_target(part.dtype, dtype)?;
            let row_bytes = row_bytes(part.dtype, in_features)?;
            if part.bytes.is_empty() || part.bytes.len() % row_bytes != 0 {
                let len = part.bytes.len();
                return Err(ModelError::Input(format!("a weight of {len} bytes in rows of {row_bytes} bytes")));
            }
            out_features += part.bytes.len() / row_bytes;
        }
        if let Some(dtype) = dtype {
            row_bytes(dtype, in_features)?;
        }
        if out_features == 0 {
            return Err(ModelError::Input("a weight without rows".into()));
        }
        let storage = match compute.kernels() {
            KernelSet::Reference => WeightStorage::Tensor(tensor_of(compute, dtype, in_features, parts)?),
            #[cfg(feature = "cuda")]
            KernelSet::Cuda => super::cuda::weights::on_gpu(compute, dtype, in_features, parts)?,
            _ => WeightStorage::Packed(pack_parts(compute, dtype, in_features, parts, copied)?),
        };
        Ok(Self { out_features, in_features, storage })
    }

    pub fn out_features(&self) -> usize {
        self.out_features
    }

    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// What the first row is held in.
    pub fn dtype(&self) -> StoredDtype {
        match &self.storage {
            WeightStorage::Packed(parts) => parts[0].dtype(),
            WeightStorage::Tensor(tensor) => match tensor.dtype() {
                DType::F16 => StoredDtype::F16,
                DType::BF16 => StoredDtype::Bf16,
                _ => StoredDtype::F32,
            },
            #[cfg(feature = "cuda")]
            WeightStorage::Quantised(weight) => weight.dtype(),
        }
    }

    /// Memory held, in bytes, padding included.
    pub fn size_bytes(&self) -> usize {
        match &self.storage {
            WeightStorage::Packed(parts) => parts.iter().map(PackedPart::size_bytes).sum(),
            WeightStorage::Tensor(tensor) => tensor.elem_count() * tensor.dtype().size_in_bytes(),
            #[cfg(feature = "cuda")]
            WeightStorage::Quantised(weight) => weight.size_bytes(),
        }
    }

    /// What a product takes its rows as without rounding them first.
    pub(crate) fn takes(&self) -> Float {
        match &self.storage {
            WeightStorage::Packed(parts) => cpu::inputs::takes(parts),
            _ => Float::F32,
        }
    }

    /// The rows of `x`. Errors when it does not fit, or the bias does not.
    fn check(&self, x: MatrixView<'_>, bias: Option<&Tensor>) -> Result<usize, ModelError> {
        let (m, k) = x.dims2()?;
        if k != self.in_features {
            return Err(ModelError::Input(format!("rows of {k} for a weight of {} inputs", self.in_features)));
        }
        if let Some(bias) = bias
            && bias.dims() != [self.out_features]
        {
            let (shape, n) = (bias.dims(), self.out_features);
            return Err(ModelError::Input(format!("a bias of shape {shape:?} for {n} outputs")));
        }
        Ok(m)
    }

    pub(super) fn storage(&self) -> &WeightStorage {
        &self.storage
    }
}

/// Memory that a matrix `[rows, columns]` takes once packed for the CPU bodies, in bytes.
pub(crate) fn packed_bytes(dtype: StoredDtype, rows: usize, columns: usize) -> usize {
    PackedPart::size_of(dtype, rows, columns)
}

/// `x [m, in_features]`, f32 or as [`PackedWeight::takes`] says, times the transposed weight, plus
/// `bias [out_features] f32` if any: `[m, out_features] f32`.
pub fn linear<M: Operand>(
    compute: &Compute,
    x: &M,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
) -> Result<M, ModelError> {
    M::of(product(compute, x.view(), weight, bias)?)
}

fn product(
    compute: &Compute,
    x: MatrixView<'_>,
    weight: &PackedWeight,
    bias: Option<&Tensor>,
) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::Linear);
    let m = weight.check(x, bias)?;
    match &weight.storage {
        WeightStorage::Packed(parts) if m > 0 => cpu::linear::linear(compute, x, parts, weight.out_features, bias),
        WeightStorage::Packed(_) => Ok(Tensor::zeros((0, weight.out_features), DType::F32, compute.device())?.into()),
        #[cfg(feature = "cuda")]
        WeightStorage::Tensor(tensor) if compute.kernels() == KernelSet::Cuda => {
            Ok(super::cuda::product::product(compute, x.tensor()?, tensor, bias)?.into())
        }
        #[cfg(feature = "cuda")]
        WeightStorage::Quantised(weight) => {
            Ok(super::cuda::quantised::product(compute, x.tensor()?, weight, bias)?.into())
        }
        WeightStorage::Tensor(tensor) => Ok(reference(x.tensor()?, tensor, bias)?.into()),
    }
}

/// [`super::gate_mul()`] of the product, whose outputs are gates first: `[m, out_features / 2] f32`, or as `next` takes it, of
/// which it would make the same. On the CPU gates and what they let through go no further than a cache.
pub(crate) fn gated_linear(
    compute: &Compute,
    x: &Matrix,
    (weight, bias): (&PackedWeight, Option<&Tensor>),
    (gate, next): (Gate, &PackedWeight),
) -> Result<Matrix, ModelError> {
    if let WeightStorage::Packed(parts) = &weight.storage
        && cpu::linear::has_gated_body(parts, weight.out_features)
        && weight.check(x.view(), bias)? > 0
    {
        let _timer = compute.time(Op::Linear);
        let halves = (&parts[0], weight.out_features / 2);
        return cpu::linear::gated_linear(compute, x.view(), halves, (bias, gate, next.takes()));
    }
    gate_mul(compute, &linear(compute, x, weight, bias)?, gate)
}

/// As [`linear`], for a caller whose next op adds a bias on its way: on a GPU the bias is given back instead of added.
pub fn linear_before_bias<'a, M: Operand>(
    compute: &Compute,
    x: &M,
    weight: &PackedWeight,
    bias: Option<&'a Tensor>,
) -> Result<(M, Option<&'a Tensor>), ModelError> {
    match compute.kernels() {
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => Ok((linear(compute, x, weight, None)?, bias)),
        _ => Ok((linear(compute, x, weight, bias)?, None)),
    }
}

fn reference(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor, ModelError> {
    let y = x.contiguous()?.matmul(&weight.to_dtype(DType::F32)?.transpose(0, D::Minus1)?)?;
    Ok(match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    })
}

/// Neighbours of the same dtype share their panels.
fn pack_parts(
    compute: &Compute,
    dtype: Option<StoredDtype>,
    in_features: usize,
    parts: &[WeightPart<'_>],
    copied: Copied<'_>,
) -> Result<Vec<PackedPart>, ModelError> {
    let held_as = |part: &WeightPart<'_>| dtype.unwrap_or(part.dtype);
    parts
        .chunk_by(|one, other| held_as(one) == held_as(other))
        .map(|run| PackedPart::pack(compute, held_as(&run[0]), in_features, run, copied))
        .collect()
}

/// Quantised parts are dequantised: the reference body knows floats alone.
fn tensor_of(
    compute: &Compute,
    dtype: Option<StoredDtype>,
    in_features: usize,
    parts: &[WeightPart<'_>],
) -> Result<Tensor, ModelError> {
    let floats: Vec<_> = parts.iter().map(|part| dtype.unwrap_or(part.dtype)).collect();
    let all_alike = floats.iter().all(|dtype| *dtype == floats[0]);
    let tensor_dtype = match floats[0] {
        StoredDtype::F16 if all_alike => DType::F16,
        StoredDtype::Bf16 if all_alike => DType::BF16,
        _ => DType::F32,
    };
    let tensors = parts
        .iter()
        .zip(floats)
        .map(|(part, held_as)| {
            let mut values = blocks::widened(part.dtype, part.bytes);
            if held_as.is_quantised() && held_as != part.dtype {
                let mut rounded = vec![0; values.len() / held_as.block_len() * held_as.block_bytes()];
                blocks::encode(held_as, &values, &mut rounded);
                blocks::decode(held_as, &rounded, &mut values);
            }
            let shape = (values.len() / in_features, in_features);
            Ok(Tensor::from_vec(values, shape, compute.device())?.to_dtype(tensor_dtype)?)
        })
        .collect::<Result<Vec<_>, ModelError>>()?;
    Ok(Tensor::cat(&tensors, 0)?)
}

fn row_bytes(dtype: StoredDtype, in_features: usize) -> Result<usize, ModelError> {
    dtype
        .bytes_of(in_features)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| ModelError::Input(format!("rows of {in_features} elements in {dtype}")))
}

fn check_target(stored: StoredDtype, wanted: Option<StoredDtype>) -> Result<(), ModelError> {
    match wanted {
        Some(wanted @ (StoredDtype::Q4K | StoredDtype::Q6K)) if wanted != stored => {
            Err(ModelError::Input(format!("{stored} cannot be rounded to {wanted}")))
        }
        _ => Ok(()),
    }
}
