//! Quantised rows as kernels for GPUs read them: the blocks of all rows taken apart into planes, each of one kind of number, so
//! that neighbouring threads read neighbouring bytes and no number lies across two loads.
//!
//! ```text
//! quants        of each unit of 32 elements 32 bytes (q8_0), or 16 with the low 4 bits of each
//! high bits     of each unit of q6_k 8 bytes
//! unit scales   of each unit 2 bytes: d f16 (q8_0, q4_0), s and m (q4_k), both s (q6_k)
//! block scales  of each block of 256 elements: d and dmin f16 (q4_k), d f16 (q6_k)
//! ```
//!
//! A quant is stored with an offset, so that it is not negative. Eight neighbours are a *piece*, which a thread takes:
//! 8 bytes, or 4 with the first four elements in the low nibbles and the last four in the high ones. Of 16 neighbours,
//! byte `b` of 4 has the high bits of elements `b`, `b + 4`, `b + 8` and `b + 12`, the first lowest.
//!
//! That is as many bytes as the file has, but for q4_k, whose scales are unpacked: 148 a block, where the file has 144.

use super::blocks::UNIT;
#[cfg(any(feature = "cuda", test))]
use super::blocks::{Head, quants};
use crate::StoredDtype;

/// How a quantised matrix `[rows, columns]` lies in a GPU's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockPlanes {
    pub(crate) dtype: StoredDtype,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

/// Rows that are multiplied by quantised weights as they are. For more, weights are dequantised first.
pub(crate) const FEW_ROWS: usize = 8;
/// Elements that a thread takes.
#[cfg(any(feature = "cuda", test))]
const PIECE: usize = 8;
const UNIT_SCALE_BYTES: usize = 2;
/// The most that is dequantised at a time: the largest layers of a model of some ten billion parameters in one go, and an
/// output head in several.
const MOST_SCRATCH_BYTES: usize = 256 << 20;

/// Rows of a matrix `[rows, columns]` that are dequantised together, to be multiplied as bf16.
pub(crate) fn rows_at_once(rows: usize, columns: usize) -> usize {
    (MOST_SCRATCH_BYTES / (columns.max(1) * size_of::<half::bf16>())).clamp(1, rows.max(1))
}

/// What they take.
pub(crate) fn scratch_bytes(rows: usize, columns: usize) -> usize {
    rows_at_once(rows, columns) * columns * size_of::<half::bf16>()
}

impl BlockPlanes {
    /// Bytes of all planes.
    pub(crate) fn size_bytes(self) -> usize {
        self.block_scales() + self.units() / (self.dtype.block_len() / UNIT) * block_scale_bytes(self.dtype)
    }

    /// Where the plane begins, in bytes. That of the quants begins at 0.
    pub(crate) fn high_bits(self) -> usize {
        self.units() * quant_bytes(self.dtype)
    }

    pub(crate) fn unit_scales(self) -> usize {
        self.high_bits() + self.units() * high_bit_bytes(self.dtype)
    }

    pub(crate) fn block_scales(self) -> usize {
        self.unit_scales() + self.units() * UNIT_SCALE_BYTES
    }

    fn units(self) -> usize {
        self.rows * self.columns / UNIT
    }

    /// Puts `blocks`, which are whole ones as a file has them, where they belong in `planes`; `first` is the number of the first.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn put(self, planes: &mut [u8], first: usize, blocks: &[u8]) {
        let units = self.dtype.block_len() / UNIT;
        for (index, block) in blocks.chunks_exact(self.dtype.block_bytes()).enumerate() {
            let (head, number) = (Head::read(self.dtype, block), first + index);
            let [d, dmin] = head.floats.map(half::f16::to_le_bytes);
            let floats = [d[0], d[1], dmin[0], dmin[1]];
            let scales = block_scale_bytes(self.dtype);
            planes[self.block_scales() + number * scales..][..scales].copy_from_slice(&floats[..scales]);
            for unit in 0..units {
                let scales = if scales == 0 { d } else { head.bytes[unit] };
                self.put_unit(planes, number * units + unit, &quants(self.dtype, block, unit), scales);
            }
        }
    }

    #[cfg(any(feature = "cuda", test))]
    fn put_unit(self, planes: &mut [u8], number: usize, quants: &[i8; UNIT], scales: [u8; UNIT_SCALE_BYTES]) {
        let codes = quants.map(|quant| (i32::from(quant) + self.dtype.quant_offset()) as u8);
        let bytes = quant_bytes(self.dtype);
        let place = &mut planes[number * bytes..][..bytes];
        if self.dtype == StoredDtype::Q8_0 {
            place.copy_from_slice(&codes);
        } else {
            for (place, codes) in place.as_chunks_mut::<{ PIECE / 2 }>().0.iter_mut().zip(codes.as_chunks::<PIECE>().0)
            {
                *place = std::array::from_fn(|byte| codes[byte] & 0xf | codes[byte + 4] << 4);
            }
        }
        let high = high_bit_bytes(self.dtype);
        let place = &mut planes[self.high_bits() + number * high..][..high];
        for (place, codes) in place.as_chunks_mut::<4>().0.iter_mut().zip(codes.as_chunks::<16>().0) {
            *place = std::array::from_fn(|byte| (0..4).map(|part| codes[byte + 4 * part] >> 4 << (2 * part)).sum());
        }
        planes[self.unit_scales() + number * UNIT_SCALE_BYTES..][..UNIT_SCALE_BYTES].copy_from_slice(&scales);
    }
}

/// Of a unit.
const fn quant_bytes(dtype: StoredDtype) -> usize {
    match dtype {
        StoredDtype::Q8_0 => UNIT,
        _ => UNIT / 2,
    }
}

/// Of a unit.
const fn high_bit_bytes(dtype: StoredDtype) -> usize {
    match dtype {
        StoredDtype::Q6K => UNIT / 4,
        _ => 0,
    }
}

/// Of a block.
const fn block_scale_bytes(dtype: StoredDtype) -> usize {
    match dtype {
        StoredDtype::Q4K => 4,
        StoredDtype::Q6K => 2,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_as_large_as_the_file_s_blocks_but_for_the_scales_of_q4_k() {
        let [rows, columns] = [7, 512];
        for dtype in StoredDtype::ALL.into_iter().filter(|dtype| dtype.is_quantised()) {
            let stored = rows * columns / dtype.block_len() * dtype.block_bytes();
            let unpacked = if dtype == StoredDtype::Q4K { rows * columns / 256 * 4 } else { 0 };
            assert_eq!(BlockPlanes { dtype, rows, columns }.size_bytes(), stored + unpacked, "{dtype}");
        }
    }

    #[test]
    fn what_is_dequantised_at_once_has_a_bound_and_is_at_least_a_row() {
        assert_eq!((rows_at_once(28_672, 4096), scratch_bytes(28_672, 4096)), (28_672, 28_672 * 8192));
        assert_eq!((rows_at_once(128_256, 4096), scratch_bytes(128_256, 4096)), (32_768, MOST_SCRATCH_BYTES));
        assert_eq!(rows_at_once(3, MOST_SCRATCH_BYTES), 1);
    }
}
