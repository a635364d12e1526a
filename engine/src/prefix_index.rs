//! Which block carries which prefix.

use passerelle_models::BlockId;

use crate::block_chains::BlockChains;
use crate::prefix::BlockKey;

#[derive(Debug)]
pub(crate) struct PrefixIndex {
    chains: BlockChains,
    /// By block.
    keys: Box<[Option<BlockKey>]>,
    len: usize,
}

impl PrefixIndex {
    /// For the blocks below `num_blocks`.
    pub(crate) fn new(num_blocks: usize) -> Self {
        Self { chains: BlockChains::new(num_blocks), keys: vec![None; num_blocks].into_boxed_slice(), len: 0 }
    }

    /// How many blocks carry a prefix.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn find(&self, key: &BlockKey) -> Option<BlockId> {
        self.chains.of(key).find(|block| self.key(*block) == Some(key))
    }

    /// What the block is found by.
    pub(crate) fn key(&self, block: BlockId) -> Option<&BlockKey> {
        self.keys[block.0 as usize].as_ref()
    }

    /// The block that carries this prefix: one that did already, or from now on `block`, which carries no other.
    pub(crate) fn find_or_insert(&mut self, key: BlockKey, block: BlockId) -> BlockId {
        if let Some(known) = self.find(&key) {
            return known;
        }
        self.remove(block);
        self.chains.insert(&key, block);
        self.keys[block.0 as usize] = Some(key);
        self.len += 1;
        block
    }

    /// Does nothing for a block without a prefix.
    pub(crate) fn remove(&mut self, block: BlockId) {
        if let Some(key) = self.keys[block.0 as usize].take() {
            self.chains.remove(&key, block);
            self.len -= 1;
        }
    }

    /// # Panics
    /// If a block is not found by its key, or is counted wrongly.
    pub(crate) fn check_integrity(&self) {
        let keys = || self.keys.iter().enumerate().filter_map(|(block, key)| Some((block, key.as_ref()?)));
        for (block, key) in keys() {
            assert_eq!(self.find(key), Some(BlockId(block as u32)), "the prefix of block {block}");
        }
        assert_eq!(keys().count(), self.len, "blocks with a prefix");
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
            if index.key(block).is_some() && state >> 31 == 0 {
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
