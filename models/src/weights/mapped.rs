//! Weight files in the address space, only while they are being loaded.
#![expect(unsafe_code, reason = "mapping a file is unsafe: another process may change it")]

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

/// The bytes of one file.
#[derive(Debug)]
pub(crate) enum FileBytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl FileBytes {
    pub(super) fn map(path: &Path) -> io::Result<Self> {
        if !path.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let file = File::open(path)?;
        // SAFETY: the map is read-only, and no reference into it outlives the load. A process that rewrites the file
        // meanwhile gives other weights, which any bytes of a weight file are; the header is copied before it is judged.
        // A process that shortens the file meanwhile ends this one (SIGBUS), as it would end any reader of a map: that is
        // why a running model holds none.
        Ok(Self::Mapped(unsafe { Mmap::map(&file)? }))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
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
