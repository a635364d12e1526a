//! Norm weights and biases, which are computed with in f32 whatever they are stored in.

use half::{bf16, f16};

use super::StoredDtype;

/// Exact: f32 holds every f16 and every bf16. Bytes are little-endian and need no alignment.
pub(super) fn to_f32(bytes: &[u8], dtype: StoredDtype) -> Vec<f32> {
    match dtype {
        StoredDtype::F32 => each(bytes, f32::from_le_bytes),
        StoredDtype::F16 => each(bytes, |pair| f16::from_le_bytes(pair).to_f32()),
        StoredDtype::Bf16 => each(bytes, |pair| bf16::from_le_bytes(pair).to_f32()),
    }
}

fn each<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
}
