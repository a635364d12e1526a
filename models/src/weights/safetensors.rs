//! The header of one safetensors file: an 8-byte little-endian length, that many bytes of JSON, then the tensors'
//! bytes back to back. Everything the header claims is checked here, before anything is allocated for it.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::coding::Coding;
use crate::config::no_json;
use crate::{ModelError, StoredDtype};

/// A header of a hundred thousand tensors is about 12 MB.
const MAX_HEADER_BYTES: u64 = 64 << 20;
const LENGTH_BYTES: usize = 8;
/// Old exporters of encoders stored the numbers 0, 1, 2 ... under this name. No model reads them.
const COUNTING_TABLE: &str = "embeddings.position_ids";

/// Where one tensor lies in its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) name: String,
    /// What its elements are read as.
    pub(crate) dtype: StoredDtype,
    pub(crate) coding: Coding,
    pub(crate) shape: Vec<usize>,
    /// In the whole file.
    pub(crate) bytes: Range<usize>,
}

impl StoredTensor {
    pub(crate) fn num_elements(&self) -> usize {
        self.coding.elements_in(self.dtype, self.bytes.len())
    }

    /// What its elements take as they are read.
    pub(crate) fn bytes_as_read(&self) -> u64 {
        (self.num_elements() / self.dtype.block_len() * self.dtype.block_bytes()) as u64
    }
}

/// How much of a file [`read_header`] needs, by its first bytes.
pub(super) fn head_bytes(first: &[u8]) -> u64 {
    let length = first.first_chunk::<LENGTH_BYTES>().map_or(0, |length| u64::from_le_bytes(*length));
    LENGTH_BYTES as u64 + length.min(MAX_HEADER_BYTES)
}

/// Every tensor of a file that a model may read, in the order of the file's bytes. `head` is at least [`head_bytes`] of a
/// file of `file_bytes`, or all of a shorter one.
///
/// Errors name `file` and the tensor, and say which rule of the format is broken.
pub(super) fn read_header(file: &Path, head: &[u8], file_bytes: u64) -> Result<Vec<StoredTensor>, ModelError> {
    let damaged = |problem: String| ModelError::checkpoint(file, "safetensors header", problem);
    let Some((length, rest)) = head.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(damaged(format!("only {} bytes; fetch the file again", head.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(damaged(format!("claims {length} bytes, at most {MAX_HEADER_BYTES} are accepted")));
    }
    let Some(header) = rest.get(..length as usize) else {
        return Err(damaged(format!("claims {length} bytes, the file has {}; fetch it again", rest.len())));
    };
    let Header(mut entries) = serde_json::from_slice(header).map_err(|error| {
        damaged(match error.is_syntax() || error.is_eof() {
            true => format!("its JSON is {}; fetch the file again", no_json(&error)),
            false => error.to_string(),
        })
    })?;
    entries.sort_by_key(|(_, info)| info.data_offsets);
    let data_start = LENGTH_BYTES + length as usize;
    let available = (file_bytes as usize).saturating_sub(data_start);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut end = 0;
    for (name, info) in entries {
        check_tensor(file, &name, &info, end)?;
        end = info.data_offsets.1;
        if end > available {
            let problem = format!("describes {end} bytes of tensors or more, the file has {available}; fetch it again");
            return Err(damaged(problem));
        }
        if info.dtype == Dtype::I64 && name.ends_with(COUNTING_TABLE) {
            continue;
        }
        let bytes = data_start + info.data_offsets.0..data_start + end;
        let dtype = stored_dtype(file, &name, info.dtype)?;
        tensors.push(StoredTensor { name, dtype, coding: Coding::AsRead, shape: info.shape, bytes });
    }
    if end != available {
        return Err(damaged(format!("describes {end} bytes of tensors, the file has {available}; fetch it again")));
    }
    Ok(tensors)
}

fn stored_dtype(file: &Path, name: &str, dtype: Dtype) -> Result<StoredDtype, ModelError> {
    match dtype {
        Dtype::F32 => Ok(StoredDtype::F32),
        Dtype::F16 => Ok(StoredDtype::F16),
        Dtype::BF16 => Ok(StoredDtype::Bf16),
        other => {
            let kind = match other {
                Dtype::I32 if name.ends_with("qweight") => " (packed by GPTQ or AWQ)",
                Dtype::F8_E4M3 | Dtype::F8_E5M2 => " (FP8)",
                _ => "",
            };
            let problem = format!("dtype {other:?}{kind} is not supported; use a checkpoint in F32, F16 or BF16");
            Err(ModelError::checkpoint(file, name, problem))
        }
    }
}

/// The format lays tensors back to back: each begins at `expected_start`, where the one before it ends.
fn check_tensor(file: &Path, name: &str, info: &TensorInfo, expected_start: usize) -> Result<(), ModelError> {
    let refuse = |problem: String| Err(ModelError::checkpoint(file, name, problem));
    let (start, end) = info.data_offsets;
    if start > end {
        return refuse(format!("data_offsets {start}..{end} run backwards"));
    }
    if start != expected_start {
        return refuse(format!(
            "data_offsets begin at {start}, expected {expected_start}: tensors overlap or leave a hole"
        ));
    }
    let elements = info.shape.iter().try_fold(1usize, |product, &side| product.checked_mul(side));
    match elements.and_then(|elements| elements.checked_mul(info.dtype.bitsize())) {
        Some(bits) if bits.is_multiple_of(8) && bits / 8 == end - start => Ok(()),
        _ => refuse(format!("shape {:?} of {:?} does not take {} bytes", info.shape, info.dtype, end - start)),
    }
}

/// The tensors as written. A map type would let the second of two equal names win silently.
struct Header(Vec<(String, TensorInfo)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        const METADATA: &str = "__metadata__";
        let mut entries = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{name} occurs twice")));
            }
            if name == METADATA {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let info = map.next_value().map_err(|error| A::Error::custom(format!("{name}: {error}")))?;
            entries.push((name, info));
        }
        Ok(Header(entries))
    }
}
