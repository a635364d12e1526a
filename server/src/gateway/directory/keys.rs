//! Keys, as they are kept: their digests, never their secrets.

use std::time::Duration;

use rusqlite::{Row, Transaction, params};

use super::accounts::require;
use super::columns::AsJson;
use super::{Act, Directory, DirectoryError, KeyInfo, KeyRecord, KeyStatus, NewKey};
use crate::gateway::account::is_name;
use crate::gateway::keys::{ApiKey, KeyId};
use crate::gateway::quota::UnixSeconds;

const MAX_KEYS: usize = 50_000;
const COLUMNS: &str = "id, account, name, scopes, models, created_at, expires_at, revoked_at, digest, former_digest,
                       former_until, class";

impl Directory {
    /// The key returned is the only copy there will ever be.
    pub fn create_key(&self, new: NewKey) -> Result<(ApiKey, KeyInfo), DirectoryError> {
        if !is_name(&new.name) {
            return Err(DirectoryError::BadName(new.name));
        }
        let now = self.now();
        let key = ApiKey::generate()?;
        let info = KeyInfo {
            id: key.id().clone(),
            account: new.account,
            name: new.name,
            scopes: new.scopes,
            models: new.models,
            class: new.class,
            created_at: now,
            expires_at: new.valid_for.map(|span| now.after(span)),
            revoked_at: None,
            former_until: None,
        };
        let detail = format!("{} of {}", info.name, info.account);
        self.change(Act { name: "key create", subject: info.id.as_str(), detail }, |transaction| {
            require(transaction, &info.account)?;
            let is_taken = |key: &KeyRecord| {
                (&key.info.account, &key.info.name) == (&info.account, &info.name)
                    && key.info.status(now) == KeyStatus::Active
            };
            let keys = all(transaction)?;
            if keys.iter().any(is_taken) {
                return Err(DirectoryError::NameTaken { account: info.account.clone(), name: info.name.clone() });
            }
            if keys.len() >= MAX_KEYS {
                return Err(DirectoryError::TooMany(MAX_KEYS, "keys"));
            }
            insert(transaction, &KeyRecord { info: info.clone(), digest: key.digest(), former_digest: None })
        })?;
        Ok((key, info))
    }

    /// Every key ever made, oldest first.
    pub fn list_keys(&self) -> Result<Vec<KeyInfo>, DirectoryError> {
        let keys = self.read(|transaction| Ok(all(transaction)?))?;
        Ok(keys.into_iter().map(|key| key.info).collect())
    }

    /// By public id, or by the name of a key that is not revoked yet.
    pub fn find_key(&self, id_or_name: &str) -> Result<KeyInfo, DirectoryError> {
        self.read(|transaction| find(transaction, id_or_name)).map(|key| key.info)
    }

    /// By public id, or by the name of a key that is not revoked yet. Revoking twice changes nothing.
    pub fn revoke_key(&self, id_or_name: &str) -> Result<KeyInfo, DirectoryError> {
        let now = self.now();
        let KeyInfo { id, .. } = self.find_key(id_or_name)?;
        let act = Act { name: "key revoke", subject: id.as_str(), detail: String::new() };
        self.change(act, |transaction| {
            transaction
                .execute("UPDATE keys SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1", params![id, now])?;
            Ok(find(transaction, id.as_str())?.info)
        })
    }

    /// A new secret under the same id. The former one is accepted for `overlap` more; one before that no longer.
    pub fn rotate_key(&self, id_or_name: &str, overlap: Duration) -> Result<(ApiKey, KeyInfo), DirectoryError> {
        let until = self.now().after(overlap);
        let KeyInfo { id, .. } = self.find_key(id_or_name)?;
        let key = ApiKey::generate_for(&id)?;
        let detail = format!("the former secret is accepted for {} s", overlap.as_secs());
        let info = self.change(Act { name: "key rotate", subject: id.as_str(), detail }, |transaction| {
            if find(transaction, id.as_str())?.info.revoked_at.is_some() {
                return Err(DirectoryError::KeyRevoked(id_or_name.to_owned()));
            }
            let rotate = "UPDATE keys SET former_digest = digest, former_until = ?2, digest = ?3 WHERE id = ?1";
            transaction.execute(rotate, params![id, until, key.digest()])?;
            Ok(find(transaction, id.as_str())?.info)
        })?;
        Ok((key, info))
    }
}

pub(super) fn all(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<KeyRecord>> {
    let query = format!("SELECT {COLUMNS} FROM keys ORDER BY created_at, name");
    let mut rows = transaction.prepare_cached(&query)?;
    rows.query_map([], record)?.collect()
}

fn find(transaction: &Transaction<'_>, id_or_name: &str) -> Result<KeyRecord, DirectoryError> {
    let query = format!("SELECT {COLUMNS} FROM keys WHERE id = ?1 OR (name = ?1 AND revoked_at IS NULL)");
    let found: Vec<KeyRecord> =
        transaction.prepare_cached(&query)?.query_map([id_or_name], record)?.collect::<rusqlite::Result<_>>()?;
    if let Some(key) = found.iter().find(|key| key.info.id.as_str() == id_or_name) {
        return Ok(key.clone());
    }
    match <[KeyRecord; 1]>::try_from(found) {
        Ok([key]) => Ok(key),
        Err(none) if none.is_empty() => Err(DirectoryError::UnknownKey(id_or_name.to_owned())),
        Err(_) => Err(DirectoryError::AmbiguousKey(id_or_name.to_owned())),
    }
}

fn insert(transaction: &Transaction<'_>, key: &KeyRecord) -> Result<(), DirectoryError> {
    let KeyInfo { id, account, name, scopes, models, class, created_at, expires_at, .. } = &key.info;
    let (scopes, models) = (AsJson(scopes), AsJson(models));
    transaction.execute(
        "INSERT INTO keys (id, account, name, scopes, models, created_at, expires_at, digest, class)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![id, account, name, scopes, models, created_at, expires_at, key.digest, class.as_str()],
    )?;
    Ok(())
}

fn record(row: &Row<'_>) -> rusqlite::Result<KeyRecord> {
    let AsJson(scopes) = row.get(3)?;
    let AsJson(models) = row.get(4)?;
    let info = KeyInfo {
        id: row.get::<_, KeyId>(0)?,
        account: row.get(1)?,
        name: row.get(2)?,
        scopes,
        models,
        class: row.get(11)?,
        created_at: row.get(5)?,
        expires_at: row.get::<_, Option<UnixSeconds>>(6)?,
        revoked_at: row.get(7)?,
        former_until: row.get(10)?,
    };
    Ok(KeyRecord { info, digest: row.get(8)?, former_digest: row.get(9)? })
}
