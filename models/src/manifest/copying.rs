//! A checkpoint copied elsewhere, hashed on the way: what was hashed is what was written.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::{FileHash, Manifest, ManifestFile, part};
use crate::weights::CheckpointFiles;
use crate::{LoadProgress, LoadWatch, ModelError};

/// Bytes that are copied at a time, and between two calls of whoever watches.
const STRETCH: usize = 1 << 20;

impl Manifest {
    /// Copies the parts of a checkpoint into `target`, an empty folder, under the names that the manifest gives them.
    /// Each is on the disk when this returns. `progress` is called after each stretch.
    pub fn copy(files: &CheckpointFiles, target: &Path, progress: LoadWatch<'_>) -> Result<Self, ModelError> {
        let mut parts = part::parts(files)?;
        parts.sort_by(|one, other| one.name.cmp(&other.name));
        let sizes = parts.iter().map(|part| files.size_of(&part.file));
        let bytes_total = sizes.sum::<Result<u64, ModelError>>()?;
        let mut bytes_done = 0;
        let mut copied = Vec::with_capacity(parts.len());
        for part in parts {
            let path = files.path_of(&part.file);
            let at = |source| ModelError::Io { file: path.clone(), source };
            let mut watch = |more: u64| {
                bytes_done += more;
                match progress(LoadProgress { bytes_done, bytes_total }) {
                    ControlFlow::Continue(()) => Ok(()),
                    ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
                }
            };
            let from = files.open_part(&part.name)?;
            let (hash, size_bytes) = copy_part(from, target, &part.name, &mut watch).map_err(at)?;
            copied.push(ManifestFile { name: part.name, size_bytes, hash });
        }
        Ok(Self { files: copied })
    }
}

/// Writes what `from` holds as the part `name` of the checkpoint in `folder`, to the disk. Errors when the part is there.
pub fn copy_part(
    from: impl Read,
    folder: &Path,
    name: &str,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<(FileHash, u64)> {
    let path = folder.join(name);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let mut file = File::create_new(path)?;
    let copied = copy_hashed(from, &mut file, watch)?;
    file.sync_all()?;
    Ok(copied)
}

/// The hash and the length of what went by. `watch` hears of each stretch, and its error ends the copy.
pub fn copy_hashed(
    mut from: impl Read,
    mut to: impl Write,
    watch: &mut dyn FnMut(u64) -> io::Result<()>,
) -> io::Result<(FileHash, u64)> {
    let mut hash = Sha256::new();
    let (mut stretch, mut size_bytes) = (vec![0; STRETCH], 0);
    loop {
        match from.read(&mut stretch) {
            Ok(0) => return Ok((FileHash::of_bytes(hash.finalize().into()), size_bytes)),
            Ok(count) => {
                hash.update(&stretch[..count]);
                to.write_all(&stretch[..count])?;
                size_bytes += count as u64;
                watch(count as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
