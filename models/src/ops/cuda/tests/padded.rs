use std::ops::Range;

use candle_core::Tensor;

use super::Random;
use super::attention::with_words;
use super::host::{Host, Order};
use super::qkv::stored;
use crate::input::SequenceInput;
use crate::ops::cuda::padded::PaddedShape;
use crate::ops::cuda::step::{NOWHERE, StepWords};
use crate::ops::{AttentionParams, AttentionPlan, Float};
use crate::selftest::tables::FLAGGED;
use crate::selftest::world::{Shape, World};
use crate::{BlockId, ModelInput};

const ALONE: [Range<usize>; 9] = [0..1, 16..17, 31..32, 3..4, 130..131, 256..257, 299..300, 15..16, 47..48];

/// Single tokens in two groups, each sampled.
fn generating(lens: &[usize]) -> ModelInput {
    let mut next = 7;
    let mut table = |len: usize| {
        next += 20;
        (0..len.div_ceil(16)).map(|block| BlockId(next + block as u32)).collect::<Vec<_>>()
    };
    let tables: Vec<_> = lens.iter().map(|&len| vec![table(len), table(len)]).collect();
    let inputs: Vec<_> = lens
        .iter()
        .zip(&tables)
        .map(|(&len, block_tables)| SequenceInput { tokens: &[3], num_computed: len - 1, block_tables, sample: &[0] })
        .collect();
    ModelInput::new(16, &inputs).unwrap()
}

#[test]
fn every_batch_has_one_of_few_shapes_and_longer_sequences_another() {
    let shape = |lens: &[usize]| PaddedShape::of(&generating(lens)).unwrap();
    for rows in 1..=256 {
        let shape = shape(&vec![40; rows]);
        assert!(shape.rows >= rows && (shape.rows < 2 * rows || rows == 1), "{rows}: {shape:?}");
    }
    let shapes: std::collections::BTreeSet<_> = (1..=256).map(|rows| shape(&vec![9; rows]).rows).collect();
    assert_eq!(shapes.into_iter().collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 224, 256]);
    assert_eq!(shape(&[1, 1024]), shape(&[300, 2]));
    assert_ne!(shape(&[1, 1025]), shape(&[1, 1024]));
}

#[test]
fn a_step_with_chunks_without_logits_or_of_too_many_rows_is_not_replayed() {
    let tables = [vec![BlockId(1)]];
    let step = |tokens, sample| {
        let sequence = SequenceInput { tokens, num_computed: 0, block_tables: &tables, sample };
        PaddedShape::of(&ModelInput::new(16, &[sequence]).unwrap())
    };
    assert!(step(&[5], &[0]).is_some());
    assert!(step(&[5], &[]).is_none());
    assert!(step(&[5, 6], &[0, 1]).is_none());
    assert!(PaddedShape::of(&generating(&[1; 257])).is_none());
    assert!(PaddedShape::of(&generating(&[8000; 200])).is_none());
}

/// What kernels read of a step by its layout is what they read of the same step unpadded, and of the rows behind it
/// that they are to store nothing.
#[test]
fn the_layout_depends_on_the_shape_alone_and_nobodys_rows_store_nothing() {
    let [one, other] = [generating(&[70, 1, 33, 16, 15, 8, 2, 90, 4]), generating(&[5; 10])];
    let shape = PaddedShape::of(&one).unwrap();
    assert_eq!(PaddedShape::of(&other), Some(shape));
    let (padded, plain) = (shape.words(&one), StepWords::new(&AttentionPlan::new(&one)));
    assert_eq!(format!("{:?}", padded.layout), format!("{:?}", shape.words(&other).layout));
    assert!(padded.words.len() <= shape.layout(2, 16).1);
    let read = |step: &StepWords, start: usize, len: usize| step.words[start..start + len].to_vec();
    for (in_padded, in_plain) in [
        (padded.layout.tokens, plain.layout.tokens),
        (padded.layout.positions, plain.layout.positions),
        (padded.layout.slots[0], plain.layout.slots[0]),
        (padded.layout.slots[1], plain.layout.slots[1]),
    ] {
        assert_eq!(read(&padded, in_padded, 9), read(&plain, in_plain, 9));
    }
    for group in 0..2 {
        assert_eq!(padded.words[padded.layout.slots[group] + 9], NOWHERE);
        assert_eq!(read(&padded, padded.layout.blocks[group], 20), read(&plain, plain.layout.blocks[group], 20));
    }
    let items = |step: &StepWords, count: usize| {
        let mut items: Vec<_> =
            read(step, step.layout.decode.start, 4 * count).chunks(4).map(<[u32]>::to_vec).collect();
        items.sort();
        items
    };
    assert_eq!(items(&padded, 9), items(&plain, 9));
    assert_eq!(items(&padded, 10)[9], [9, 1, 0, 1]);
}

