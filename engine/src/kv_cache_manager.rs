//! Which blocks hold which sequence. The scheduler asks for room and gets it, or `None` and nothing changed.

use passerelle_models::BlockId;

use crate::block_pool::BlockPool;
use crate::sequence::Sequence;

#[derive(Debug)]
pub(crate) struct KvCacheManager {
    pool: BlockPool,
    block_size: usize,
    prefix: PrefixTotals,
}

/// Tokens looked up, and found, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct PrefixTotals {
    pub(crate) query_tokens: u64,
    pub(crate) hit_tokens: u64,
}

/// What becomes of the prefixes of released blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prefixes {
    Keep,
    /// The sequence failed: what it computed may be the cause, and nobody else shall find it.
    Forget,
}

impl KvCacheManager {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        Self { pool: BlockPool::new(num_blocks), block_size, prefix: PrefixTotals::default() }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    pub(crate) fn prefix_totals(&self) -> PrefixTotals {
        self.prefix
    }

    /// Gives a sequence without blocks room for all its known tokens, reusing the longest cached prefix, which counts
    /// as computed at once. `spare_blocks` must stay free beside it. `None` if there is no room.
    ///
    /// At least the last token is always computed anew, because its logits are wanted; so a hit ends before the block
    /// that holds it, and no shared block is ever written.
    pub(crate) fn admit(&mut self, sequence: &mut Sequence, spare_blocks: usize) -> Option<()> {
        assert!(sequence.block_table.is_empty(), "a sequence is admitted once");
        let hits = self.cached_prefix(sequence);
        let num_new = sequence.tokens().len().div_ceil(self.block_size) - hits.len();
        let num_revived = hits.iter().filter(|&&block| self.pool.is_free(block)).count();
        if self.pool.num_free() < num_new + num_revived + spare_blocks {
            return None;
        }
        hits.iter().for_each(|&block| self.pool.acquire(block));
        sequence.num_computed = hits.len() * self.block_size;
        sequence.num_registered_blocks = hits.len();
        sequence.block_table = hits;
        if sequence.may_reuse_prefix() {
            self.prefix.query_tokens += sequence.tokens().len() as u64;
            self.prefix.hit_tokens += sequence.num_computed as u64;
        }
        self.extend(sequence, num_new)
    }

    /// Room for the first `num_tokens` tokens. `None` if there is none.
    pub(crate) fn grow(&mut self, sequence: &mut Sequence, num_tokens: usize) -> Option<()> {
        let num_new = num_tokens.div_ceil(self.block_size).saturating_sub(sequence.block_table.len());
        if self.pool.num_free() < num_new {
            return None;
        }
        self.extend(sequence, num_new)
    }

    /// Makes the blocks that have become full findable. Only after their K/V were computed.
    pub(crate) fn register(&mut self, sequence: &mut Sequence) {
        let full_blocks = sequence.num_computed / self.block_size;
        if sequence.num_registered_blocks == full_blocks {
            return;
        }
        sequence.block_hashes(self.block_size);
        for index in sequence.num_registered_blocks..full_blocks {
            let hash = sequence.block_hashes(self.block_size)[index];
            self.pool.register(sequence.block_table[index], hash);
        }
        sequence.num_registered_blocks = full_blocks;
    }

    /// Takes every block from the sequence; nothing of it is computed any more.
    pub(crate) fn release(&mut self, sequence: &mut Sequence, prefixes: Prefixes) {
        for block in sequence.block_table.drain(..).rev() {
            if prefixes == Prefixes::Forget {
                self.pool.forget(block);
            }
            self.pool.release(block);
        }
        sequence.num_computed = 0;
        sequence.num_registered_blocks = 0;
    }

    fn cached_prefix(&self, sequence: &mut Sequence) -> Vec<BlockId> {
        if !sequence.may_reuse_prefix() {
            return Vec::new();
        }
        let longest = (sequence.tokens().len() - 1) / self.block_size;
        let hashes = &sequence.block_hashes(self.block_size)[..longest];
        hashes.iter().map_while(|hash| self.pool.find(hash)).collect()
    }

    fn extend(&mut self, sequence: &mut Sequence, num_new: usize) -> Option<()> {
        for _ in 0..num_new {
            sequence.block_table.push(self.pool.allocate()?);
        }
        Some(())
    }
}
