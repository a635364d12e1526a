use passerelle_models::KvReach::{self, Full, Window};

use super::*;
use crate::event_stream::EventStream;
use crate::fixtures::{kv_cache, request, sequence};
use crate::prefix::BlockKey;
use crate::request::{CacheSalt, SamplingParams};

fn sequence_of(length: u32) -> (Sequence, EventStream) {
    sequence(request(0, &(0..length).collect::<Vec<_>>()))
}

fn ids(blocks: &[u32]) -> Vec<BlockId> {
    blocks.iter().copied().map(BlockId).collect()
}

const MAX_STEP_TOKENS: usize = 100;

/// Blocks of four tokens, all of which every layer looks at.
fn full(num_blocks: usize) -> KvCacheManager {
    KvCacheManager::new(num_blocks, kv_cache(4, &[Full]), MAX_STEP_TOKENS)
}

fn window(tokens: usize) -> KvReach {
    Window(tokens.try_into().unwrap())
}

/// Blocks of four tokens, steps of at most eight.
fn grouped(num_blocks: usize, reaches: &[KvReach]) -> KvCacheManager {
    KvCacheManager::new(num_blocks, kv_cache(4, reaches), 8)
}

fn compute(cache: &mut KvCacheManager, sequence: &mut Sequence, num_tokens: usize) {
    sequence.num_scheduled = num_tokens - sequence.num_computed;
    cache.advance(sequence);
    cache.check_integrity(std::iter::once(&*sequence));
}

/// In steps as long as may be.
fn compute_all(cache: &mut KvCacheManager, sequence: &mut Sequence) {
    while sequence.num_remaining() > 0 {
        cache.grow(sequence, &mut Vec::new()).unwrap();
        let end = sequence.tokens().len().min(sequence.num_computed + cache.max_step_tokens);
        compute(cache, sequence, end);
    }
}

/// Runs a sequence to the end of its prompt and gives its blocks back.
fn run_once(cache: &mut KvCacheManager, mut sequence: Sequence) {
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    compute_all(cache, &mut sequence);
    cache.release(&mut sequence, Prefixes::Keep);
    cache.check_integrity(std::iter::empty());
}

#[test]
fn a_prompt_seen_before_reuses_its_full_blocks_and_a_copy_of_the_one_it_had_begun() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    assert_eq!(cache.pool().num_cached(), 3);
    let (mut again, _stream) = sequence_of(11);
    let mut copies = Vec::new();
    cache.admit(&mut again, 0, &mut copies).unwrap();
    assert_eq!((again.num_computed, &again.block_tables[0]), (10, &ids(&[0, 1, 3])));
    assert_eq!(copies, [BlockCopy { from: BlockId(2), to: BlockId(3) }]);
    assert_eq!(cache.prefix_totals(), PrefixTotals { query_tokens: 21, hit_tokens: 10 });
    cache.check_integrity(std::iter::once(&again));
}

#[test]
fn a_sequence_that_resumes_is_not_counted_again() {
    let mut cache = full(10);
    let (mut sequence, _stream) = sequence_of(10);
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    assert!(sequence.start());
    compute(&mut cache, &mut sequence, 10);
    cache.release(&mut sequence, Prefixes::Keep);
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    assert_eq!(sequence.num_computed, 9);
    assert_eq!(cache.prefix_totals(), PrefixTotals { query_tokens: 10, hit_tokens: 0 });
}

#[test]
fn a_full_hit_still_computes_the_last_token() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(8).0);
    let (mut again, _stream) = sequence_of(8);
    let mut copies = Vec::new();
    cache.admit(&mut again, 0, &mut copies).unwrap();
    assert_eq!((again.num_computed, &again.block_tables[0]), (7, &ids(&[0, 2])));
    assert_eq!(copies, [BlockCopy { from: BlockId(1), to: BlockId(2) }]);
}

