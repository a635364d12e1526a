#![expect(unsafe_code, reason = "threads fill disjoint panels of one buffer")]

//! A quantised weight matrix as the CPU bodies read it: as many bits an element as its file, in another order.
//!
//! ```text
//! matrix [n, k]   ->  panels [n / 16][k / block][block of 16 rows]
//! block of 16 rows =  d of each row | for q4_k dmin of each row            f16
//!                     for q4_k and q6_k: of each unit both scales          a byte for each row, unpacked
//!                     units of 32 inputs, each of vectors of 32 bytes
//! vector           =  16 lanes of 16 bits: rows 0 to 7 or 8 to 15, and of each an even and an odd input
//!                     a lane holds two 8-bit or four 4-bit quants of inputs that are 16 or 8 apart
//! lane of q6_k     =  of 8 inputs with one scale, numbered by pairs, three lanes hold
//!                     input 6 bits 0-3 | input 3 | input 0
//!                     input 7 bits 0-3 | input 4 | input 1
//!                     bits 4-5 of input 7 and of input 6 | input 5 | input 2
//! ```
//!
//! So one load brings inputs for eight outputs, or for sixteen where a register is as wide as two vectors; each output keeps
//! its own running sum, and no sum is taken across lanes. Padding is zeros.

use super::buffer::PageBuffer;
use super::launch::Output;
use super::packed::StackedRows;
use super::panels::PANEL;
use crate::ops::Compute;
use crate::ops::blocks::{self, Head, UNIT};
use crate::{ModelError, StoredDtype};

/// Bytes of a vector.
const VECTOR: usize = 32;
/// Bytes of the two vectors that a product takes together.
pub(super) const STEP: usize = 2 * VECTOR;

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
            let mut row = vec![0; rows.width / dtype.block_len() * dtype.block_bytes()];
            let mut values = Vec::new();
            for lane in 0..PANEL.min(rows.num_rows - index * PANEL) {
                let (stored, bytes) = rows.row(index * PANEL + lane);
                if stored == dtype {
                    row.copy_from_slice(bytes);
                } else {
                    values.resize(rows.width, 0.0);
                    blocks::decode(stored, bytes, &mut values);
                    blocks::encode(dtype, &values, &mut row);
                }
                let places = panel.chunks_exact_mut(layout.block_bytes());
                for (place, block) in places.zip(row.chunks_exact(dtype.block_bytes())) {
                    put_block(dtype, place, lane, block);
                }
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
                let quants = std::array::from_fn(|k| take_quant(self.dtype, quants, row % PANEL, k));
                *values = head.scales(self.dtype, unit).apply(&quants);
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

fn put_block(dtype: StoredDtype, place: &mut [u8], lane: usize, block: &[u8]) {
    let layout = Layout::of(dtype);
    let head = Head::read(dtype, block);
    for (index, float) in head.floats.iter().enumerate().take(layout.num_floats) {
        place[(index * PANEL + lane) * size_of::<u16>()..][..size_of::<u16>()].copy_from_slice(&float.to_le_bytes());
    }
    for unit in 0..layout.num_units {
        for (index, scale) in head.bytes[unit].iter().enumerate().take(layout.num_scales) {
            place[layout.scales(unit) + index * PANEL + lane] = *scale;
        }
        let quants = blocks::quants(dtype, block, unit);
        let unit = &mut place[layout.unit(unit)..][..layout.unit_bytes];
        for (k, quant) in quants.into_iter().enumerate() {
            put_quant(dtype, unit, lane, (k, quant));
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

/// Where the lane of row `lane` and input `k` begins in the unit's vectors number `step` of both halves.
fn lane_at(step: usize, lane: usize, k: usize) -> usize {
    const ROWS_OF_VECTOR: usize = PANEL / 2;
    step * STEP + lane / ROWS_OF_VECTOR * VECTOR + (lane % ROWS_OF_VECTOR * 2 + k % 2) * size_of::<u16>()
}

/// Where some bits of a quant lie: in the lane at `at`, from bit `shift` on, `count` bits of it from bit `from` on.
struct Bits {
    at: usize,
    shift: usize,
    from: usize,
    count: usize,
}

/// Where the quant of row `lane` and input `k` lies in its unit. The second is of no bits but for some of q6_k.
fn bits_of(dtype: StoredDtype, lane: usize, k: usize) -> [Bits; 2] {
    let whole = |step, shift, count| [(step, shift, 0, count), (step, 0, 0, 0)];
    let pair = k / 2;
    let parts = match dtype {
        StoredDtype::Q8_0 => whole(pair % 8, 8 * (pair / 8), 8),
        StoredDtype::Q6K => {
            let (group, pair) = (3 * (pair / 8), pair % 8);
            match pair {
                6 | 7 => [(group + pair - 6, 12, 0, 4), (group + 2, 12 + 2 * (pair - 6), 4, 2)],
                _ => whole(group + pair % 3, 6 * (pair / 3), 6),
            }
        }
        _ => whole(pair % 4, 4 * (pair / 4), 4),
    };
    parts.map(|(step, shift, from, count)| Bits { at: lane_at(step, lane, k), shift, from, count })
}

fn put_quant(dtype: StoredDtype, unit: &mut [u8], lane: usize, (k, quant): (usize, i8)) {
    let quant = (i32::from(quant) + offset(dtype)) as u16;
    for Bits { at, shift, from, count } in bits_of(dtype, lane, k) {
        let bits = (quant >> from & ((1 << count) - 1)) << shift;
        for (place, byte) in unit[at..].iter_mut().zip(bits.to_le_bytes()) {
            *place |= byte;
        }
    }
}

fn take_quant(dtype: StoredDtype, unit: &[u8], lane: usize, k: usize) -> i8 {
    let bits = bits_of(dtype, lane, k).map(|Bits { at, shift, from, count }| {
        let lane = u16::from_le_bytes([unit[at], unit[at + 1]]);
        (lane >> shift & ((1 << count) - 1)) << from
    });
    (i32::from(bits[0] | bits[1]) - offset(dtype)) as i8
}
