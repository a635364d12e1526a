//! The tree of accounts, as it is kept.

use std::num::NonZeroU32;
use std::sync::Arc;

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::columns::AsJson;
use super::{AccountRecord, Act, Directory, DirectoryError};
use crate::gateway::account::AccountPath;
use crate::gateway::quota::{Enforcement, Limit, LimitName, Quota, UnixSeconds};

const MAX_ACCOUNTS: usize = 20_000;

impl Directory {
    /// The account above it must exist.
    pub fn create_account(&self, path: &AccountPath, limits: Quota) -> Result<(), DirectoryError> {
        let now = self.now();
        self.change(Act::create(path, &limits), |transaction| create(transaction, path, &limits, now))
    }

    /// Errors unless there is one.
    pub fn require_account(&self, path: &AccountPath) -> Result<(), DirectoryError> {
        self.read(|transaction| require(transaction, path).map(drop))
    }

    /// Only an account without accounts below it and without usable keys goes. What it used stays in the ledger.
    pub fn remove_account(&self, path: &AccountPath) -> Result<(), DirectoryError> {
        let act = Act { name: "account remove", subject: path.as_str(), detail: String::new() };
        let now = self.now();
        self.change(act, |transaction| {
            require(transaction, path)?;
            let prefix = format!("{path}/");
            let below = "SELECT 1 FROM accounts WHERE substr(path, 1, length(?1)) = ?1";
            let keys = "SELECT 1 FROM keys WHERE account = ?1 AND revoked_at IS NULL
                        AND (expires_at IS NULL OR expires_at > ?2)";
            let in_use = path.is_root()
                || transaction.prepare(below)?.exists([prefix])?
                || transaction.prepare(keys)?.exists(params![path, now])?;
            if in_use {
                return Err(DirectoryError::AccountInUse(path.clone()));
            }
            transaction.execute("DELETE FROM keys WHERE account = ?1", [path])?;
            transaction.execute("DELETE FROM accounts WHERE path = ?1", [path])?;
            Ok(())
        })
    }

    /// Adds a limit, or changes the one of the same rule: of the same name and model, and enforced or on trial like it.
    pub fn set_limit(&self, path: &AccountPath, limit: Limit) -> Result<(), DirectoryError> {
        let detail = shown(std::slice::from_ref(&limit));
        let act = Act { name: "quota set", subject: path.as_str(), detail };
        self.change(act, |transaction| {
            let quota = Quota::clone(&require(transaction, path)?.limits).with(limit)?;
            write_limits(transaction, path, &quota)
        })
    }

    pub fn remove_limit(
        &self,
        path: &AccountPath,
        name: LimitName,
        model: Option<&str>,
        enforcement: Enforcement,
    ) -> Result<(), DirectoryError> {
        let mut detail = model.map_or_else(|| name.to_string(), |model| format!("{name} for {model}"));
        if enforcement == Enforcement::DryRun {
            detail += " on trial";
        }
        let act = Act { name: "quota remove", subject: path.as_str(), detail };
        self.change(act, |transaction| {
            let quota = Quota::clone(&require(transaction, path)?.limits).without(name, model, enforcement);
            write_limits(transaction, path, &quota.ok_or(DirectoryError::NoSuchLimit(path.clone(), name))?)
        })
    }

    /// Its part of an engine beside others.
    pub fn set_weight(&self, path: &AccountPath, weight: NonZeroU32) -> Result<(), DirectoryError> {
        self.change(Act::weight(path, weight), |transaction| {
            require(transaction, path)?;
            write_weight(transaction, path, weight)
        })
    }
}

impl<'a> Act<'a> {
    pub(super) fn create(path: &'a AccountPath, limits: &Quota) -> Self {
        Self { name: "account create", subject: path.as_str(), detail: shown(limits) }
    }

    pub(super) fn limits(path: &'a AccountPath, limits: &Quota) -> Self {
        Self { name: "quota set", subject: path.as_str(), detail: shown(limits) }
    }

    pub(super) fn weight(path: &'a AccountPath, weight: NonZeroU32) -> Self {
        Self { name: "account weight", subject: path.as_str(), detail: weight.to_string() }
    }
}

pub(super) fn create(
    transaction: &Transaction<'_>,
    path: &AccountPath,
    limits: &Quota,
    now: UnixSeconds,
) -> Result<(), DirectoryError> {
    if find(transaction, path)?.is_some() {
        return Err(DirectoryError::AccountExists(path.clone()));
    }
    if let Some(parent) = path.parent() {
        require(transaction, &parent)?;
    }
    let count: usize = transaction.query_row("SELECT count(*) FROM accounts", [], |row| row.get(0))?;
    if count > MAX_ACCOUNTS {
        return Err(DirectoryError::TooMany(MAX_ACCOUNTS, "accounts"));
    }
    transaction.execute("INSERT INTO accounts VALUES (?1, 1, ?2, ?3)", params![path, AsJson(limits), now])?;
    Ok(())
}

pub(super) fn all(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<AccountRecord>> {
    let mut rows = transaction.prepare_cached("SELECT path, weight, limits, created_at FROM accounts ORDER BY path")?;
    rows.query_map([], record)?.collect()
}

pub(super) fn require(transaction: &Transaction<'_>, path: &AccountPath) -> Result<AccountRecord, DirectoryError> {
    find(transaction, path)?.ok_or_else(|| DirectoryError::UnknownAccount(path.clone()))
}

fn find(transaction: &Transaction<'_>, path: &AccountPath) -> rusqlite::Result<Option<AccountRecord>> {
    let one = "SELECT path, weight, limits, created_at FROM accounts WHERE path = ?1";
    transaction.prepare_cached(one)?.query_row([path], record).optional()
}

fn record(row: &Row<'_>) -> rusqlite::Result<AccountRecord> {
    let AsJson(limits) = row.get::<_, AsJson<Quota>>(2)?;
    let weight = NonZeroU32::new(row.get(1)?).unwrap_or(NonZeroU32::MIN);
    Ok(AccountRecord { path: row.get(0)?, weight, limits: Arc::new(limits), created_at: row.get(3)? })
}

pub(super) fn write_limits(
    transaction: &Transaction<'_>,
    path: &AccountPath,
    quota: &Quota,
) -> Result<(), DirectoryError> {
    transaction.execute("UPDATE accounts SET limits = ?2 WHERE path = ?1", params![path, AsJson(quota)])?;
    Ok(())
}

pub(super) fn write_weight(
    transaction: &Transaction<'_>,
    path: &AccountPath,
    weight: NonZeroU32,
) -> Result<(), DirectoryError> {
    transaction.execute("UPDATE accounts SET weight = ?2 WHERE path = ?1", params![path, weight.get()])?;
    Ok(())
}

fn shown(limits: impl serde::Serialize) -> String {
    serde_json::to_string(&limits).expect("limits are names and numbers, all of which are JSON")
}
