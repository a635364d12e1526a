//! Which blocks hold which sequence. The scheduler asks for room and gets it, or `None` and nothing changed.
//!
//! The model's layers form groups ([`KvCacheSpec`]), and a sequence has a block table in each. Groups differ in the first
//! key that a token looks at ([`KvReach::first_key`]), and so in the blocks that a sequence holds:
//!
//! ```text
//! group     | computed ........................ | known .......................... |
//! full      [ from the first key                                to the last token ]     taken when it is admitted
//! window                         [ from the window's first key    a step ahead ]        follows what is computed
//! ```
//!
//! A table keeps a place for each block of the sequence. What it says of those that lie wholly behind the window means
//! nothing: the sequence does not hold them, and nothing that stands there counts in attention.

use passerelle_models::{BlockCopy, BlockId, KvCacheSpec, KvReach};

use crate::block_pool::BlockPool;
use crate::sequence::Sequence;
use reuse::CachedPrefix;

mod reuse;

#[derive(Debug)]
pub(crate) struct KvCacheManager {
    pool: BlockPool,
    spec: KvCacheSpec,
    /// Tokens that a step runs at most.
    max_step_tokens: usize,
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

/// Stands in a table where a block behind the window would stand that the sequence never held.
const BEHIND_WINDOW: BlockId = BlockId(0);

impl KvCacheManager {
    pub(crate) fn new(num_blocks: usize, spec: KvCacheSpec, max_step_tokens: usize) -> Self {
        let pool = BlockPool::new(num_blocks, spec.block_size);
        Self { pool, spec, max_step_tokens, prefix: PrefixTotals::default() }
    }

    pub(crate) fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// See [`BlockPool::evict`].
    pub(crate) fn evict(&mut self, num_blocks: usize) -> Vec<BlockId> {
        self.pool.evict(num_blocks)
    }

    pub(crate) fn block_size(&self) -> usize {
        self.spec.block_size
    }

    pub(crate) fn prefix_totals(&self) -> PrefixTotals {
        self.prefix
    }

    /// Gives a sequence without blocks the room that it needs at first, reusing the longest cached prefix, which counts as
    /// computed at once. `spare_blocks` must stay free beside it. `None` if there is no room. Blocks to copy go to `copies`,
    /// and the sequence runs in the step that they are made for: that is where a failed one is noticed.
    ///
    /// At least the last token is always computed anew, because its logits are wanted. No shared block is ever written: the
    /// one in which the hit ends is copied.
    pub(crate) fn admit(
        &mut self,
        sequence: &mut Sequence,
        spare_blocks: usize,
        copies: &mut Vec<BlockCopy>,
    ) -> Option<()> {
        assert!(sequence.block_tables.is_empty(), "a sequence is admitted once");
        let prefix = self.prefix_with_room(sequence, spare_blocks)?;
        sequence.num_computed = prefix.num_tokens(self.spec.block_size);
        sequence.num_registered_blocks = prefix.num_blocks;
        sequence.copied_from = prefix.copied_from();
        // Only now: a head that does not fit comes here in every step.
        let most_blocks = self.most_blocks(sequence);
        sequence.make_room(most_blocks);
        sequence.block_tables = self.groups().map(|group| self.first_table(sequence, group, most_blocks)).collect();
        self.groups().for_each(|group| self.held(sequence, group).iter().for_each(|&block| self.pool.acquire(block)));
        // A resumed sequence finds its own blocks, which says nothing about prompts.
        if sequence.may_reuse_prefix() && !sequence.has_started() {
            self.prefix.query_tokens += sequence.tokens().len() as u64;
            self.prefix.hit_tokens += sequence.num_computed as u64;
        }
        // Held, so that none of them is given away as the room of another.
        let tail = self.tail_blocks(&prefix);
        tail.iter().for_each(|&block| self.pool.acquire(block));
        self.extend(sequence)?;
        let own = sequence.block_tables.iter().filter_map(|table| table.get(prefix.num_blocks).copied());
        copies.extend(tail.iter().copied().zip(own).map(|(from, to)| BlockCopy { from, to }));
        tail.iter().for_each(|&block| self.pool.release(block));
        Some(())
    }

    /// What the sequence can begin with if `spare_blocks` are to stay free. Without its tail it takes less, so that who is
    /// alone fits into every cache that has room for it.
    fn prefix_with_room(&self, sequence: &mut Sequence, spare_blocks: usize) -> Option<CachedPrefix> {
        let prefix = self.cached_prefix(sequence);
        [prefix, prefix.without_tail()].into_iter().find(|prefix| {
            let taken: usize = self.groups().map(|group| self.blocks_to_admit(sequence, group, prefix)).sum();
            self.pool.num_free() >= taken + spare_blocks
        })
    }

