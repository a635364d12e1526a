//! Tiny random checkpoints against the reference implementation (see fixtures/make.py), and a sequence against itself:
//! however it is cut and whoever shares its batch, its logits have the same bits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use passerelle_models::ops::{Compute, KernelSet};
use passerelle_models::{
    BlockId, CausalLm, Decoder, KvCache, KvDtype, LoadOptions, Logits, ModelInput, TokenId, WeightDtype, load_decoder,
};
use serde_json::json;
use support::Fixture;

const BLOCK_SIZE: usize = 16;
const LENGTHS: [usize; 4] = [1, 7, 33, 70];
/// Enough for every sequence of a test side by side.
const NUM_BLOCKS: usize = 64;

macro_rules! parity {
    ($($name:ident)*) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )*
    };
}

parity! { plain biased_tied rope_linear rope_llama3 rope_yarn sharded_f16 mistral qwen2 }

/// Everything that is promised of one fixture.
fn check(name: &str) {
    let fixture = Fixture::copy(name);
    let mut runner = Runner::load(&fixture, KvDtype::F32);
    for length in LENGTHS {
        let logits = runner.alone(&fixture.ids(&format!("input_{length}")));
        if let Err(difference) = compare(&logits, &fixture.floats(&format!("logits_{length}"))) {
            panic!("{name}, {length} tokens: {difference}; {}", first_bad_layer(&fixture, &mut runner));
        }
    }
    assert_eq!(runner.greedy(&fixture.ids("greedy_prompt"), 24), fixture.ids("greedy"), "{name}: greedy tokens");
    for kv_dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut runner = Runner::load(&fixture, kv_dtype);
        chunks_change_nothing(&fixture, &mut runner);
        company_changes_nothing(&fixture, &mut runner);
        a_prefix_hit_changes_nothing(&fixture, &mut runner);
    }
}

fn chunks_change_nothing(fixture: &Fixture, runner: &mut Runner) {
    let ids = fixture.ids("input_70");
    let whole = runner.alone(&ids);
    for chunk in [1, 5, 16, 32] {
        assert_eq!(runner.in_chunks(&ids, chunk), whole, "in chunks of {chunk}");
    }
}

/// All lengths at once, the longest in two steps, its second step beside the others' first.
fn company_changes_nothing(fixture: &Fixture, runner: &mut Runner) {
    let inputs = LENGTHS.map(|length| fixture.ids(&format!("input_{length}")));
    let alone = inputs.clone().map(|ids| runner.alone(&ids));
    let tables: Vec<_> = (0..inputs.len()).map(|index| table(8 * index)).collect();
    let (first, second) = inputs[3].split_at(41);
    runner.step(&[(first, 0, &tables[3])]);
    let batch = [
        (&inputs[0][..], 0, &tables[0]),
        (&inputs[1][..], 0, &tables[1]),
        (second, 41, &tables[3]),
        (&inputs[2][..], 0, &tables[2]),
    ];
    let together = runner.step(&batch);
    let expected = [&alone[0][..], &alone[1], &alone[3][41..], &alone[2]].concat();
    assert_eq!(together, expected, "in a ragged batch");
}

/// The second sequence finds its first 32 tokens in blocks that the first one computed.
fn a_prefix_hit_changes_nothing(fixture: &Fixture, runner: &mut Runner) {
    const SHARED_TOKENS: usize = 32;
    let long = fixture.ids("input_70");
    let mut other = long[..SHARED_TOKENS].to_vec();
    other.extend(fixture.ids("input_7"));
    let alone = runner.alone(&other);
    runner.step(&[(&long, 0, &table(0))]);
    let mut shared = table(0)[..SHARED_TOKENS / BLOCK_SIZE].to_vec();
    shared.extend(table(20));
    let hit = runner.step(&[(&other[SHARED_TOKENS..], SHARED_TOKENS, &shared)]);
    assert_eq!(hit, alone[SHARED_TOKENS..], "after a prefix hit");
}

