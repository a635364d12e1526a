#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A weight matrix as the CPU bodies read it.
//!
//! ```text
//! matrix [n, k]  ->  panels [n / 16][k][16]     panel p, row k: the weights of outputs 16 p .. 16 p + 16 for input k
//! ```
//!
//! One step of `k` loads 16 neighbouring weights and feeds 16 outputs, each with its own running sum: no sum is ever taken
//! across lanes. The last panel is padded with zeros.
//!
//! Where the CPU multiplies bf16 by bf16, two neighbours along `k` stand together, as its instruction takes them:
//!
//! ```text
//! matrix [n, k]  ->  panels [n / 16][k / 2][16][2]
//! ```

use half::{bf16, f16};

use super::bf16_pairs::Bf16Pair;
use super::buffer::{PageBuffer, Plain};
use super::lanes::Element;
use super::launch::Output;
use super::packed::StackedRows;
use crate::ops::{Compute, Float, blocks};
use crate::{ModelError, StoredDtype};

/// Outputs of one panel.
pub(super) const PANEL: usize = 16;

#[derive(Debug)]
pub(crate) struct Panels {
    pub(super) out_features: usize,
    pub(super) data: PanelData,
}

#[derive(Debug)]
pub(super) enum PanelData {
    F32(PageBuffer<f32>),
    F16(PageBuffer<f16>),
    Bf16(PageBuffer<bf16>),
    /// Meets activations that are rounded to bf16.
    Bf16Pairs(PageBuffer<Bf16Pair>),
}

/// What a panel is made of, column by column.
pub(super) trait Cell: Plain {
    type Element: Element;

    /// Neighbours along `k` that one cell holds.
    const LEN: usize;

    /// The elements of one of a panel's 16 columns, in the order of `k`.
    fn column(panel: &[Self], lane: usize) -> impl Iterator<Item = &Self::Element>;
    fn column_mut(panel: &mut [Self], lane: usize) -> impl Iterator<Item = &mut Self::Element>;
}

impl<E: Element> Cell for E {
    type Element = E;

    const LEN: usize = 1;

    fn column(panel: &[E], lane: usize) -> impl Iterator<Item = &E> {
        panel[lane..].iter().step_by(PANEL)
    }

    fn column_mut(panel: &mut [E], lane: usize) -> impl Iterator<Item = &mut E> {
        panel.as_chunks_mut::<PANEL>().0.iter_mut().map(move |cells| &mut cells[lane])
    }
}

impl Cell for Bf16Pair {
    type Element = bf16;

    const LEN: usize = 2;

    fn column(panel: &[Self], lane: usize) -> impl Iterator<Item = &bf16> {
        panel[lane..].iter().step_by(PANEL).flat_map(|pair| &pair.0)
    }

    fn column_mut(panel: &mut [Self], lane: usize) -> impl Iterator<Item = &mut bf16> {
        panel.as_chunks_mut::<PANEL>().0.iter_mut().flat_map(move |cells| &mut cells[lane].0)
    }
}

impl Panels {
    /// `dtype` is f32, f16 or bf16.
    pub(super) fn pack(compute: &Compute, dtype: StoredDtype, rows: &StackedRows<'_>) -> Result<Self, ModelError> {
        let data = match dtype {
            StoredDtype::F32 => PanelData::F32(pack(compute, rows)?),
            StoredDtype::F16 => PanelData::F16(pack(compute, rows)?),
            StoredDtype::Bf16 if compute.factors() == Float::Bf16 && rows.width.is_multiple_of(Bf16Pair::LEN) => {
                PanelData::Bf16Pairs(pack(compute, rows)?)
            }
            _ => PanelData::Bf16(pack(compute, rows)?),
        };
        Ok(Self { out_features: rows.num_rows, data })
    }

    /// Elements that a matrix takes, padding included.
    pub(super) fn len_of(rows: usize, columns: usize) -> usize {
        rows.next_multiple_of(PANEL) * columns
    }

    pub(super) fn dtype(&self) -> StoredDtype {
        match &self.data {
            PanelData::F32(_) => StoredDtype::F32,
            PanelData::F16(_) => StoredDtype::F16,
            PanelData::Bf16(_) | PanelData::Bf16Pairs(_) => StoredDtype::Bf16,
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        match &self.data {
            PanelData::F32(buffer) => buffer.size_bytes(),
            PanelData::F16(buffer) => buffer.size_bytes(),
            PanelData::Bf16(buffer) => buffer.size_bytes(),
            PanelData::Bf16Pairs(buffer) => buffer.size_bytes(),
        }
    }
}

fn pack<C: Cell>(compute: &Compute, rows: &StackedRows<'_>) -> Result<PageBuffer<C>, ModelError> {
    let (n, k) = (rows.num_rows, rows.width);
    let mut buffer = PageBuffer::zeroed(Panels::len_of(n, k) / C::LEN, compute.host().memory)?;
    let output = Output::new(buffer.as_mut_slice());
    rows.for_each_panel(compute, PANEL, &|panel| {
        let cells = PANEL * k / C::LEN;
        // SAFETY: each task takes its own panel, and the buffer outlives the run.
        let panel_data: &mut [C] = unsafe { output.part(panel * cells, cells) };
        let lanes = 0..PANEL.min(n - panel * PANEL);
        let rows: Vec<_> = lanes.map(|lane| rows.row(panel * PANEL + lane)).collect();
        let mut values = Vec::new();
        for (lane, &(dtype, row)) in rows.iter().enumerate().filter(|(_, (dtype, _))| dtype.is_quantised()) {
            values.resize(k, 0.0);
            blocks::decode(dtype, row, &mut values);
            let column = C::column_mut(panel_data, lane);
            column.zip(&values).for_each(|(to, value)| *to = C::Element::from_f32(*value));
        }
        for (stripe, cells) in panel_data.chunks_mut(PANEL * STRIPE / C::LEN).enumerate() {
            for (lane, &(dtype, row)) in rows.iter().enumerate() {
                pack_stripe((cells, lane), dtype, (row, stripe));
            }
        }
    });
    Ok(buffer)
}

/// Elements of each row that are copied before any row goes on: their cells stay in the nearest cache until all rows have
/// filled them, while those of a whole panel would not.
const STRIPE: usize = 64;

/// The elements of one stripe of one row of floats.
fn pack_stripe<C: Cell>((cells, lane): (&mut [C], usize), dtype: StoredDtype, (row, stripe): (&[u8], usize)) {
    let from_f32 = <C::Element as Element>::from_f32;
    let (start, len) = (stripe * STRIPE, cells.len() / PANEL * C::LEN);
    let row = |bytes: usize| &row[start * bytes..(start + len) * bytes];
    let column = C::column_mut(cells, lane);
    match dtype {
        StoredDtype::F32 => copy_row(column, row(4), |b: [u8; 4]| from_f32(f32::from_le_bytes(b))),
        StoredDtype::F16 => copy_row(column, row(2), |b: [u8; 2]| from_f32(f16::from_le_bytes(b).to_f32())),
        StoredDtype::Bf16 => copy_row(column, row(2), |b: [u8; 2]| from_f32(bf16::from_le_bytes(b).to_f32())),
        // Decoded as whole rows.
        _ => {}
    }
}

/// Widening to f32 and rounding back is exact, so a row of the buffer's own dtype is copied bit for bit.
fn copy_row<'a, E: 'a, const N: usize>(
    column: impl Iterator<Item = &'a mut E>,
    row: &[u8],
    convert: impl Fn([u8; N]) -> E,
) {
    for (to, from) in column.zip(row.as_chunks::<N>().0) {
        *to = convert(*from);
    }
}
