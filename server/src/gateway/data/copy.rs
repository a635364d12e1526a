//! A copy of everything to take away: a file that is gone once it is closed, or pages in memory where the disk has no room for
//! a file, of one copy at a time.

use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rusqlite::{Connection, MAIN_DB};
use tokio::sync::OwnedSemaphorePermit;

use super::{Access, DataDir, DataError, io_error};

/// Larger databases are copied through a file only, for which there must be room.
const MOST_IN_MEMORY_BYTES: u64 = 1 << 30;
/// In the first page: by which rules the file is written and read (<https://www.sqlite.org/fileformat2.html>, 1.3.3).
const WRITE_VERSION: usize = 18;
const READ_VERSION: usize = 19;
/// Of a file that stands alone, without a log beside it.
const ALONE: u8 = 1;

impl DataDir {
    /// Everything at one instant, without a name.
    pub fn copy_of_now(&self) -> Result<Box<dyn Read + Send>, DataError> {
        match self.access {
            Access::Changes => self.copy_through(self.path()),
            Access::ReadsAsItLies => self.copy_in_memory(),
        }
    }

    /// `folder`: of the file.
    fn copy_through(&self, folder: &Path) -> Result<Box<dyn Read + Send>, DataError> {
        match self.copy_in_file(folder) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) if error.is_for_want_of_room() => {
                tracing::warn!(%error, "there is no room for a copy in a file; it is made in memory");
                self.copy_in_memory()
            }
            Err(error) => Err(error),
        }
    }

    fn copy_in_file(&self, folder: &Path) -> Result<File, DataError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| io_error("name a copy in", folder)(io::Error::other(error)))?;
        let path = folder.join(format!("passerelle.db.copy-{:016x}", u64::from_le_bytes(random)));
        let copied = self.back_up(&path).and_then(|()| File::open(&path).map_err(io_error("open", &path)));
        match std::fs::remove_file(&path) {
            Err(error) if copied.is_ok() => Err(io_error("remove", &path)(error)),
            _ => copied,
        }
    }

    fn copy_in_memory(&self) -> Result<Box<dyn Read + Send>, DataError> {
        let place = Arc::clone(&self.copies).try_acquire_owned().map_err(|_| DataError::CopyInMemory)?;
        let path = self.database();
        let sql = |error| DataError::Sql { path: path.clone(), error };
        let before = self.as_changed()?;
        let connection = self.connect()?;
        let bytes = size(&connection).map_err(sql)?;
        if bytes > MOST_IN_MEMORY_BYTES {
            let reason = format!(
                "there is no room for a copy of its {bytes} bytes, and in memory at most {MOST_IN_MEMORY_BYTES} are copied"
            );
            return Err(DataError::Content { path, reason });
        }
        let mut pages = pages(&connection).map_err(sql)?;
        if self.access == Access::ReadsAsItLies && self.as_changed()? != before {
            let reason = "it was changed while it was copied; try again".to_owned();
            return Err(DataError::Content { path, reason });
        }
        for at in [WRITE_VERSION, READ_VERSION] {
            if let Some(version) = pages.get_mut(at) {
                *version = ALONE;
            }
        }
        Ok(Box::new(InMemory { pages: Cursor::new(pages), _place: place }))
    }

    fn as_changed(&self) -> Result<(u64, SystemTime), DataError> {
        let path = self.database();
        let looked = path.metadata().and_then(|of| Ok((of.len(), of.modified()?)));
        looked.map_err(io_error("look at", &path))
    }
}

/// In its place until it is dropped.
struct InMemory {
    pages: Cursor<Vec<u8>>,
    _place: OwnedSemaphorePermit,
}

impl Read for InMemory {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.pages.read(buffer)
    }
}

fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, u64>(0));
    Ok(pragma("page_count")?.saturating_mul(pragma("page_size")?))
}

/// In one transaction, so that all are of one instant.
fn pages(connection: &Connection) -> rusqlite::Result<Vec<u8>> {
    let transaction = connection.unchecked_transaction()?;
    transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    Ok(transaction.serialize(MAIN_DB)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restored(copy: &mut dyn Read) -> (tempfile::TempDir, Connection) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("copy");
        io::copy(copy, &mut File::create(&path).unwrap()).unwrap();
        let connection = Connection::open_with_flags(&path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        (folder, connection)
    }

    fn weight_of_root(connection: &Connection) -> u32 {
        connection.query_row("SELECT weight FROM accounts WHERE path = '/'", [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_copy_in_memory_holds_what_is_only_in_the_log_and_stands_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let in_use = data.connect().unwrap();
        in_use.execute("UPDATE accounts SET weight = 7", []).unwrap();
        assert!(folder.path().join(super::super::LOG).metadata().unwrap().len() > 0);
        let mut copy = data.copy_in_memory().unwrap();
        in_use.execute("UPDATE accounts SET weight = 8", []).unwrap();
        let (at, connection) = restored(&mut copy);
        assert_eq!(weight_of_root(&connection), 7, "of the instant at which it was made");
        let whole: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!((whole.as_str(), std::fs::read_dir(at.path()).unwrap().count()), ("ok", 1), "no log beside it");
    }

    #[test]
    fn one_copy_is_held_in_memory_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        let mut first = data.copy_in_memory().unwrap();
        let refused = || data.clone().copy_in_memory().map(drop);
        assert!(matches!(refused(), Err(DataError::CopyInMemory)));
        io::copy(&mut first, &mut io::sink()).unwrap();
        assert!(matches!(refused(), Err(DataError::CopyInMemory)), "it is held until it is let go");
        drop(first);
        refused().unwrap();
    }

    #[test]
    fn only_a_disk_that_cannot_be_written_is_a_reason_to_copy_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        assert!(matches!(data.copy_through(&folder.path().join("nowhere")), Err(DataError::Io { .. })));
        const ENOSPC: i32 = 28;
        const EDQUOT: i32 = 122;
        for full in [ENOSPC, EDQUOT].map(io::Error::from_raw_os_error) {
            assert!(io_error("create", folder.path())(full).is_for_want_of_room());
        }
        let (_folder, connection) = restored(&mut data.copy_through(folder.path()).unwrap());
        assert_eq!(weight_of_root(&connection), 1);
    }

    #[test]
    fn what_is_read_as_it_lies_is_read_whole_and_cannot_be_changed() {
        let folder = tempfile::tempdir().unwrap();
        // What means something in an address means nothing in a path.
        let path = folder.path().join("50% of? #1");
        drop(DataDir::open(&path).unwrap());
        assert!(super::super::lies_still(&path));
        let data = DataDir { access: Access::ReadsAsItLies, ..DataDir::of(&path) };
        let error = data.connect().unwrap().execute("UPDATE accounts SET weight = 7", []).unwrap_err();
        assert!(super::super::cannot_write(&error), "{error}");
        let (_folder, connection) = restored(&mut data.copy_of_now().unwrap());
        assert_eq!(weight_of_root(&connection), 1);
        assert_eq!(std::fs::read_dir(&path).unwrap().count(), 1, "nothing is made beside it");
    }
}
