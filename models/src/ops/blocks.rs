//! ggml's quantised blocks as files store them, little-endian (`ggml-common.h` and `ggml-quants.c` of ggml-org/ggml).
//!
//! ```text
//! q8_0   d f16 | 32 x i8                                                   w = d q
//! q4_0   d f16 | 16 x two 4-bit: elements i and i + 16                     w = d (q - 8)
//! q4_k   d f16, dmin f16 | 8 x (6-bit s, 6-bit m) in 12 bytes | 128 x two 4-bit: of each 64, elements i and i + 32
//!                                                                          w = (d s) q - (dmin m)
//! q6_k   128 x low 4 bits, 64 x high 2 bits, both by 128 elements | 16 x i8 s | d f16
//!                                                                          w = (d s) (q - 32)
//! ```
//!
//! All of them are read as *units* of 32 elements: `w[k] = scales[k / 16] * quants[k] - min`, each product and difference
//! rounded to f32.

use half::{bf16, f16};

use crate::StoredDtype;

/// Elements of a unit.
pub(crate) const UNIT: usize = 32;
const UNITS_OF_K_BLOCK: usize = 8;

/// The scales of one block, as stored.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Head {
    /// `d`, and `dmin` of q4_k.
    pub(super) floats: [f16; 2],
    /// For each unit, the `s` and `m` of q4_k, or the two `s` of q6_k.
    pub(super) bytes: [[u8; 2]; UNITS_OF_K_BLOCK],
}

/// What a unit's quants are scaled with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    pub(super) scales: [f32; 2],
    pub(super) min: f32,
}

impl Head {
    /// Of a quantised block.
    pub(super) fn read(dtype: StoredDtype, block: &[u8]) -> Self {
        let float = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
        let mut head = Self::default();
        match dtype {
            StoredDtype::Q4K => {
                head.floats = [float(0), float(2)];
                for (unit, bytes) in head.bytes.iter_mut().enumerate() {
                    *bytes = q4_k_scale_and_min(&block[4..16], unit);
                }
            }
            StoredDtype::Q6K => {
                head.floats[0] = float(208);
                for (bytes, stored) in head.bytes.iter_mut().zip(block[192..208].as_chunks::<2>().0) {
                    *bytes = *stored;
                }
            }
            _ => head.floats[0] = float(0),
        }
        head
    }

    pub(super) fn scales(&self, dtype: StoredDtype, unit: usize) -> Scales {
        let [d, dmin] = self.floats.map(f16::to_f32);
        let [first, second] = self.bytes[unit];
        match dtype {
            StoredDtype::Q4K => Scales { scales: [d * f32::from(first); 2], min: dmin * f32::from(second) },
            StoredDtype::Q6K => {
                Scales { scales: [first, second].map(|byte| d * f32::from(byte.cast_signed())), min: 0.0 }
            }
            _ => Scales { scales: [d; 2], min: 0.0 },
        }
    }
}

impl Scales {
    /// The unit's weights.
    pub(super) fn apply(&self, quants: &[i8; UNIT]) -> [f32; UNIT] {
        std::array::from_fn(|k| self.scales[k / 16] * f32::from(quants[k]) - self.min)
    }
}

/// The quants of unit `unit` of a quantised block, their offset taken off.
pub(super) fn quants(dtype: StoredDtype, block: &[u8], unit: usize) -> [i8; UNIT] {
    let nibble = |byte: u8, high: bool| if high { byte >> 4 } else { byte & 0xf };
    match dtype {
        StoredDtype::Q8_0 => std::array::from_fn(|k| block[2 + k].cast_signed()),
        StoredDtype::Q4_0 => std::array::from_fn(|k| nibble(block[2 + k % 16], k >= 16).cast_signed() - 8),
        StoredDtype::Q4K => {
            let low = &block[16 + unit / 2 * UNIT..][..UNIT];
            std::array::from_fn(|k| nibble(low[k], unit % 2 == 1).cast_signed())
        }
        _ => {
            // Of 128 elements, units 0 and 2 share the first 32 low bytes, units 1 and 3 the next; all share the high ones.
            let (half, quarter) = (unit / 4, unit % 4);
            let low = &block[half * 64 + quarter % 2 * UNIT..][..UNIT];
            let high = &block[128 + half * UNIT..][..UNIT];
            std::array::from_fn(|k| {
                let bits = nibble(low[k], quarter >= 2) | ((high[k] >> (2 * quarter)) & 3) << 4;
                bits.cast_signed() - 32
            })
        }
    }
}

