//! The data directory: one SQLite file, `passerelle.db`, readable by its owner only.
//!
//! The file carries a format version. A newer program keeps a copy of the file before it changes the format, and does not
//! change it under a server that runs; an older one refuses. What stands where:
//!
//! | table | since | written by |
//! | --- | --- | --- |
//! | `accounts`, `keys` | 1 | [`super::directory`] |
//! | `audit`: every administrative act, chained by hash | 1 | [`super::directory`] |
//! | `meta`: the directory's generation | 1 | [`super::directory`] |
//! | `entries`, and `usage`, their sums | 2 | [`super::journal`] |

mod backup;
mod copy;
mod former;
mod schema;

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags};
use tokio::sync::Semaphore;

pub use backup::Restored;

/// Copies that are held in memory at a time, where the disk has no room for them: each is as large as the database.
const COPIES_IN_MEMORY: usize = 1;
/// How long one process waits for another's change. Each takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const OWNER_ONLY_FILE: u32 = 0o600;
const OWNER_ONLY_DIRECTORY: u32 = 0o700;

/// A directory that exists, with a database of this program's format in it.
#[derive(Debug, Clone)]
pub struct DataDir {
    path: PathBuf,
    access: Access,
    /// Places for copies in memory, which all clones share.
    copies: Arc<Semaphore>,
}

/// What this process can do with the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Changes,
    /// Without a byte of room, not even for the index that SQLite shares between processes.
    ReadsAsItLies,
}

/// What can go wrong with stored state. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    #[error("cannot {action} {}: {error}", path.display())]
    Io { action: &'static str, path: PathBuf, error: io::Error },
    #[error("cannot make the data directory {} (--data-dir, server.data_dir): {error}", path.display())]
    Folder { path: PathBuf, error: io::Error },
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
    /// Over as soon as the other one was taken away.
    #[error(
        "the disk has no room for a copy, and one is made in memory at a time: try again when the other is taken away"
    )]
    CopyInMemory,
}

const DATABASE: &str = "passerelle.db";
/// What was committed and is not in the database yet, and its index.
const LOG: &str = "passerelle.db-wal";
const LOG_INDEX: &str = "passerelle.db-shm";
/// Whoever serves holds it, and for a moment whoever changes the format.
const LOCK: &str = "serving.lock";

impl DataDir {
    /// Makes the directory and the database if there are none, and brings an older format up to date: not while a server
    /// runs on it, which may be the older program.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        make_folder(path)?;
        let directory = Self::of(path);
        let mut connection = directory.connect()?;
        let database = directory.database();
        // Only then: who holds the lock may open what is up to date.
        let is_due = schema::is_former(&connection, &database)? || former::is_there(path);
        let _nobody_serves = is_due.then(|| directory.lock_for_serving()).transpose()?;
        schema::bring_up_to_date(&mut connection, &database)?;
        former::take_in(&mut connection, &directory.path)?;
        Ok(directory)
    }

    /// The same, for whoever may have come to read. Where a full disk leaves no room to use the database, and nothing waits
    /// beside it to be taken into it, it is read as it lies, and every change is an error. For short: who changes it
    /// meanwhile, once there is room again, is not seen.
    pub fn open_even_if_full(path: &Path) -> Result<Self, DataError> {
        match Self::open(path) {
            Err(error) if error.is_for_want_of_room() && lies_still(path) => {
                let directory = Self { access: Access::ReadsAsItLies, ..Self::of(path) };
                schema::bring_up_to_date(&mut directory.connect()?, &directory.database())?;
                Ok(directory)
            }
            opened => opened,
        }
    }

    fn of(path: &Path) -> Self {
        let copies = Arc::new(Semaphore::new(COPIES_IN_MEMORY));
        Self { path: path.to_owned(), access: Access::Changes, copies }
    }

    /// Whether something is kept there, by this program or by one before the database.
    pub fn is_at(path: &Path) -> bool {
        path.join(DATABASE).exists() || former::is_there(path)
    }

    /// For a server: two of them would settle each other's open reservations and run each other's batches. Released
    /// when the file is closed, also by the death of the process.
    pub fn lock_for_serving(&self) -> Result<File, DataError> {
        let path = self.path.join(LOCK);
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

    /// What was committed and is not in the database yet.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join(LOG)
    }

    /// One more connection, which waits for others' changes. Changes are on disk when they are committed.
    pub(super) fn connect(&self) -> Result<Connection, DataError> {
        let path = self.database();
        let opened = match self.access {
            Access::Changes => {
                make(&path)?;
                to_change(&path)
            }
            Access::ReadsAsItLies => as_it_lies(&path),
        };
        opened.map_err(|error| DataError::Sql { path, error })
    }
}

impl DataError {
    /// Whether it is the disk that has no room, or does not work.
    pub fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Io { error, .. } | Self::Folder { error, .. } => has_no_room(error),
            Self::Sql { error, .. } => cannot_write(error),
            Self::InUse { .. } | Self::Content { .. } | Self::Version { .. } | Self::CopyInMemory => false,
        }
    }
}

/// Of the disk, or left to this user of it.
fn has_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether the database could not be written for a reason that lies in its disk. SQLite knows a full disk; a user's used-up
/// quota is to it one of the failures of the system.
pub(super) fn cannot_write(error: &rusqlite::Error) -> bool {
    use ErrorCode::{DiskFull, ReadOnly, SystemIoFailure};
    error.sqlite_error_code().is_some_and(|code| matches!(code, DiskFull | ReadOnly | SystemIoFailure))
}

fn to_change(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// Without locks, and without looking for a log.
fn as_it_lies(path: &Path) -> rusqlite::Result<Connection> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte);
    let path = path.to_string_lossy();
    let in_uri = path.bytes().map(|byte| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    });
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(format!("file:{}?immutable=1", in_uri.collect::<String>()), flags)
}

/// Whether all that was committed is in the one file.
fn lies_still(folder: &Path) -> bool {
    let log_bytes = folder.join(LOG).metadata().map_or(0, |log| log.len());
    folder.join(DATABASE).is_file() && log_bytes == 0
}

fn make_folder(path: &Path) -> Result<(), DataError> {
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(OWNER_ONLY_DIRECTORY);
    builder.create(path).map_err(|error| DataError::Folder { path: path.to_owned(), error })
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