/// Blocks of eight tokens, of which two are a quarter.
#[test]
fn a_tail_shorter_than_a_quarter_of_a_block_is_computed() {
    let mut cache = KvCacheManager::new(10, kv_cache(8, &[Full]), MAX_STEP_TOKENS);
    let num_computed = |cache: &mut KvCacheManager, prompt: &[u32]| {
        let (mut sequence, _stream) = sequence(request(1, prompt));
        cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
        let num_computed = sequence.num_computed;
        cache.preempt(&mut sequence, &mut Vec::new());
        num_computed
    };
    run_once(&mut cache, sequence_of(16).0);
    assert_eq!(num_computed(&mut cache, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 77, 78, 79]), 8);
    assert_eq!(num_computed(&mut cache, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 78, 79]), 10);
    assert_eq!(num_computed(&mut cache, &[0, 77, 78]), 0);
    assert_eq!(num_computed(&mut cache, &[0, 1, 78]), 2);
}

#[test]
fn a_cache_without_room_for_a_copy_has_room_for_the_sequence() {
    let mut cache = full(3);
    run_once(&mut cache, sequence_of(10).0);
    let (mut again, _stream) = sequence_of(10);
    let mut copies = Vec::new();
    // All three blocks are needed, among them the one that would be copied.
    cache.admit(&mut again, 0, &mut copies).unwrap();
    assert_eq!((again.num_computed, copies.len()), (8, 0));
    cache.check_integrity(std::iter::once(&again));
}

#[test]
fn a_tail_is_copied_in_every_group_and_none_of_its_blocks_is_another_ones_room() {
    let reaches = [Full, window(6), window(6)];
    let mut num_copied = 0;
    for num_blocks in 9..30 {
        let mut cache = grouped(num_blocks, &reaches);
        run_once(&mut cache, sequence_of(10).0);
        // Whose blocks were used later: the first one's are given away before them.
        run_once(&mut cache, sequence(request(1, &[7; 10])).0);
        let (mut again, _stream) = sequence_of(10);
        let mut copies = Vec::new();
        cache.admit(&mut again, 0, &mut copies).unwrap();
        let targets: Vec<_> = copies.iter().map(|copy| copy.to).collect();
        assert!(copies.iter().all(|copy| !targets.contains(&copy.from)), "{num_blocks} blocks: {copies:?}");
        let own: Vec<_> = again.block_tables.iter().map(|table| table[again.num_computed / 4]).collect();
        assert!(copies.is_empty() || targets == own, "{num_blocks} blocks: {copies:?}");
        assert_eq!(again.num_computed == 9, !copies.is_empty(), "{num_blocks} blocks");
        cache.check_integrity(std::iter::once(&again));
        num_copied += copies.len() / reaches.len();
    }
    assert!(num_copied > 10, "{num_copied} of 21 caches had room for a copy");
}

#[test]
fn what_was_not_copied_yet_is_not_found() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    let (mut again, _stream) = sequence(request(1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 77]));
    let mut copies = Vec::new();
    cache.admit(&mut again, 0, &mut copies).unwrap();
    assert_eq!((again.num_computed, copies.len()), (9, 1));
    cache.preempt(&mut again, &mut copies);
    assert_eq!((copies.len(), cache.pool().num_cached()), (0, 3));
    cache.check_integrity(std::iter::empty());
}

#[test]
fn another_salt_finds_nothing() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    let mut other = request(1, &(0..10).collect::<Vec<_>>());
    other.cache_salt = CacheSalt([1; 32]);
    let (mut other, _stream) = sequence(other);
    cache.admit(&mut other, 0, &mut Vec::new()).unwrap();
    assert_eq!((other.num_computed, &other.block_tables[0]), (0, &ids(&[3, 4, 5])));
}

#[test]
fn a_request_for_prompt_logprobs_reuses_nothing() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    let mut asking = request(1, &(0..10).collect::<Vec<_>>());
    asking.sampling = SamplingParams { prompt_logprobs: Some(0), ..asking.sampling };
    let (mut asking, _stream) = sequence(asking);
    cache.admit(&mut asking, 0, &mut Vec::new()).unwrap();
    assert_eq!(asking.num_computed, 0);
}

