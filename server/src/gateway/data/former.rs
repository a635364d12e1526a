//! Takes in the file of keys that versions before the database kept, `keys.json`: each key gets an account of its name,
//! with the limits that the key had.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use serde::Deserialize;

use super::{DataError, io_error};
use crate::gateway::keys::KeyDigest;
use crate::gateway::quota::WrittenLimit;

#[derive(Deserialize)]
struct KeysFile {
    format_version: u32,
    keys: Vec<FormerKey>,
}

#[derive(Deserialize)]
struct FormerKey {
    id: String,
    name: String,
    /// `{"requests_per_minute": 60}`
    limits: Vec<BTreeMap<String, f64>>,
    created_at: u64,
    expires_at: Option<u64>,
    revoked_at: Option<u64>,
    digest: KeyDigest,
}

const FILE: &str = "keys.json";
const FORMER_FORMAT: u32 = 1;

/// Whether there is something to take in.
pub(super) fn is_there(directory: &Path) -> bool {
    directory.join(FILE).exists()
}

/// Does nothing where no such file is. The file is kept under another name.
pub(super) fn take_in(connection: &mut Connection, directory: &Path) -> Result<(), DataError> {
    let path = directory.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("read", &path)(error)),
    };
    let content = |reason: String| DataError::Content { path: path.clone(), reason };
    let file: KeysFile =
        serde_json::from_str(&text).map_err(|error| content(format!("not a file of keys: {error}")))?;
    if file.format_version != FORMER_FORMAT {
        return Err(DataError::Version { path, found: file.format_version, known: FORMER_FORMAT });
    }
    let sql = |error| DataError::Sql { path: path.clone(), error };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    for key in &file.keys {
        insert(&transaction, key).map_err(sql)?;
    }
    transaction.commit().map_err(sql)?;
    let kept = directory.join("keys.json.taken-in");
    std::fs::rename(&path, &kept).map_err(io_error("rename", &path))
}

/// A key that is there already was taken in before the file could be renamed.
fn insert(transaction: &Transaction<'_>, key: &FormerKey) -> rusqlite::Result<()> {
    let limit = |(name, value): (&String, &f64)| WrittenLimit {
        limit: name.clone(),
        value: *value,
        model: None,
        from: None,
        until: None,
        dry_run: false,
    };
    let limits: Vec<WrittenLimit> = key.limits.iter().flatten().map(limit).collect();
    let limits = serde_json::to_string(&limits).expect("limits are names and numbers, all of which are JSON");
    // Of several keys of one name the last one's limits count: the others were revoked before it was made.
    transaction.execute(
        "INSERT INTO accounts VALUES (?1, 1, ?2, ?3) ON CONFLICT (path) DO UPDATE SET limits = excluded.limits",
        params![key.name, limits, key.created_at],
    )?;
    transaction.execute(
        "INSERT OR IGNORE INTO keys (id, account, name, scopes, models, created_at, expires_at, revoked_at, digest)
         VALUES (?1, ?2, ?2, '[\"inference\"]', 'null', ?3, ?4, ?5, ?6)",
        params![key.id, key.name, key.created_at, key.expires_at, key.revoked_at, key.digest],
    )?;
    Ok(())
}
