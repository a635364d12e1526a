//! A step's allocations do not depend on how many sequences generate: none is made for a token.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only passes on")]
#![expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use passerelle_engine::testing::{FreeModel, parts};
use passerelle_engine::{EngineConfig, EventStream, Request, RequestId, SamplingParams, ShareKey, StepLoop};

const VOCAB: usize = 32;
/// Longer than the measurement, so that no sequence asks for a block or a longer list meanwhile, and shorter than two
/// chunks of a reader's queue.
const STEPS: usize = 16;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Allocations of all steps together, with so many sequences that generate.
fn allocations(sequences: u64) -> u64 {
    let config = EngineConfig { num_kv_blocks: 4096, max_num_seqs: 256, ..EngineConfig::default() };
    let (mut step_loop, handle) = StepLoop::new(parts(FreeModel::new(vec![0.0; VOCAB]), config)).unwrap();
    let sampling = SamplingParams { max_tokens: 500, temperature: 0.0, ..SamplingParams::default() };
    let submit = |id| {
        let request = Request::new(RequestId(id), vec![1; 40], sampling.clone());
        handle.submit(Request { share_key: ShareKey(id % 5), ..request }).unwrap()
    };
    let mut streams: Vec<EventStream> = (0..sequences).map(submit).collect();
    // Room for what follows is made in the first steps: of lists that grow by doubling, up to the next doubling.
    let read =
        |streams: &mut Vec<EventStream>| streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
    for _ in 0..45 {
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
fn no_allocation_is_made_for_a_token() {
    let (few, many) = (allocations(8), allocations(200));
    let per_step = few as f64 / STEPS as f64;
    let per_token = (many as f64 - few as f64) / (STEPS as f64 * 192.0);
    // A reader's queue takes a new chunk for every 32 tokens that stand in it.
    assert!(per_token <= 1.0 / 32.0, "{per_token} allocations a token beside {per_step} a step");
    assert!(per_step < 40.0, "{per_step} allocations a step");
}
