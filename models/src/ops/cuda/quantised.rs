#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

//! Weights that stay quantised: few rows are multiplied by them as they are, for more they are dequantised and left to cuBLAS.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::args::blocks::{Blocks, DequantiseArgs, QuantisedArgs, Which};
use super::elementwise::add_bias;
use super::launch::Address;
use super::tensors::{address, address_if_any, float_of, unwritten};
use crate::ops::block_planes::{BlockPlanes, FEW_ROWS, rows_at_once};
use crate::ops::{AttentionPlan, Compute, WeightPart, blocks};
use crate::{ModelError, StoredDtype};

/// Some outputs of a weight, all of one quantised dtype.
#[derive(Debug)]
pub(crate) struct BlockPart {
    planes: BlockPlanes,
    /// U8, as `planes` says.
    bytes: Tensor,
}

/// A whole weight, part below part.
#[derive(Debug)]
pub(crate) struct QuantisedWeight {
    parts: Vec<BlockPart>,
    outputs: usize,
    inputs: usize,
}

impl QuantisedWeight {
    /// `held` is what each part is kept as, all of them quantised; a part that is stored otherwise is rounded to it. Rows are
    /// whole blocks.
    pub(crate) fn new(
        compute: &Compute,
        inputs: usize,
        parts: &[WeightPart<'_>],
        held: &[StoredDtype],
    ) -> Result<Self, ModelError> {
        let pairs: Vec<_> = parts.iter().zip(held).collect();
        let parts = pairs
            .chunk_by(|(_, one), (_, other)| one == other)
            .map(|run| BlockPart::new(compute, inputs, *run[0].1, run))
            .collect::<Result<Vec<_>, ModelError>>()?;
        let outputs = parts.iter().map(|part| part.planes.rows).sum();
        // Now, so that what a step takes is taken before one is recorded.
        compute.gpu().scratch().at_least(rows_at_once(outputs, inputs) * inputs, compute.device())?;
        Ok(Self { parts, outputs, inputs })
    }

    /// Of the first row.
    pub(crate) fn dtype(&self) -> StoredDtype {
        self.parts[0].planes.dtype
    }

    pub(crate) fn size_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.planes.size_bytes()).sum()
    }

    /// Each part, and which of the weight's rows it has.
    fn placed(&self) -> impl Iterator<Item = (&BlockPart, Range<usize>)> {
        let mut end = 0;
        self.parts.iter().map(move |part| {
            let start = end;
            end += part.planes.rows;
            (part, start..end)
        })
    }

    /// Queues a copy of the weight's rows `rows`, in bf16, to `out [rows.len(), inputs]`.
    fn dequantise(&self, compute: &Compute, rows: &Range<usize>, out: &Tensor) -> Result<(), ModelError> {
        let (gpu, row_bytes) = (compute.gpu(), self.inputs * out.dtype().size_in_bytes());
        let out = address(gpu, out)?;
        for (part, has) in self.placed() {
            let (start, end) = (rows.start.max(has.start), rows.end.min(has.end));
            if start < end {
                let args = DequantiseArgs::new(
                    part.place(compute)?,
                    Which::From(start - has.start),
                    out.behind((start - rows.start) * row_bytes),
                );
                // SAFETY: `out` has room for the rows, and the planes lie where the arguments say.
                unsafe { gpu.launch(args.launch(end - start, part.planes.dtype)) }?;
            }
        }
        Ok(())
    }
}

