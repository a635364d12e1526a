//! The physical blocks: who holds them, which prefix they carry, and which is given away next.
//!
//! | operation | cost |
//! | --- | --- |
//! | allocate, acquire, release, find, find_tail, register | O(1) |
//! | check_integrity | O(blocks) |
//!
//! Free blocks form one doubly linked list, threaded by index through the block records. It is in eviction order:
//!
//! ```text
//! head                                                    tail
//! blocks without a prefix | cached blocks, least recently used first
//! ```
//!
//! A free block keeps its prefix until it is allocated again. The caller releases a sequence's blocks last block first,
//! and holds every block of a chain whose later block it holds; so the order is that of the leaves: a prefix is evicted
//! after all that continues it. Only blocks that fall behind a window come earlier, which nothing that continues needs.
//!
//! # What a block held before
//!
//! A block passes to its next holder as it is, and nothing of it is ever read: attention reads the slots below
//! `num_computed` and those of the step itself, a step writes its own slots before it reads them, and `num_computed` moves
//! only over slots that were written. So every slot is overwritten before it is read. A test of the real decoder fills
//! each block with NaN in the moment that it is handed out, and finds the same bits.

use passerelle_models::{BlockId, TokenId};

use crate::prefix::{BlockContents, BlockHash, BlockKey};
use crate::prefix_index::PrefixIndex;
use crate::tail_index::TailIndex;

#[derive(Debug)]
pub(crate) struct BlockPool {
    blocks: Vec<Block>,
    /// One past the last block: both ends of the free list.
    sentinel: u32,
    num_free: usize,
    prefixes: PrefixIndex,
    /// Of the blocks of group 0 that carry a prefix: the others' carry the same ones.
    tails: TailIndex,
}

#[derive(Debug, Clone, Default)]
struct Block {
    ref_count: u32,
    /// Neighbours in the free list. Meaningful only while `ref_count` is 0.
    previous: u32,
    next: u32,
}

impl BlockPool {
    pub(crate) fn new(num_blocks: usize, block_size: usize) -> Self {
        let sentinel = u32::try_from(num_blocks).expect("a cache of four billion blocks does not fit any memory");
        let mut blocks = vec![Block::default(); num_blocks + 1];
        blocks[num_blocks] = Block { previous: sentinel, next: sentinel, ..Block::default() };
        let (prefixes, tails) = (PrefixIndex::new(num_blocks), TailIndex::new(num_blocks, block_size));
        let mut pool = Self { blocks, sentinel, num_free: 0, prefixes, tails };
        for block in 0..sentinel {
            pool.link_before(sentinel, block);
        }
        pool
    }

    pub(crate) fn num_blocks(&self) -> usize {
        self.blocks.len() - 1
    }

    /// Blocks that nobody holds, with or without a prefix.
    pub(crate) fn num_free(&self) -> usize {
        self.num_free
    }

    /// Blocks that can be found by their prefix, held or free.
    pub(crate) fn num_cached(&self) -> usize {
        self.prefixes.len()
    }

    /// Up to `count` blocks that nobody holds, the next ones in eviction order. They stay free, and no prefix is found in
    /// them any more: nobody needs their contents.
    pub(crate) fn evict(&mut self, count: usize) -> Vec<BlockId> {
        let next = |block: &u32| Some(self.blocks[*block as usize].next);
        let free = std::iter::successors(Some(self.sentinel), next).skip(1);
        let evicted: Vec<_> = free.take_while(|block| *block != self.sentinel).take(count).map(BlockId).collect();
        evicted.iter().for_each(|&block| self.forget(block));
        evicted
    }

