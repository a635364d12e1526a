//! The files of a checkpoint and the tensors in them.
//!
//! Weight files are mapped while they are loaded, copied tensor by tensor into private packed memory, and let go: a
//! file that changes or disappears later cannot crash or alter a running model.

mod convert;
mod files;
mod index;
mod loader;
mod mapped;
mod safetensors;
mod unsupported;

pub use files::CheckpointFiles;
pub(crate) use index::TensorIndex;
pub(crate) use loader::{MatrixPart, WeightLoader};

/// What a tensor is stored as in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StoredDtype {
    F32,
    F16,
    Bf16,
}

impl StoredDtype {
    pub fn size_in_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for StoredDtype {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}