    /// No fewer blocks let the sequence begin.
    pub(crate) fn fewest_to_admit(&self, sequence: &mut Sequence) -> usize {
        let prefix = self.cached_prefix(sequence).without_tail();
        self.groups().map(|group| self.blocks_to_admit(sequence, group, &prefix)).sum()
    }

    /// Blocks of the sequence, some of which others may hold, too.
    pub(crate) fn num_held(&self, sequence: &Sequence) -> usize {
        self.groups().map(|group| self.held(sequence, group).len()).sum()
    }

    /// Gives `fork` every block of `parent`. The last ones may be half full: whoever writes to one first copies it.
    pub(crate) fn share(&mut self, parent: &Sequence, fork: &mut Sequence) {
        let most_blocks = self.most_blocks(fork);
        let own_table = |table: &Vec<BlockId>| table_of(table.iter().copied(), most_blocks);
        fork.block_tables = parent.block_tables.iter().map(own_table).collect();
        fork.make_room(most_blocks);
        fork.num_computed = parent.num_computed;
        fork.num_registered_blocks = parent.num_registered_blocks;
        self.groups().for_each(|group| self.held(fork, group).iter().for_each(|&block| self.pool.acquire(block)));
    }

    /// Room for whatever the next step runs of the sequence, in blocks that nobody else holds where they are to be written.
    /// `None` if there is none. Blocks to copy before that go to `copies`.
    pub(crate) fn grow(&mut self, sequence: &mut Sequence, copies: &mut Vec<BlockCopy>) -> Option<()> {
        if self.pool.num_free() < self.blocks_to_grow(sequence) {
            return None;
        }
        for group in self.groups() {
            if let Some(index) = self.shared_block_to_write(sequence, group) {
                let (from, to) = (sequence.block_tables[group][index], self.pool.allocate()?);
                sequence.block_tables[group][index] = to;
                self.pool.release(from);
                copies.push(BlockCopy { from, to });
            }
        }
        self.extend(sequence)
    }

    /// Blocks that [`KvCacheManager::grow`] would take.
    pub(crate) fn blocks_to_grow(&self, sequence: &Sequence) -> usize {
        let num_new: usize = self.groups().map(|group| self.missing_blocks(sequence, group)).sum();
        let num_copied = self.groups().filter(|&group| self.shared_block_to_write(sequence, group).is_some()).count();
        num_new + num_copied
    }

    /// Takes every block from a sequence that was to run in the next step, and what it wanted copied for that: its blocks
    /// may be somebody else's by then.
    pub(crate) fn preempt(&mut self, sequence: &mut Sequence, copies: &mut Vec<BlockCopy>) {
        let index = sequence.num_computed / self.spec.block_size;
        copies.retain(|copy| !sequence.block_tables.iter().any(|table| table.get(index) == Some(&copy.to)));
        self.take_blocks(sequence);
    }

    /// What was scheduled is computed: blocks that have become full are findable from now on, and those that lie wholly
    /// behind a window are given back.
    pub(crate) fn advance(&mut self, sequence: &mut Sequence) {
        let before = sequence.num_computed;
        sequence.num_computed += std::mem::take(&mut sequence.num_scheduled);
        self.register(sequence);
        for group in self.groups() {
            let behind = self.first_block(group, before)..self.first_block(group, sequence.num_computed);
            sequence.block_tables[group][behind].iter().for_each(|&block| self.pool.release(block));
        }
    }

    /// Blocks that the next generated token needs.
    pub(crate) fn blocks_of_next_token(&self, sequence: &Sequence) -> usize {
        let is_full = sequence.tokens().len().is_multiple_of(self.spec.block_size);
        if is_full { self.spec.groups.len() } else { 0 }
    }

    /// Blocks that the sequence will ask for in the step after the one in flight.
    pub(crate) fn blocks_of_next_step(&self, sequence: &Sequence) -> usize {
        if !sequence.samples_next() {
            return 0;
        }
        // Its choices part: all but the last to write copy the block that they share.
        let num_choices = sequence.choices().len();
        let num_copied = (num_choices - 1) * self.spec.groups.len();
        num_copied.max(num_choices * self.blocks_of_next_token(sequence))
    }

    /// Takes every block from the sequence, the last ones first; nothing of it is computed any more.
    pub(crate) fn release(&mut self, sequence: &mut Sequence, prefixes: Prefixes) {
        match prefixes {
            Prefixes::Keep => self.register_tail(sequence),
            Prefixes::Forget => self.forget(sequence),
        }
        self.take_blocks(sequence);
    }