/// Proves that the fixtures can see each feature: with the feature changed, the difference is far above the tolerance.
#[test]
fn every_feature_is_visible_in_its_fixture() {
    let default_rope = json!({ "rope_type": "default", "rope_theta": 10000.0 });
    must_differ("rope_linear", "without scaling", |fixture| {
        fixture.edit_config(|config| drop(config.remove("rope_scaling")));
    });
    for name in ["rope_llama3", "rope_yarn"] {
        must_differ(name, "without scaling", |fixture| {
            fixture.edit_config(|config| drop(config.insert("rope_parameters".into(), default_rope.clone())));
        });
    }
    must_differ("rope_yarn", "attention factor 1", |fixture| {
        fixture.edit_config(|config| config["rope_parameters"]["attention_factor"] = json!(1.0));
    });
    must_differ("plain", "another base", |fixture| {
        fixture.edit_config(|config| config["rope_parameters"]["rope_theta"] = json!(20000.0));
    });
    must_differ("plain", "a forgotten epsilon", |fixture| {
        fixture.edit_config(|config| config["rms_norm_eps"] = json!(1e-6));
    });
    must_differ("plain", "the scale of hidden / heads", |fixture| {
        fixture.edit_tensors("q_proj.weight", |bytes| scale(bytes, 2f32.sqrt()));
    });
    must_differ("plain", "gate and up exchanged", |fixture| fixture.swap_tensors("gate_proj", "up_proj"));
    must_differ("plain", "the head tied", |fixture| fixture.swap_tensors("lm_head", "model.embed_tokens"));
    for norm in ["input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight"] {
        must_differ("plain", norm, |fixture| fixture.edit_tensors(norm, ones));
    }
    for linear in ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] {
        let bias = format!("{linear}.bias");
        must_differ("biased_tied", &bias, |fixture| fixture.edit_tensors(&bias, |bytes| bytes.fill(0)));
    }
    for linear in ["q_proj", "k_proj", "v_proj"] {
        let bias = format!("{linear}.bias");
        must_differ("qwen2", &bias, |fixture| fixture.edit_tensors(&bias, |bytes| bytes.fill(0)));
    }
}

fn must_differ(name: &str, change: &str, edit: impl FnOnce(&Fixture)) {
    const VISIBLE: f32 = 50.0;
    let fixture = Fixture::copy(name);
    edit(&fixture);
    let logits = Runner::load(&fixture, KvDtype::F32).alone(&fixture.ids("input_70"));
    let worst = worst_excess(&logits.concat(), &fixture.floats("logits_70"));
    assert!(worst.excess >= VISIBLE, "{name}, {change}: only {} times the tolerance", worst.excess);
}

#[test]
fn weights_held_in_another_dtype_stay_close() {
    let fixture = Fixture::copy("plain");
    let expected = fixture.floats("logits_33");
    for dtype in [WeightDtype::F16, WeightDtype::Bf16] {
        let options = LoadOptions { dtype, ..options(KvDtype::F32) };
        let logits = Runner::load_on(&Compute::cpu(1), &fixture, &options).alone(&fixture.ids("input_33")).concat();
        let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst > 0.0 && worst < 0.3, "{dtype:?}: {worst}");
    }
}

/// The portable bodies have the bits of the vector ones; the reference bodies are merely close.
#[test]
fn every_kernel_set_agrees() {
    let fixture = Fixture::copy("plain");
    let ids = fixture.ids("input_70");
    let expected = Runner::load(&fixture, KvDtype::F32).alone(&ids);
    let with = |kernels| {
        let compute = Compute::cpu_with_kernels(1, kernels).unwrap();
        Runner::load_on(&compute, &fixture, &options(KvDtype::F32)).alone(&ids)
    };
    assert_eq!(with(KernelSet::Portable), expected);
    compare(&with(KernelSet::Reference), &expected.concat()).unwrap();
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let fixture = Fixture::copy("plain");
    let mut runner = Runner::load(&fixture, KvDtype::F32);
    let input = input(&[(&[211], 0, &table(0))]);
    assert!(matches!(
        runner.decoder.forward(&input, &mut runner.cache),
        Err(passerelle_models::ModelError::Input(problem)) if problem.contains("211")
    ));
}

#[test]
fn a_model_outlives_its_files() {
    let fixture = Fixture::copy("sharded_f16");
    let mut runner = Runner::load(&fixture, KvDtype::F32);
    for entry in std::fs::read_dir(fixture.directory.path()).unwrap() {
        std::fs::write(entry.unwrap().path(), b"").unwrap();
    }
    let logits = runner.alone(&fixture.ids("input_33"));
    compare(&logits, &fixture.floats("logits_33")).unwrap();
}

/// A loaded model with a cache.
struct Runner {
    decoder: Decoder,
    cache: KvCache,
}

/// Tokens, how many of the sequence came before them, the sequence's blocks.
type Share<'a> = (&'a [TokenId], usize, &'a Vec<BlockId>);

impl Runner {
    fn load(fixture: &Fixture, kv_dtype: KvDtype) -> Self {
        Self::load_on(&Compute::cpu(2), fixture, &options(kv_dtype))
    }

