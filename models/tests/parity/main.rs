//! Tiny random checkpoints against the reference implementation (see fixtures/make.py and fixtures/make_encoders.py),
//! and a sequence against itself: however it is cut and whoever shares its batch, its logits have the same bits.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod encoder_features;
mod encoders;
mod features;
mod footprint;
mod gguf;
mod int8_kv;
#[cfg(feature = "oracle")]
mod oracle;
mod runner;
#[path = "../support/mod.rs"]
mod support;

use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{Compute, KernelSet};
use passerelle_models::{CausalLm, KvDtype, LoadOptions, ModelInput, WeightDtype};
use runner::{BLOCK_SIZE, Runner, compare, options, rows, table, worst_excess};
use support::Fixture;

const LENGTHS: [usize; 4] = [1, 7, 33, 70];

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

parity! {
    plain biased_tied rope_linear rope_llama3 rope_yarn sharded_f16 mistral mistral_window ministral ministral3 mistral3 qwen2 qwen3
    qwen3_windows olmo2 apertus apertus_split apertus1p5_text apertus1p5 nemotron smollm3 bloom
}

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
    the_likeliest_tokens_are_the_reference_s(&fixture, &mut runner);
    for kv_dtype in [KvDtype::F32, KvDtype::Bf16, KvDtype::Int8] {
        let mut runner = Runner::load(&fixture, kv_dtype);
        chunks_change_nothing(&fixture, &mut runner);
        company_changes_nothing(&fixture, &mut runner);
        a_prefix_hit_changes_nothing(&fixture, &mut runner);
    }
}

