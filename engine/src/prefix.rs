//! What a block's contents are called: a chain of SHA-256 digests, so that equal names mean equal prefixes.
//!
//! The chain starts from the request's salt: requests of different salts never find each other's blocks. A
//! cryptographic hash is used because a collision would show one account's context to another.

use passerelle_models::TokenId;
use sha2::{Digest, Sha256};

use crate::request::CacheSalt;

/// Names the tokens of one block, full or begun, and every token before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockHash([u8; 32]);

/// What a block is found by: each group of layers has its own block of the same tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct BlockKey {
    group: u32,
    hash: BlockHash,
}

/// The contents of a block that is to be found: `tokens` behind what `parent` names.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BlockContents<'a> {
    pub(crate) parent: BlockHash,
    pub(crate) tokens: &'a [TokenId],
}

impl BlockKey {
    pub(crate) fn new(group: usize, hash: BlockHash) -> Self {
        Self { group: group as u32, hash }
    }

    pub(crate) fn group(&self) -> usize {
        self.group as usize
    }

    pub(crate) fn hash(&self) -> BlockHash {
        self.hash
    }
}

impl BlockHash {
    /// What the first block of a sequence is chained to.
    pub(crate) fn root(salt: &CacheSalt) -> Self {
        Self(Sha256::digest(salt.0).into())
    }

    pub(crate) fn child(&self, tokens: &[TokenId]) -> Self {
        let mut digest = Sha256::new_with_prefix(self.0);
        for token in tokens {
            digest.update(token.to_le_bytes());
        }
        Self(digest.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_names_salt_parent_and_tokens() {
        let root = BlockHash::root(&CacheSalt([1; 32]));
        let other_salt = BlockHash::root(&CacheSalt([2; 32]));
        assert_eq!(root.child(&[1, 2]), root.child(&[1, 2]));
        assert_ne!(root.child(&[1, 2]), other_salt.child(&[1, 2]));
        assert_ne!(root.child(&[1, 2]), root.child(&[2, 1]));
        assert_ne!(root.child(&[3]).child(&[1, 2]), root.child(&[4]).child(&[1, 2]));
    }
}
