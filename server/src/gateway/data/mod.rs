//! The data directory: one SQLite file, `passerelle.db`, readable by its owner only.
//!
//! The file carries a format version. A newer program keeps a copy of the file before it changes the format; an older
//! one refuses. What stands where:
//!
//! | table | since | written by |
//! | --- | --- | --- |
//! | `accounts`, `keys` | 1 | [`super::directory`] |
//! | `audit`: every administrative act, chained by hash | 1 | [`super::directory`] |
//! | `meta`: the directory's generation | 1 | [`super::directory`] |
//! | `entries`, and `usage`, their sums | 2 | [`super::journal`] |

mod backup;
mod former;
mod schema;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::Connection;

pub use backup::Restored;

/// How long one process waits for another's change. Each takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const OWNER_ONLY_FILE: u32 = 0o600;
const OWNER_ONLY_DIRECTORY: u32 = 0o700;

/// A directory that exists, with a database of this program's format in it.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
}

/// What can go wrong with stored state. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("{}: {error}", path.display())]
    Sql { path: PathBuf, error: rusqlite::Error },
    #[error("a server runs on {}: stop it, or name another --data-dir", path.display())]
    InUse { path: PathBuf },
    #[error("{}: {reason}", path.display())]
    Content { path: PathBuf, reason: String },
    #[error(
        "{} has format version {found}, this program knows {known}: use the program that wrote it",
        path.display()
    )]
    Version { path: PathBuf, found: u32, known: u32 },
}

const DATABASE: &str = "passerelle.db";

impl DataDir {
    /// Makes the directory and the database if there are none, and brings an older format up to date.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(OWNER_ONLY_DIRECTORY);
        builder.create(path).map_err(io_error("create", path))?;
        let directory = Self { path: path.to_owned() };
        let mut connection = directory.connect()?;
        schema::bring_up_to_date(&mut connection, &directory.database())?;
        former::take_in(&mut connection, &directory.path)?;
        Ok(directory)
    }

    /// Whether something is kept there, by this program or by one before the database.
    pub fn is_at(path: &Path) -> bool {
        [DATABASE, former::FILE].iter().any(|file| path.join(file).exists())
    }

    /// For a server: two of them would settle each other's open reservations and run each other's batches. Released
    /// when the file is closed, also by the death of the process.
    pub fn lock_for_serving(&self) -> Result<File, DataError> {
        let path = self.path.join("serving.lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(OWNER_ONLY_FILE);
        let file = options.open(&path).map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(DataError::InUse { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(io_error("lock", &path)(source)),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn database(&self) -> PathBuf {
        self.path.join(DATABASE)
    }

    /// One more connection, which waits for others' changes. Changes are on disk when they are committed.
    pub(super) fn connect(&self) -> Result<Connection, DataError> {
        let path = self.database();
        make(&path)?;
        let open = || {
            let connection = Connection::open(&path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "journal_mode", "wal")?;
            connection.pragma_update(None, "synchronous", "full")?;
            connection.pragma_update(None, "foreign_keys", true)?;
            Ok(connection)
        };
        open().map_err(|error| DataError::Sql { path: path.clone(), error })
    }
}

/// Makes the file here and not by SQLite, so that no moment exists at which others may read it. One that exists is not even
/// opened: closing it would release the locks that this process's other connections hold on it (POSIX, `fcntl`), and
/// another process would then take away the log that they write.
fn make(path: &Path) -> Result<(), DataError> {
    match OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY_FILE).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error("create", path)(error)),
    }
}

/// For `map_err`: which file, doing what.
fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |error| DataError::Io { action, path: path.to_owned(), error }
}

#[cfg(test)]
mod tests;
