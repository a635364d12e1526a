//! The database's format, as the steps that lead to it.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::DataError;

/// Step `n` leads from format `n` to format `n + 1`. Steps are added, never changed.
pub(super) const STEPS: [&str; 7] = [ACCOUNTS_AND_KEYS, LEDGER, CLASSES, TOLD, ATTRIBUTION, BILLS, ASKERS];

/// Paths are written as [`super::super::AccountPath`] writes them; instants are seconds since 1970; lists are JSON.
const ACCOUNTS_AND_KEYS: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    INSERT INTO meta VALUES ('directory_generation', 0);
    CREATE TABLE accounts (
        path TEXT PRIMARY KEY,
        weight INTEGER NOT NULL,
        limits TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO accounts VALUES ('/', 1, '[]', 0);
    CREATE TABLE keys (
        id TEXT PRIMARY KEY,
        account TEXT NOT NULL REFERENCES accounts (path),
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        models TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        revoked_at INTEGER,
        digest BLOB NOT NULL,
        -- The secret before the last rotation, and until when it is still accepted.
        former_digest BLOB,
        former_until INTEGER
    ) WITHOUT ROWID;
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY,
        at INTEGER NOT NULL,
        actor TEXT NOT NULL,
        act TEXT NOT NULL,
        subject TEXT NOT NULL,
        detail TEXT NOT NULL,
        hash BLOB NOT NULL
    );
";

/// An entry without `seq` is open, and its counts are those of its last mark. `usage` sums what was settled, by quarters of
/// an hour, which every time zone's days are made of.
const LEDGER: &str = "
    CREATE TABLE entries (
        id INTEGER PRIMARY KEY,
        seq INTEGER UNIQUE,
        account TEXT NOT NULL,
        key TEXT NOT NULL,
        model TEXT NOT NULL,
        model_digest TEXT NOT NULL,
        partition TEXT NOT NULL,
        tariff TEXT NOT NULL,
        binary TEXT NOT NULL,
        opened_at INTEGER NOT NULL,
        settled_at INTEGER,
        prompt_tokens INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL DEFAULT 0,
        cached_tokens INTEGER NOT NULL DEFAULT 0,
        output_tokens INTEGER NOT NULL DEFAULT 0,
        billed_us INTEGER NOT NULL DEFAULT 0,
        measured_us INTEGER NOT NULL DEFAULT 0,
        finish TEXT,
        hash BLOB
    );
    CREATE INDEX open_entries ON entries (id) WHERE seq IS NULL;
    CREATE TABLE usage (
        account TEXT NOT NULL,
        slot INTEGER NOT NULL,
        model TEXT NOT NULL,
        requests INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        billed_us INTEGER NOT NULL,
        measured_us INTEGER NOT NULL,
        PRIMARY KEY (account, slot, model)
    ) WITHOUT ROWID;
";

/// How urgent a key's requests are at best.
const CLASSES: &str = "ALTER TABLE keys ADD COLUMN class TEXT NOT NULL DEFAULT 'standard';";

/// How many answers an entry is for, and what another gateway that ran the request says of it.
const TOLD: &str = "
    ALTER TABLE entries ADD COLUMN answers INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE entries ADD COLUMN told_model_digest TEXT;
    ALTER TABLE entries ADD COLUMN told_site TEXT;
    ALTER TABLE entries ADD COLUMN told_billed_us INTEGER;
";

/// Whom and what a request is for, as its caller says, and the sums of `usage` by that: of entries that name a user only, so
/// that there are never more of them than entries.
const ATTRIBUTION: &str = "
    ALTER TABLE entries ADD COLUMN user TEXT;
    ALTER TABLE entries ADD COLUMN metadata TEXT;
    CREATE TABLE usage_by_user (
        account TEXT NOT NULL,
        slot INTEGER NOT NULL,
        user TEXT NOT NULL,
        requests INTEGER NOT NULL,
        input_tokens INTEGER NOT NULL,
        cached_tokens INTEGER NOT NULL,
        output_tokens INTEGER NOT NULL,
        billed_us INTEGER NOT NULL,
        measured_us INTEGER NOT NULL,
        PRIMARY KEY (account, slot, user)
    ) WITHOUT ROWID;
