#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A quantised weight matrix as the CPU bodies read it: as many bits an element as its file, in another order.
//!
//! ```text
//! matrix [n, k]   ->  panels [n / 16][k / block][block of 16 rows]
//! block of 16 rows =  d of each row | for q4_k dmin of each row            f16
//!                     for q4_k and q6_k: of each unit both scales          a byte for each row, unpacked
//!                     units of 32 inputs, each of steps of 64 bytes
//! step             =  of each row 4 bytes, for the neighbouring inputs 4 f .. 4 f + 4: a four
//! byte of q8_0     =  of four f = step
//! byte of q4       =  of fours in both halves of a unit:   step + 4 | step
//! byte of q6_k     =  of one half:                         two bits of four 3 | step, for steps 0 to 2
//! ```
//!
//! So one load brings inputs for eight outputs, or for sixteen where a register is as wide as a step; each output keeps its own
//! running sum, and no sum is taken across lanes. Padding is zeros.

use std::borrow::Cow;

use super::buffer::PageBuffer;
use super::launch::Output;
use super::packed::StackedRows;
use super::panels::PANEL;
use crate::ops::Compute;
use crate::ops::blocks::{self, Head, UNIT};
use crate::{ModelError, StoredDtype};

/// Bytes that a product takes together.
pub(super) const STEP: usize = 64;

#[derive(Debug)]
pub(crate) struct BlockPanels {
    pub(super) dtype: StoredDtype,
    pub(super) out_features: usize,
    pub(super) in_features: usize,
    data: PageBuffer<u8>,
}

/// How 16 rows of a block lie in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) num_floats: usize,
    /// Of each unit.
    pub(super) num_scales: usize,
    pub(super) num_units: usize,
    pub(super) unit_bytes: usize,
}

impl Layout {
    /// Of a quantised dtype.
    pub(super) const fn of(dtype: StoredDtype) -> Self {
        let (num_floats, num_scales, bits) = match dtype {
            StoredDtype::Q4_0 => (1, 0, 4),
            StoredDtype::Q4K => (2, 2, 4),
            StoredDtype::Q6K => (1, 2, 6),
            _ => (1, 0, 8),
        };
        Self { num_floats, num_scales, num_units: dtype.block_len() / UNIT, unit_bytes: PANEL * UNIT * bits / 8 }
    }

    /// Where the scales of unit `unit` begin.
    pub(super) const fn scales(&self, unit: usize) -> usize {
        (self.num_floats * size_of::<u16>() + unit * self.num_scales) * PANEL
    }

    /// Where the quants of unit `unit` begin.
    pub(super) const fn unit(&self, unit: usize) -> usize {
        self.scales(self.num_units) + unit * self.unit_bytes
    }

    pub(super) const fn block_bytes(&self) -> usize {
        self.unit(self.num_units)
    }
}

impl BlockPanels {
    /// The width of `rows` is a whole number of blocks. Rows of another dtype are rounded to `dtype`, which then is q8_0 or
    /// q4_0.
    pub(super) fn pack(compute: &Compute, dtype: StoredDtype, rows: &StackedRows<'_>) -> Result<Self, ModelError> {
        let layout = Layout::of(dtype);
        let panel_bytes = Self::len_of(dtype, PANEL, rows.width);
        let mut data = PageBuffer::zeroed(Self::len_of(dtype, rows.num_rows, rows.width), compute.host().memory)?;
        let output = Output::new(data.as_mut_slice());
        rows.for_each_panel(compute, PANEL, &|index| {
            // SAFETY: each task takes its own panel, and the buffer outlives the run.
            let panel: &mut [u8] = unsafe { output.part(index * panel_bytes, panel_bytes) };
            let lanes = 0..PANEL.min(rows.num_rows - index * PANEL);
            let encoded: Vec<_> = lanes.map(|lane| encoded(dtype, rows.row(index * PANEL + lane))).collect();
            for (at, place) in panel.chunks_exact_mut(layout.block_bytes()).enumerate() {
                let blocks = encoded.iter().map(|row| &row[at * dtype.block_bytes()..][..dtype.block_bytes()]);
                put_blocks(dtype, place, blocks);
            }
        });
        Ok(Self { dtype, out_features: rows.num_rows, in_features: rows.width, data })
    }

    /// Bytes that a matrix takes, padding included.
    pub(super) fn len_of(dtype: StoredDtype, rows: usize, columns: usize) -> usize {
        rows.div_ceil(PANEL) * (columns / dtype.block_len() * Layout::of(dtype).block_bytes())
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.data.as_slice()
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.data.size_bytes()
    }

