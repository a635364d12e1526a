use candle_core::DType;

use crate::KvFormat;

/// What activations or a cache are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float {
    F32,
    Bf16,
}

impl Float {
    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    pub(crate) fn kv_format(self) -> KvFormat {
        match self {
            Self::F32 => KvFormat::F32,
            Self::Bf16 => KvFormat::Bf16,
        }
    }
}
