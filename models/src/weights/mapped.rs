//! Weight files in the address space, only while they are being loaded. Those that may go away meanwhile, on network and
//! removable file systems, are read instead: a map of one ends the process when its medium fails.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use super::medium::may_go_away;

/// The bytes of one file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Read(Vec<u8>),
    Static(&'static [u8]),
}

impl FileBytes {
    /// Mapped if what the file lies on stays there, else the first `most` bytes. With how long the file is.
    pub(super) fn open(path: &Path, most: u64) -> io::Result<(Self, u64)> {
        Self::open_on(path, most, may_go_away)
    }

    fn open_on(path: &Path, most: u64, may_go_away: impl Fn(&Path, &Metadata) -> bool) -> io::Result<(Self, u64)> {
        if !path.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        let file_bytes = metadata.len();
        let is_read = may_go_away(path, &metadata);
        let bytes = if is_read { Self::read(file, file_bytes, most)? } else { Self::map(&file)? };
        Ok((bytes, file_bytes))
    }

    fn read(file: File, file_bytes: u64, most: u64) -> io::Result<Self> {
        let mut bytes = Vec::new();
        // As long as they are: what grows may take twice that.
        bytes.try_reserve_exact(file_bytes.min(most) as usize).map_err(|_| io::ErrorKind::OutOfMemory)?;
        file.take(most).read_to_end(&mut bytes)?;
        Ok(Self::Read(bytes))
    }

    fn map(file: &File) -> io::Result<Self> {
        // SAFETY: the map is read-only, and no reference into it outlives the load. A process that rewrites the file
        // meanwhile gives other weights, which any bytes of a weight file are; headers are read apart or copied before
        // they are judged. A process that shortens the file meanwhile ends this one (SIGBUS), as it would end any reader
        // of a map: that is why a running model holds none.
        Ok(Self::Mapped(unsafe { Mmap::map(file)? }))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
            Self::Static(bytes) => bytes,
        }
    }

    /// Tells the system that `bytes`, if they are of this file, were copied and need not stay resident.
    pub(crate) fn release(&self, bytes: &[u8]) {
        let Self::Mapped(map) = self else { return };
        let Some(start) = bytes.as_ptr().addr().checked_sub(map.as_ptr().addr()) else { return };
        if start + bytes.len() > map.len() {
            return;
        }
        // SAFETY: the map is read-only and backed by a file, so a page dropped here is read again when touched.
        let advised = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, bytes.len()) };
        // Only a hint: a system that refuses it keeps the pages until the map goes.
        drop(advised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_go_away_is_read_and_not_mapped_and_has_the_same_bytes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "weights").unwrap();
        let open = |may_go_away: bool, most: u64| FileBytes::open_on(file.path(), most, |_, _| may_go_away).unwrap();
        let [mapped, read] = [false, true].map(|may_go_away| open(may_go_away, u64::MAX).0);
        assert!(matches!((&mapped, &read), (FileBytes::Mapped(_), FileBytes::Read(_))));
        for bytes in [&mapped, &read] {
            assert_eq!(bytes.as_slice(), b"weights");
            bytes.release(&bytes.as_slice()[1..3]);
            assert_eq!(bytes.as_slice(), b"weights");
        }
        let (head, file_bytes) = open(true, 3);
        assert_eq!((head.as_slice(), file_bytes), (&b"wei"[..], 7));
        assert!(FileBytes::open(Path::new("/nowhere/model.safetensors"), 3).is_err());
    }
}
