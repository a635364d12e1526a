//! Attention over sequences of several spans of keys, which several threads share where tasks are few.

use std::ops::Range;

use candle_core::Tensor;
use passerelle_models::KvFormat;
use passerelle_models::ops::{AttentionParams, Compute, KernelSet};

use super::attention::{Part, World, shape, variants, zeroed};
use super::{assert_same_bits, check, fast};

/// Two spans, and a part of a third.
const LENGTH: usize = 1060;

/// Tokens of which some see the third span, and some do not.
const BORDER: Range<usize> = 1021..1033;

/// What attention can be asked for, and windows that begin inside the first span for some tokens of the border.
fn params(num_heads: usize, head_dim: usize) -> Vec<AttentionParams> {
    let windows = [515, 1000].map(|window| AttentionParams { window: Some(window), ..AttentionParams::causal(0.2) });
    let two_sided = AttentionParams { window: Some(600), ..AttentionParams::bidirectional(0.2) };
    let both = [AttentionParams::causal(0.2), AttentionParams::bidirectional(0.2), two_sided];
    variants(num_heads, head_dim).into_iter().chain(windows).chain(both).collect()
}

/// The rows of `part`, all other keys of its sequence before it being there.
fn step(world: &World, compute: &Compute, parts: &[Part]) -> Tensor {
    let mut cache = if compute.kernels() == KernelSet::Reference { zeroed(world) } else { world.cache() };
    for (sequence, range) in parts {
        world.store(compute, &mut cache, &[(*sequence, 0..range.start)]);
    }
    world.step(compute, &mut cache, parts)
}

/// On one thread as on three, of which each takes some of the spans. The sums are of a thousand terms.
#[test]
fn tokens_behind_several_spans_equal_the_reference() {
    for format in KvFormat::ALL {
        for (num_kv_heads, group, head_dim) in [(1, 3, 24), (2, 4, 32)] {
            for params in params(num_kv_heads * group, head_dim) {
                let what = format!("{format} heads of {head_dim} {params:?}");
                let world = World::with(params, shape(num_kv_heads, group, head_dim, 16, format), &[LENGTH]);
                for range in [BORDER, LENGTH - 1..LENGTH] {
                    check(&what, 8e-6, |compute| step(&world, compute, &[(0, range.clone())]));
                }
            }
        }
    }
}

/// On three threads: of three sequences a task has a span of two of three heads, or of the third; of six, a span of all heads; of
/// eight shorter ones, all of two heads; of sixteen, all of a token.
#[test]
fn which_heads_a_task_has_changes_no_bit() {
    for format in KvFormat::ALL {
        for (num_sequences, num_kv_heads, length) in [(3, 3, 1600), (6, 4, LENGTH), (8, 4, 500), (16, 3, LENGTH)] {
            for window in [None, Some(515)] {
                let params = AttentionParams { window, ..AttentionParams::causal(0.2) };
                let what = format!("{format}, {num_sequences} sequences, {num_kv_heads} heads, {params:?}");
                let lengths: Vec<_> = (0..num_sequences).map(|index| length - 7 * index).collect();
                let world = World::with(params, shape(num_kv_heads, 2, 32, 16, format), &lengths);
                let last = |sequence: usize| (sequence, lengths[sequence] - 1..lengths[sequence]);
                let all: Vec<_> = (0..num_sequences).map(last).collect();
                let together = check(&what, 8e-6, |compute| step(&world, compute, &all));
                for compute in fast() {
                    for sequence in 0..num_sequences {
                        let alone = step(&world, &compute, &[last(sequence)]);
                        assert_same_bits(&what, &together.narrow(0, sequence, 1).unwrap(), &alone);
                    }
                }
            }
        }
    }
}

/// Alone, a token's spans are tasks; beside twelve others, one task goes through all of them.
#[test]
fn who_goes_through_the_spans_changes_no_bit() {
    for format in KvFormat::ALL {
        for params in params(3, 24) {
            let what = format!("{format} {params:?}");
            let lengths: Vec<_> = (0..13).map(|index| LENGTH - 3 * index).collect();
            let world = World::with(params, shape(1, 3, 24, 16, format), &lengths);
            let last = |sequence: usize| (sequence, lengths[sequence] - 1..lengths[sequence]);
            for compute in fast() {
                let alone = step(&world, &compute, &[last(0)]);
                let beside = step(&world, &compute, &(0..lengths.len()).map(last).collect::<Vec<_>>());
                assert_same_bits(&what, &beside.narrow(0, 0, 1).unwrap(), &alone);
                let in_a_chunk = step(&world, &compute, &[(0, BORDER.start..LENGTH)]);
                assert_same_bits(&what, &in_a_chunk.narrow(0, LENGTH - 1 - BORDER.start, 1).unwrap(), &alone);
            }
        }
    }
}
