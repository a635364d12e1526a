//! A copy of the whole state while it is used, and the way back.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags};

use super::{DataDir, DataError, LOCK, LOG, LOG_INDEX, OWNER_ONLY_FILE, io_error, make_folder, schema};
use crate::durable;

/// What became of the state that was there.
#[derive(Debug)]
pub struct Restored {
    /// `None`: nothing was.
    pub kept: Option<PathBuf>,
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

    /// Puts a copy in the place of everything that is in a folder, which is kept beside it under a name that nothing has yet.
    /// Refused while a server keeps the ledger, for a copy that is damaged, of a newer program or none of this one's.
    /// Whatever fails, the folder is as it was.
    ///
    /// Keys that were revoked since the copy was made stay so, from the first moment that anybody can use it.
    pub fn restore(folder: &Path, copy: &Path) -> Result<(Self, Restored), DataError> {
        check(copy)?;
        let is_there = Self::is_at(folder);
        let made = Made::folder(folder)?;
        let data = if is_there { Self::open(folder)? } else { Self::of(folder) };
        let restored = data.replace(copy, is_there)?;
        made.keep();
        Ok((data, restored))
    }

    fn replace(&self, copy: &Path, is_there: bool) -> Result<Restored, DataError> {
        let _lock = self.lock_for_serving()?;
        let database = self.database();
        // Closing the last connection brings everything into the one file.
        let of_now =
            || revoked_keys(&self.connect()?).map_err(|error| DataError::Sql { path: database.clone(), error });
        let revoked = if is_there { of_now()? } else { Vec::new() };
        let path = self.path().join("passerelle.db.restoring");
        let fresh = Made(vec![path.clone()]);
        std::fs::copy(copy, &path).map_err(io_error("copy", copy))?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(OWNER_ONLY_FILE))
            .map_err(io_error("write", &path))?;
        let sql = |error| DataError::Sql { path: path.clone(), error };
        // Before it is anybody's: a copy of an earlier format may need room that is not there.
        schema::take_steps(&mut alone(&path).map_err(sql)?, &path)?;
        let revoked = revoke(&path, revoked).map_err(sql)?;
        File::open(&path).and_then(|file| file.sync_all()).map_err(io_error("write", &path))?;
        let kept = is_there.then(|| self.free_name("passerelle.db.before-restore"));
        // A second name and no other one, so that there is a whole database under the first at every instant.
        if let Some(kept) = &kept {
            std::fs::hard_link(&database, kept)
                .or_else(|_| std::fs::copy(&database, kept).map(drop))
                .map_err(io_error("keep", &database))?;
        }
        if let Err(error) = self.take_place(&path) {
            // A second failure has nowhere to go: what was there is still there, and once more.
            let _ = kept.map(std::fs::remove_file);
            return Err(error);
        }
        fresh.keep();
        durable::sync_folder(self.path()).map_err(io_error("sync", self.path()))?;
        Ok(Restored { kept, revoked })
    }

    /// Nothing of the former database's log may be played into the fresh one.
    fn take_place(&self, fresh: &Path) -> Result<(), DataError> {
        for leftover in [LOG, LOG_INDEX] {
            let path = self.path().join(leftover);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(error)),
                _ => {}
            }
        }
        std::fs::rename(fresh, self.database()).map_err(io_error("rename", fresh))
    }

    /// The name, or the first of `NAME-2`, `NAME-3` and so on that nothing has.
    fn free_name(&self, name: &str) -> PathBuf {
        let numbered = (2_u32..).map(|number| format!("{name}-{number}"));
        let mut names = std::iter::once(name.to_owned()).chain(numbered).map(|name| self.path().join(name));
        names.find(|path| !path.exists()).unwrap_or_else(|| self.path().join(name))
    }
}

/// Files and folders that a restore has made so far, the outermost first. Dropped, they are gone again.
struct Made(Vec<PathBuf>);

impl Made {
    /// With what leads to it. Of one that is there nothing is made.
    fn folder(folder: &Path) -> Result<Self, DataError> {
        let missing = folder.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let mut made: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        made.reverse();
        if !made.is_empty() {
            made.push(folder.join(LOCK));
        }
        let made = Self(made);
        make_folder(folder)?;
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // What cannot be removed is left, and with it what it lies in.
            let _ = if path.is_dir() { std::fs::remove_dir(path) } else { std::fs::remove_file(path) };
        }
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
    let connection = alone(file)?;
    let mut revoked = Vec::new();
    for (key, at) in keys {
        let changes = "UPDATE keys SET revoked_at = ?2 WHERE id = ?1 AND revoked_at IS NULL";
        if connection.execute(changes, (&key, at))? > 0 {
            revoked.push(key);
        }
    }
    Ok(revoked)
}

/// A file that is given up half way must leave no journal beside it that would be played into the next one of its name.
fn alone(file: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.pragma_update(None, "journal_mode", "memory")?;
    Ok(connection)
}

