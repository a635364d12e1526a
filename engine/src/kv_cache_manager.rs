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
        // A resumed sequence finds its own blocks, which says nothing about prompts.
        if sequence.may_reuse_prefix() && sequence.ticket.is_queued() {
            self.prefix.query_tokens += sequence.tokens().len() as u64;
            self.prefix.hit_tokens += sequence.num_computed as u64;
        }
        self.extend(sequence, num_new)
    }

    /// The next token generated needs a block of its own.
    pub(crate) fn is_full(&self, sequence: &Sequence) -> bool {
        sequence.tokens().len().is_multiple_of(self.block_size)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_stream::EventStream;
    use crate::fixtures::{request, sequence};
    use crate::request::{CacheSalt, SamplingParams};

    fn sequence_of(length: u32) -> (Sequence, EventStream) {
        sequence(request(0, &(0..length).collect::<Vec<_>>()))
    }

    fn ids(blocks: &[u32]) -> Vec<BlockId> {
        blocks.iter().copied().map(BlockId).collect()
    }

    /// Runs a sequence to the end of its prompt and gives its blocks back.
    fn run_once(cache: &mut KvCacheManager, mut sequence: Sequence) {
        cache.admit(&mut sequence, 0).unwrap();
        sequence.num_computed = sequence.tokens().len();
        cache.register(&mut sequence);
        cache.release(&mut sequence, Prefixes::Keep);
        cache.pool().check_integrity(std::iter::empty());
    }

    #[test]
    fn a_prompt_seen_before_reuses_its_full_blocks() {
        let mut cache = KvCacheManager::new(10, 4);
        run_once(&mut cache, sequence_of(10).0);
        assert_eq!(cache.pool().num_cached(), 2);
        let (mut again, _stream) = sequence_of(11);
        cache.admit(&mut again, 0).unwrap();
        assert_eq!((again.num_computed, &again.block_table), (8, &ids(&[0, 1, 2])));
        assert_eq!(cache.prefix_totals(), PrefixTotals { query_tokens: 21, hit_tokens: 8 });
    }

    #[test]
    fn a_sequence_that_resumes_is_not_counted_again() {
        let mut cache = KvCacheManager::new(10, 4);
        let (mut sequence, _stream) = sequence_of(10);
        cache.admit(&mut sequence, 0).unwrap();
        assert!(sequence.ticket.leave_queue());
        sequence.num_computed = 10;
        cache.register(&mut sequence);
        cache.release(&mut sequence, Prefixes::Keep);
        cache.admit(&mut sequence, 0).unwrap();
        assert_eq!(sequence.num_computed, 8);
        assert_eq!(cache.prefix_totals(), PrefixTotals { query_tokens: 10, hit_tokens: 0 });
    }

    #[test]
    fn a_full_hit_still_computes_the_last_token() {
        let mut cache = KvCacheManager::new(10, 4);
        run_once(&mut cache, sequence_of(8).0);
        let (mut again, _stream) = sequence_of(8);
        cache.admit(&mut again, 0).unwrap();
        assert_eq!((again.num_computed, &again.block_table), (4, &ids(&[0, 2])));
    }

    #[test]
    fn another_salt_finds_nothing() {
        let mut cache = KvCacheManager::new(10, 4);
        run_once(&mut cache, sequence_of(10).0);
        let mut other = request(1, &(0..10).collect::<Vec<_>>());
        other.cache_salt = CacheSalt([1; 32]);
        let (mut other, _stream) = sequence(other);
        cache.admit(&mut other, 0).unwrap();
        assert_eq!((other.num_computed, &other.block_table), (0, &ids(&[2, 3, 4])));
    }

    #[test]
    fn a_request_for_prompt_logprobs_reuses_nothing() {
        let mut cache = KvCacheManager::new(10, 4);
        run_once(&mut cache, sequence_of(10).0);
        let mut asking = request(1, &(0..10).collect::<Vec<_>>());
        asking.sampling = SamplingParams { prompt_logprobs: Some(0), ..asking.sampling };
        let (mut asking, _stream) = sequence(asking);
        cache.admit(&mut asking, 0).unwrap();
        assert_eq!(asking.num_computed, 0);
    }

    #[test]
    fn no_room_changes_nothing_and_counts_cached_blocks_that_would_be_revived() {
        let mut cache = KvCacheManager::new(4, 4);
        run_once(&mut cache, sequence_of(8).0);
        let (mut sequence, _stream) = sequence_of(16);
        // Two hits are free blocks themselves: with them and two new ones nothing is left to spare.
        assert_eq!(cache.admit(&mut sequence, 1), None);
        assert_eq!((sequence.num_computed, sequence.block_table.len(), cache.pool().num_free()), (0, 0, 4));
        cache.admit(&mut sequence, 0).unwrap();
        assert_eq!(sequence.block_table, ids(&[0, 1, 2, 3]));
        assert_eq!(cache.grow(&mut sequence, 16), Some(()));
        assert_eq!(cache.grow(&mut sequence, 17), None);
        cache.pool().check_integrity([sequence.block_table.as_slice()].into_iter());
    }

    #[test]
    fn what_a_failed_sequence_computed_is_not_found_again() {
        let mut cache = KvCacheManager::new(10, 4);
        let (mut failed, _stream) = sequence_of(8);
        cache.admit(&mut failed, 0).unwrap();
        failed.num_computed = 8;
        cache.register(&mut failed);
        cache.release(&mut failed, Prefixes::Forget);
        assert_eq!((cache.pool().num_cached(), cache.pool().num_free()), (0, 10));
    }
}
