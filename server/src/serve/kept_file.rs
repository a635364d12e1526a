//! Small files of the data directory that only ever save time: what cannot be read is done again, what cannot be written is
//! lost.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

const MAX_BYTES: u64 = 64 << 20;

/// Nothing, where there is no file. Errors when it is too long, or holds something else.
pub(super) fn read<T: DeserializeOwned + Default>(folder: &Path, name: &str) -> io::Result<T> {
    let path = folder.join(name);
    match fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(error),
        Ok(file) if file.len() > MAX_BYTES => Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => Ok(serde_json::from_slice(&fs::read(path)?)?),
    }
}

/// As a whole or not at all, also if two processes write at once. The folder must be there.
pub(super) fn write(folder: &Path, name: &str, content: &impl Serialize) -> io::Result<()> {
    let mut file = NamedTempFile::new_in(folder)?;
    let mut buffer = BufWriter::new(&mut file);
    serde_json::to_writer(&mut buffer, content)?;
    // When it is dropped, nobody would hear that the disk is full.
    buffer.flush()?;
    drop(buffer);
    file.persist(folder.join(name))?;
    Ok(())
}
