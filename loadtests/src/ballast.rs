//! A disk that fills up: a file takes all the room that a small file system has left.

use std::fs::{File, remove_file};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Nobody's real disk is filled by mistake.
const MAX_BYTES: usize = 256 << 20;
const FILE: &str = "passerelle-loadtests-ballast";

/// Where a server keeps its data.
pub trait Disk {
    /// Until not a byte more fits.
    fn fill(&mut self) -> Result<(), BallastError>;

    fn free(&mut self) -> Result<(), BallastError>;
}

/// Gives the room back when dropped.
#[derive(Debug)]
pub struct Ballast {
    path: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum BallastError {
    #[error("{folder} has more than {} MiB left; give a small file system of its own", MAX_BYTES >> 20)]
    TooMuchRoom { folder: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
}

impl Disk for Ballast {
    fn fill(&mut self) -> Result<(), BallastError> {
        let filled = self.write_until_full();
        if filled.is_err() {
            self.free()?;
        }
        filled
    }

    fn free(&mut self) -> Result<(), BallastError> {
        match remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            _ => Ok(()),
        }
    }
}

impl Ballast {
    pub fn in_folder(folder: &Path) -> Self {
        Self { path: folder.join(FILE) }
    }

    fn write_until_full(&self) -> Result<(), BallastError> {
        let mut file = File::create(&self.path).map_err(|error| self.failed(error))?;
        let (mut written, mut piece) = (0, vec![0; 1 << 20]);
        while written <= MAX_BYTES {
            match file.write_all(&piece).and_then(|()| file.sync_data()) {
                Ok(()) => written += piece.len(),
                Err(error) if has_no_room(&error) && piece.len() > 1 => piece.truncate(piece.len() / 2),
                Err(error) if has_no_room(&error) => return Ok(()),
                Err(error) => return Err(self.failed(error)),
            }
        }
        Err(BallastError::TooMuchRoom { folder: self.path.parent().unwrap_or(&self.path).to_owned() })
    }

    fn failed(&self, source: std::io::Error) -> BallastError {
        BallastError::Io { path: self.path.clone(), source }
    }
}

/// On the disk, or for this user of it.
fn has_no_room(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

impl Drop for Ballast {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.free();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("nowhere");
        let error = Ballast::in_folder(&missing).fill().unwrap_err();
        assert!(error.to_string().contains("nowhere"), "{error}");
    }
}
