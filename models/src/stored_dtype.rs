use std::fmt;

/// What a tensor is stored as in its file, and what a weight is held as in memory.
///
/// The quantised ones are ggml's: a block of neighbouring elements of a row shares its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    F32,
    F16,
    Bf16,
    /// Blocks of 32: an f16 scale and 8 bits an element.
    Q8_0,
    /// Blocks of 32: an f16 scale and 4 bits an element.
    Q4_0,
    /// Blocks of 256: two f16, then a 6-bit scale and minimum for each 32 elements, and 4 bits an element.
    Q4K,
    /// Blocks of 256: an f16, then an 8-bit scale for each 16 elements, and 6 bits an element.
    Q6K,
}

impl StoredDtype {
    pub const ALL: [Self; 7] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0, Self::Q4K, Self::Q6K];

    pub fn is_quantised(self) -> bool {
        self.block_len() > 1
    }

    /// Elements that are stored together. A row is a whole number of blocks.
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => 1,
            Self::Q8_0 | Self::Q4_0 => 32,
            Self::Q4K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 => 2 + 32,
            Self::Q4_0 => 2 + 16,
            Self::Q4K => 4 + 12 + 128,
            Self::Q6K => 128 + 64 + 16 + 2,
        }
    }

    /// What is added to a quant where quants are held so that none is negative.
    pub(crate) const fn quant_offset(self) -> i32 {
        match self {
            Self::Q8_0 => 128,
            Self::Q4_0 => 8,
            Self::Q6K => 32,
            Self::F32 | Self::F16 | Self::Bf16 | Self::Q4K => 0,
        }
    }

    /// Bytes of `num_elements` elements; `None` when they are no whole number of blocks, or too many to count.
    pub fn bytes_of(self, num_elements: usize) -> Option<usize> {
        let blocks = num_elements / self.block_len();
        num_elements.is_multiple_of(self.block_len()).then(|| blocks.checked_mul(self.block_bytes())).flatten()
    }

    /// Elements in `num_bytes` bytes of whole blocks.
    pub fn elements_in(self, num_bytes: usize) -> usize {
        num_bytes / self.block_bytes() * self.block_len()
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
        })
    }
}