fn check(copy: &Path) -> Result<(), DataError> {
    let sql = |error| DataError::Sql { path: copy.to_owned(), error };
    let connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sql)?;
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(sql)?;
    if found > schema::FORMAT {
        return Err(DataError::Version { path: copy.to_owned(), found, known: schema::FORMAT });
    }
    if let Some(table) = schema::missing(&connection, found).map_err(sql)? {
        let reason = format!("no copy of this program's: it has no table `{table}` as format {found} has it");
        return Err(DataError::Content { path: copy.to_owned(), reason });
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
        let restore = || DataDir::restore(data.path(), &copy).unwrap().1;
        let restored = restore();
        assert_eq!((accounts(&data), restored.revoked.len()), (2, 0), "the root, and what was there");
        let (first, second) = (restored.kept.unwrap(), restore().kept.unwrap());
        assert!(first.exists() && second.exists() && first != second, "nothing is overwritten");
    }

    fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = paths.map(|path| (path.clone(), std::fs::read(&path).unwrap_or_default())).collect();
        files.sort();
        files
    }

    #[test]
    fn a_served_ledger_and_a_damaged_copy_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let copy = folder.path().join("copy");
        data.back_up(&copy).unwrap();
        let lock = data.lock_for_serving().unwrap();
        assert!(matches!(DataDir::restore(data.path(), &copy), Err(DataError::InUse { .. })));
        drop(lock);
        std::fs::write(&copy, "no database at all, but long enough to be looked at by whoever opens it").unwrap();
        let before = content(data.path());
        assert!(DataDir::restore(data.path(), &copy).is_err());
        assert_eq!(content(data.path()), before);
        assert_eq!(accounts(&data), 1);
    }

    #[test]
    fn a_restore_that_fails_leaves_a_folder_as_it_was_and_none_where_none_was() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        DataDir::open(&folder.path().join("other")).unwrap().back_up(&copy).unwrap();
        let new = folder.path().join("new").join("data");
        assert!(DataDir::restore(&new, &folder.path().join("nowhere")).is_err());
        assert!(!folder.path().join("new").exists());
        // Where the fresh file would be, nothing can be written.
        let block = |folder: &Path| std::fs::create_dir_all(folder.join("passerelle.db.restoring/in the way")).unwrap();
        let empty = folder.path().join("empty");
        block(&empty);
        assert!(DataDir::restore(&empty, &copy).is_err());
        assert!(!empty.join("passerelle.db").exists());
        let used = DataDir::open(&folder.path().join("used")).unwrap();
        add(&used, "mine");
        drop(used.lock_for_serving().unwrap());
        block(used.path());
        let before = content(used.path());
        assert!(DataDir::restore(used.path(), &copy).is_err());
        assert_eq!((content(used.path()), accounts(&used)), (before, 2));
    }

    #[test]
    fn a_copy_is_restored_where_nothing_was_and_nothing_is_said_to_be_kept() {
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("copy");
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        add(&data, "mine");
        data.back_up(&copy).unwrap();
        let (restored, told) = DataDir::restore(&folder.path().join("new").join("data"), &copy).unwrap();
        assert_eq!((accounts(&restored), told.kept), (2, None));
        let names: Vec<_> = content(restored.path()).into_iter().map(|(path, _)| path).collect();
        assert!(names.iter().all(|path| !path.to_string_lossy().contains("before-restore")), "{names:?}");
    }

    #[test]
    fn another_programs_database_is_refused_and_what_is_here_stays() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        add(&data, "before");
        let copy = folder.path().join("other.db");
        let other = Connection::open(&copy).unwrap();
        other.execute_batch("CREATE TABLE bookmarks (a); PRAGMA user_version = 3;").unwrap();
        let refusal = DataDir::restore(data.path(), &copy).unwrap_err().to_string();
        assert!(refusal.contains("no copy of this program's"), "{refusal}");
        for table in ["meta", "accounts", "keys", "audit", "entries", "usage"] {
            other.execute_batch(&format!("CREATE TABLE {table} (a)")).unwrap();
        }
        assert!(DataDir::restore(data.path(), &copy).is_err(), "tables of the same names are not enough");
        assert_eq!(accounts(&data), 2);
        let names = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let left: Vec<_> = std::fs::read_dir(data.path()).unwrap().map(names).collect();
        assert!(left.iter().all(|name| !name.contains("before-restore")), "{left:?}");
    }

    #[test]
    fn a_copy_of_a_former_format_is_brought_up_to_date_before_it_takes_the_place() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let copy = folder.path().join("former.db");
        let former = Connection::open(&copy).unwrap();
        schema::STEPS[..2].iter().for_each(|step| former.execute_batch(step).unwrap());
        former.pragma_update(None, "user_version", 2).unwrap();
        former.execute("INSERT INTO accounts VALUES ('former', 1, '[]', 0)", []).unwrap();
        let (data, _) = DataDir::restore(data.path(), &copy).unwrap();
        let format: u32 = data.connect().unwrap().pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!((accounts(&data), format), (2, schema::FORMAT));
    }
}
