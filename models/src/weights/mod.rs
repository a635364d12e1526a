//! The files of a checkpoint and the tensors in them.
//!
//! Weight files are mapped (or read, where they may go away) while they are loaded, copied tensor by tensor into
//! private packed memory, and let go: a file that changes or disappears later cannot crash or alter a running model.

mod coding;
mod files;
mod gguf;
mod index;
mod loader;
mod mapped;
mod medium;
mod safetensors;
mod unsupported;

pub use files::CheckpointFiles;
pub(crate) use files::is_plain_name;
pub use gguf::GgufMetadata;
pub(crate) use gguf::Header as GgufHeader;
pub(crate) use index::TensorIndex;
pub(crate) use loader::{MatrixPart, WeightLoader, packed_dtype};
pub(crate) use safetensors::StoredTensor;
pub(crate) use unsupported::without_config;
