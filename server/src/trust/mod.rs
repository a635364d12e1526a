//! Whose checkpoints these are: manifests that somebody signed, the copies that are made of them, and the one file in which
//! one travels.
//!
//! Beside a checkpoint lie its manifest ([`passerelle_models::Manifest`]) and, if it is signed, 64 bytes of Ed25519 over
//! the manifest's text. Both are plain, so that other tools can check them:
//!
//! ```text
//! sha256sum --check <(tail -n +2 passerelle.manifest | awk '{print $1 "  " $3}')
//! openssl pkeyutl -verify -pubin -inkey lab.pub -rawin -in passerelle.manifest -sigfile passerelle.manifest.sig
//! ```
//!
//! Nothing of a checkpoint is parsed before its signature and every hash was found right.

mod bundle;
mod import;
mod keys;
mod manifest_files;
mod tar;

use std::io;
use std::path::{Path, PathBuf};

use passerelle_models::{InvalidManifest, Mismatch, ModelError};

pub use bundle::write_bundle;
pub use import::{CopiedSignature, Import, Imported, ImportedName, find_imported};
pub use keys::{KeyError, PublicKey, SigningKey};
pub use manifest_files::{ManifestFiles, TrustedKeys, Watch, sign, stated_digest};

/// Why a checkpoint is not trusted, signed, copied or bundled. Names the file.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("{}: there is no such file, so the model is not signed; `passerelle sign` signs one", .0.display())]
    Unsigned(PathBuf),
    #[error("{}: is not a signature by a trusted key over the manifest beside it", .0.display())]
    Untrusted(PathBuf),
    #[error("{}: {problem}", file.display())]
    Manifest { file: PathBuf, problem: InvalidManifest },
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("{}: {problem}", file.display())]
    Bundle { file: PathBuf, problem: String },
    #[error("`{0}` is not a name for a model: 1 to 100 letters, digits, `.`, `_` and `-`, the first of them no dot")]
    Name(String),
    #[error("{}: another model of this name is there; give this one another name, or take that one away", .0.display())]
    Exists(PathBuf),
    #[error("the bundled model lies in no file; `passerelle import demo` makes a copy that can be signed")]
    Embedded,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("{}", file.display())]
    Io { file: PathBuf, source: io::Error },
}

fn at(file: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let file = file.to_owned();
    move |source| TrustError::Io { file, source }
}

#[cfg(test)]
mod tests;
