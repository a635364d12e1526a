//! GGUF files: metadata, tokenizer and tensors in one (`docs/gguf.md` of ggml-org/ggml).

mod cursor;
mod header;
mod metadata;
mod tensors;

pub(crate) use header::{Header, HeaderRead};
pub use metadata::GgufMetadata;
