//! A step like those before it asks the allocator for nothing.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only passes on")]
#![expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{Compute, RowQuestion};
use passerelle_models::{
    ActivationDtype, BlockId, CausalLm, KvCache, KvDtype, LoadOptions, ModelInput, WeightDtype, demo_checkpoint, load,
    unwatched,
};

/// Of all threads: the pool's compute too.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, SeqCst);
        // SAFETY: passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

struct Batch {
    model: Box<dyn CausalLm>,
    cache: KvCache,
    tables: Vec<[Vec<BlockId>; 1]>,
    num_computed: usize,
    wants: Wants,
}

#[derive(Debug, Clone, Copy)]
enum Wants {
    Rows,
    Best,
}

impl Batch {
    /// Sequences whose prompts of `prompt` tokens are computed.
    fn new(options: &LoadOptions, sequences: usize, prompt: usize, wants: Wants) -> Self {
        let model = load(&demo_checkpoint(), &Compute::cpu(2), options, &mut unwatched).unwrap().model;
        let blocks = (prompt + 64).div_ceil(options.block_size) as u32;
        let table = |sequence: u32| [(sequence * blocks..(sequence + 1) * blocks).map(BlockId).collect()];
        let cache = model.new_kv_cache(sequences * blocks as usize).unwrap();
        let tables = (0..sequences as u32).map(table).collect();
        let mut batch = Self { model, cache, tables, num_computed: 0, wants };
        batch.step(prompt);
        batch
    }

    /// Gives each sequence `tokens` more, and returns what was allocated between input and logits, their release included.
    fn step(&mut self, tokens: usize) -> u64 {
        let ids = vec![5; tokens];
        let sample = [tokens - 1];
        let of = |block_tables| SequenceInput {
            tokens: &ids,
            num_computed: self.num_computed,
            block_tables,
            sample: &sample,
        };
        let sequences: Vec<_> = self.tables.iter().map(|tables| of(tables.as_slice())).collect();
        let input = ModelInput::new(self.cache.spec().block_size, &sequences).unwrap();
        // One wants the likeliest token, the next one a few, and the third all logits.
        let few = RowQuestion { best: 20, ..RowQuestion::BEST };
        let kinds = [Some(RowQuestion::BEST), Some(few), None].into_iter().cycle();
        let questions: Vec<_> = kinds.take(sequences.len()).collect();
        let before = ALLOCATIONS.load(SeqCst);
        match self.wants {
            Wants::Rows => drop(self.model.forward(&input, &mut self.cache).unwrap()),
            Wants::Best => drop(self.model.forward_asked(&input, &mut self.cache, &questions).unwrap()),
        }
        self.num_computed += tokens;
        ALLOCATIONS.load(SeqCst) - before
    }
}

/// Without a harness, and the only test of this file: whatever ran beside it would be counted too, the thread of a harness
/// that waits for it among it.
fn main() {
    a_steady_step_of_decoding_allocates_nothing();
}

fn a_steady_step_of_decoding_allocates_nothing() {
    let weights = [WeightDtype::Auto, WeightDtype::F32, WeightDtype::F16, WeightDtype::Q8_0, WeightDtype::Q4_0];
    let (int16, int8) = (ActivationDtype::Int16, ActivationDtype::Int8);
    for (dtype, activation_dtype) in weights.map(|dtype| (dtype, int16)).into_iter().chain([(WeightDtype::Q4_0, int8)])
    {
        for kv_dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
            // Alone, a few and many, and alone behind so much that threads share its keys.
            for (sequences, prompt) in [(1, 3), (7, 20), (40, 3), (1, 1700)] {
                for wants in [Wants::Rows, Wants::Best] {
                    let options = LoadOptions { dtype, kv_dtype, activation_dtype, ..LoadOptions::default() };
                    let mut batch = Batch::new(&options, sequences, prompt, wants);
                    (0..2).for_each(|_| _ = batch.step(1));
                    let steady: Vec<_> = (0..4).map(|_| batch.step(1)).collect();
                    let case =
                        format!("{sequences} sequences behind {prompt} tokens, {dtype:?}, {kv_dtype:?}, {wants:?}");
                    assert_eq!(steady, [0; 4], "{case}");
                }
            }
        }
    }
}