    fn load_on(compute: &Compute, fixture: &Fixture, options: &LoadOptions) -> Self {
        let mut last = None;
        let (decoder, _) = load_decoder(&fixture.files(), compute, options, &mut |progress| {
            last = Some(progress);
        })
        .unwrap();
        let last = last.expect("progress is reported");
        assert_eq!(last.bytes_done, last.bytes_total);
        let cache = decoder.new_kv_cache(NUM_BLOCKS).unwrap();
        Self { decoder, cache }
    }

    /// The logits of every token of every sequence, a row each.
    fn step(&mut self, batch: &[Share<'_>]) -> Vec<Vec<f32>> {
        rows(&self.decoder.forward(&input(batch), &mut self.cache).unwrap())
    }

    fn alone(&mut self, ids: &[TokenId]) -> Vec<Vec<f32>> {
        self.step(&[(ids, 0, &table(50))])
    }

    fn in_chunks(&mut self, ids: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        for (index, tokens) in ids.chunks(chunk).enumerate() {
            logits.extend(self.step(&[(tokens, index * chunk, &table(5))]));
        }
        logits
    }

    fn greedy(&mut self, prompt: &[TokenId], num_tokens: usize) -> Vec<TokenId> {
        let mut answer = Vec::new();
        let mut next = prompt.to_vec();
        let mut num_computed = 0;
        while answer.len() < num_tokens {
            let logits = self.step(&[(&next, num_computed, &table(10))]);
            num_computed += next.len();
            let last = logits.last().expect("a step has rows");
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a row has logits");
            answer.push(best as TokenId);
            next = vec![best as TokenId];
        }
        answer
    }
}

fn options(kv_dtype: KvDtype) -> LoadOptions {
    LoadOptions { kv_dtype, block_size: BLOCK_SIZE, ..LoadOptions::default() }
}

/// Eight blocks from `first` on, in descending order, so that a block's number says nothing about its place.
fn table(first: usize) -> Vec<BlockId> {
    (first..first + 8).rev().map(|block| BlockId(block as u32)).collect()
}

fn input(batch: &[Share<'_>]) -> ModelInput {
    let samples: Vec<Vec<usize>> = batch.iter().map(|(tokens, ..)| (0..tokens.len()).collect()).collect();
    let sequences: Vec<_> = batch
        .iter()
        .zip(&samples)
        .map(|((tokens, num_computed, block_table), sample)| passerelle_models::input::SequenceInput {
            tokens,
            num_computed: *num_computed,
            block_table,
            sample,
        })
        .collect();
    ModelInput::new(BLOCK_SIZE, &sequences).unwrap()
}

fn rows(logits: &Logits) -> Vec<Vec<f32>> {
    (0..logits.num_rows()).map(|row| logits.row(row).to_vec()).collect()
}

#[derive(Debug)]
struct Worst {
    index: usize,
    /// The difference as a multiple of the tolerance.
    excess: f32,
}

fn worst_excess(found: &[f32], expected: &[f32]) -> Worst {
    assert_eq!(found.len(), expected.len());
    let mut worst = Worst { index: 0, excess: 0.0 };
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let excess = (found - expected).abs() / (2e-4 + 1e-3 * expected.abs());
        if excess > worst.excess || excess.is_nan() {
            worst = Worst { index, excess };
        }
    }
    worst
}

fn compare(logits: &[Vec<f32>], expected: &[f32]) -> Result<(), String> {
    let found = logits.concat();
    let worst = worst_excess(&found, expected);
    if worst.excess <= 1.0 {
        return Ok(());
    }
    let (found, expected) = (found[worst.index], expected[worst.index]);
    Err(format!("{worst:?}: {found} where the reference has {expected}"))
}

/// Where to look when logits are wrong.
fn first_bad_layer(fixture: &Fixture, runner: &mut Runner) -> String {
    let ids = fixture.ids("input_33");
    let mut bad = None;
    let batch = input(&[(&ids, 0, &table(0))]);
    runner
        .decoder
        .forward_observed(&batch, &mut runner.cache, &mut |layer, stream| {
            let found: Vec<f32> = stream.flatten_all()?.to_vec1()?;
            let worst = worst_excess(&found, &fixture.floats(&format!("hidden_{layer}")));
            if worst.excess > 1.0 && bad.is_none() {
                bad = Some(format!("layer {layer} is the first to differ: {worst:?}"));
            }
            Ok(())
        })
        .unwrap();
    bad.unwrap_or_else(|| "every layer agrees".to_owned())
}

fn scale(bytes: &mut [u8], factor: f32) {
    for word in bytes.as_chunks_mut::<4>().0 {
        *word = (f32::from_le_bytes(*word) * factor).to_le_bytes();
    }
}

fn ones(bytes: &mut [u8]) {
    bytes.as_chunks_mut::<4>().0.fill(1f32.to_le_bytes());
}
