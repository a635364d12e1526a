//! Where checkpoints come from: a directory, or the Hugging Face cache and hub.
//!
//! The cache has the layout that every tool of the field shares, so what one downloaded the others find:
//!
//! ```text
//! <cache>/models--org--name/refs/main                      the commit that "main" meant last time
//!                           snapshots/<commit>/config.json  -> ../../blobs/<etag>
//!                           blobs/<etag>                    blobs/<etag>.part while it is downloaded
//! ```
//!
//! A download that was interrupted goes on where `<etag>.part` ends. Large files are checked against the SHA-256 that
//! names them, before they get that name. Offline, or built without the feature `hub`, nothing here opens a socket.

#[cfg(feature = "hub")]
mod blobs;
mod cache;
#[cfg_attr(not(feature = "hub"), path = "no_download.rs")]
mod download;
#[cfg(feature = "hub")]
mod file_progress;
mod files;
mod progress;
mod source;

use std::path::PathBuf;
use std::time::Duration;

pub use files::Wanted;
pub use progress::ProgressOutput;
pub use source::{HubId, Source, is_gguf};

/// Whether the hub may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    Allowed,
    Offline,
}

/// How to reach the hub, and where its cache is. Filled in by the config room.
#[derive(Clone)]
pub struct HubOptions {
    pub network: Network,
    pub wanted: Wanted,
    /// The folder that holds `models--org--name` folders: `$HF_HOME/hub`.
    pub cache_dir: PathBuf,
    /// An access token, for private and gated models.
    pub token: Option<String>,
    /// Another hub than the public one (`HF_ENDPOINT`).
    pub endpoint: Option<String>,
    pub progress: ProgressOutput,
    /// How long to wait before the second attempt at a file; later ones wait longer.
    pub retry_pause: Duration,
}

/// A checkpoint that is on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalCheckpoint {
    /// A directory, or a GGUF file.
    pub path: PathBuf,
    /// The snapshot's commit, for one from the hub.
    pub commit: Option<String>,
}

/// Why a source could not be had. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error(
        "{written:?} is not a model source: {problem}. A source is a directory, a .gguf file or a hub id such as org/name or org/name@revision; a model that is served may have a name before it, NAME=SOURCE"
    )]
    Source { written: String, problem: String },
    #[error("the directory {} does not exist; correct the path, or write a hub id such as org/name", .0.display())]
    NoDirectory(PathBuf),
    #[error("the file {} does not exist; correct the path", .0.display())]
    NoFile(PathBuf),
    #[error("{id} is not in the hub cache (looked in {}) and the network is off. Fetch it where there is network with `hf download {}`, and copy the cache here or set HF_HOME; or start once without --offline", looked.display(), id.download_arguments())]
    NotCached { id: HubId, looked: PathBuf },
    #[error("{id} is in the hub cache without {} (looked in {}) and the network is off. Fetch the rest where there is network with `hf download {}`; or start once without --offline", missing.join(", "), looked.display(), id.download_arguments())]
    Incomplete { id: HubId, looked: PathBuf, missing: Vec<String> },
    #[error("{cause}; this binary was built without the feature `hub` and downloads nothing")]
    NoDownloads { cause: Box<HubError> },
    #[error(
        "the hub has no model {0} that is visible to you; check the id and the revision, and set HF_TOKEN if it is private"
    )]
    NotFound(HubId),
    #[error("the hub refuses {0}; accept its terms on its page and set HF_TOKEN to a token of that account")]
    Forbidden(HubId),
    #[error("{id} cannot be served: {problem}")]
    Unsuitable { id: HubId, problem: String },
    #[error("{file} of {id} arrived damaged twice; try again, and check the connection")]
    Damaged { id: HubId, file: String },
    #[error(
        "cannot fetch {id} from the hub ({id} is no folder here): {problem}. What has arrived is kept: start again to go on, or use --offline with a filled cache"
    )]
    Transfer { id: HubId, problem: String },
    #[error("cannot read {}: {problem}", path.display())]
    Read { path: PathBuf, problem: String },
}

/// Brings a source onto this machine: at once for a directory or a file, by a download for a hub id that is not
/// complete in the cache. Blocks; call it off the async threads.
pub fn resolve(source: &Source, options: &HubOptions) -> Result<LocalCheckpoint, HubError> {
    match source {
        Source::Directory(directory) if directory.is_dir() => {
            Ok(LocalCheckpoint { path: directory.clone(), commit: None })
        }
        Source::Directory(directory) => Err(HubError::NoDirectory(directory.clone())),
        Source::Gguf(path) if path.is_file() => Ok(LocalCheckpoint { path: path.clone(), commit: None }),
        Source::Gguf(path) => Err(HubError::NoFile(path.clone())),
        Source::Hub(id) => match options.network {
            Network::Offline => cache::resolve(id, options),
            Network::Allowed => download::resolve(id, options),
        },
    }
}

impl std::fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubOptions")
            .field("network", &self.network)
            .field("cache_dir", &self.cache_dir)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