    pub(crate) fn is_free(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].ref_count == 0
    }

    pub(crate) fn is_shared(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].ref_count > 1
    }

    /// The next block in eviction order, held once, its prefix forgotten. `None` when every block is held.
    pub(crate) fn allocate(&mut self) -> Option<BlockId> {
        let block = self.blocks[self.sentinel as usize].next;
        if block == self.sentinel {
            return None;
        }
        self.unlink(block);
        self.blocks[block as usize].ref_count = 1;
        self.forget(BlockId(block));
        Some(BlockId(block))
    }

    /// One more holder of a block that was found by its prefix.
    pub(crate) fn acquire(&mut self, block: BlockId) {
        if self.is_free(block) {
            self.unlink(block.0);
        }
        self.blocks[block.0 as usize].ref_count += 1;
    }

    /// One holder less. The last one puts the block on the free list.
    pub(crate) fn release(&mut self, block: BlockId) {
        let record = &mut self.blocks[block.0 as usize];
        assert!(record.ref_count > 0, "{block:?} is released more often than it was acquired");
        record.ref_count -= 1;
        if record.ref_count > 0 {
            return;
        }
        let is_cached = self.carries_prefix(block);
        let before = if is_cached { self.sentinel } else { self.blocks[self.sentinel as usize].next };
        self.link_before(before, block.0);
    }

    pub(crate) fn find(&self, key: &BlockKey) -> Option<BlockId> {
        self.prefixes.find(key)
    }

    /// Of what is known behind `parent`, what begins most like `wanted`: its name, and for how many tokens it does.
    pub(crate) fn find_tail(&self, parent: &BlockHash, wanted: &[TokenId]) -> Option<(BlockHash, usize)> {
        let (block, num_tokens) = self.tails.find(parent, wanted)?;
        Some((self.prefixes.key(block)?.hash(), num_tokens))
    }

    fn carries_prefix(&self, block: BlockId) -> bool {
        self.prefixes.key(block).is_some()
    }

    /// Makes a block findable. Returns the block of these contents: this one, or one that was registered before.
    pub(crate) fn register(&mut self, block: BlockId, key: BlockKey, contents: BlockContents<'_>) -> BlockId {
        assert!(!self.is_free(block), "{block:?} is registered by someone who does not hold it");
        let known = self.prefixes.find_or_insert(key, block);
        if known == block && key.group() == 0 {
            self.tails.insert(block, contents.parent, contents.tokens);
        }
        known
    }

    /// The block can no longer be found; its holders keep it.
    pub(crate) fn forget(&mut self, block: BlockId) {
        self.prefixes.remove(block);
        self.tails.remove(block);
    }

    /// `tables` are the block tables of every live sequence.
    ///
    /// # Panics
    /// If a count, a link or a prefix does not add up.
    pub(crate) fn check_integrity<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) {
        let mut held = vec![0; self.num_blocks()];
        tables.flatten().for_each(|block| held[block.0 as usize] += 1);
        for (index, block) in self.blocks[..self.num_blocks()].iter().enumerate() {
            assert_eq!(block.ref_count, held[index], "holders of block {index}");
        }
        let free = self.free_list();
        assert_eq!(free.len(), self.num_free, "length of the free list");
        assert!(free.iter().all(|&block| self.is_free(block)), "a held block is on the free list");
        assert_eq!(held.iter().filter(|&&count| count == 0).count(), self.num_free, "free and held blocks add up");
        self.prefixes.check_integrity();
    }

    /// In eviction order.
    fn free_list(&self) -> Vec<BlockId> {
        let mut list = Vec::new();
        let mut at = self.blocks[self.sentinel as usize].next;
        while at != self.sentinel && list.len() <= self.num_blocks() {
            list.push(BlockId(at));
            at = self.blocks[at as usize].next;
        }
        list
    }

    fn link_before(&mut self, next: u32, block: u32) {
        let previous = self.blocks[next as usize].previous;
        self.blocks[block as usize].previous = previous;
        self.blocks[block as usize].next = next;
        self.blocks[previous as usize].next = block;
        self.blocks[next as usize].previous = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        self.blocks[previous as usize].next = next;
        self.blocks[next as usize].previous = previous;
        self.num_free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::CacheSalt;

    fn key(name: u32) -> BlockKey {
        BlockKey::new(0, BlockHash::root(&CacheSalt([0; 32])).child(&[name]))
    }

    fn contents() -> BlockContents<'static> {
        BlockContents { parent: BlockHash::root(&CacheSalt([0; 32])), tokens: &[] }
    }

    fn ids(blocks: &[u32]) -> Vec<BlockId> {
        blocks.iter().copied().map(BlockId).collect()
    }

    fn take(pool: &mut BlockPool, count: usize) -> Vec<BlockId> {
        (0..count).map(|_| pool.allocate().unwrap()).collect()
    }

    #[test]
    fn blocks_are_handed_out_in_order_until_none_is_left() {
        let mut pool = BlockPool::new(10, 1);
        assert_eq!(take(&mut pool, 10), ids(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(pool.allocate(), None);
        assert_eq!(pool.num_free(), 0);
        pool.release(BlockId(4));
        assert_eq!(pool.allocate(), Some(BlockId(4)));
    }

    #[test]
    fn cached_blocks_are_evicted_after_blocks_without_a_prefix_and_tails_first() {
        let mut pool = BlockPool::new(10, 1);
        let sequence = take(&mut pool, 4);
        (0..3).for_each(|i| _ = pool.register(sequence[i], key(i as u32), contents()));
        sequence.iter().rev().for_each(|&block| pool.release(block));
        pool.check_integrity(std::iter::empty());
        assert_eq!(pool.free_list(), ids(&[3, 4, 5, 6, 7, 8, 9, 2, 1, 0]));
        assert_eq!(take(&mut pool, 8), ids(&[3, 4, 5, 6, 7, 8, 9, 2]));
        assert_eq!(pool.find(&key(2)), None);
        assert_eq!(pool.find(&key(1)), Some(BlockId(1)));
    }

    #[test]
    fn evicted_blocks_stay_free_in_their_order_and_are_found_no_more() {
        let mut pool = BlockPool::new(4, 1);
        let sequence = take(&mut pool, 3);
        (0..3).for_each(|i| _ = pool.register(sequence[i], key(i as u32), contents()));
        sequence.iter().rev().for_each(|&block| pool.release(block));
        assert_eq!(pool.evict(2), ids(&[3, 2]));
        pool.check_integrity(std::iter::empty());
        assert_eq!([0, 1, 2].map(|name| pool.find(&key(name))), [Some(BlockId(0)), Some(BlockId(1)), None]);
        assert_eq!(pool.free_list(), ids(&[3, 2, 1, 0]));
        assert_eq!((pool.evict(100).len(), pool.num_cached()), (4, 0));
    }

    #[test]
    fn a_reused_block_moves_to_the_end_of_the_eviction_order() {
        let mut pool = BlockPool::new(3, 1);
        let blocks = take(&mut pool, 3);
        blocks.iter().for_each(|&block| _ = pool.register(block, key(block.0), contents()));
        blocks.iter().for_each(|&block| pool.release(block));
        assert_eq!(pool.free_list(), ids(&[0, 1, 2]));
        pool.acquire(BlockId(0));
        pool.acquire(BlockId(0));
        pool.check_integrity([ids(&[0, 0]).as_slice()].into_iter());
        pool.release(BlockId(0));
        assert_eq!(pool.num_free(), 2);
        pool.release(BlockId(0));
        assert_eq!(pool.free_list(), ids(&[1, 2, 0]));
    }

    #[test]
    fn a_second_block_of_the_same_contents_is_not_registered() {
        let mut pool = BlockPool::new(2, 1);
        assert!(take(&mut pool, 2).iter().all(|&block| pool.register(block, key(7), contents()) == BlockId(0)));
        assert_eq!(pool.find(&key(7)), Some(BlockId(0)));
        pool.release(BlockId(1));
        assert_eq!(pool.allocate(), Some(BlockId(1)));
        assert_eq!(pool.find(&key(7)), Some(BlockId(0)));
        assert_eq!(pool.num_cached(), 1);
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn a_double_release_is_caught() {
        let mut pool = BlockPool::new(2, 1);
        let block = pool.allocate().unwrap();
        pool.release(block);
        pool.release(block);
    }
}
