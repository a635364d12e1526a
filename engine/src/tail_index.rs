//! What is known to come after a prefix: the tokens of each block that can be found, filed under the block before it.
//!
//! A prompt that ends inside a block, or leaves a known text there, goes on from a copy of the block that began alike.
//!
//! ```text
//! prefix A ──┬── block 7: the cat sat on
//!            ├── block 3: the cat ran          a block that was not full when its sequence ended
//!            └── block 9: a dog
//! asked for what comes after A, "the cat sat up": block 7, three tokens
//! ```

use passerelle_models::{BlockId, TokenId};

use crate::block_chains::BlockChains;
use crate::prefix::BlockHash;

/// Of the blocks behind one prefix, how many are looked at: the latest. A first block has as many siblings as there are
/// prompts.
const MOST_SIBLINGS: usize = 32;

#[derive(Debug)]
pub(crate) struct TailIndex {
    chains: BlockChains,
    /// By block: what it stands behind, if it is here.
    parents: Box<[Option<BlockHash>]>,
    /// By block, `block_size` places each, of which the first ones are tokens.
    tokens: Box<[TokenId]>,
    lens: Box<[u16]>,
    block_size: usize,
}

impl TailIndex {
    /// For the blocks below `num_blocks`.
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self {
            chains: BlockChains::new(num_blocks),
            parents: vec![None; num_blocks].into_boxed_slice(),
            tokens: vec![0; num_blocks * block_size].into_boxed_slice(),
            lens: vec![0; num_blocks].into_boxed_slice(),
            block_size,
        }
    }

    /// The block behind `parent` that begins most like `wanted`, and for how many tokens.
    pub(crate) fn find(&self, parent: &BlockHash, wanted: &[TokenId]) -> Option<(BlockId, usize)> {
        let siblings = self.chains.of(parent).filter(|block| self.parents[block.0 as usize].as_ref() == Some(parent));
        let alike = siblings.take(MOST_SIBLINGS).map(|block| (block, self.num_alike(block, wanted)));
        // Of equals the latest.
        alike.fold(None, |best: Option<(_, usize)>, one| match best {
            Some(best) if best.1 >= one.1 => Some(best),
            _ => Some(one).filter(|one| one.1 > 0).or(best),
        })
    }

    /// Instead of what the block was before.
    pub(crate) fn insert(&mut self, block: BlockId, parent: BlockHash, tokens: &[TokenId]) {
        self.remove(block);
        let index = block.0 as usize;
        self.chains.insert(&parent, block);
        self.parents[index] = Some(parent);
        self.lens[index] = tokens.len() as u16;
        self.tokens[index * self.block_size..][..tokens.len()].copy_from_slice(tokens);
    }

    /// Does nothing for a block that is not here.
    pub(crate) fn remove(&mut self, block: BlockId) {
        if let Some(parent) = self.parents[block.0 as usize].take() {
            self.chains.remove(&parent, block);
        }
    }

    fn num_alike(&self, block: BlockId, wanted: &[TokenId]) -> usize {
        let index = block.0 as usize;
        let tokens = &self.tokens[index * self.block_size..][..usize::from(self.lens[index])];
        tokens.iter().zip(wanted).take_while(|(one, other)| one == other).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::CacheSalt;

    fn prefix(name: u8) -> BlockHash {
        BlockHash::root(&CacheSalt([name; 32]))
    }

    #[test]
    fn the_block_that_begins_most_alike_is_found_behind_its_prefix_alone() {
        let mut index = TailIndex::new(5, 4);
        index.insert(BlockId(0), prefix(1), &[1, 2, 3, 4]);
        index.insert(BlockId(1), prefix(1), &[1, 2]);
        index.insert(BlockId(2), prefix(1), &[5]);
        index.insert(BlockId(3), prefix(2), &[1, 2, 9, 9]);
        assert_eq!(index.find(&prefix(1), &[1, 2, 3, 7]), Some((BlockId(0), 3)));
        assert_eq!(index.find(&prefix(1), &[1, 2, 9, 9]), Some((BlockId(1), 2)), "of equals the latest");
        assert_eq!(index.find(&prefix(1), &[5, 6]), Some((BlockId(2), 1)));
        assert_eq!(index.find(&prefix(1), &[6]), None);
        assert_eq!(index.find(&prefix(3), &[1]), None);
        index.remove(BlockId(0));
        index.insert(BlockId(1), prefix(2), &[1, 2, 9]);
        assert_eq!(index.find(&prefix(1), &[1, 2, 3, 7]), None);
        assert_eq!(index.find(&prefix(2), &[1, 2, 9, 9]), Some((BlockId(3), 4)));
    }

    #[test]
    fn of_many_siblings_the_latest_are_looked_at() {
        let mut index = TailIndex::new(100, 1);
        (0..100).for_each(|block| index.insert(BlockId(block), prefix(1), &[block]));
        assert_eq!(index.find(&prefix(1), &[99]), Some((BlockId(99), 1)));
        assert_eq!(index.find(&prefix(1), &[68]), Some((BlockId(68), 1)));
        assert_eq!(index.find(&prefix(1), &[67]), None);
    }
}
