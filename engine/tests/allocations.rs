//! What steps allocate: nothing while the same sequences generate a token each, and at their peak what is reckoned.

#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait; it only passes on")]
#![expect(clippy::unwrap_used, reason = "a helper that fails, fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::num::{NonZero, NonZeroU32};

use passerelle_engine::testing::{FreeModel, StubModel, parts};
use passerelle_engine::{Class, EngineConfig, EventStream, Request, RequestId, SamplingParams, ShareKey, StepLoop};
use passerelle_models::input::SequenceInput;
use passerelle_models::ops::Compute;
use passerelle_models::{
    ActivationDtype, BlockId, CausalLm, CheckpointFiles, EncoderInput, EncoderSequence, KvCache, KvCacheSpec, KvReach,
    LoadOptions, LoadedModel, Logits, ModelError, ModelInput, WeightDtype, WeightLayout, demo_checkpoint, footprint,
    load, load_decoder, load_encoder, unwatched,
};

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

/// A model whose own allocations are not counted.
struct Uncounted<M>(M);

impl<M: CausalLm> CausalLm for Uncounted<M> {
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    fn input_vocab_size(&self) -> usize {
        self.0.input_vocab_size()
    }

    fn max_position(&self) -> usize {
        self.0.max_position()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.0.kv_cache_spec()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.0.new_kv_cache(num_blocks)
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        let before = ALLOCATIONS.get();
        let logits = self.0.forward(input, cache);
        ALLOCATIONS.set(before);
        logits
    }
}

/// Sequences that generate, and others that find no room beside them.
struct Crowd<'a> {
    sequences: u64,
    num_choices: NonZeroU32,
    class: Class,
    sampling: &'a SamplingParams,
    /// How long the prompts are of those that wait.
    waiting: &'a [usize],
}

fn small_config() -> EngineConfig {
    EngineConfig { num_kv_blocks: 4096, max_num_seqs: 256, ..EngineConfig::default() }
}

/// Allocations of all steps together.
fn allocations(crowd: &Crowd<'_>, model: impl CausalLm + 'static, config: EngineConfig) -> u64 {
    let (mut step_loop, handle) = StepLoop::new(parts(model, config)).unwrap();
    let request = |id, prompt| {
        let request = Request::new(RequestId(id), prompt, crowd.sampling.clone());
        Request { class: crowd.class, share_key: ShareKey(id % 5), ..request }
    };
    let submit = |id| handle.submit(Request { num_choices: crowd.num_choices, ..request(id, vec![1; 40]) }).unwrap();
    let mut streams: Vec<EventStream> = (0..crowd.sequences / u64::from(crowd.num_choices.get())).map(submit).collect();
    let mut step = || {
        let before = ALLOCATIONS.get();
        let report = step_loop.step();
        let made = ALLOCATIONS.get() - before;
        streams.iter_mut().for_each(|stream| while stream.try_next().is_some() {});
        (report, made)
    };
    (0..WARM_UP / 2).for_each(|_| _ = step());
    let wait = |(id, &length)| handle.submit(request(id, vec![2; length])).unwrap();
    let _waiting: Vec<EventStream> = (1000..).zip(crowd.waiting).map(wait).collect();
    (0..WARM_UP / 2).for_each(|_| _ = step());
    let steady = |_| {
        let (report, made) = step();
        assert_eq!((report.generated_tokens, report.waiting), (crowd.sequences as usize, crowd.waiting.len()));
        made
    };
    (0..STEPS).map(steady).sum()
}

#[test]
fn no_allocation_is_made_in_a_step_whose_tokens_are_the_best_or_are_drawn() {
    let best = SamplingParams { max_tokens: 500, temperature: 0.0, ..SamplingParams::default() };
    let of_all = SamplingParams { temperature: 1.0, top_p: 0.9, min_p: 0.01, typical_p: 0.9, ..best.clone() };
    let of_some = SamplingParams { top_k: Some(20), ..of_all.clone() };
    // Each token is a new one, because those before it were made less likely.
    let of_others = SamplingParams { frequency_penalty: 1.0, ..best.clone() };
    for sampling in [best, of_all, of_some, of_others] {
        assert_none(NonZeroU32::MIN, &sampling);
    }
}

#[test]
fn no_allocation_is_made_in_a_step_of_several_choices_of_one_prompt() {
    let best = SamplingParams { max_tokens: 500, temperature: 0.0, ..SamplingParams::default() };
    let drawn = SamplingParams { temperature: 1.0, ..best.clone() };
    let of_others = SamplingParams { frequency_penalty: 1.0, ..best.clone() };
    for sampling in [best, drawn, of_others] {
        assert_none(NonZeroU32::MIN.saturating_add(1), &sampling);
    }
}

fn assert_none(num_choices: NonZeroU32, sampling: &SamplingParams) {
    for (class, sequences) in [(Class::Standard, 10), (Class::Standard, 200), (Class::Batch, 10), (Class::Batch, 200)] {
        // Both are of every share.
        let crowd = Crowd { sequences, num_choices, class, sampling, waiting: &[] };
        let made = allocations(&crowd, Uncounted(FreeModel::new(vec![0.0; VOCAB])), small_config());
        assert_eq!(made, 0, "{STEPS} steps of {sequences} sequences: {class:?} {sampling:?}");
    }
}

/// Some of its layers look at all keys, some at the last two blocks.
#[test]
fn no_allocation_is_made_in_a_step_of_a_model_with_windows() {
    let sampling = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
    let model = StubModel::new(VOCAB, 16).with_layers(&[KvReach::Full, KvReach::Window(NonZero::new(32).unwrap())]);
    let num_choices = NonZeroU32::MIN;
    let crowd = Crowd { sequences: 10, num_choices, class: Class::Standard, sampling: &sampling, waiting: &[] };
    assert_eq!(allocations(&crowd, Uncounted(model), small_config()), 0);
}

