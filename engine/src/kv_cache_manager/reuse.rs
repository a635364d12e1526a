//! What of a sequence is cached already, and what of it becomes findable for others.

use passerelle_models::{BlockId, KvReach};

use super::KvCacheManager;
use crate::prefix::{BlockHash, BlockKey};
use crate::sequence::Sequence;

/// A tail is copied from this part of a block on: for fewer tokens, computing them along costs less.
const LEAST_PART_OF_BLOCK: usize = 4;

/// The leading tokens of a sequence that need not be computed.
///
/// ```text
/// tokens  [ full blocks, found by their names | tail | to be computed, the last token among them ]
///                                              of a block that begins with them
/// ```
#[derive(Debug, Clone, Copy)]
pub(super) struct CachedPrefix {
    pub(super) num_blocks: usize,
    tail: Option<Tail>,
}

#[derive(Debug, Clone, Copy)]
struct Tail {
    /// Of the block that begins with it.
    hash: BlockHash,
    num_tokens: usize,
}

impl CachedPrefix {
    pub(super) fn num_tokens(&self, block_size: usize) -> usize {
        self.num_blocks * block_size + self.tail.map_or(0, |tail| tail.num_tokens)
    }

    /// The block that the tail is copied from.
    pub(super) fn copied_from(&self) -> Option<BlockHash> {
        self.tail.map(|tail| tail.hash)
    }

    pub(super) fn without_tail(&self) -> Self {
        Self { tail: None, ..*self }
    }
}

impl KvCacheManager {
    /// How many leading tokens need not be computed.
    pub(crate) fn cached_tokens(&self, sequence: &mut Sequence) -> usize {
        self.cached_prefix(sequence).num_tokens(self.spec.block_size)
    }

    pub(super) fn cached_prefix(&self, sequence: &mut Sequence) -> CachedPrefix {
        if !sequence.may_reuse_prefix() {
            return CachedPrefix { num_blocks: 0, tail: None };
        }
        let num_blocks = self.cached_full_blocks(sequence);
        CachedPrefix { num_blocks, tail: self.cached_tail(sequence, num_blocks) }
    }

    /// The longest prefix of full blocks after which every group finds all that the next token looks at.
    fn cached_full_blocks(&self, sequence: &mut Sequence) -> usize {
        let longest = (sequence.tokens().len() - 1) / self.spec.block_size;
        let hashes = &sequence.block_hashes(self.spec.block_size)[..longest];
        let is_missing = |group: usize, index: usize| self.pool.find(&BlockKey::new(group, hashes[index])).is_none();
        let missing_in = |group: usize, num_blocks: usize| {
            let needed = self.first_block(group, num_blocks * self.spec.block_size)..num_blocks;
            needed.into_iter().find(|&index| is_missing(group, index))
        };
        let is_full = |group: &usize| self.spec.groups[*group].reach == KvReach::Full;
        // What a group that looks at everything finds of a prefix, it finds of every shorter one: once is enough.
        let full = self.groups().filter(is_full);
        let mut num_blocks =
            full.fold(longest, |num_blocks, group| missing_in(group, num_blocks).unwrap_or(num_blocks));
        // No longer prefix does without the block that is missing: what comes before it is looked at in turn.
        let windowed = self.groups().filter(|group| !is_full(group));
        while let Some(missing) = windowed.clone().find_map(|group| missing_in(group, num_blocks)) {
            num_blocks = missing;
        }
        num_blocks
    }

    /// What is known to go on like the sequence behind its first blocks, in every group. Of what comes before, the token
    /// behind it looks at no more than the one behind those blocks.
    fn cached_tail(&self, sequence: &mut Sequence, num_blocks: usize) -> Option<Tail> {
        let block_size = self.spec.block_size;
        let but_the_last = sequence.tokens().len() - 1;
        let wanted = sequence.contents(block_size, num_blocks, but_the_last);
        let (hash, num_tokens) = self.pool.find_tail(&wanted.parent, wanted.tokens)?;
        let is_everywhere = self.groups().all(|group| self.pool.find(&BlockKey::new(group, hash)).is_some());
        let is_worth_it = num_tokens * LEAST_PART_OF_BLOCK >= block_size && num_tokens < block_size;
        (is_everywhere && is_worth_it).then_some(Tail { hash, num_tokens })
    }

