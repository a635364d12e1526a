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
mod sharing;
mod tree;

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle_engine::ShareKey;
use sha2::{Digest, Sha256};

use super::quota::{Limit, Quota};

pub use caller::{Caller, ModelAccess, NoScope, Scope, Scopes, Via};
pub use class::{Classes, ServiceClass};
pub use path::{AccountPath, PathError, is_name};
pub use sharing::PrefixSharing;
pub use tree::Tree;

/// A node that pays, with everything above it. Made anew when something of it changes.
#[derive(Debug, Clone)]
pub struct Account {
    pub path: AccountPath,
    /// Who this account is in the engine's fair share.
    pub share_key: ShareKey,
    /// Its part of the engine beside others.
    pub weight: NonZeroU32,
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
        Self { path, share_key, weight, nodes }
    }

    /// An account with limits of its own, and none above it.
    pub fn alone(path: AccountPath, limits: Quota) -> Self {
        Self::new(vec![Node { path, limits: Arc::new(limits) }], NonZeroU32::MIN)
    }

    /// The one account of a loopback listener without keys.
    pub fn local(limits: Quota) -> Self {
        Self::alone("local".parse().expect("a plain name is a path"), limits)
    }

    /// Every limit that a request of this account must fit, with the node it stands on. Not those on trial.
    pub fn limits(&self) -> impl Iterator<Item = (&Node, &Limit)> {
        let of_node = |node| Node::enforced(node).map(move |limit| (node, limit));
        self.nodes.iter().flat_map(of_node)
    }
}

impl Node {
    /// Its limits but those on trial.
    fn enforced(&self) -> impl Iterator<Item = &Limit> {
        self.limits.limits().iter().filter(|limit| limit.is_enforced())
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
    fn two_accounts_have_each_their_part_of_the_engine() {
        assert_ne!(account("a").share_key, account("b").share_key);
        assert_eq!(account("a").share_key, account("a").share_key, "stable over restarts");
    }
}
