#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A weight matrix as the CPU bodies read it.
//!
//! ```text
//! matrix [n, k]  ->  panels [n / 16][k][16]     panel p, row k: the weights of outputs 16 p .. 16 p + 16 for input k
//! ```
//!
//! One step of `k` loads 16 neighbouring weights and feeds 16 outputs, each with its own running sum: no sum is ever taken
//! across lanes. The last panel is padded with zeros.

use candle_core::DType;
use half::{bf16, f16};

use super::buffer::PageBuffer;
use super::launch::Output;
use super::vector::Element;
use crate::ModelError;
use crate::ops::{Compute, WeightPart};

/// Outputs of one panel.
pub(super) const PANEL: usize = 16;

#[derive(Debug)]
pub(crate) struct Panels {
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    pub(super) data: PanelData,
}

#[derive(Debug)]
pub(super) enum PanelData {
    F32(PageBuffer<f32>),
    F16(PageBuffer<f16>),
    Bf16(PageBuffer<bf16>),
}

impl Panels {
    /// `parts` hold whole rows of `shape.1` elements, together `shape.0` rows, and every dtype is f32, f16 or bf16.
    pub(crate) fn pack(
        compute: &Compute,
        dtype: DType,
        shape: (usize, usize),
        parts: &[WeightPart<'_>],
    ) -> Result<Self, ModelError> {
        let (out_features, in_features) = shape;
        let data = match dtype {
            DType::F32 => PanelData::F32(pack(compute, shape, parts)?),
            DType::F16 => PanelData::F16(pack(compute, shape, parts)?),
            _ => PanelData::Bf16(pack(compute, shape, parts)?),
        };
        Ok(Self { out_features, in_features, data })
    }

    pub(crate) fn size_bytes(&self) -> usize {
        match &self.data {
            PanelData::F32(buffer) => buffer.size_bytes(),
            PanelData::F16(buffer) => buffer.size_bytes(),
            PanelData::Bf16(buffer) => buffer.size_bytes(),
        }
    }
}

fn pack<E: Element>(
    compute: &Compute,
    (n, k): (usize, usize),
    parts: &[WeightPart<'_>],
) -> Result<PageBuffer<E>, ModelError> {
    let mut buffer = PageBuffer::zeroed(n.next_multiple_of(PANEL) * k)?;
    let output = Output::new(buffer.as_mut_slice());
    compute.pool().run(n.div_ceil(PANEL), &|panel| {
        // SAFETY: each task takes its own panel, and the buffer outlives the run.
        let panel_data: &mut [E] = unsafe { output.part(panel * PANEL * k, PANEL * k) };
        for lane in 0..PANEL.min(n - panel * PANEL) {
            let (part, row) = row_of(parts, k, panel * PANEL + lane);
            let column = panel_data[lane..].iter_mut().step_by(PANEL);
            match part.dtype {
                DType::F32 => copy_row(column, row, |b: [u8; 4]| E::from_f32(f32::from_le_bytes(b))),
                DType::F16 => copy_row(column, row, |b: [u8; 2]| E::from_f32(f16::from_le_bytes(b).to_f32())),
                _ => copy_row(column, row, |b: [u8; 2]| E::from_f32(bf16::from_le_bytes(b).to_f32())),
            }
        }
    });
    Ok(buffer)
}

/// Widening to f32 and rounding back is exact, so a part of the buffer's own dtype is copied bit for bit.
fn copy_row<'a, E: 'a, const N: usize>(
    column: impl Iterator<Item = &'a mut E>,
    row: &[u8],
    convert: impl Fn([u8; N]) -> E,
) {
    for (to, from) in column.zip(row.as_chunks::<N>().0) {
        *to = convert(*from);
    }
}

/// Row `row` of the stacked parts: its part and its bytes.
fn row_of<'a>(parts: &[WeightPart<'a>], k: usize, mut row: usize) -> (WeightPart<'a>, &'a [u8]) {
    for part in parts {
        let row_bytes = k * part.dtype.size_in_bytes();
        let num_rows = part.bytes.len() / row_bytes;
        if row < num_rows {
            return (*part, &part.bytes[row * row_bytes..(row + 1) * row_bytes]);
        }
        row -= num_rows;
    }
    unreachable!("the parts hold as many rows as the matrix, which the caller counted from them")
}