    /// The blocks that the tail is copied from, by group.
    pub(super) fn tail_blocks(&self, prefix: &CachedPrefix) -> Vec<BlockId> {
        self.groups().filter_map(|group| self.tail_block(group, prefix)).collect()
    }

    pub(super) fn tail_block(&self, group: usize, prefix: &CachedPrefix) -> Option<BlockId> {
        self.pool.find(&BlockKey::new(group, prefix.tail?.hash))
    }

    /// The cached blocks of a group that a sequence needs which goes on after `num_computed` tokens of a cached prefix.
    pub(super) fn cached_blocks(
        &self,
        sequence: &mut Sequence,
        group: usize,
        num_computed: usize,
    ) -> impl Iterator<Item = BlockId> {
        let needed = self.first_block(group, num_computed)..num_computed / self.spec.block_size;
        let hashes = &sequence.block_hashes(self.spec.block_size)[needed];
        hashes.iter().filter_map(move |&hash| self.pool.find(&BlockKey::new(group, hash)))
    }

    /// Makes the blocks that have become full findable, each as one block however many sequences computed it. Only after
    /// their K/V were computed.
    ///
    /// So whoever holds a block of a full group holds all that come before it in its chain, and gives them back after it:
    /// in the pool's eviction order a prefix always stands behind what continues it.
    pub(super) fn register(&mut self, sequence: &mut Sequence) {
        let new_blocks = sequence.num_registered_blocks..sequence.num_computed / self.spec.block_size;
        if new_blocks.is_empty() {
            return;
        }
        for index in new_blocks.clone() {
            let hash = sequence.block_hashes(self.spec.block_size)[index];
            for group in self.groups() {
                let own = sequence.block_tables[group][index];
                let contents = sequence.contents(self.spec.block_size, index, usize::MAX);
                let known = self.pool.register(own, BlockKey::new(group, hash), contents);
                if known != own {
                    // Somebody computed the same beside it, to the bit.
                    self.pool.acquire(known);
                    self.pool.release(own);
                    sequence.block_tables[group][index] = known;
                }
            }
        }
        sequence.num_registered_blocks = new_blocks.end;
    }

    /// Makes the block findable that the sequence leaves half full. Others who hold it write behind what is named of it.
    ///
    /// Nothing of a sequence that leaves before its step has ended well: the copy of its beginning may have failed.
    pub(super) fn register_tail(&mut self, sequence: &mut Sequence) {
        let index = sequence.num_computed / self.spec.block_size;
        if sequence.num_scheduled > 0 || sequence.num_computed.is_multiple_of(self.spec.block_size) {
            return;
        }
        let blocks: Vec<_> = sequence.block_tables.iter().filter_map(|table| table.get(index).copied()).collect();
        let contents = sequence.contents(self.spec.block_size, index, sequence.num_computed);
        let hash = contents.parent.child(contents.tokens);
        for (group, block) in blocks.into_iter().enumerate() {
            // One that carries a name, from whoever shared it, carries that of no more tokens.
            self.pool.register(block, BlockKey::new(group, hash), contents);
        }
    }

    /// What the sequence has registered can no longer be found, whoever holds it now, nor what it has copied.
    pub(super) fn forget(&mut self, sequence: &mut Sequence) {
        let num_registered = sequence.num_registered_blocks;
        let hashes = sequence.block_hashes(self.spec.block_size)[..num_registered].to_vec();
        hashes.into_iter().for_each(|hash| self.forget_named(hash));
        if let Some(hash) = sequence.copied_from {
            self.forget_named(hash);
        }
    }

    fn forget_named(&mut self, hash: BlockHash) {
        for group in self.groups() {
            if let Some(block) = self.pool.find(&BlockKey::new(group, hash)) {
                self.pool.forget(block);
            }
        }
    }
}