    /// Row `row`, dequantised as its file's blocks would be.
    pub(super) fn read_row(&self, row: usize, values: &mut [f32]) {
        let layout = Layout::of(self.dtype);
        let panel_bytes = self.in_features / self.dtype.block_len() * layout.block_bytes();
        let panel = &self.data.as_slice()[row / PANEL * panel_bytes..][..panel_bytes];
        let blocks = panel.chunks_exact(layout.block_bytes()).zip(values.chunks_exact_mut(self.dtype.block_len()));
        for (block, values) in blocks {
            let head = take_head(&layout, block, row % PANEL);
            for (unit, values) in values.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
                let steps = block[layout.unit(unit)..][..layout.unit_bytes].as_chunks().0;
                *values = head.scales(self.dtype, unit).apply(&take_quants(self.dtype, steps, row % PANEL));
            }
        }
    }
}

/// A row as blocks of `dtype`, as which it is stored or else rounded.
fn encoded(dtype: StoredDtype, (stored, bytes): (StoredDtype, &[u8])) -> Cow<'_, [u8]> {
    if stored == dtype {
        return bytes.into();
    }
    let mut values = vec![0.0; stored.elements_in(bytes.len())];
    blocks::decode(stored, bytes, &mut values);
    let mut row = vec![0; values.len() / dtype.block_len() * dtype.block_bytes()];
    blocks::encode(dtype, &values, &mut row);
    row.into()
}

/// The blocks of up to 16 rows; all that is not theirs is zeros.
fn put_blocks<'a>(dtype: StoredDtype, place: &mut [u8], blocks: impl Iterator<Item = &'a [u8]> + Clone) {
    let layout = Layout::of(dtype);
    for (lane, block) in blocks.clone().enumerate() {
        let head = Head::read(dtype, block);
        for (index, float) in head.floats.iter().enumerate().take(layout.num_floats) {
            place[(index * PANEL + lane) * size_of::<u16>()..][..size_of::<u16>()]
                .copy_from_slice(&float.to_le_bytes());
        }
        for (unit, bytes) in head.bytes.iter().enumerate().take(layout.num_units) {
            for (index, scale) in bytes.iter().enumerate().take(layout.num_scales) {
                place[layout.scales(unit) + index * PANEL + lane] = *scale;
            }
        }
    }
    for unit in 0..layout.num_units {
        let steps = place[layout.unit(unit)..][..layout.unit_bytes].as_chunks_mut::<STEP>().0;
        for (row, block) in blocks.clone().enumerate() {
            let offset = dtype.quant_offset();
            let quants = blocks::quants(dtype, block, unit).map(|quant| (i32::from(quant) + offset) as u8);
            put_quants(dtype, steps, row, &quants);
        }
    }
}

fn take_head(layout: &Layout, block: &[u8], lane: usize) -> Head {
    let mut head = Head::default();
    for (index, float) in head.floats.iter_mut().enumerate().take(layout.num_floats) {
        let at = (index * PANEL + lane) * size_of::<u16>();
        *float = half::f16::from_le_bytes([block[at], block[at + 1]]);
    }
    for (unit, scales) in head.bytes.iter_mut().enumerate().take(layout.num_units) {
        for (index, scale) in scales.iter_mut().enumerate().take(layout.num_scales) {
            *scale = block[layout.scales(unit) + index * PANEL + lane];
        }
    }
    head
}

/// The quants of one row of a unit, not negative.
fn put_quants(dtype: StoredDtype, steps: &mut [[u8; STEP]], row: usize, quants: &[u8; UNIT]) {
    let fours = quants.as_chunks().0;
    let four = |index: usize| u32::from_le_bytes(fours[index]);
    for (step, rows) in steps.iter_mut().enumerate() {
        let bytes = match dtype {
            StoredDtype::Q8_0 => four(step),
            StoredDtype::Q6K => {
                let (half, place) = (step / 3, step % 3);
                four(4 * half + place) | (four(4 * half + 3) >> (2 * place) & 0x0303_0303) << 6
            }
            _ => four(step) | four(step + 4) << 4,
        };
        rows.as_chunks_mut().0[row] = bytes.to_le_bytes();
    }
}

/// What [`put_quants`] has put there, its offset taken off.
fn take_quants(dtype: StoredDtype, steps: &[[u8; STEP]], row: usize) -> [i8; UNIT] {
    let mut quants = [[0; 4]; UNIT / 4];
    for (step, rows) in steps.iter().enumerate() {
        let bytes: [u8; 4] = rows.as_chunks().0[row];
        match dtype {
            StoredDtype::Q8_0 => quants[step] = bytes,
            StoredDtype::Q6K => {
                let (half, place) = (step / 3, step % 3);
                quants[4 * half + place] = bytes.map(|byte| byte & 0x3f);
                let last = &mut quants[4 * half + 3];
                last.iter_mut().zip(bytes).for_each(|(quant, byte)| *quant |= byte >> 6 << (2 * place));
            }
            _ => {
                quants[step] = bytes.map(|byte| byte & 0xf);
                quants[step + 4] = bytes.map(|byte| byte >> 4);
            }
        }
    }
    std::array::from_fn(|k| (i32::from(quants[k / 4][k % 4]) - dtype.quant_offset()) as i8)
}
