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

mod digest;
mod hashing;
mod part;

use std::fmt::Write;
use std::ops::ControlFlow;

use sha2::{Digest, Sha256};

pub use digest::{FileHash, InvalidDigest, ModelDigest};
pub use hashing::{FileStamp, KnownHashes, NothingKnown};
pub use part::is_description;

use crate::weights::CheckpointFiles;
use crate::{LoadProgress, ModelError};

const HEAD: &str = "passerelle manifest 1";

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
    /// Hashes what is not `known`, several files at once, each read from its beginning to its end and never mapped.
    ///
    /// `progress` is called after each stretch, from whichever thread read it; [`ControlFlow::Break`] ends the hashing
    /// with an error of the kind `Interrupted`.
    pub fn read(
        files: &CheckpointFiles,
        known: &dyn KnownHashes,
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<Self, ModelError> {
        let mut files = hashing::hash_all(files, part::parts(files)?, (known, progress))?;
        files.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self { files })
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

    pub fn digest(&self) -> ModelDigest {
        ModelDigest::of_bytes(Sha256::digest(self.to_text()).into())
    }
}

#[cfg(test)]
mod tests;
