use std::fmt;

use candle_core::{DType, DeviceLocation};

use crate::ModelError;
use crate::kv_cache::KV_TILE;

/// What keys and values are held as in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvFormat {
    F32,
    Bf16,
    /// Integers of 8 bits, and an f32 for each key and each value of a head that they are multiplied with. Behind each tile
    /// stand the scales of its rows, so that whatever copies or clears a block does it to both.
    Int8,
}

impl KvFormat {
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    /// Of the tensors of a cache. Those of integers are counted in bytes, scales included.
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::Int8 => DType::U8,
        }
    }

    /// From one tile of [`KV_TILE`] rows of `width` to the next, in elements of [`Self::dtype`].
    pub(crate) fn tile_len(self, width: usize) -> usize {
        let scales = match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Int8 => KV_TILE * size_of::<f32>(),
        };
        KV_TILE * width + scales
    }

    pub(crate) fn tile_bytes(self, width: usize) -> usize {
        self.tile_len(width) * self.dtype().size_in_bytes()
    }

    /// Errors where no body reads it.
    pub(crate) fn check_on(self, location: DeviceLocation) -> Result<(), ModelError> {
        if self == Self::Int8 && location != DeviceLocation::Cpu {
            let problem = "keys and values in int8 are for models on a CPU; on a GPU choose --kv-dtype bf16 or f32";
            return Err(ModelError::Input(problem.into()));
        }
        Ok(())
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_a_quarter_of_f32_and_a_scale_for_each_row() {
        let bytes = KvFormat::ALL.map(|format| format.tile_bytes(128));
        assert_eq!(bytes, [4 * 16 * 128, 2 * 16 * 128, 16 * (128 + 4)]);
    }

    #[test]
    fn only_a_cpu_reads_integers() {
        let gpu = DeviceLocation::Cuda { gpu_id: 0 };
        let refusal = KvFormat::Int8.check_on(gpu).expect_err("there is no kernel").to_string();
        assert!(refusal.contains("int8") && refusal.contains("--kv-dtype"), "{refusal}");
        assert!(KvFormat::Int8.check_on(DeviceLocation::Cpu).is_ok());
        assert!(KvFormat::Bf16.check_on(gpu).is_ok() && KvFormat::F32.check_on(gpu).is_ok());
    }
}
