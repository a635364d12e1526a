use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};

use super::host::{Buffer, Host, Order, in_both_orders};
use super::{Random, assert_close, reference, tolerance, values};
use crate::ops::cuda::args::qkv::QkvArgs;
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::cuda::step::StepWords;
use crate::ops::{AttentionPlan, QkvPreparation, RotaryEmbedding, prepare_qkv};
use crate::selftest::qkv::{NormOf, QK_NORM_EPS, QkvFlags, QkvParameters};
use crate::selftest::tables::{QKV, QKV_SEQUENCES};
use crate::selftest::world::{Shape, World};

fn check(host: Host, shape: Shape, flags: QkvFlags) {
    let mut random = Random(shape.head_dim as u64);
    let new_world = || World::new(shape, &QKV_SEQUENCES).unwrap();
    let mut world = new_world();
    let input = world.input.clone();
    let m = input.num_tokens();
    let qkv = random.tensor(&[m, shape.num_heads() * shape.head_dim + 2 * shape.kv_width()], shape.activations);
    let parameters = QkvParameters::new(shape, flags, &mut random);
    let frequencies = (0..flags.rotary_dim / 2).map(|index| 0.7f32.powi(index as i32)).collect();
    let angles = RotaryEmbedding::new(frequencies, 1.1).angles(&reference(), input.positions()).unwrap();
    let angles = (flags.rotary_dim > 0).then_some(&angles);
    let norms = parameters.norms();
    let preparation = QkvPreparation { num_heads: shape.num_heads(), bias: parameters.bias.as_ref(), norms, angles };
    let plan = AttentionPlan::new(&input);
    let want = prepare_qkv(&reference(), qkv.clone().into(), &preparation, &plan, world.layer()).unwrap();
    let want = want.into_tensor().unwrap();
    let [cosines, sines] = [angles.map(|is| is.cos.to_tensor().unwrap()), angles.map(|is| is.sin.to_tensor().unwrap())];
    let words = StepWords::new(&plan);
    let got_cache = RefCell::new(Vec::new());
    let got = in_both_orders(|order| {
        let mut fresh = new_world();
        let layer = fresh.layer();
        let [mut k, mut v] = [Buffer::of(&layer.k, shape.cache), Buffer::of(&layer.v, shape.cache)];
        let mut buffers: Vec<Buffer> = Vec::new();
        let mut of = |x: Option<&Tensor>| {
            x.map_or(Address::NULL, |x| {
                buffers.push(Buffer::of(x, Float::F32));
                buffers.last_mut().unwrap().address()
            })
        };
        let (mut qkv, mut words_buffer) = (Buffer::of(&qkv, shape.activations), Buffer::of_words(&words.words));
        let mut q = Buffer::of_values(&vec![f32::NAN; want.elem_count()], shape.activations);
        let Address(start) = words_buffer.address();
        let args = QkvArgs {
            qkv: qkv.address(),
            q: q.address(),
            k: k.address(),
            v: v.address(),
            slots: Address(start + 4 * words.layout.slots[0] as u64),
            bias: of(preparation.bias),
            q_weight: of(norms.map(|(q, _)| q.weight)),
            k_weight: of(norms.map(|(_, k)| k.weight)),
            q_bias: of(norms.and_then(|(q, _)| q.bias)),
            k_bias: of(norms.and_then(|(_, k)| k.bias)),
            cosines: of(cosines.as_ref()),
            sines: of(sines.as_ref()),
            padded_head_dim: layer.padded_head_dim() as i32,
            half: flags.rotary_dim as i32 / 2,
            whole_token: i32::from(!matches!(flags.norm, None | Some(NormOf::Heads))),
            ..plain_args(shape)
        };
        host.run(&args.launch(m, shape.activations, shape.cache), order);
        *got_cache.borrow_mut() = [k.values(shape.cache), v.values(shape.cache)].concat();
        q.values(shape.activations)
    });
    let what = format!("{shape:?} {flags:?}");
    assert_close(&what, &got, &want, tolerance(shape.activations));
    let layer = world.layer();
    let cache = Tensor::from_vec([values(&layer.k), values(&layer.v)].concat(), got_cache.borrow().len(), &Device::Cpu);
    let cache = cache.unwrap().to_dtype(DType::F32).unwrap();
    assert_close(&format!("the cache of {what}"), &got_cache.borrow(), &cache, tolerance(shape.cache));
}

/// Slots that no token of the step has must keep what they held, which is not a number here.
#[test]
fn queries_and_the_cache_equal_the_reference_for_every_flag() {
    let Some(host) = Host::get() else { return };
    for (shape, flags) in QKV {
        check(host, shape, flags);
    }
}

/// The cache of `world` after a step with `words`, of plain queries, keys and values.
pub(super) fn stored(host: Host, mut world: World, qkv: &Tensor, words: &StepWords) -> Vec<f32> {
    let shape = world.shape;
    let layer = world.layer();
    let [mut k, mut v] = [Buffer::of(&layer.k, shape.cache), Buffer::of(&layer.v, shape.cache)];
    let m = qkv.dim(0).unwrap();
    let (mut qkv, mut words_buffer) = (Buffer::of(qkv, shape.activations), Buffer::of_words(&words.words));
    let mut q = Buffer::of_values(&vec![f32::NAN; m * shape.num_heads() * shape.head_dim], shape.activations);
    let Address(start) = words_buffer.address();
    let args = QkvArgs {
        qkv: qkv.address(),
        q: q.address(),
        k: k.address(),
        v: v.address(),
        slots: Address(start + 4 * words.layout.slots[0] as u64),
        padded_head_dim: layer.padded_head_dim() as i32,
        ..plain_args(shape)
    };
    host.run(&args.launch(m, shape.activations, shape.cache), Order::Forwards);
    [k.values(shape.cache), v.values(shape.cache)].concat()
}

/// Without addresses and flags.
fn plain_args(shape: Shape) -> QkvArgs {
    QkvArgs {
        qkv: Address::NULL,
        q: Address::NULL,
        k: Address::NULL,
        v: Address::NULL,
        slots: Address::NULL,
        bias: Address::NULL,
        q_weight: Address::NULL,
        k_weight: Address::NULL,
        q_bias: Address::NULL,
        k_bias: Address::NULL,
        cosines: Address::NULL,
        sines: Address::NULL,
        num_heads: shape.num_heads() as i32,
        num_kv_heads: shape.num_kv_heads as i32,
        head_dim: shape.head_dim as i32,
        padded_head_dim: 0,
        block_size: shape.block_size as i32,
        half: 0,
        whole_token: 0,
        q_eps: QK_NORM_EPS,
        k_eps: QK_NORM_EPS,
    }
}
