//! Which block carries which prefix: a hash table whose chains are threaded by index through the blocks.
//!
//! It has the size of the pool and is written to in full when it is made: it never grows, moves or tidies up, whatever
//! comes and goes. The buckets' hash is keyed by chance, so that nobody can choose prompts that share a bucket.

use std::hash::{BuildHasher, RandomState};

use passerelle_models::BlockId;

use crate::prefix::BlockKey;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct PrefixIndex {
    hasher: RandomState,
    /// The first block of each chain. A power of two of them.
    heads: Box<[u32]>,
    /// By block.
    entries: Box<[Entry]>,
    len: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    key: Option<BlockKey>,
    /// In the chain, while there is a key.
    next: u32,
}

impl PrefixIndex {
    /// For the blocks below `num_blocks`.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let heads = vec![NONE; num_blocks.next_power_of_two()].into_boxed_slice();
        let entries = vec![Entry { key: None, next: NONE }; num_blocks].into_boxed_slice();
        Self { hasher: RandomState::new(), heads, entries, len: 0 }
    }

    /// How many blocks carry a prefix.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn find(&self, key: &BlockKey) -> Option<BlockId> {
        let mut at = self.heads[self.bucket(key)];
        while let Some(entry) = self.entries.get(at as usize) {
            if entry.key.as_ref() == Some(key) {
                return Some(BlockId(at));
            }
            at = entry.next;
        }
        None
    }

    pub(crate) fn has_key(&self, block: BlockId) -> bool {
        self.entries[block.0 as usize].key.is_some()
    }

    /// The block that carries this prefix: one that did already, or from now on `block`, which carries no other.
    pub(crate) fn find_or_insert(&mut self, key: BlockKey, block: BlockId) -> BlockId {
        if let Some(known) = self.find(&key) {
            return known;
        }
        self.remove(block);
        let bucket = self.bucket(&key);
        let next = std::mem::replace(&mut self.heads[bucket], block.0);
        self.entries[block.0 as usize] = Entry { key: Some(key), next };
        self.len += 1;
        block
    }

    /// Does nothing for a block without a prefix.
    pub(crate) fn remove(&mut self, block: BlockId) {
        let entry = &mut self.entries[block.0 as usize];
        let Some(key) = entry.key.take() else { return };
        let after = entry.next;
        let mut at = self.bucket(&key);
        if self.heads[at] == block.0 {
            self.heads[at] = after;
        } else {
            at = self.heads[at] as usize;
            while self.entries[at].next != block.0 {
                at = self.entries[at].next as usize;
            }
            self.entries[at].next = after;
        }
        self.len -= 1;
    }

    /// # Panics
    /// If a block is not found by its key, or is counted wrongly.
    pub(crate) fn check_integrity(&self) {
        let keys = || self.entries.iter().enumerate().filter_map(|(block, entry)| Some((block, entry.key.as_ref()?)));
        for (block, key) in keys() {
            assert_eq!(self.find(key), Some(BlockId(block as u32)), "the prefix of block {block}");
        }
        assert_eq!(keys().count(), self.len, "blocks with a prefix");
    }

    fn bucket(&self, key: &BlockKey) -> usize {
        self.hasher.hash_one(key) as usize & (self.heads.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::prefix::BlockHash;
    use crate::request::CacheSalt;

    fn key(name: u32) -> BlockKey {
        BlockKey::new(0, BlockHash::root(&CacheSalt([0; 32])).child(&[name]))
    }

    #[test]
    fn it_finds_what_a_map_finds_whatever_comes_and_goes() {
        const BLOCKS: u32 = 13;
        let mut index = PrefixIndex::new(BLOCKS as usize);
        let mut map: HashMap<BlockKey, BlockId> = HashMap::new();
        let mut state = 1_u32;
        for _ in 0..2000 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (block, name) = (BlockId((state >> 16) % BLOCKS), (state >> 8) % 20);
            if index.has_key(block) && state >> 31 == 0 {
                map.retain(|_, carrier| *carrier != block);
                index.remove(block);
            } else {
                if !map.contains_key(&key(name)) {
                    map.retain(|_, carrier| *carrier != block);
                }
                assert_eq!(index.find_or_insert(key(name), block), *map.entry(key(name)).or_insert(block));
            }
            index.check_integrity();
            assert_eq!(index.len(), map.len());
            (0..20).for_each(|name| assert_eq!(index.find(&key(name)), map.get(&key(name)).copied()));
        }
    }

    #[test]
    fn an_index_of_no_blocks_finds_nothing() {
        assert_eq!(PrefixIndex::new(0).find(&key(1)), None);
    }
}
