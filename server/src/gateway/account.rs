//! Who pays. Today one account stands for one key; the ledger and the engine know only what is here.

use std::fmt;
use std::sync::Arc;

use passerelle_engine::{CacheSalt, ShareKey};
use sha2::{Digest, Sha256};

use super::quota::Quota;

/// Names an account in logs, metrics and the ledger. Never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountId(Arc<str>);

impl AccountId {
    pub fn new(id: &str) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone)]
pub struct Account {
    pub id: AccountId,
    /// What people call it; shown in refusals.
    pub name: String,
    /// Who this account is in the engine's fair share.
    pub share_key: ShareKey,
    /// Prefix blocks are reused only within this account.
    pub cache_salt: CacheSalt,
    pub limits: Quota,
}

impl Account {
    /// The engine's opaque names are derived from `id`, so that they are the same after a restart.
    pub fn new(id: AccountId, name: impl Into<String>, limits: Quota) -> Self {
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = derive("share key", &[id.as_str()]);
        let share_key = ShareKey(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]));
        let cache_salt = CacheSalt(derive("cache salt", &[id.as_str()]));
        Self { id, name: name.into(), share_key, cache_salt, limits }
    }

    /// The one account of a loopback listener without keys.
    pub fn local(limits: Quota) -> Self {
        Self::new(AccountId::new("local"), "local", limits)
    }

    /// The salt of a caller who asked for a narrower one (`cache_salt` in a request): it separates within the account
    /// and can never reach into another.
    pub fn cache_salt_with(&self, caller: &str) -> CacheSalt {
        CacheSalt(derive("caller cache salt", &[self.id.as_str(), caller]))
    }
}

/// Each part is preceded by its length, so that no two lists of parts read the same.
fn derive(purpose: &str, parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&purpose).chain(parts) {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(id: &str) -> Account {
        Account::new(AccountId::new(id), id, Quota::unlimited())
    }

    #[test]
    fn two_accounts_share_neither_fair_share_nor_prefix_blocks() {
        let (a, b) = (account("a"), account("b"));
        assert_ne!(a.share_key, b.share_key);
        assert_ne!(a.cache_salt, b.cache_salt);
        assert_eq!(a.cache_salt, account("a").cache_salt, "stable over restarts");
    }

    #[test]
    fn a_callers_salt_separates_within_its_account_only() {
        let (a, b) = (account("a"), account("b"));
        assert_ne!(a.cache_salt_with("x"), a.cache_salt_with("y"));
        assert_ne!(a.cache_salt_with("x"), b.cache_salt_with("x"));
        assert_ne!(a.cache_salt_with(""), a.cache_salt);
        assert_ne!(account("a").cache_salt_with("bc"), account("ab").cache_salt_with("c"));
    }
}
