//! Which files make a checkpoint what it is, and one digest of them all.
//!
//! A manifest is a text with one line for each file, in the order of names:
//!
//! ```text
//! passerelle manifest 1
//! 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 4 config.json
//! ```
//!
//! Two checkpoints have one [`ModelDigest`], the SHA-256 of that text, exactly if they hold the same files, wherever they
//! lie. A GGUF file counts as `model.gguf`, whatever it is called. What nobody reads when a model is served (a README, the
//! state of an optimiser) is no part of it; every file of weights is, also one that no index names.

mod checking;
mod copying;
mod digest;
mod hashing;
mod part;

use std::fmt::Write;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

pub use checking::Mismatch;
pub use copying::{copy_hashed, copy_part};
pub use digest::{FileHash, InvalidDigest, ModelDigest};
pub use hashing::{FileStamp, KnownHashes, NothingKnown};
pub use part::is_description;

use crate::weights::{CheckpointFiles, without_config};
use crate::{LoadProgress, ModelError};

const HEAD: &str = "passerelle manifest 1";
/// The longest text that is read as a manifest: some ten thousand files.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// A text that no [`Manifest`] has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not a manifest's: {problem}")]
pub struct InvalidManifest {
    /// From 1.
    pub line: usize,
    pub problem: &'static str,
}

/// The files of a checkpoint, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    files: Vec<ManifestFile>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// With `/` after the folder of a module: `1_Pooling/config.json`. Of plain characters alone.
    pub name: String,
    pub size_bytes: u64,
    pub hash: FileHash,
}

impl Manifest {
    /// What a GGUF file is called in it.
    pub const GGUF: &str = "model.gguf";

    /// Hashes what is not `known`, several files at once, each read from its beginning to its end and never mapped.
    ///
    /// `progress` is called after each stretch, from whichever thread read it; [`ControlFlow::Break`] ends the hashing
    /// with an error of the kind `Interrupted`.
    pub fn read(
        files: &CheckpointFiles,
        known: &dyn KnownHashes,
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<Self, ModelError> {
        Ok(Self::of_unsorted(hashing::hash_all(files, part::parts(files)?, known, progress)?))
    }

    /// The same without reading a file; `None` where a hash is not `known`. Errors for a checkpoint that is compiled in.
    pub fn find(files: &CheckpointFiles, known: &dyn KnownHashes) -> Result<Option<Self>, ModelError> {
        Ok(hashing::find_all(files, &part::parts(files)?, known)?.map(Self::of_unsorted))
    }

    /// Errors, with what to give instead, where nothing in the folder is part of a checkpoint.
    pub fn require_parts(files: &CheckpointFiles) -> Result<(), ModelError> {
        if part::parts(files)?.is_empty() { Err(without_config(files)) } else { Ok(()) }
    }

    fn of_unsorted(mut files: Vec<ManifestFile>) -> Self {
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Self { files }
    }

    pub fn files(&self) -> &[ManifestFile] {
        &self.files
    }

    /// What is hashed.
    pub fn to_text(&self) -> String {
        self.files.iter().fold(format!("{HEAD}\n"), |mut text, ManifestFile { name, size_bytes, hash }| {
            writeln!(text, "{hash} {size_bytes} {name}").expect("a String takes everything");
            text
        })
    }

    /// Reads what [`Manifest::to_text`] writes, and no other spelling of it.
    pub fn from_text(text: &str) -> Result<Self, InvalidManifest> {
        let refuse = |line: usize, problem| Err(InvalidManifest { line: line + 1, problem });
        let mut manifest = Self { files: Vec::new() };
        for (number, line) in text.lines().enumerate() {
            if number == 0 {
                match line == HEAD {
                    true => continue,
                    false => return refuse(0, "it does not begin with `passerelle manifest 1`"),
                }
            }
            let Some(file) = ManifestFile::from_line(line) else {
                return refuse(number, "expected a hash, a size and a name of plain characters");
            };
            if manifest.files.last().is_some_and(|last| last.name >= file.name) {
                return refuse(number, "the names do not ascend");
            }
            manifest.files.push(file);
        }
        // Other ends of lines, zeros before a size.
        if manifest.to_text() == text { Ok(manifest) } else { refuse(0, "it is not written as manifests are") }
    }

    pub fn digest(&self) -> ModelDigest {
        ModelDigest::of_bytes(Sha256::digest(self.to_text()).into())
    }
}

impl ManifestFile {
    fn from_line(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, ' ');
        let hash = parts.next()?.parse().ok()?;
        let size_bytes = parts.next()?.parse().ok()?;
        let name = parts.next().filter(|name| part::is_part_name(name))?.to_owned();
        Some(Self { name, size_bytes, hash })
    }
}

#[cfg(test)]
mod tests;
