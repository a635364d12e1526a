//! ```text
//! "GGUF" | version u32 | tensors u64 | keys u64 | keys and values | table of tensors | padding | data
//! ```
//!
//! Everything that the header claims is checked before anything is allocated for it.

use std::path::Path;

use super::cursor::Cursor;
use super::metadata::GgufMetadata;
use super::tensors;
use crate::ModelError;
use crate::weights::safetensors::StoredTensor;

const MAGIC: [u8; 4] = *b"GGUF";
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
const ALIGNMENT_KEY: &str = "general.alignment";
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 16;
const SPLITS_KEY: &str = "split.count";

/// What a file says about itself, checked.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) metadata: GgufMetadata,
    /// In the order of the file's bytes.
    pub(crate) tensors: Vec<StoredTensor>,
}

/// What the beginning of a file comes to. Errors name the file and the key or tensor.
#[derive(Debug)]
pub(crate) enum HeaderRead {
    Whole(Header),
    /// The header goes on where the beginning ends. An error where that is the end of the file, too.
    Short(ModelError),
    /// With more bytes the error would be the same.
    Refused(ModelError),
}

impl Header {
    /// `bytes` are the beginning of a file of `file_bytes`.
    pub(crate) fn read(file: &Path, bytes: &[u8], file_bytes: u64) -> HeaderRead {
        let mut cursor = Cursor::new(file, bytes, 0);
        let read = Self::read_from(&mut cursor, file, file_bytes);
        match read {
            Ok(header) => HeaderRead::Whole(header),
            Err(error) if cursor.ran_out() => HeaderRead::Short(error),
            Err(error) => HeaderRead::Refused(error),
        }
    }

    fn read_from(cursor: &mut Cursor<'_>, file: &Path, file_bytes: u64) -> Result<Self, ModelError> {
        let magic: [u8; 4] = cursor.array("magic")?;
        if magic != MAGIC {
            return Err(cursor.refuse("magic", "does not begin with GGUF, so it is no GGUF file; fetch it again"));
        }
        let version = cursor.u32("version")?;
        if VERSIONS.contains(&version.swap_bytes()) {
            return Err(cursor.refuse("version", "a big-endian file; convert the model for little-endian machines"));
        }
        if !VERSIONS.contains(&version) {
            let problem = format!("{version} is not read, only 2 and 3 are; convert the model again");
            return Err(cursor.refuse("version", problem));
        }
        let num_tensors = cursor.u64("tensor_count")?;
        let num_entries = cursor.u64("metadata_kv_count")?;
        let metadata = GgufMetadata::read(file, cursor, num_entries)?;
        if metadata.count(SPLITS_KEY)?.is_some_and(|splits| splits > 1) {
            let problem = "a model in several files; merge them with `llama-gguf-split --merge`";
            return Err(metadata.refuse(SPLITS_KEY, problem));
        }
        let alignment = metadata.count(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
        if !alignment.is_power_of_two() || alignment > MAX_ALIGNMENT {
            let problem = format!("{alignment} is no power of two of at most {MAX_ALIGNMENT}");
            return Err(metadata.refuse(ALIGNMENT_KEY, problem));
        }
        let tensors = tensors::read(cursor, num_tensors, alignment, file_bytes)?;
        Ok(Self { metadata, tensors })
    }
}