impl BlockPart {
    fn new(
        compute: &Compute,
        inputs: usize,
        dtype: StoredDtype,
        run: &[(&WeightPart<'_>, &StoredDtype)],
    ) -> Result<Self, ModelError> {
        let rows = run.iter().map(|(part, _)| part.dtype.elements_in(part.bytes.len()) / inputs).sum();
        let planes = BlockPlanes { dtype, rows, columns: inputs };
        let (mut bytes, mut first) = (vec![0; planes.size_bytes()], 0);
        for (part, _) in run {
            let elements = part.dtype.elements_in(part.bytes.len());
            if part.dtype == dtype {
                planes.put(&mut bytes, first, part.bytes);
            } else {
                let mut rounded = vec![0; elements / dtype.block_len() * dtype.block_bytes()];
                blocks::encode(dtype, &blocks::widened(part.dtype, part.bytes), &mut rounded);
                planes.put(&mut bytes, first, &rounded);
            }
            first += elements / dtype.block_len();
        }
        let len = bytes.len();
        Ok(Self { planes, bytes: Tensor::from_vec(bytes, len, compute.device())? })
    }

    fn place(&self, compute: &Compute) -> Result<(Address, BlockPlanes), ModelError> {
        Ok((address(compute.gpu(), &self.bytes)?, self.planes))
    }
}

/// `x [m, inputs]` times the transposed `weight`, plus `bias [outputs]` f32 if any, given in the dtype of `x`. The weights of a
/// product of more than [`FEW_ROWS`] rows are rounded to bf16, as are its rows, and its sums before the bias is added.
pub(crate) fn product(
    compute: &Compute,
    x: &Tensor,
    weight: &QuantisedWeight,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let x = x.contiguous()?;
    match x.dim(0)? {
        0 => Ok(Tensor::zeros((0, weight.outputs), x.dtype(), x.device())?),
        1..=FEW_ROWS => few_rows(compute, &x, weight, bias),
        _ => many_rows(compute, &x, weight, bias),
    }
}

/// A launch for each part, which writes its columns of the output.
fn few_rows(
    compute: &Compute,
    x: &Tensor,
    weight: &QuantisedWeight,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let (gpu, rows) = (compute.gpu(), x.dim(0)?);
    let y = unwritten(&[rows, weight.outputs], x.dtype(), x)?;
    let (start_of_y, start_of_bias) = (address(gpu, &y)?, address_if_any(gpu, bias)?);
    for (part, has) in weight.placed() {
        let (start, planes) = part.place(compute)?;
        let args = QuantisedArgs {
            weight: Blocks::at(start, planes),
            x: address(gpu, x)?,
            bias: bias.map_or(Address::NULL, |_| start_of_bias.behind(has.start * size_of::<f32>())),
            y: start_of_y.behind(has.start * x.dtype().size_in_bytes()),
            inputs: weight.inputs as i32,
            outputs: planes.rows as i32,
            rows: rows as i32,
            stride: weight.outputs as i32,
        };
        // SAFETY: the tensors have the shapes that the arguments say; rows of `x` begin at whole loads, since the device's
        // memory does and every row is whole units of weights.
        unsafe { gpu.launch(args.launch(planes.dtype, float_of(x)?)) }?;
    }
    Ok(y)
}

/// Piece by piece where the weight is larger than what is dequantised at a time.
fn many_rows(
    compute: &Compute,
    x: &Tensor,
    weight: &QuantisedWeight,
    bias: Option<&Tensor>,
) -> Result<Tensor, ModelError> {
    let (QuantisedWeight { outputs, inputs, .. }, m) = (weight, x.dim(0)?);
    let at_once = rows_at_once(*outputs, *inputs);
    let x16 = x.to_dtype(DType::BF16)?;
    // Until the last product is queued: another model's would write over what this one reads.
    let mut scratch = compute.gpu().scratch();
    let memory = scratch.at_least(at_once * inputs, compute.device())?;
    let piece = |rows: Range<usize>| -> Result<Tensor, ModelError> {
        weight.dequantise(compute, &rows, &memory)?;
        let widened = memory.narrow(0, 0, rows.len() * inputs)?.reshape((rows.len(), *inputs))?;
        Ok(x16.matmul(&widened.t()?)?.to_dtype(x.dtype())?)
    };
    let y = if at_once == *outputs {
        piece(0..*outputs)?
    } else {
        let y = unwritten(&[m, *outputs], x.dtype(), x)?;
        for start in (0..*outputs).step_by(at_once) {
            y.slice_set(&piece(start..(start + at_once).min(*outputs))?, 1, start)?;
        }
        y
    };
    bias.map_or(Ok(()), |bias| add_bias(compute, &y, bias))?;
    Ok(y)
}

/// Every row is one of `table`, which the caller has checked: `[rows.len(), inputs]` bf16.
pub(crate) fn rows(compute: &Compute, table: &QuantisedWeight, rows: &[u32]) -> Result<Tensor, ModelError> {
    let on_device = Tensor::from_slice(rows, rows.len(), compute.device())?;
    rows_at(compute, table, address(compute.gpu(), &on_device)?, rows.len())
}

/// Those that the step's tokens name, as [`rows`].
pub(crate) fn rows_of_step(
    compute: &Compute,
    table: &QuantisedWeight,
    plan: &AttentionPlan<'_>,
) -> Result<Tensor, ModelError> {
    let step = plan.on_device(compute)?;
    let tokens = step.address(compute.gpu(), step.layout.tokens);
    rows_at(compute, table, tokens, plan.input().num_tokens())
}

/// Each part writes the rows that it has.
fn rows_at(compute: &Compute, table: &QuantisedWeight, named: Address, count: usize) -> Result<Tensor, ModelError> {
    let gpu = compute.gpu();
    let out = unwritten(&[count, table.inputs], DType::BF16, &table.parts[0].bytes)?;
    for (part, has) in table.placed() {
        let args = DequantiseArgs::new(part.place(compute)?, Which::Named(named, has.start), address(gpu, &out)?);
        // SAFETY: a row of `out` for each number; one that no row of the part has is passed over.
        unsafe { gpu.launch(args.launch(count, part.planes.dtype)) }?;
    }
    Ok(out)
}
