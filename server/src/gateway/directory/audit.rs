//! The audit log: who did what, each entry chained to the one before it, so that none can be changed or taken out
//! without changing all that follow.

use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::Act;
use crate::gateway::journal::Chain;
use crate::gateway::quota::UnixSeconds;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// From 1, without gaps.
    pub seq: u64,
    pub at: UnixSeconds,
    pub actor: String,
    pub act: String,
    pub subject: String,
    pub detail: String,
    /// Covers the entry and, through the one before it, all before it. In hexadecimal digits.
    #[serde(serialize_with = "hex")]
    hash: [u8; 32],
}

impl AuditEntry {
    /// Whether each entry follows from the one before it, the first from nothing.
    pub fn are_chained(entries: &[Self]) -> bool {
        let mut before = [0; 32];
        entries.iter().zip(1..).all(|(entry, seq)| {
            let follows = entry.seq == seq && entry.hash == entry.hash_after(&before);
            before = entry.hash;
            follows
        })
    }

    fn hash_after(&self, before: &[u8; 32]) -> [u8; 32] {
        let (seq, at) = (self.seq.to_string(), self.at.0.to_string());
        let mut hash = Sha256::new();
        hash.update(before);
        for part in [&seq, &at, &self.actor, &self.act, &self.subject, &self.detail] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().into()
    }
}

fn hex<S: Serializer>(hash: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&Chain(*hash).hex())
}

pub(super) fn append(
    transaction: &Transaction<'_>,
    at: UnixSeconds,
    actor: &str,
    act: &Act<'_>,
) -> rusqlite::Result<()> {
    let last = "SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1";
    let last: Option<(u64, [u8; 32])> =
        transaction.prepare_cached(last)?.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let (seq, before) = last.unwrap_or_default();
    let mut entry = AuditEntry {
        seq: seq + 1,
        at,
        actor: actor.to_owned(),
        act: act.name.to_owned(),
        subject: act.subject.to_owned(),
        detail: act.detail.clone(),
        hash: [0; 32],
    };
    entry.hash = entry.hash_after(&before);
    let AuditEntry { seq, at, actor, act, subject, detail, hash } = &entry;
    let insert = "INSERT INTO audit VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    transaction.execute(insert, params![seq, at, actor, act, subject, detail, hash.as_slice()])?;
    Ok(())
}

pub(super) fn all(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<AuditEntry>> {
    let mut rows = transaction.prepare_cached("SELECT * FROM audit ORDER BY seq")?;
    rows.query_map([], entry)?.collect()
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    Ok(AuditEntry {
        seq: row.get(0)?,
        at: row.get(1)?,
        actor: row.get(2)?,
        act: row.get(3)?,
        subject: row.get(4)?,
        detail: row.get(5)?,
        hash: row.get(6)?,
    })
}
