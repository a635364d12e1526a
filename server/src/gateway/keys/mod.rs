//! Keys: shown once, stored as a digest, named by their public half.
//!
//! [`ApiKey`] is the text that a client holds. The keys themselves are kept in the [`super::directory`]; [`KeyRing`] is
//! what a running server looks them up in, following the directory and adding the fixed keys of [`read_key_file`].

mod key_file;
mod ring;
mod secret;

pub use key_file::{StaticKey, read_key_file};
pub use ring::{KeyRing, Regiven};
pub use secret::{ApiKey, KeyDigest, KeyFormatError, KeyId};

use std::io;
use std::path::{Path, PathBuf};

/// What can be wrong with a file of fixed keys. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}: no key in it: write one a line", path.display())]
    Empty { path: PathBuf },
    #[error("{}, line {line}: {reason}", path.display())]
    Line { path: PathBuf, line: usize, reason: String },
    #[error("{} may be read by other users (mode {mode:03o}): run `chmod 600 {}`", path.display(), path.display())]
    Readable { path: PathBuf, mode: u32 },
}

/// For `map_err`: which file, doing what.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> KeyFileError {
    move |source| KeyFileError::Io { action, path: path.to_owned(), source }
}
