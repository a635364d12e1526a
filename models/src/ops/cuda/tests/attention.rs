use std::ops::Range;

use candle_core::Tensor;

use super::host::{Buffer, Host, Order, in_both_orders};
use super::{Random, assert_close, reference, tolerance};
use crate::ops::cuda::args::attention::{AttentionArgs, AttentionShape, MOST_PARTIAL};
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::cuda::step::{Items, StepWords};
use crate::ops::{AttentionParams, AttentionPlan, PerHead, paged_attention};
use crate::selftest::tables::{
    ATTENTION, FLAGGED, SEQUENCES, WHOLE_SEQUENCES, flags_of_attention, two_sided_attention,
};
use crate::selftest::world::{Shape, World};

fn on_host(host: Host, world: &mut World, q: &Tensor, params: &AttentionParams, order: Order) -> Vec<f32> {
    let words = StepWords::new(&AttentionPlan::new(&world.input));
    with_words(host, world, (q, &words), params, order)
}

/// As the launcher does it on a GPU.
pub(super) fn with_words(
    host: Host,
    world: &mut World,
    (q, words): (&Tensor, &StepWords),
    params: &AttentionParams,
    order: Order,
) -> Vec<f32> {
    let num_tokens = q.dim(0).unwrap();
    let Shape { activations, cache, num_kv_heads, head_dim, block_size, .. } = world.shape;
    let num_heads = world.shape.num_heads();
    let layer = world.layer();
    let kernel_shape = AttentionShape {
        num_heads,
        num_kv_heads,
        head_dim,
        padded_head_dim: layer.padded_head_dim(),
        block_size,
        activations,
        cache,
    };
    let (decode, prefill) = (words.layout.decode, words.layout.prefill);
    let [mut k, mut v] = [Buffer::of(&layer.k, cache), Buffer::of(&layer.v, cache)];
    let (mut q, mut words_buffer) = (Buffer::of(q, activations), Buffer::of_words(&words.words));
    let element_bytes = if activations == Float::F32 { 4 } else { 2 };
    let mut out = Buffer::unwritten(num_tokens * num_heads * head_dim * element_bytes);
    let per_head = |values: &Option<PerHead>| values.as_ref().map(|values| Buffer::of_values(values, Float::F32));
    let (mut slopes, mut sinks) = (per_head(&params.alibi_slopes), per_head(&params.sinks));
    let Address(start) = words_buffer.address();
    let word = |index: usize| Address(start + 4 * index as u64);
    let if_any = |buffer: &mut Option<Buffer>| buffer.as_mut().map_or(Address::NULL, Buffer::address);
    let args = AttentionArgs {
        q: q.address(),
        k: k.address(),
        v: v.address(),
        out: out.address(),
        positions: word(words.layout.positions),
        blocks: word(words.layout.blocks[0]),
        slopes: if_any(&mut slopes),
        sinks: if_any(&mut sinks),
        ..kernel_shape.args(params, decode)
    };
    // In one order all together, in the other a few at a time: where they are cut changes nothing.
    let most = match order {
        Order::Forwards => MOST_PARTIAL,
        Order::Backwards => kernel_shape.partial_len(Items { count: 3, ..decode }),
    };
    for run in kernel_shape.runs(decode, most) {
        let mut partial = Buffer::unwritten(kernel_shape.partial_len(run) * size_of::<f32>());
        let args = AttentionArgs { partial: partial.address(), items: word(run.start), ..args };
        host.run(&kernel_shape.decode(args, run), order);
        host.run(&kernel_shape.merge(args, run), order);
    }
    if prefill.count > 0 {
        host.run(&kernel_shape.prefill(AttentionArgs { items: word(prefill.start), ..args }, prefill), order);
    }
    out.values(activations)
}

#[test]
fn one_long_sequence_among_many_makes_no_more_room_than_is_bounded() {
    let shape = AttentionShape {
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        padded_head_dim: 128,
        block_size: 16,
        activations: Float::Bf16,
        cache: Float::Bf16,
    };
    let items = Items { start: 7, count: 256, most_keys: 131_072 };
    let runs: Vec<Items> = shape.runs(items, MOST_PARTIAL).collect();
    assert!(runs.len() > 1 && runs.iter().all(|run| shape.partial_len(*run) <= MOST_PARTIAL), "{runs:?}");
    let mut start = items.start;
    for run in &runs {
        assert_eq!((run.start, run.most_keys), (start, items.most_keys), "{runs:?}");
        start += 4 * run.count;
    }
    assert_eq!(runs.iter().map(|run| run.count).sum::<usize>(), items.count);
    assert_eq!(shape.runs(items, 1).count(), items.count, "an item is not cut");
    assert_eq!(shape.runs(Items { count: 0, most_keys: 0, ..items }, MOST_PARTIAL).count(), 0);
}

