//! Hashes of files, several at once.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;

use serde::{Deserialize, Serialize};

use super::part::Part;
use super::{FileHash, ManifestFile, copy_hashed};
use crate::weights::CheckpointFiles;
use crate::{LoadProgress, ModelError};

/// Files that are read at the same time. More gain nothing where hashing is faster than what they lie on.
const MAX_THREADS: usize = 8;

/// What must be as it was for a file to be taken for the same: its place, and everything that the system changes when
/// somebody writes to it. Whoever rewrites a file between two ticks of the system's clock, in its old size, is not noticed;
/// nor is whoever changes the disk below the file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    pub path: PathBuf,
    pub size_bytes: u64,
    /// Seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// As `modified`, for everything about the file; nobody can set it back.
    pub changed: (i64, i64),
    pub device: u64,
    pub inode: u64,
}

/// Hashes of files that were hashed before.
pub trait KnownHashes: Sync {
    fn find(&self, file: &FileStamp) -> Option<FileHash>;

    fn learn(&self, file: FileStamp, hash: FileHash);
}

/// Every file is read.
#[derive(Debug, Clone, Copy)]
pub struct NothingKnown;

impl KnownHashes for NothingKnown {
    fn find(&self, _: &FileStamp) -> Option<FileHash> {
        None
    }

    fn learn(&self, _: FileStamp, _: FileHash) {}
}

impl FileStamp {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        Self {
            path: path.to_owned(),
            size_bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

type Watch<'a> = &'a (dyn Fn(LoadProgress) -> ControlFlow<()> + Sync);

/// In no particular order.
pub(super) fn hash_all(
    files: &CheckpointFiles,
    parts: Vec<Part>,
    known: &dyn KnownHashes,
    progress: Watch<'_>,
) -> Result<Vec<ManifestFile>, ModelError> {
    let size = |part: &Part| Ok((files.size_of(&part.file)?, part.clone()));
    let mut parts: Vec<(u64, Part)> = parts.iter().map(size).collect::<Result<_, ModelError>>()?;
    // The largest first, so that none is begun when the others are done.
    parts.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    let bytes_total = parts.iter().map(|(size, _)| size).sum();
    let work = Work { files, known, progress, bytes_total, bytes_done: AtomicU64::new(0) };
    let next = AtomicUsize::new(0);
    let worker = || -> Result<Vec<ManifestFile>, ModelError> {
        let mut hashed = Vec::new();
        while let Some((_, part)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            // After an error nobody wants the others, some of which take minutes.
            let file = work.hash(part).inspect_err(|_| next.store(parts.len(), Ordering::Relaxed))?;
            hashed.push(file);
        }
        Ok(hashed)
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS).min(parts.len());
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut hashed = worker()?;
        for other in others {
            hashed.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(hashed)
    })
}

/// The same of files whose hashes are all `known`, without reading any; `None` where one is not.
pub(super) fn find_all(
    files: &CheckpointFiles,
    parts: &[Part],
    known: &dyn KnownHashes,
) -> Result<Option<Vec<ManifestFile>>, ModelError> {
    let find = |part: &Part| {
        let path = files.path_of(&part.file);
        let stamp = fs::metadata(&path).map(|metadata| FileStamp::of(&path, &metadata));
        let stamp = stamp.map_err(|source| ModelError::Io { file: path, source })?;
        let hash = known.find(&stamp);
        Ok(hash.map(|hash| ManifestFile { name: part.name.clone(), size_bytes: stamp.size_bytes, hash }))
    };
    parts.iter().map(find).collect()
}

/// What every thread works with.
struct Work<'a> {
    files: &'a CheckpointFiles,
    known: &'a dyn KnownHashes,
    progress: Watch<'a>,
    bytes_total: u64,
    bytes_done: AtomicU64,
}

impl Work<'_> {
    fn hash(&self, part: &Part) -> Result<ManifestFile, ModelError> {
        let path = self.files.path_of(&part.file);
        let hashed = match self.files.embedded_file(&part.file) {
            Some(bytes) => self.hash_bytes(bytes),
            None => self.hash_file(&path),
        };
        let (hash, size_bytes) = hashed.map_err(|source| ModelError::Io { file: path, source })?;
        Ok(ManifestFile { name: part.name.clone(), size_bytes, hash })
    }

    fn hash_file(&self, path: &Path) -> io::Result<(FileHash, u64)> {
        let mut file = File::open(path)?;
        let stamp = FileStamp::of(path, &file.metadata()?);
        if let Some(hash) = self.known.find(&stamp) {
            self.got_on(stamp.size_bytes)?;
            return Ok((hash, stamp.size_bytes));
        }
        let (hash, size_bytes) = self.hash_bytes(&mut file)?;
        // What changed meanwhile is hashed again the next time.
        if stamp == FileStamp::of(path, &file.metadata()?) {
            self.known.learn(stamp, hash);
        }
        Ok((hash, size_bytes))
    }

    fn hash_bytes(&self, bytes: impl Read) -> io::Result<(FileHash, u64)> {
        copy_hashed(bytes, io::sink(), &mut |count| self.got_on(count))
    }

    fn got_on(&self, bytes: u64) -> io::Result<()> {
        let bytes_done = self.bytes_done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        match (self.progress)(LoadProgress { bytes_done, bytes_total: self.bytes_total }) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}