#[test]
fn spoilt_words_have_other_tokens_and_nothing_else_that_is_different() {
    let input = generating(&[70, 1, 33]);
    let shape = PaddedShape::of(&input).unwrap();
    let (words, spoilt) = (shape.words(&input), shape.spoilt_words(&input));
    let differ: Vec<usize> = (0..words.words.len()).filter(|&at| words.words[at] != spoilt.words[at]).collect();
    assert_eq!(differ, Vec::from_iter(words.layout.tokens..words.layout.tokens + 3));
}

#[test]
fn nobodys_rows_are_steps_of_one_token_in_block_0() {
    let input = generating(&[70, 1, 33]);
    let padded = input.padded(8).unwrap();
    assert_eq!((padded.num_tokens(), PaddedShape::of(&padded).unwrap().rows), (8, 8));
    assert_eq!(padded.positions()[..4], [69, 0, 32, 0]);
    assert_eq!(padded.slots(1)[..3], input.slots(1)[..]);
    let nobodys = input.nobodys(8).unwrap();
    assert_eq!((nobodys.num_groups(), nobodys.num_tokens()), (2, 8));
    for row in 0..8 {
        assert_eq!((nobodys.num_keys(row), nobodys.block_table(1, row)), (1, &[BlockId(0)][..]));
    }
}

#[test]
fn rows_have_the_same_bits_in_a_padded_step() {
    let Some(host) = Host::get() else { return };
    for shape in FLAGGED.map(|shape| Shape { num_kv_heads: 1, ..shape }) {
        let params = AttentionParams { window: Some(150), ..AttentionParams::causal(shape.scale()) };
        let mut world = World::new(shape, &ALONE).unwrap().with_keys(&mut Random(9)).unwrap();
        let input = world.input.clone();
        let padded = PaddedShape { rows: 12, most_keys: 512 }.words(&input);
        let plain = StepWords::new(&AttentionPlan::new(&input));
        let q = Random(5).tensor(&[12, shape.num_heads(), shape.head_dim], shape.activations);
        let mut run = |words: &StepWords, rows: usize| {
            let q = q.narrow(0, 0, rows).unwrap();
            with_words(host, &mut world, (&q, words), &params, Order::Forwards)
        };
        let (padded, plain) = (run(&padded, 12), run(&plain, ALONE.len()));
        assert_eq!(padded[..plain.len()], plain);
        assert!(padded.iter().all(|value| !value.is_nan()));
    }
}

/// Slots that no token has hold what is not a number, and the first block is nobody's.
#[test]
fn a_padded_steps_cache_is_that_of_the_step() {
    let Some(host) = Host::get() else { return };
    let [shape, _] = FLAGGED;
    let world = || World::new(shape, &ALONE).unwrap();
    let input = world().input.clone();
    let width = (shape.num_heads() + 2 * shape.num_kv_heads) * shape.head_dim;
    let qkv: Tensor = Random(6).tensor(&[12, width], Float::F32);
    let cache = |words: &StepWords, rows: usize| stored(host, world(), &qkv.narrow(0, 0, rows).unwrap(), words);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let padded = cache(&PaddedShape { rows: 12, most_keys: 512 }.words(&input), 12);
    let plain = cache(&StepWords::new(&AttentionPlan::new(&input)), ALONE.len());
    assert!(plain.iter().any(|value| value.is_finite()));
    assert_eq!(bits(padded), bits(plain));
}