fn check(host: Host, shape: Shape, params: &AttentionParams, sequences: &[Range<usize>]) {
    let mut random = Random(shape.head_dim as u64);
    let mut world = World::new(shape, sequences).unwrap().with_keys(&mut random).unwrap();
    let q = random.tensor(&[world.input.num_tokens(), shape.num_heads(), shape.head_dim], shape.activations);
    let q = (q * 3.0).unwrap().to_dtype(shape.activations.dtype()).unwrap();
    let q = q.to_dtype(candle_core::DType::F32).unwrap();
    let input = world.input.clone();
    let want = paged_attention(&reference(), &q, world.layer(), &AttentionPlan::new(&input), params).unwrap();
    let what = format!("{shape:?} {params:?} {sequences:?}");
    let world = std::cell::RefCell::new(world);
    let got = in_both_orders(|order| on_host(host, &mut world.borrow_mut(), &q, params, order));
    assert_close(&what, &got, &want, tolerance(shape.activations));
}

#[test]
fn attention_equals_the_reference_for_every_width_and_group() {
    let Some(host) = Host::get() else { return };
    for shape in ATTENTION {
        check(host, shape, &AttentionParams::causal(shape.scale()), &SEQUENCES);
    }
}

#[test]
fn attention_equals_the_reference_with_every_flag() {
    let Some(host) = Host::get() else { return };
    for shape in FLAGGED {
        for params in flags_of_attention() {
            check(host, shape, &params, &SEQUENCES);
        }
        for params in two_sided_attention() {
            check(host, shape, &params, &WHOLE_SEQUENCES);
        }
    }
}

/// Of the last token of a sequence, which beside others runs the tokens at `positions`.
fn last_row(host: Host, shape: Shape, positions: Range<usize>, others: Range<usize>) -> Vec<f32> {
    let params = AttentionParams {
        window: Some(150),
        sinks: Some(vec![0.5; shape.num_heads()].into()),
        ..AttentionParams::causal(shape.scale())
    };
    let width = shape.num_heads() * shape.head_dim;
    let rows = Random(5).tensor(&[300, shape.num_heads(), shape.head_dim], shape.activations);
    let world = World::new(shape, &[positions.clone(), others.clone()]).unwrap();
    let mut world = world.with_keys(&mut Random(9)).unwrap();
    let of = |positions: &Range<usize>| rows.narrow(0, positions.start, positions.len()).unwrap();
    let q = Tensor::cat(&[of(&positions), of(&others)], 0).unwrap();
    let out = on_host(host, &mut world, &q, &params, Order::Forwards);
    let last = out[(positions.len() - 1) * width..positions.len() * width].to_vec();
    assert!(last.iter().all(|value| value.is_finite()));
    last
}

/// A row of decode and the same row in chunks of two sizes: what it computes depends on its position and its keys alone.
#[test]
fn a_rows_bits_do_not_depend_on_the_kernel_or_the_chunk() {
    let Some(host) = Host::get() else { return };
    let shape = Shape { num_kv_heads: 1, group: 4, ..FLAGGED[0] };
    let alone = last_row(host, shape, 299..300, 40..43);
    assert_eq!(alone, last_row(host, shape, 298..300, 40..43));
    assert_eq!(alone, last_row(host, shape, 270..300, 40..43));
}

/// On the tensor cores, decode and prefill add in different orders.
#[test]
fn on_tensor_cores_a_rows_bits_do_not_depend_on_the_batch_or_the_chunk() {
    let Some(host) = Host::get() else { return };
    let shape = Shape { num_kv_heads: 1, group: 3, ..FLAGGED[1] };
    let decoded = last_row(host, shape, 299..300, 40..43);
    assert_eq!(decoded, last_row(host, shape, 299..300, 280..281));
    let chunk = last_row(host, shape, 298..300, 40..43);
    assert_eq!(chunk, last_row(host, shape, 270..300, 5..6));
    assert_eq!(chunk, last_row(host, shape, 110..300, 5..6));
}