/// At each greedy token: the same five, with the same log-probabilities, and nothing else above them.
fn the_likeliest_tokens_are_the_reference_s(fixture: &Fixture, runner: &mut Runner) {
    const TOP: usize = 5;
    let prompt = fixture.ids("greedy_prompt");
    let rows = runner.alone(&[&prompt[..], &fixture.ids("greedy")].concat());
    let (ids, logprobs) = (fixture.ids("top_ids"), fixture.floats("top_logprobs"));
    let golden = ids.as_chunks::<TOP>().0.iter().zip(logprobs.as_chunks::<TOP>().0);
    assert_eq!(golden.len(), 24);
    for (row, (ids, expected)) in rows[prompt.len() - 1..].iter().zip(golden) {
        let row = log_softmax(row);
        let found = ids.map(|id| row[id as usize]);
        assert!(
            worst_excess(&found, expected).excess <= 1.0,
            "{ids:?}: {found:?} where the reference has {expected:?}"
        );
        let tolerance = 2e-4 + 1e-3 * expected[TOP - 1].abs();
        let above = row.iter().filter(|logprob| **logprob > expected[TOP - 1] + tolerance).count();
        assert!(above < TOP, "{above} tokens are likelier than the fifth");
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    logits.iter().map(|logit| (f64::from(logit - largest) - sum.ln()) as f32).collect()
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

#[test]
fn weights_held_in_another_dtype_stay_close() {
    let fixture = Fixture::copy("plain");
    let expected = fixture.floats("logits_33");
    for dtype in [WeightDtype::F16, WeightDtype::Bf16] {
        let options = LoadOptions { dtype, ..options(KvDtype::F32) };
        let logits = Runner::load_on(&Compute::cpu(1), &fixture, &options).alone(&fixture.ids("input_33")).concat();
        assert_eq!(logits.len(), expected.len(), "{dtype:?}");
        // What is not a number is the largest of all here.
        let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
        assert!(worst > 0.0 && worst < 0.3, "{dtype:?}: {worst}");
    }
}

/// The portable bodies have the bits of the vector ones; the reference bodies are merely close.
#[test]
fn every_kernel_set_agrees() {
    for name in ["plain", "qwen3_windows", "olmo2", "apertus", "nemotron", "ministral3", "bloom"] {
        let fixture = Fixture::copy(name);
        let ids = fixture.ids("input_70");
        let expected = Runner::load(&fixture, KvDtype::F32).alone(&ids);
        let with = |kernels| {
            let compute = Compute::cpu_with_kernels(1, kernels).unwrap();
            Runner::load_on(&compute, &fixture, &options(KvDtype::F32)).alone(&ids)
        };
        assert_eq!(with(KernelSet::Portable), expected, "{name}");
        compare(&with(KernelSet::Reference), &expected.concat()).unwrap();
    }
}

#[test]
fn only_sampled_rows_have_logits_and_the_bits_of_all_rows_together() {
    let fixture = Fixture::copy("plain");
    let mut runner = Runner::load(&fixture, KvDtype::F32);
    let ids = fixture.ids("input_33");
    let all = runner.alone(&ids);
    for sample in [vec![32], vec![0, 7, 32], Vec::new()] {
        let blocks = [table(50)];
        let sequence = SequenceInput { tokens: &ids, num_computed: 0, block_tables: &blocks, sample: &sample };
        let input = ModelInput::new(BLOCK_SIZE, &[sequence]).unwrap();
        let found = rows(runner.decoder.forward(&input, &mut runner.cache).unwrap());
        let expected: Vec<_> = sample.iter().map(|row| all[*row].clone()).collect();
        assert_eq!(found, expected, "of the rows {sample:?}");
    }
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let fixture = Fixture::copy("plain");
    let mut runner = Runner::load(&fixture, KvDtype::F32);
    let input = runner.input(&[(&[211], 0, &table(0))]);
    assert!(matches!(
        runner.decoder.forward(&input, &mut runner.cache),
        Err(passerelle_models::ModelError::Input(problem)) if problem.contains("beyond the vocabulary of 211")
    ));
}

#[test]
fn a_model_may_read_tokens_that_it_never_writes() {
    for name in ["apertus_split", "apertus1p5_text", "apertus1p5"] {
        let mut runner = Runner::load(&Fixture::copy(name), KvDtype::F32);
        assert_eq!((runner.decoder.input_vocab_size(), runner.decoder.vocab_size()), (211, 131), "{name}");
        assert_eq!(runner.alone(&[210])[0].len(), 131, "{name}");
        let input = runner.input(&[(&[211], 0, &table(0))]);
        assert!(runner.decoder.forward(&input, &mut runner.cache).is_err(), "{name}");
    }
}

/// As BLOOM is published, and as embedding models are: saved from the model without its head.
#[test]
fn names_may_leave_off_the_prefix_of_the_whole_model() {
    for (name, prefix) in [("bloom", "transformer."), ("smollm3", "model.")] {
        let fixture = Fixture::copy(name);
        fixture.rename_tensors(|name| name.strip_prefix(prefix).unwrap().to_owned());
        let logits = Runner::load(&fixture, KvDtype::F32).alone(&fixture.ids("input_33"));
        compare(&logits, &fixture.floats("logits_33")).unwrap();
    }
}

#[test]
fn both_spellings_of_a_field_mean_the_same() {
    let fixture = Fixture::copy("bloom");
    fixture.edit_config(|config| {
        for (old, new) in
            [("hidden_size", "n_embed"), ("n_layer", "num_hidden_layers"), ("n_head", "num_attention_heads")]
        {
            let value = config.remove(old).unwrap();
            config.insert(new.into(), value);
        }
        config.remove("tie_word_embeddings");
    });
    let logits = Runner::load(&fixture, KvDtype::F32).alone(&fixture.ids("input_33"));
    compare(&logits, &fixture.floats("logits_33")).unwrap();
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

/// Where to look when logits are wrong.
fn first_bad_layer(fixture: &Fixture, runner: &mut Runner) -> String {
    let ids = fixture.ids("input_33");
    let mut bad = None;
    let batch = runner.input(&[(&ids, 0, &table(0))]);
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
