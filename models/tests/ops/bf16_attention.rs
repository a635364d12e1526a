//! Attention whose products take bf16 factors: queries and weights are rounded, two neighbours meet two rows of a bf16 cache.

use candle_core::{DType, Tensor};
use passerelle_models::KvFormat;
use passerelle_models::ops::{AttentionParams, Compute, KernelSet};

use super::attention::{World, chunks_and_company_change_nothing, shape, two_sided, variants, zeroed};
use super::{assert_close, assert_same_bits, fast, reference, values};

/// A weight of a key is rounded by less than 2^-8 of itself.
const TOLERANCE: f32 = 1e-2;

/// Of as many sums, where a processor rounds inside its instruction otherwise than plain code.
const ROUNDING: f32 = 1e-5;

fn bodies() -> Vec<Compute> {
    fast().into_iter().map(Compute::with_bf16_products).collect()
}

/// Bodies in plain code have the bits of each other, and those with the instruction too.
fn assert_all_same(what: &str, outputs: &[(Compute, Tensor)]) {
    let has_instruction = |compute: &Compute| compute.kernels().has_bf16_products();
    for (compute, output) in outputs {
        let (_, first) = outputs.iter().find(|(first, _)| has_instruction(first) == has_instruction(compute)).unwrap();
        assert_same_bits(what, output, first);
        assert_close(what, output, &outputs[0].1, ROUNDING);
    }
}

/// With queries that are bf16 numbers, so that their rounding is not the error.
fn world(params: AttentionParams, num_kv_heads: usize, group: usize, head_dim: usize, lengths: &[usize]) -> World {
    let mut world = World::with(params, shape(num_kv_heads, group, head_dim, 16, KvFormat::Bf16), lengths);
    for sequence in &mut world.sequences {
        sequence.q = sequence.q.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    }
    world
}

fn all_params(num_heads: usize, head_dim: usize) -> impl Iterator<Item = AttentionParams> {
    variants(num_heads, head_dim).into_iter().chain(two_sided(head_dim))
}

/// Stale elements are not numbers, and stand in the same steps as those that are seen.
#[test]
fn it_equals_the_reference_with_every_feature_on_any_number_of_threads() {
    for (num_kv_heads, group, head_dim) in [(1, 1, 32), (2, 3, 24), (1, 2, 128), (1, 13, 16), (2, 1, 13)] {
        for params in all_params(num_kv_heads * group, head_dim) {
            let what = format!("heads of {head_dim}, {params:?}");
            // The weight of a key alone is 1.
            let is_exact = head_dim % 2 == 1 || params.window == Some(1);
            let world = world(params, num_kv_heads, group, head_dim, &[1, 2, 16, 17, 75]);
            let want = world.step(&reference(), &mut zeroed(&world), &world.whole());
            let run = |compute: Compute| (compute.clone(), world.step(&compute, &mut world.cache(), &world.whole()));
            let outputs: Vec<_> = bodies().into_iter().map(run).collect();
            assert_close(&what, &outputs[0].1, &want, TOLERANCE);
            assert_all_same(&what, &outputs);
            let exact = Compute::cpu_with_kernels(1, KernelSet::Portable).unwrap();
            let unrounded = world.step(&exact, &mut world.cache(), &world.whole());
            assert_eq!(values(&outputs[0].1) == values(&unrounded), is_exact, "{what}: whether it rounds");
        }
    }
}

#[test]
fn chunks_and_company_give_the_bits_of_the_whole() {
    for params in variants(4, 24) {
        let what = format!("{params:?}");
        let world = world(params, 2, 2, 24, &[83, 40]);
        bodies().iter().for_each(|compute| chunks_and_company_change_nothing(&what, &world, compute));
    }
}

/// Two spans and some, on threads that take heads or spans.
#[test]
fn spans_and_heads_of_a_task_change_no_bit() {
    let world = world(AttentionParams::causal(0.2), 4, 2, 32, &[1051, 1050, 1030]);
    let last = [(0, 1050..1051), (1, 1049..1050), (2, 1029..1030)];
    let run = |compute: Compute| {
        let mut cache = world.cache();
        last.iter().for_each(|(sequence, range)| world.store(&compute, &mut cache, &[(*sequence, 0..range.start)]));
        let together = world.step(&compute, &mut cache, &last);
        let alone = world.step(&compute, &mut cache, &last[..1]);
        assert_same_bits("alone", &alone, &together.narrow(0, 0, 1).unwrap());
        let chunk = world.step(&compute, &mut cache, &[(0, 1021..1051)]);
        assert_same_bits("in a chunk", &chunk.narrow(0, 29, 1).unwrap(), &alone);
        (compute, together)
    };
    assert_all_same("on other threads", &bodies().into_iter().map(run).collect::<Vec<_>>());
}
