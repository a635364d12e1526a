//! Keys: shown once, stored as a digest, named by their public half.
//!
//! [`ApiKey`] is the text that a client holds. [`KeyStore`] is the file that `passerelle key` edits; [`KeyRing`] is
//! what a running server looks keys up in, following that file and adding the fixed keys of [`read_key_file`].

mod key_file;
mod ring;
mod secret;
mod store;

pub use key_file::{StaticKey, read_key_file};
pub use ring::KeyRing;
pub use secret::{ApiKey, KeyDigest, KeyFormatError, KeyId};
pub use store::{KeyInfo, KeyStatus, KeyStore, NewKey, UnixSeconds};

use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with stored keys. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
    #[error(
        "{} has format version {found}, this program knows {known}: use the program that wrote it",
        path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },
    #[error("{}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{} may be read by other users (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Readable { path: PathBuf, mode: u32 },
    #[error("a key named '{0}' exists: revoke it first, or choose another name")]
    NameTaken(String),
    #[error("'{0}' is no key name: use 1 to {max} letters, digits, '.', '_' or '-'", max = store::MAX_NAME_BYTES)]
    BadName(String),
    #[error("no key has the id or name '{0}': `passerelle key list` shows them")]
    NotFound(String),
    #[error("there are {0} keys, the most that one data directory holds")]
    TooMany(usize),
    #[error("the system gave no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// For `map_err`: which file, doing what.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyError {
    move |source| KeyError::Io { action, path: path.to_owned(), source }
}
