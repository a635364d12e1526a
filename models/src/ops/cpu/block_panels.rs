#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A quantised weight matrix as the CPU bodies read it: as many bits an element as its file, in another order.
//!
//! ```text
//! matrix [n, k]   ->  panels [n / 16][k / block][block of 16 rows]
//! block of 16 rows =  d of each row | for q4_k dmin of each row            f16
//!                     for q4_k and q6_k: of each unit both scales          a byte for each row, unpacked
//!                     units of 32 inputs, each of steps of 64 bytes
//! step             =  32 lanes of 16 bits: of each row an even and an odd input
//! four             =  inputs i, i + 1, i + 8 and i + 9 of one half of a unit
//! lanes of q8_0    =  of a four:                        i + 8 | i
//! lanes of q4      =  of fours in both halves:          16 + i + 8 | i + 8 | 16 + i | i
//! lanes of q6_k    =  of a half, three steps:           bits 0-3 of 6  | i + 8 = 8  | i = 0
//!                                                       bits 0-3 of 14 | 10         | 2
//!                                               bits 4-5 of 14 and 6   | 12         | 4
//! ```
//!
//! So one load brings inputs for eight outputs, or for sixteen where a register is as wide as a step; each output keeps its own
//! running sum, and no sum is taken across lanes. What lies in one lane are neighbours in memory among the activations.
//! Padding is zeros.

use std::borrow::Cow;
use std::ops::Range;

use super::buffer::PageBuffer;
use super::launch::Output;
use super::packed::StackedRows;
use super::panels::PANEL;
use crate::ops::Compute;
use crate::ops::blocks::{self, Head, UNIT};
use crate::{ModelError, StoredDtype};

/// Bytes of the vectors that a product takes together.
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
                let quants = &block[layout.unit(unit)..][..layout.unit_bytes];
                *values = head.scales(self.dtype, unit).apply(&take_quants(self.dtype, quants, row % PANEL));
            }
        }
    }
}

/// What is added to a quant so that it is not negative.
pub(super) const fn offset(dtype: StoredDtype) -> i32 {
    match dtype {
        StoredDtype::Q8_0 => 128,
        StoredDtype::Q4_0 => 8,
        StoredDtype::Q6K => 32,
        _ => 0,
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
        let mut quants = [[0; PANEL]; UNIT];
        for (lane, block) in blocks.clone().enumerate() {
            for (inputs, quant) in quants.iter_mut().zip(blocks::quants(dtype, block, unit)) {
                inputs[lane] = quant.wrapping_add(offset(dtype) as i8).cast_unsigned();
            }
        }
        put_quants(dtype, &quants, &mut place[layout.unit(unit)..][..layout.unit_bytes]);
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

/// Some bits of the quants of a pair of inputs: `count` of them from bit `from` on, which lie from bit `shift` of a lane on.
#[derive(Clone, Copy)]
struct Bits {
    pair: usize,
    shift: usize,
    from: usize,
    count: usize,
}

/// What the lanes of a unit's step hold, of the even input of each pair in one lane and of the odd one in the next.
fn parts_of(dtype: StoredDtype, step: usize) -> impl Iterator<Item = Bits> {
    let whole = |pair, shift, count| Some(Bits { pair, shift, from: 0, count });
    let parts = match dtype {
        StoredDtype::Q8_0 => {
            let pairs = pairs_of(step);
            [whole(pairs[0], 0, 8), whole(pairs[1], 8, 8), None, None]
        }
        StoredDtype::Q6K => {
            let (half, place) = (step / 3, step % 3);
            let pairs = pairs_of(4 * half + place);
            let last = pairs_of(4 * half + 3);
            let high = |index: usize| Some(Bits { pair: last[index], shift: 12 + 2 * index, from: 4, count: 2 });
            let rest = if place < 2 { [whole(last[place], 12, 4), None] } else { [high(0), high(1)] };
            [whole(pairs[0], 0, 6), whole(pairs[1], 6, 6), rest[0], rest[1]]
        }
        _ => {
            let (pairs, others) = (pairs_of(step), pairs_of(step + 4));
            [whole(pairs[0], 0, 4), whole(others[0], 4, 4), whole(pairs[1], 8, 4), whole(others[1], 12, 4)]
        }
    };
    parts.into_iter().flatten()
}

/// The two pairs of inputs of one of the eight fours of a unit, which products take together: both lie in one half of it.
pub(super) const fn pairs_of(four: usize) -> [usize; 2] {
    let first = four / 4 * 8 + four % 4;
    [first, first + 4]
}

/// Where a step holds the lane of one of its 16 rows and of the even or odd inputs.
fn lane_at(row: usize, parity: usize) -> Range<usize> {
    let start = (2 * row + parity) * size_of::<u16>();
    start..start + size_of::<u16>()
}

/// A unit's quants, not negative, by input and row.
fn put_quants(dtype: StoredDtype, quants: &[[u8; PANEL]; UNIT], unit: &mut [u8]) {
    for (step, vectors) in unit.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
        for parity in 0..2 {
            let mut lanes = [0; PANEL];
            for Bits { pair, shift, from, count } in parts_of(dtype, step) {
                for (lane, quant) in lanes.iter_mut().zip(&quants[2 * pair + parity]) {
                    *lane |= (u16::from(*quant) >> from & ((1 << count) - 1)) << shift;
                }
            }
            for (row, lane) in lanes.into_iter().enumerate() {
                vectors[lane_at(row, parity)].copy_from_slice(&lane.to_le_bytes());
            }
        }
    }
}

/// The quants of one row of a unit.
fn take_quants(dtype: StoredDtype, unit: &[u8], row: usize) -> [i8; UNIT] {
    let mut quants = [0; UNIT];
    for (step, vectors) in unit.as_chunks::<STEP>().0.iter().enumerate() {
        for parity in 0..2 {
            let bytes = &vectors[lane_at(row, parity)];
            let lane = u16::from_le_bytes([bytes[0], bytes[1]]);
            for Bits { pair, shift, from, count } in parts_of(dtype, step) {
                quants[2 * pair + parity] |= (lane >> shift & ((1 << count) - 1)) << from;
            }
        }
    }
    quants.map(|quant| (i32::from(quant) - offset(dtype)) as i8)
}
