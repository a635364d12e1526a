//! The tree of accounts: who pays, within which limits.
//!
//! Every account is a node below one root: an organisation, its projects, their users, up to
//! [`AccountPath::MAX_DEPTH`] levels. Any node may have limits, and a key may be on any node. A request is paid by the node
//! its key is on, and must fit the limits of that node and of every node above it: so what a project may use bounds all
//! its users together, and what stands at the root bounds everybody.
//!
//! The ledger and the engine know only what is here.

mod caller;
mod class;
mod path;
mod tree;

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle_engine::{CacheSalt, ShareKey};
use sha2::{Digest, Sha256};

use super::quota::{Limit, Quota};

pub use caller::{Caller, ModelAccess, NoScope, Scope, Scopes, Via};
pub use class::{Classes, ServiceClass};
pub use path::{AccountPath, PathError, is_name};
pub use tree::Tree;

/// A node that pays, with everything above it. Made anew when something of it changes.
#[derive(Debug, Clone)]
pub struct Account {
    pub path: AccountPath,
    /// Who this account is in the engine's fair share.
    pub share_key: ShareKey,
    /// Its part of the engine beside others.
    pub weight: NonZeroU32,
    /// Prefix blocks are reused only within this account.
    pub cache_salt: CacheSalt,
    /// This node first, the root last.
    pub nodes: Vec<Node>,
}

/// One node on the way from an account to the root.
#[derive(Debug, Clone)]
pub struct Node {
    pub path: AccountPath,
    pub limits: Arc<Quota>,
}

impl Account {
    /// `nodes`: this account's own node first, the root's last. The engine's opaque names are derived from the path, so
    /// that they are the same after a restart.
    pub fn new(nodes: Vec<Node>, weight: NonZeroU32) -> Self {
        let path = nodes.first().map_or_else(AccountPath::root, |node| node.path.clone());
        let [b0, b1, b2, b3, b4, b5, b6, b7, ..] = derive("share key", &[path.as_str()]);
        let share_key = ShareKey(u64::from_le_bytes([b0, b1, b2, b3, b4, b5, b6, b7]));
        let cache_salt = CacheSalt(derive("cache salt", &[path.as_str()]));
        Self { path, share_key, weight, cache_salt, nodes }
    }

    /// An account with limits of its own, and none above it.
    pub fn alone(path: AccountPath, limits: Quota) -> Self {
        Self::new(vec![Node { path, limits: Arc::new(limits) }], NonZeroU32::MIN)
    }

    /// The one account of a loopback listener without keys.
    pub fn local(limits: Quota) -> Self {
        Self::alone("local".parse().expect("a plain name is a path"), limits)
    }

    /// Every limit that a request of this account must fit, with the node it stands on.
    pub fn limits(&self) -> impl Iterator<Item = (&Node, &Limit)> {
        self.nodes.iter().flat_map(|node| node.limits.limits().iter().map(move |limit| (node, limit)))
    }

    /// The salt of a caller who asked for a narrower one (`cache_salt` in a request): it separates within the account
    /// and can never reach into another.
    pub fn cache_salt_with(&self, caller: &str) -> CacheSalt {
        CacheSalt(derive("caller cache salt", &[self.path.as_str(), caller]))
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

    fn account(path: &str) -> Account {
        Account::alone(path.parse().unwrap(), Quota::unlimited())
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
