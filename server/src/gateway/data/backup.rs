//! A copy of the whole state while it is used, and the way back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{DataDir, DataError, OWNER_ONLY_FILE, io_error, schema};

/// What became of the state that was there.
#[derive(Debug)]
pub struct Restored {
    pub kept: PathBuf,
    /// Ids of keys that the copy has, and that were revoked since.
    pub revoked: Vec<String>,
}

impl DataDir {
    /// Everything at one instant, into a file that must not exist. Servers and commands go on meanwhile.
    pub fn back_up(&self, copy: &Path) -> Result<(), DataError> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(OWNER_ONLY_FILE);
        // SQLite fills an empty file, which keeps its mode.
        options.open(copy).map_err(io_error("create", copy))?;
        let connection = self.connect()?;
        let copied = connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]);
        copied.map_err(|error| DataError::Sql { path: copy.to_owned(), error })?;
        Ok(())
    }

    /// The same to read from, without a name: it is gone once it is closed.
    pub fn copy_of_now(&self) -> Result<File, DataError> {
        let mut random = [0; 8];
        getrandom::fill(&mut random)
            .map_err(|error| io_error("name a copy in", self.path())(io::Error::other(error)))?;
        let path = self.path().join(format!("passerelle.db.copy-{:016x}", u64::from_le_bytes(random)));
        let copied = self.back_up(&path).and_then(|()| File::open(&path).map_err(io_error("open", &path)));
        match std::fs::remove_file(&path) {
            Err(error) if copied.is_ok() => Err(io_error("remove", &path)(error)),
            _ => copied,
        }
    }

    /// Puts a copy in the place of everything that is here, which is kept beside it under a name that nothing has yet.
    /// Refused while a server keeps the ledger, for a copy that is damaged, and for one of a newer program.
    ///
    /// Keys that were revoked since the copy was made stay so, from the first moment that anybody can use it.
    pub fn restore(&self, copy: &Path) -> Result<Restored, DataError> {
        let _lock = self.lock_for_serving()?;
        check(copy)?;
        let database = self.database();
        // Closing the last connection brings everything into the one file.
        let revoked =
            revoked_keys(&self.connect()?).map_err(|error| DataError::Sql { path: database.clone(), error })?;
        let fresh = self.path().join("passerelle.db.restoring");
        std::fs::copy(copy, &fresh).map_err(io_error("copy", copy))?;
        let revoked = revoke(&fresh, revoked).map_err(|error| DataError::Sql { path: fresh.clone(), error })?;
        std::fs::set_permissions(&fresh, std::os::unix::fs::PermissionsExt::from_mode(OWNER_ONLY_FILE))
            .and_then(|()| File::open(&fresh)?.sync_all())
            .map_err(io_error("write", &fresh))?;
        let kept = self.free_name("passerelle.db.before-restore");
        std::fs::rename(&database, &kept).map_err(io_error("rename", &database))?;
        for leftover in ["passerelle.db-wal", "passerelle.db-shm"] {
            let path = self.path().join(leftover);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(error)),
                _ => {}
            }
        }
        std::fs::rename(&fresh, &database).map_err(io_error("rename", &fresh))?;
        schema::bring_up_to_date(&mut self.connect()?, &database)?;
        Ok(Restored { kept, revoked })
    }

    /// The name, or the first of `NAME-2`, `NAME-3` and so on that nothing has.
    fn free_name(&self, name: &str) -> PathBuf {
        let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered).map(|name| self.path().join(name));
        names.find(|path| !path.exists()).unwrap_or_else(|| self.path().join(name))
    }
}

/// With when they were.
fn revoked_keys(connection: &Connection) -> rusqlite::Result<Vec<(String, i64)>> {
    let mut statement =
        connection.prepare("SELECT id, revoked_at FROM keys WHERE revoked_at IS NOT NULL ORDER BY id")?;
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

/// In a file that nobody uses yet. Returns those that were not.
fn revoke(file: &Path, keys: Vec<(String, i64)>) -> rusqlite::Result<Vec<String>> {
    let connection = Connection::open(file)?;
    // A file that is given up half way is overwritten by the next attempt, and must leave no journal that would be
    // played into it.
    connection.pragma_update(None, "journal_mode", "memory")?;
    let mut revoked = Vec::new();
    for (key, at) in keys {
        let changes = "UPDATE keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL";
        if connection.execute(changes, (&key, at))? > 0 {
            revoked.push(key);
        }
    }
    Ok(revoked)
}

fn check(copy: &Path) -> Result<(), DataError> {
    let sql = |error| DataError::Sql { path: copy.to_owned(), error };
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sql)?;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
    if found > schema::FORMAT {
        return Err(DataError::Version { path: copy.to_owned(), found, known: schema::FORMAT });
    }
    let verdict: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0)).map_err(sql)?;
    match found > 0 && verdict == "ok" {
        true => Ok(()),
        false => Err(DataError::Content { path: copy.to_owned(), reason: format!("no whole copy: {verdict}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(data: &DataDir) -> u32 {
        let connection = data.connect().unwrap();
        connection.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0)).unwrap()
    }

    fn add(data: &DataDir, path: &str) {
        data.connect().unwrap().execute("INSERT INTO accounts VALUES (?1, 1, '[]', 0)", [path]).unwrap();
    }

    #[test]
    fn a_copy_made_while_the_state_is_used_brings_back_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let _in_use = data.connect().unwrap();
        add(&data, "before");
        let copy = folder.path().join("copy");
        data.back_up(&copy).unwrap();
        assert!(data.back_up(&copy).is_err(), "a copy is never overwritten");
        drop(_in_use);
        add(&data, "after");
        let restored = data.restore(&copy).unwrap();
        assert_eq!((accounts(&data), restored.revoked.len()), (2, 0), "the root, and what was there");
        let again = data.restore(&copy).unwrap();
        assert!(restored.kept.exists() && again.kept.exists() && restored.kept != again.kept, "nothing is overwritten");
    }

    #[test]
    fn a_served_ledger_and_a_damaged_copy_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let copy = folder.path().join("copy");
        data.back_up(&copy).unwrap();
        let lock = data.lock_for_serving().unwrap();
        assert!(matches!(data.restore(&copy), Err(DataError::InUse { .. })));
        drop(lock);
        std::fs::write(&copy, "no database at all, but long enough to be looked at by whoever opens it").unwrap();
        assert!(data.restore(&copy).is_err());
        assert_eq!(accounts(&data), 1);
    }
}