#[test]
fn sequences_that_compute_the_same_side_by_side_end_up_with_one_copy() {
    let mut cache = full(10);
    let (mut one, mut other) = (sequence_of(10), sequence_of(10));
    for (sequence, _) in [&mut one, &mut other] {
        cache.admit(sequence, 0, &mut Vec::new()).unwrap();
    }
    for (sequence, _) in [&mut one, &mut other] {
        sequence.num_scheduled = 10;
        cache.advance(sequence);
    }
    assert_eq!((&one.0.block_tables[0], &other.0.block_tables[0]), (&ids(&[0, 1, 2]), &ids(&[0, 1, 5])));
    assert_eq!(cache.pool().num_free(), 6);
    cache.check_integrity([&one.0, &other.0].into_iter());
}

#[test]
fn no_room_changes_nothing_and_counts_cached_blocks_that_would_be_revived() {
    let mut cache = full(4);
    run_once(&mut cache, sequence_of(8).0);
    let (mut sequence, _stream) = sequence_of(16);
    // Two hits are free blocks themselves: with them and two new ones nothing is left to spare.
    assert_eq!(cache.admit(&mut sequence, 1, &mut Vec::new()), None);
    assert_eq!((sequence.num_computed, sequence.block_tables.len(), cache.pool().num_free()), (0, 0, 4));
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    assert_eq!(sequence.block_tables[0], ids(&[0, 1, 2, 3]));
    assert_eq!(cache.grow(&mut sequence, &mut Vec::new()), Some(()));
    sequence.append(0).unwrap();
    assert_eq!(cache.grow(&mut sequence, &mut Vec::new()), None);
    cache.check_integrity([&sequence].into_iter());
}

#[test]
fn whoever_writes_first_to_a_shared_block_copies_it_and_the_last_one_keeps_it() {
    let mut cache = full(4);
    let mut prompt = request(0, &[0, 1, 2, 3, 4, 5]);
    prompt.num_choices = 2.try_into().unwrap();
    let (mut parent, _stream) = sequence(prompt);
    cache.admit(&mut parent, 0, &mut Vec::new()).unwrap();
    compute(&mut cache, &mut parent, 6);
    let events = parent.events.take_further_choices().pop().unwrap();
    let mut fork = parent.fork(events);
    cache.share(&parent, &mut fork);
    assert_eq!(fork.block_tables[0], ids(&[0, 1]));
    let mut copies = Vec::new();
    for sequence in [&mut parent, &mut fork] {
        sequence.append(0).unwrap();
        cache.grow(sequence, &mut copies).unwrap();
    }
    assert_eq!((parent.block_tables[0].clone(), fork.block_tables[0].clone()), (ids(&[0, 2]), ids(&[0, 1])));
    assert_eq!(copies, [BlockCopy { from: BlockId(1), to: BlockId(2) }]);
    cache.check_integrity([&parent, &fork].into_iter());
}

#[test]
fn what_a_failed_sequence_computed_is_not_found_again() {
    let mut cache = full(10);
    let (mut failed, _stream) = sequence_of(8);
    cache.admit(&mut failed, 0, &mut Vec::new()).unwrap();
    compute(&mut cache, &mut failed, 8);
    cache.release(&mut failed, Prefixes::Forget);
    assert_eq!((cache.pool().num_cached(), cache.pool().num_free()), (0, 10));
}

#[test]
fn who_leaves_while_its_step_runs_names_no_tail() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    let (mut again, _stream) = sequence(request(1, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 77]));
    cache.admit(&mut again, 0, &mut Vec::new()).unwrap();
    // The copy may have failed, which is seen when the step is over.
    again.num_scheduled = 1;
    cache.release(&mut again, Prefixes::Keep);
    assert_eq!(cache.pool().num_cached(), 3);
}

#[test]
fn a_failed_sequence_names_no_tail_and_what_it_may_have_copied_is_not_found_again() {
    let mut cache = full(10);
    run_once(&mut cache, sequence_of(10).0);
    let (mut failed, _stream) = sequence_of(11);
    cache.admit(&mut failed, 0, &mut Vec::new()).unwrap();
    assert_eq!(failed.num_computed, 10);
    cache.release(&mut failed, Prefixes::Forget);
    assert_eq!(cache.pool().num_cached(), 0);
    cache.check_integrity(std::iter::empty());
}