    fn take_blocks(&mut self, sequence: &mut Sequence) {
        let longest = sequence.block_tables.iter().map(Vec::len).max().unwrap_or(0);
        for index in (0..longest).rev() {
            for group in self.groups() {
                let is_held = index >= self.first_block(group, sequence.num_computed);
                if let Some(&block) = sequence.block_tables[group].get(index).filter(|_| is_held) {
                    self.pool.release(block);
                }
            }
        }
        sequence.block_tables.clear();
        sequence.num_computed = 0;
        sequence.num_registered_blocks = 0;
        sequence.copied_from = None;
    }

    /// `sequences` are all that hold blocks.
    ///
    /// # Panics
    /// If blocks and their holders do not add up, or a sequence holds more than its windows need.
    pub(crate) fn check_integrity<'a>(&self, sequences: impl Iterator<Item = &'a Sequence>) {
        let mut tables = Vec::new();
        for sequence in sequences {
            let held: Vec<_> = self.groups().map(|group| self.held(sequence, group)).collect();
            let most = self.spec.most_blocks(sequence.tokens().len(), self.max_step_tokens);
            assert!(held.iter().map(|table| table.len()).sum::<usize>() <= most, "more blocks than {most} are held");
            tables.extend(held);
        }
        self.pool.check_integrity(tables.into_iter());
    }

    fn groups(&self) -> std::ops::Range<usize> {
        0..self.spec.groups.len()
    }

    /// The blocks of a group that the sequence holds: all from the first that its next token looks at.
    fn held<'a>(&self, sequence: &'a Sequence, group: usize) -> &'a [BlockId] {
        &sequence.block_tables[group][self.first_block(group, sequence.num_computed)..]
    }

    /// The block of the first key that the token after `num_computed` others looks at.
    fn first_block(&self, group: usize, num_computed: usize) -> usize {
        self.spec.groups[group].reach.first_key(num_computed) / self.spec.block_size
    }

    /// One past the last block that the next step may write to. A group that keeps everything takes room for every known
    /// token at once, so that whoever was admitted is computed to the end.
    fn end_block(&self, group: usize, num_computed: usize, sequence: &Sequence) -> usize {
        let all = sequence.tokens().len();
        let end = match self.spec.groups[group].reach {
            KvReach::Full => all,
            KvReach::Window(_) => all.min(num_computed + self.max_step_tokens),
        };
        end.div_ceil(self.spec.block_size)
    }

    /// Of one table, with the longest answer.
    fn most_blocks(&self, sequence: &Sequence) -> usize {
        sequence.most_tokens().div_ceil(self.spec.block_size)
    }

    fn missing_blocks(&self, sequence: &Sequence, group: usize) -> usize {
        let end = self.end_block(group, sequence.num_computed, sequence);
        end.saturating_sub(sequence.block_tables[group].len())
    }

    fn extend(&mut self, sequence: &mut Sequence) -> Option<()> {
        for group in self.groups() {
            for _ in 0..self.missing_blocks(sequence, group) {
                sequence.block_tables[group].push(self.pool.allocate()?);
            }
        }
        Some(())
    }

    /// Blocks of a group that are free until a sequence with this prefix is admitted: cached ones that nobody holds, and new
    /// ones.
    fn blocks_to_admit(&self, sequence: &mut Sequence, group: usize, prefix: &CachedPrefix) -> usize {
        let num_computed = prefix.num_tokens(self.spec.block_size);
        let num_new = self.end_block(group, num_computed, sequence) - prefix.num_blocks;
        let cached = self.cached_blocks(sequence, group, num_computed).chain(self.tail_block(group, prefix));
        num_new + cached.filter(|&block| self.pool.is_free(block)).count()
    }

    /// The table that it begins with.
    fn first_table(&self, sequence: &mut Sequence, group: usize, most_blocks: usize) -> Vec<BlockId> {
        let num_computed = sequence.num_computed;
        let behind = std::iter::repeat_n(BEHIND_WINDOW, self.first_block(group, num_computed));
        table_of(behind.chain(self.cached_blocks(sequence, group, num_computed)), most_blocks)
    }

    /// The index of a block that the sequence writes to next and that others hold too.
    fn shared_block_to_write(&self, sequence: &Sequence, group: usize) -> Option<usize> {
        let index = sequence.num_computed / self.spec.block_size;
        let is_begun = !sequence.num_computed.is_multiple_of(self.spec.block_size);
        (is_begun && self.pool.is_shared(*sequence.block_tables[group].get(index)?)).then_some(index)
    }
}

/// Has room for the longest answer at once, so that no token of it takes any.
fn table_of(blocks: impl Iterator<Item = BlockId>, most_blocks: usize) -> Vec<BlockId> {
    let mut table = Vec::with_capacity(most_blocks);
    table.extend(blocks);
    table
}

#[cfg(test)]
mod tests;