#[test]
fn no_allocation_is_made_in_a_step_beside_which_others_wait() {
    let sampling = SamplingParams { max_tokens: 500, ..SamplingParams::default() };
    let no_place = EngineConfig { max_num_seqs: 10, ..small_config() };
    // So many that each of ten has 14 in the end, and a prompt of 1800 tokens never finds its 113.
    let no_block = EngineConfig { num_kv_blocks: 145, ..small_config() };
    for class in [Class::Standard, Class::Batch] {
        for (config, waiting) in [(&no_place, [40; 3]), (&no_block, [1800; 3])] {
            let crowd =
                Crowd { sequences: 10, num_choices: NonZeroU32::MIN, class, sampling: &sampling, waiting: &waiting };
            let made = allocations(&crowd, Uncounted(FreeModel::new(vec![0.0; VOCAB])), config.clone());
            assert_eq!(made, 0, "{class:?} {config:?}");
        }
    }
}

/// With nothing left out: from the commands that wait to the events that are sent.
#[test]
fn no_allocation_is_made_in_a_step_of_a_real_model() {
    let drawn = SamplingParams { max_tokens: 500, temperature: 1.0, ..SamplingParams::default() };
    let best = SamplingParams { temperature: 0.0, ..drawn.clone() };
    let of_some = SamplingParams { top_k: Some(20), ..drawn.clone() };
    for sampling in [drawn, best, of_some] {
        let (model, _) =
            load_decoder(&demo_checkpoint(), &Compute::cpu(1), &LoadOptions::default(), &mut unwatched).unwrap();
        let num_choices = NonZeroU32::MIN;
        let crowd = Crowd { sequences: 10, num_choices, class: Class::Standard, sampling: &sampling, waiting: &[] };
        let config = EngineConfig { max_model_len: model.max_position(), ..small_config() };
        assert_eq!(allocations(&crowd, model, config), 0, "{sampling:?}");
    }
}

/// The most that a step of `tokens` tokens, `rows` of which give logits, holds beside weights and KV cache and what the model
/// holds already.
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
    let stored = LoadOptions::default();
    let in_floats = LoadOptions { dtype: WeightDtype::F32, ..stored };
    let with_words = LoadOptions { dtype: WeightDtype::Q8_0, ..stored };
    let with_bytes = LoadOptions { activation_dtype: ActivationDtype::Int8, ..with_words };
    // What activations are rounded to before products differs: the first one's depends on the processor. Pieces of bytes are
    // small, and one that finds no idle piece where it was reckoned to find one is missing.
    for (options, allowed) in [(stored, 0.03), (in_floats, 0.03), (with_words, 0.03), (with_bytes, 0.04)] {
        for (tokens, rows) in [(512, 1), (512, 64), (1024, 128), (256, 256), (64, 48)] {
            // Each its own: a model keeps what a step held for the next one.
            let model = load(&demo_checkpoint(), &Compute::cpu(1), &options, &mut unwatched).unwrap();
            let (found, reckoned) = (peak(&model, tokens, rows), model.activations.bytes(tokens, rows) as i64);
            let apart = (found - reckoned).abs() as f64 / found as f64;
            assert!(
                apart <= allowed,
                "{options:?}, {tokens} tokens and {rows} rows: {found} held, {reckoned} reckoned"
            );
        }
    }
}

#[test]
fn steps_of_changing_sizes_hold_no_more_than_the_largest_is_reckoned_with() {
    let model = load(&demo_checkpoint(), &Compute::cpu(1), &LoadOptions::default(), &mut unwatched).unwrap();
    let start = HELD.get().0;
    let sizes = [1, 512, 511, 64, 65, 66, 130, 260, 1, 380, 500, 512, 512, 300, 301, 16, 512];
    for (step, tokens) in sizes.into_iter().enumerate() {
        let kept = HELD.get().0 - start;
        let found = kept + peak(&model, tokens, tokens.min(64));
        let reckoned = model.activations.bytes(512, 64) as i64;
        assert!(found as f64 <= reckoned as f64 * 1.03, "{found} held in step {step}, {reckoned} reckoned");
    }
}

#[test]
fn a_batch_of_an_encoder_holds_at_its_peak_what_is_reckoned() {
    for name in ["bert", "modernbert", "qwen3_embedding"] {
        let folder = format!("{}/../models/tests/fixtures/encoders/{name}", env!("CARGO_MANIFEST_DIR"));
        let (files, options) = (CheckpointFiles::directory(folder).unwrap(), LoadOptions::default());
        let reckoned = footprint(&files, &options, WeightLayout::Panels).unwrap().activations.bytes(1024, 0) as i64;
        let mut encoder = load_encoder(&files, &Compute::cpu(1), &options, &mut unwatched).unwrap();
        let text = EncoderSequence { tokens: &[5; 64], second_text: None };
        let input = EncoderInput::new(&[text; 16]).unwrap();
        let before = HELD.get().0;
        HELD.set((before, before));
        drop(encoder.model.forward(&input).unwrap());
        let found = HELD.get().1 - before;
        // What is summed of embeddings is left out, and that a cache pads these heads of 12 to 16: much beside rows of 48.
        let apart = (found - reckoned).abs() as f64 / found as f64;
        assert!(apart <= 0.25, "{name}: {found} held, {reckoned} reckoned");
    }
}
