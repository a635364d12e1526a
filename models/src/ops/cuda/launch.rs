#[cfg(feature = "cuda")]
use candle_core::DType;

pub(crate) use crate::ops::Float;

/// One launch of a kernel.
#[derive(Debug, Clone)]
pub(crate) struct Launch<A> {
    pub(super) kernel: String,
    pub(super) grid: [u32; 3],
    /// Of a block.
    pub(super) threads: u32,
    /// Memory of a block beside what the kernel declares.
    pub(super) shared_bytes: u32,
    pub(super) args: A,
}

/// Where something lies in the device's memory; null where there is nothing.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address(pub(super) u64);

/// Threads that run in step.
pub(super) const WARP: u32 = 32;

impl Address {
    pub(super) const NULL: Self = Self(0);

    /// So many bytes further.
    pub(super) fn behind(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

impl Float {
    /// `None` for a dtype that no kernel takes.
    #[cfg(feature = "cuda")]
    pub(crate) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// As it stands in kernels' names.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}
