//! The table below the indices of blocks: a hash table whose chains are threaded by index through the blocks.
//!
//! It has the size of the pool and is written to in full when it is made: it never grows, moves or tidies up, whatever
//! comes and goes. The buckets' hash is keyed by chance, so that nobody can choose prompts that share a bucket.

use std::hash::{BuildHasher, Hash, RandomState};

use passerelle_models::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub(crate) struct BlockChains {
    hasher: RandomState,
    /// The first block of each chain. A power of two of them.
    heads: Box<[u32]>,
    /// The one after it in its chain, by block, and the one before.
    next: Box<[u32]>,
    previous: Box<[u32]>,
}

impl BlockChains {
    /// For the blocks below `num_blocks`.
    pub(crate) fn new(num_blocks: usize) -> Self {
        let none = |len: usize| vec![NONE; len].into_boxed_slice();
        let [next, previous] = [none(num_blocks), none(num_blocks)];
        Self { hasher: RandomState::new(), heads: none(num_blocks.next_power_of_two()), next, previous }
    }

    /// The blocks that may be filed under `key`, and by chance some of other keys; what came last goes first.
    pub(crate) fn of(&self, key: &impl Hash) -> impl Iterator<Item = BlockId> {
        let mut at = self.heads[self.bucket(key)];
        std::iter::from_fn(move || {
            let block = at;
            at = *self.next.get(block as usize)?;
            Some(BlockId(block))
        })
    }

    /// Files a block that is in no chain.
    pub(crate) fn insert(&mut self, key: &impl Hash, block: BlockId) {
        let bucket = self.bucket(key);
        let after = std::mem::replace(&mut self.heads[bucket], block.0);
        (self.next[block.0 as usize], self.previous[block.0 as usize]) = (after, NONE);
        if after != NONE {
            self.previous[after as usize] = block.0;
        }
    }

    /// Takes out a block that is filed under `key`, however long the chain is: prompts that go on from one prefix are as many
    /// as there are.
    pub(crate) fn remove(&mut self, key: &impl Hash, block: BlockId) {
        let (after, before) = (self.next[block.0 as usize], self.previous[block.0 as usize]);
        if after != NONE {
            self.previous[after as usize] = before;
        }
        if before == NONE {
            self.heads[self.bucket(key)] = after;
        } else {
            self.next[before as usize] = after;
        }
    }

    fn bucket(&self, key: &impl Hash) -> usize {
        self.hasher.hash_one(key) as usize & (self.heads.len() - 1)
    }
}
