//! Which blocks hold which sequence. The scheduler asks for room and gets it, or `None` and nothing changed.

use passerelle_models::{BlockCopy, BlockId};

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
        if sequence.may_reuse_prefix() && !sequence.has_started() {
            self.prefix.query_tokens += sequence.tokens().len() as u64;
            self.prefix.hit_tokens += sequence.num_computed as u64;
        }
        self.extend(sequence, num_new)
    }

    /// Gives `fork` every block of `parent`. The last one may be half full: whoever writes to it first copies it.
    pub(crate) fn share(&mut self, parent: &Sequence, fork: &mut Sequence) {
        parent.block_table.iter().for_each(|&block| self.pool.acquire(block));
        fork.block_table.clone_from(&parent.block_table);
        fork.num_computed = parent.num_computed;
        fork.num_registered_blocks = parent.num_registered_blocks;
    }

    /// The next token generated needs a block of its own.
    pub(crate) fn is_full(&self, sequence: &Sequence) -> bool {
        sequence.tokens().len().is_multiple_of(self.block_size)
    }

    /// Room for the first `num_tokens` tokens, in blocks that nobody else holds where they are to be written. `None` if
    /// there is none. A block to copy before that goes to `copies`.
    pub(crate) fn grow(
        &mut self,
        sequence: &mut Sequence,
        num_tokens: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> Option<()> {
        let num_new = num_tokens.div_ceil(self.block_size).saturating_sub(sequence.block_table.len());
        let shared = self.shared_block_to_write(sequence).filter(|_| num_tokens > sequence.num_computed);
        if self.pool.num_free() < num_new + usize::from(shared.is_some()) {
            return None;
        }
        if let Some(index) = shared {
            let (from, to) = (sequence.block_table[index], self.pool.allocate()?);
            sequence.block_table[index] = to;
            self.pool.release(from);
            copies.push(BlockCopy { from, to });
        }
        self.extend(sequence, num_new)
    }

    /// Blocks that the sequence will ask for in the step after the one in flight.
    pub(crate) fn blocks_of_next_step(&self, sequence: &Sequence) -> usize {
        if !sequence.samples_next() {
            return 0;
        }
        // Its choices part: all but the last to write copy the block that they share.
        let num_choices = sequence.choices().len();
        if self.is_full(sequence) { num_choices } else { num_choices - 1 }
    }

    /// Makes the blocks that have become full findable, each as one block however many sequences computed it. Only after
    /// their K/V were computed.
    ///
    /// So whoever holds a block holds all that come before it in its chain, and gives them back after it: in the pool's
    /// eviction order a prefix always stands behind what continues it.
    pub(crate) fn register(&mut self, sequence: &mut Sequence) {
        let full_blocks = sequence.num_computed / self.block_size;
        if sequence.num_registered_blocks == full_blocks {
            return;
        }
        sequence.block_hashes(self.block_size);
        for index in sequence.num_registered_blocks..full_blocks {
            let hash = sequence.block_hashes(self.block_size)[index];
            let own = sequence.block_table[index];
            let known = self.pool.register(own, hash);
            if known != own {
                // Somebody computed the same beside it, to the bit.
                self.pool.acquire(known);
                self.pool.release(own);
                sequence.block_table[index] = known;
            }
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

    /// The index of a block that the sequence writes to next and that others hold too.
    fn shared_block_to_write(&self, sequence: &Sequence) -> Option<usize> {
        let index = sequence.num_computed / self.block_size;
        let is_begun = !sequence.num_computed.is_multiple_of(self.block_size);
        (is_begun && self.pool.is_shared(*sequence.block_table.get(index)?)).then_some(index)
    }

    /// How many leading tokens need not be computed.
    pub(crate) fn cached_tokens(&self, sequence: &mut Sequence) -> usize {
        self.cached_prefix(sequence).len() * self.block_size
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
        assert!(sequence.start());
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
    fn sequences_that_compute_the_same_side_by_side_end_up_with_one_copy() {
        let mut cache = KvCacheManager::new(10, 4);
        let (mut one, mut other) = (sequence_of(10), sequence_of(10));
        for (sequence, _) in [&mut one, &mut other] {
            cache.admit(sequence, 0).unwrap();
        }
        for (sequence, _) in [&mut one, &mut other] {
            sequence.num_computed = 10;
            cache.register(sequence);
        }
        assert_eq!((&one.0.block_table, &other.0.block_table), (&ids(&[0, 1, 2]), &ids(&[0, 1, 5])));
        assert_eq!(cache.pool().num_free(), 6);
        let tables = [one.0.block_table.as_slice(), other.0.block_table.as_slice()];
        cache.pool().check_integrity(tables.into_iter());
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
        assert_eq!(cache.grow(&mut sequence, 16, &mut Vec::new()), Some(()));
        assert_eq!(cache.grow(&mut sequence, 17, &mut Vec::new()), None);
        cache.pool().check_integrity([sequence.block_table.as_slice()].into_iter());
    }

    #[test]
    fn whoever_writes_first_to_a_shared_block_copies_it_and_the_last_one_keeps_it() {
        let mut cache = KvCacheManager::new(4, 4);
        let mut prompt = request(0, &[0, 1, 2, 3, 4, 5]);
        prompt.num_choices = 2.try_into().unwrap();
        let (mut parent, _stream) = sequence(prompt);
        cache.admit(&mut parent, 0).unwrap();
        parent.num_computed = 6;
        let events = parent.events.take_further_choices().pop().unwrap();
        let mut fork = parent.fork(events);
        cache.share(&parent, &mut fork);
        assert_eq!(fork.block_table, ids(&[0, 1]));
        let mut copies = Vec::new();
        cache.grow(&mut parent, 7, &mut copies).unwrap();
        cache.grow(&mut fork, 7, &mut copies).unwrap();
        assert_eq!((parent.block_table.clone(), fork.block_table.clone()), (ids(&[0, 2]), ids(&[0, 1])));
        assert_eq!(copies, [BlockCopy { from: BlockId(1), to: BlockId(2) }]);
        let tables = [parent.block_table.as_slice(), fork.block_table.as_slice()];
        cache.pool().check_integrity(tables.into_iter());
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