#[test]
fn a_window_keeps_itself_and_a_step_and_gives_the_rest_back() {
    // 5 tokens before a step of 8 never touch more than 4 blocks; the sequence has 10.
    let mut cache = grouped(4, &[window(6)]);
    let (mut sequence, _stream) = sequence_of(40);
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    assert_eq!(sequence.block_tables[0].len(), 2, "room for the first step, not for the prompt");
    compute_all(&mut cache, &mut sequence);
    // The next token looks at tokens 35 to 39, of the last two blocks.
    assert_eq!((sequence.block_tables[0].len(), cache.pool().num_free()), (10, 2));
    cache.release(&mut sequence, Prefixes::Keep);
    assert_eq!(cache.pool().num_free(), 4);
}

#[test]
fn each_group_holds_what_it_looks_at() {
    let mut cache = grouped(20, &[Full, window(6), window(6)]);
    let (mut sequence, _stream) = sequence_of(17);
    cache.admit(&mut sequence, 0, &mut Vec::new()).unwrap();
    let lengths = |sequence: &Sequence| sequence.block_tables.iter().map(Vec::len).collect::<Vec<_>>();
    assert_eq!(lengths(&sequence), [5, 2, 2]);
    compute_all(&mut cache, &mut sequence);
    assert_eq!(lengths(&sequence), [5, 5, 5]);
    // Five blocks of the full group, and tokens 12 to 16 of both others.
    assert_eq!(cache.pool().num_free(), 20 - 5 - 2 * 2);
}

#[test]
fn a_hit_behind_a_window_needs_the_blocks_of_the_last_window_only() {
    let mut cache = grouped(13, &[window(6)]);
    run_once(&mut cache, sequence_of(41).0);
    assert_eq!(cache.pool().num_cached(), 11);
    // Who has other tokens takes the two blocks nobody knew, and the eight that fell behind the window first.
    let (mut other, _other_stream) = sequence(request(1, &[7; 37]));
    cache.admit(&mut other, 0, &mut Vec::new()).unwrap();
    compute_all(&mut cache, &mut other);
    cache.release(&mut other, Prefixes::Keep);
    let (mut again, _stream) = sequence_of(41);
    let hit = cache.cached_tokens(&mut again);
    assert_eq!(cache.pool().num_cached(), 3 + 10, "eight of ten full ones were evicted");
    assert_eq!(hit, 40, "tokens 35 to 39 are still there");
    cache.admit(&mut again, 0, &mut Vec::new()).unwrap();
    assert_eq!((again.num_computed, again.block_tables[0].len()), (40, 11));
    cache.check_integrity([&again].into_iter());
}

#[test]
fn a_prefix_counts_as_far_as_every_group_has_it() {
    let mut cache = grouped(40, &[Full, window(6)]);
    run_once(&mut cache, sequence_of(33).0);
    let (mut again, _stream) = sequence_of(33);
    assert_eq!(cache.cached_tokens(&mut again), 32);
    // Without the window's block of tokens 24 to 27, one can go on after 24 tokens, but not after 28 or 32.
    let hash = again.block_hashes(4)[6];
    let block = cache.pool.find(&BlockKey::new(1, hash)).unwrap();
    cache.pool.forget(block);
    assert_eq!(cache.cached_tokens(&mut again), 24);
    // What the full group misses ends it for all.
    let hash = again.block_hashes(4)[2];
    let block = cache.pool.find(&BlockKey::new(0, hash)).unwrap();
    cache.pool.forget(block);
    assert_eq!(cache.cached_tokens(&mut again), 8);
    cache.admit(&mut again, 0, &mut Vec::new()).unwrap();
    compute_all(&mut cache, &mut again);
}

#[test]
fn a_failed_sequence_is_forgotten_behind_its_window_too() {
    let mut cache = grouped(40, &[Full, window(6)]);
    let (mut failed, _stream) = sequence_of(33);
    cache.admit(&mut failed, 0, &mut Vec::new()).unwrap();
    compute_all(&mut cache, &mut failed);
    assert_eq!(cache.pool().num_cached(), 16);
    cache.release(&mut failed, Prefixes::Forget);
    assert_eq!((cache.pool().num_cached(), cache.pool().num_free()), (0, 40));
}
