//! What steps allocate: nothing for a token that is generated, and at their peak what is reckoned.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only passes on")]
#![expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::num::NonZeroU32;

use passerelle_engine::testing::{FreeModel, parts};
use passerelle_engine::{Class, EngineConfig, EventStream, Request, RequestId, SamplingParams, ShareKey, StepLoop};
use passerelle_models::input::SequenceInput;
use passerelle_models::ops::Compute;
use passerelle_models::{BlockId, LoadOptions, LoadedModel, ModelInput, demo_checkpoint, load, unwatched};

/// More than a sequence generates here, so that each of its tokens can be another one.
const VOCAB: usize = 256;
/// Enough for every sequence to fill several blocks of the cache and chunks of its reader's queue.
const STEPS: usize = 64;
/// Until all prompts are computed and each reader's queue has the chunks that it uses in turn.
const WARM_UP: usize = 120;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes that this thread took and did not give back, and the most that they were.
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
}

fn hold(bytes: i64) {
    HELD.with(|held| {
        let (now, most) = held.get();
        held.set((now + bytes, most.max(now + bytes)));
    });
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        hold(layout.size() as i64);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        hold(size as i64 - layout.size() as i64);
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Allocations of all steps together, with so many sequences that generate, of requests with so many choices.
fn allocations(sequences: u64, num_choices: NonZeroU32, (class, sampling): (Class, &SamplingParams)) -> u64 {
    let config = EngineConfig { num_kv_blocks: 4096, max_num_seqs: 256, ..EngineConfig::default() };
    let (mut step_loop, handle) = StepLoop::new(parts(FreeModel::new(vec![0.0; VOCAB]), config)).unwrap();
    let submit = |id| {
        let request = Request::new(RequestId(id), vec![1; 40], sampling.clone());
        handle.submit(Request { class, share_key: ShareKey(id % 5), num_choices, ..request }).unwrap()
    };
    let mut streams: Vec<EventStream> = (0..sequences / u64::from(num_choices.get())).map(submit).collect();
    let read =
        |streams: &mut Vec<EventStream>| streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
    for _ in 0..WARM_UP {
        step_loop.step();
        read(&mut streams);
    }
    let mut total = 0;
    for _ in 0..STEPS {
        let before = ALLOCATIONS.get();
        assert_eq!(step_loop.step().generated_tokens, sequences as usize);
        total += ALLOCATIONS.get() - before;
        read(&mut streams);
    }
    total
}

#[test]
fn no_allocation_is_made_for_a_token_that_is_the_best_or_is_drawn() {
    let best = SamplingParams { max_tokens: 500, temperature: 0.0, ..SamplingParams::default() };
    let of_all = SamplingParams { temperature: 1.0, top_p: 0.9, min_p: 0.01, typical_p: 0.9, ..best.clone() };
    let of_some = SamplingParams { top_k: Some(20), ..of_all.clone() };
    // Each token is a new one, because those before it were made less likely.
    let of_others = SamplingParams { frequency_penalty: 1.0, ..best.clone() };
    for sampling in [best, of_all, of_some, of_others] {
        assert_none_for_a_token(NonZeroU32::MIN, &sampling);
    }
}

#[test]
fn no_allocation_is_made_for_a_token_of_one_choice_among_several() {
    let best = SamplingParams { max_tokens: 500, temperature: 0.0, ..SamplingParams::default() };
    let drawn = SamplingParams { temperature: 1.0, ..best.clone() };
    let of_others = SamplingParams { frequency_penalty: 1.0, ..best.clone() };
    for sampling in [best, drawn, of_others] {
        assert_none_for_a_token(NonZeroU32::MIN.saturating_add(1), &sampling);
    }
}

fn assert_none_for_a_token(num_choices: NonZeroU32, sampling: &SamplingParams) {
    for class in [Class::Standard, Class::Batch] {
        // Both are of every share.
        let [few, many] = [10, 200].map(|sequences| allocations(sequences, num_choices, (class, sampling)));
        let per_step = few as f64 / STEPS as f64;
        assert_eq!(many, few, "a step allocates the same for 200 sequences as for 10: {class:?} {sampling:?}");
        assert!(per_step < 40.0, "{per_step} allocations a step: {class:?} {sampling:?}");
    }
}

/// The most that a step of `tokens` tokens, `rows` of which give logits, holds beside weights and KV cache.
fn peak(model: &LoadedModel, tokens: usize, rows: usize) -> i64 {
    let spec = model.model.kv_cache_spec();
    let blocks = tokens.div_ceil(spec.block_size);
    let mut cache = model.model.new_kv_cache(blocks).unwrap();
    let (ids, table) = (vec![5; tokens], vec![(0..blocks as u32).map(BlockId).collect()]);
    let sample: Vec<usize> = (tokens - rows..tokens).collect();
    let sequence = SequenceInput { tokens: &ids, num_computed: 0, block_tables: &table, sample: &sample };
    let input = ModelInput::new(spec.block_size, &[sequence]).unwrap();
    let before = HELD.get().0;
    HELD.set((before, before));
    drop(model.model.forward(&input, &mut cache).unwrap());
    HELD.get().1 - before
}

#[test]
fn a_step_holds_at_its_peak_what_is_reckoned() {
    let model = load(&demo_checkpoint(), &Compute::cpu(1), &LoadOptions::default(), &mut unwatched).unwrap();
    // Once unmeasured: what a thread makes for its first step stays.
    peak(&model, 16, 1);
    for (tokens, rows) in [(512, 1), (512, 64), (1024, 128), (256, 256), (64, 48)] {
        let (found, reckoned) = (peak(&model, tokens, rows), model.activations.bytes(tokens, rows) as i64);
        let apart = (found - reckoned).abs() as f64 / found as f64;
        assert!(apart <= 0.03, "{tokens} tokens and {rows} rows: {found} held, {reckoned} reckoned");
    }
}
