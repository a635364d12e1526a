//! Blocks that are read as those of another type, which says the same with more bits.

use std::borrow::Cow;

use crate::StoredDtype;

/// How a file writes the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// As they are read.
    AsRead,
    /// ggml's q5_0, read as q8_0: blocks of 32, an f16 scale, 32 high bits, and 4 low bits an element. It stands in files
    /// of other types where rows are no whole number of blocks of 256.
    Q5_0,
}

const Q5_0_BLOCK: usize = 2 + 4 + 16;

impl Coding {
    /// What `num_elements` elements take in the file that are read as `dtype`; `None` when they are no whole number of blocks,
    /// or too many to count.
    pub(super) fn bytes_of(self, dtype: StoredDtype, num_elements: usize) -> Option<usize> {
        let read = dtype.bytes_of(num_elements)?;
        match self {
            Self::AsRead => Some(read),
            Self::Q5_0 => Some(read / dtype.block_bytes() * Q5_0_BLOCK),
        }
    }

    /// Elements in `num_bytes` bytes of a file, of whole blocks.
    pub(super) fn elements_in(self, dtype: StoredDtype, num_bytes: usize) -> usize {
        match self {
            Self::AsRead => dtype.elements_in(num_bytes),
            Self::Q5_0 => num_bytes / Q5_0_BLOCK * dtype.block_len(),
        }
    }

    /// The bytes of a file, whole blocks, as those that are read.
    pub(crate) fn read(self, bytes: &[u8]) -> Cow<'_, [u8]> {
        match self {
            Self::AsRead => bytes.into(),
            Self::Q5_0 => {
                let blocks = bytes.as_chunks().0;
                let mut read = Vec::with_capacity(blocks.len() * StoredDtype::Q8_0.block_bytes());
                blocks.iter().for_each(|block| read.extend_from_slice(&q8_0_of_q5_0(block)));
                read.into()
            }
        }
    }
}

/// ```text
/// q5_0   d f16 | 32 high bits | 16 x two 4-bit: elements i and i + 16      w = d (q - 16)
/// q8_0   d f16 | 32 x i8                                                   w = d q
/// ```
fn q8_0_of_q5_0(block: &[u8; Q5_0_BLOCK]) -> [u8; 2 + 32] {
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let quant = |element: usize| {
        let byte = block[6 + element % 16];
        let low = if element < 16 { byte & 0xf } else { byte >> 4 };
        let bits = low | ((high >> element) as u8 & 1) << 4;
        bits.wrapping_sub(16)
    };
    std::array::from_fn(|at| if at < 2 { block[at] } else { quant(at - 2) })
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::ops::widened;

    #[test]
    fn q5_0_has_the_elements_that_the_gguf_package_reads() {
        let blocks = include_bytes!("../../tests/fixtures/gguf/blocks.safetensors");
        let tensors = SafeTensors::deserialize(blocks).unwrap();
        let [bytes, values] = ["q5_0_bytes", "q5_0_values"].map(|name| tensors.tensor(name).unwrap().data().to_vec());
        let read = Coding::Q5_0.read(&bytes);
        assert_eq!(Coding::Q5_0.bytes_of(StoredDtype::Q8_0, values.len() / 4), Some(bytes.len()));
        assert_eq!(Coding::Q5_0.elements_in(StoredDtype::Q8_0, bytes.len()), values.len() / 4);
        assert_eq!(widened(StoredDtype::Q8_0, &read), widened(StoredDtype::F32, &values));
    }
}