/// Whole blocks as f32, see [`decode`].
pub(crate) fn widened(dtype: StoredDtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![0.0; dtype.elements_in(bytes.len())];
    decode(dtype, bytes, &mut values);
    values
}

/// The elements of whole blocks of any dtype, widened to f32: exactly for the floats, rounded as above for the others.
pub(super) fn decode(dtype: StoredDtype, bytes: &[u8], values: &mut [f32]) {
    match dtype {
        StoredDtype::F32 => each(bytes, values, f32::from_le_bytes),
        StoredDtype::F16 => each(bytes, values, |pair| f16::from_le_bytes(pair).to_f32()),
        StoredDtype::Bf16 => each(bytes, values, |pair| bf16::from_le_bytes(pair).to_f32()),
        _ => {
            let blocks = bytes.chunks_exact(dtype.block_bytes()).zip(values.chunks_exact_mut(dtype.block_len()));
            for (block, values) in blocks {
                let head = Head::read(dtype, block);
                for (unit, values) in values.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
                    *values = head.scales(dtype, unit).apply(&quants(dtype, block, unit));
                }
            }
        }
    }
}

fn each<const N: usize>(bytes: &[u8], values: &mut [f32], read: impl Fn([u8; N]) -> f32) {
    for (value, chunk) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
        *value = read(*chunk);
    }
}

/// Rounds `values`, a whole number of blocks, to q4_0 or q8_0 as ggml's reference does. A block that holds something that
/// is not a finite number becomes one of which every element is not a number.
pub(super) fn encode(dtype: StoredDtype, values: &[f32], bytes: &mut [u8]) {
    let blocks = values.as_chunks::<UNIT>().0.iter().zip(bytes.chunks_exact_mut(dtype.block_bytes()));
    for (values, block) in blocks {
        let (head, quants) = block.split_at_mut(2);
        let scale = match dtype {
            StoredDtype::Q4_0 => encode_q4_0(values, quants),
            _ => encode_q8_0(values, quants),
        };
        let scale = if values.iter().all(|value| value.is_finite()) { f16::from_f32(scale) } else { f16::NAN };
        head.copy_from_slice(&scale.to_le_bytes());
    }
}

fn encode_q8_0(values: &[f32; UNIT], quants: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (quant, value) in quants.iter_mut().zip(values) {
        *quant = ((value * inverse).round() as i8).cast_unsigned();
    }
    scale
}

fn encode_q4_0(values: &[f32; UNIT], quants: &mut [u8]) -> f32 {
    // The first of the largest, with its sign, becomes -8.
    let largest =
        values.iter().fold(0.0_f32, |largest, value| if value.abs() > largest.abs() { *value } else { largest });
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let round = |value: f32| ((value * inverse + 8.5) as u8).min(15);
    for (index, quant) in quants.iter_mut().enumerate() {
        *quant = round(values[index]) | round(values[index + UNIT / 2]) << 4;
    }
    scale
}

/// Twelve bytes hold eight scales and eight minima of 6 bits: the first four of each whole in the low bits of bytes 0 to 3
/// and 4 to 7, the last four with their low bits in bytes 8 to 11 and their high bits above the former.
fn q4_k_scale_and_min(packed: &[u8], unit: usize) -> [u8; 2] {
    if unit < 4 {
        [packed[unit] & 0x3f, packed[4 + unit] & 0x3f]
    } else {
        let low = packed[4 + unit];
        [low & 0xf | (packed[unit - 4] >> 2) & 0x30, low >> 4 | (packed[unit] >> 2) & 0x30]
    }
}
