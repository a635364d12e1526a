use std::path::Path;

use crate::ModelError;

/// The longest key of the metadata, by the format, and the longest name of a tensor that is read.
const MAX_NAME_BYTES: u64 = 65_535;

/// Reads little-endian values from the beginning of a file, each bounded by what the file has.
#[derive(Debug, Clone)]
pub(super) struct Cursor<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
    /// Whether more was asked for than there is.
    ran_out: bool,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Path, bytes: &'a [u8], at: usize) -> Self {
        Self { file, bytes, at, ran_out: false }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn ran_out(&self) -> bool {
        self.ran_out
    }

    pub(super) fn refuse(&self, what: &str, problem: impl Into<String>) -> ModelError {
        ModelError::checkpoint(self.file, what, problem)
    }

    /// The next `len` bytes of what `what` names.
    pub(super) fn take(&mut self, what: &str, len: u64) -> Result<&'a [u8], ModelError> {
        let left = self.bytes.len() - self.at;
        let taken = usize::try_from(len).ok().filter(|len| *len <= left);
        let Some(len) = taken else {
            self.ran_out = true;
            let problem = format!("needs {len} bytes where the file has {left} left; fetch the file again");
            return Err(self.refuse(what, problem));
        };
        let bytes = &self.bytes[self.at..self.at + len];
        self.at += len;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let bytes = self.take(what, N as u64)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    pub(super) fn name(&mut self, what: &str) -> Result<String, ModelError> {
        match self.string(what, MAX_NAME_BYTES)? {
            name if name.is_empty() => Err(self.refuse(what, "has no name")),
            name => Ok(name),
        }
    }

    /// A length and as many bytes of UTF-8. They are copied before they are judged: another process may change the file.
    pub(super) fn string(&mut self, what: &str, max_bytes: u64) -> Result<String, ModelError> {
        let bytes = self.string_bytes(what, max_bytes)?.to_vec();
        String::from_utf8(bytes).map_err(|_| self.refuse(what, "a text that is not UTF-8"))
    }

    /// As [`Self::string`], without a look at the bytes.
    pub(super) fn string_bytes(&mut self, what: &str, max_bytes: u64) -> Result<&'a [u8], ModelError> {
        let len = self.u64(what)?;
        if len > max_bytes {
            return Err(self.refuse(what, format!("a text of {len} bytes; at most {max_bytes} are read")));
        }
        self.take(what, len)
    }
}