";

/// Which entries are one request's.
const BILLS: &str = "ALTER TABLE entries ADD COLUMN bill INTEGER;";

/// Under which reservation, and for which account, another gateway asked; and whether the entry counts as a request.
const ASKERS: &str = "
    ALTER TABLE entries ADD COLUMN asker_reservation TEXT;
    ALTER TABLE entries ADD COLUMN asker_account TEXT;
    ALTER TABLE entries ADD COLUMN asker_part INTEGER;
    ALTER TABLE entries ADD COLUMN requests INTEGER NOT NULL DEFAULT 1;
    CREATE INDEX entries_asked ON entries (id) WHERE asker_reservation IS NOT NULL;
";

pub(super) const FORMAT: u32 = STEPS.len() as u32;

/// Whether state is kept there in a format before this program's.
pub(super) fn is_former(connection: &Connection, path: &Path) -> Result<bool, DataError> {
    let found = version(connection).map_err(|error| DataError::Sql { path: path.to_owned(), error })?;
    Ok((1..FORMAT).contains(&found))
}

/// Takes the steps that are missing, all or none, after a copy of the file was kept.
pub(super) fn bring_up_to_date(connection: &mut Connection, path: &Path) -> Result<(), DataError> {
    let sql = |error| DataError::Sql { path: path.to_owned(), error };
    let found = version(connection).map_err(sql)?;
    if found > FORMAT {
        return Err(DataError::Version { path: path.to_owned(), found, known: FORMAT });
    }
    if found == FORMAT {
        return Ok(());
    }
    if found > 0 {
        keep_copy(connection, path, found)?;
    }
    take_steps(connection, path)
}

/// The same without a copy, for a file that is one.
pub(super) fn take_steps(connection: &mut Connection, path: &Path) -> Result<(), DataError> {
    let sql = |error| DataError::Sql { path: path.to_owned(), error };
    let take = |transaction: &Transaction<'_>| {
        // Another process may have been faster while this one waited for the lock.
        let found = version(transaction)?;
        for step in STEPS.iter().skip(found as usize) {
            transaction.execute_batch(step)?;
        }
        transaction.pragma_update(None, "user_version", FORMAT.max(found))
    };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Exclusive).map_err(sql)?;
    take(&transaction).map_err(sql)?;
    transaction.commit().map_err(sql)
}

/// The first table that a database of this format has, and that is not in this one with all its columns.
pub(super) fn missing(connection: &Connection, format: u32) -> rusqlite::Result<Option<String>> {
    let model = Connection::open_in_memory()?;
    STEPS.iter().take(format as usize).try_for_each(|step| model.execute_batch(step))?;
    let mut tables = model.prepare("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")?;
    let tables = tables.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    for table in tables {
        let there = columns(connection, &table)?;
        if !columns(&model, &table)?.iter().all(|column| there.contains(column)) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

/// None of a table that is not there.
fn columns(connection: &Connection, table: &str) -> rusqlite::Result<Vec<String>> {
    let mut columns = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
    columns.query_map([table], |row| row.get(0))?.collect()
}

fn version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// `passerelle.db.format-1`, beside the file. One that is there already is a copy of the same.
fn keep_copy(connection: &Connection, path: &Path, found: u32) -> Result<(), DataError> {
    let copy = PathBuf::from(format!("{}.format-{found}", path.display()));
    if copy.exists() {
        return Ok(());
    }
    let copied = connection.execute("VACUUM INTO ?1", [copy.to_string_lossy()]);
    copied.map_err(|error| DataError::Sql { path: copy, error })?;
    Ok(())
}
