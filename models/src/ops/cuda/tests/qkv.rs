use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};

use super::host::{Buffer, Host, in_both_orders};
use super::world::{Shape, World};
use super::{Random, assert_close, reference, tolerance, values};
use crate::ops::cuda::args::qkv::QkvArgs;
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::cuda::step::StepWords;
use crate::ops::{AttentionPlan, QkNorm, QkvPreparation, RotaryEmbedding, prepare_qkv};

/// What a layer has besides its heads.
#[derive(Debug, Clone, Copy, Default)]
struct Flags {
    bias: bool,
    norm: Option<NormOf>,
    /// Elements that turn.
    rotary_dim: usize,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum NormOf {
    Heads,
    Tokens,
    TokensWithBias,
}

/// The parameters of `flags`: the bias, then weights and biases of queries' and keys' norms.
struct Parameters {
    bias: Option<Tensor>,
    norms: Option<[Tensor; 2]>,
    norm_biases: Option<[Tensor; 2]>,
}

const EPS: f32 = 1e-5;

impl Parameters {
    fn new(shape: Shape, flags: Flags, random: &mut Random) -> Self {
        let mut vector = |len: usize| random.tensor(&[len], Float::F32);
        let row = (shape.num_heads() + 2 * shape.num_kv_heads) * shape.head_dim;
        let widths = match flags.norm {
            Some(NormOf::Heads) => [shape.head_dim; 2],
            _ => [shape.num_heads() * shape.head_dim, shape.kv_width()],
        };
        Self {
            bias: flags.bias.then(|| vector(row)),
            norms: flags.norm.map(|_| widths.map(&mut vector)),
            norm_biases: (flags.norm == Some(NormOf::TokensWithBias)).then(|| widths.map(&mut vector)),
        }
    }

    fn norm(&self, index: usize) -> Option<QkNorm<'_>> {
        let weight = &self.norms.as_ref()?[index];
        Some(QkNorm { weight, bias: self.norm_biases.as_ref().map(|biases| &biases[index]), eps: EPS })
    }
}

fn check(host: Host, shape: Shape, flags: Flags) {
    let mut random = Random(shape.head_dim as u64);
    let sequences = [5..6, 14..19, 0..3];
    let new_world = || World::new(shape, &sequences);
    let mut world = new_world();
    let input = world.input.clone();
    let m = input.num_tokens();
    let qkv = random.tensor(&[m, shape.num_heads() * shape.head_dim + 2 * shape.kv_width()], shape.activations);
    let parameters = Parameters::new(shape, flags, &mut random);
    let frequencies = (0..flags.rotary_dim / 2).map(|index| 0.7f32.powi(index as i32)).collect();
    let angles = RotaryEmbedding::new(frequencies, 1.1).angles(&reference(), input.positions()).unwrap();
    let angles = (flags.rotary_dim > 0).then_some(&angles);
    let norms = parameters.norm(0).zip(parameters.norm(1));
    let preparation = QkvPreparation { num_heads: shape.num_heads(), bias: parameters.bias.as_ref(), norms, angles };
    let plan = AttentionPlan::new(&input);
    let want = prepare_qkv(&reference(), &qkv, &preparation, &plan, world.layer()).unwrap();
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
            cosines: of(angles.map(|angles| &angles.cos)),
            sines: of(angles.map(|angles| &angles.sin)),
            num_heads: shape.num_heads() as i32,
            num_kv_heads: shape.num_kv_heads as i32,
            head_dim: shape.head_dim as i32,
            padded_head_dim: layer.padded_head_dim() as i32,
            block_size: shape.block_size as i32,
            half: flags.rotary_dim as i32 / 2,
            whole_token: i32::from(!matches!(flags.norm, None | Some(NormOf::Heads))),
            q_eps: EPS,
            k_eps: EPS,
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
    let shape = |num_kv_heads, group, head_dim, activations, cache| Shape {
        num_kv_heads,
        group,
        head_dim,
        block_size: 16,
        activations,
        cache,
    };
    let (f32, bf16) = (Float::F32, Float::Bf16);
    let all = Flags { bias: true, norm: Some(NormOf::Heads), rotary_dim: 64 };
    for (shape, flags) in [
        (shape(2, 2, 64, f32, f32), Flags::default()),
        (shape(2, 2, 64, f32, f32), Flags { rotary_dim: 64, ..Flags::default() }),
        (shape(2, 2, 64, bf16, bf16), all),
        (shape(1, 3, 80, f32, bf16), Flags { rotary_dim: 32, ..all }),
        (shape(1, 1, 256, bf16, f32), Flags { rotary_dim: 256, ..all }),
        (shape(3, 2, 48, f32, f32), Flags { norm: Some(NormOf::Tokens), rotary_dim: 48, bias: true }),
        (shape(1, 5, 7, f32, f32), Flags { norm: Some(NormOf::TokensWithBias), rotary_dim: 6, bias: true }),
    ] {
        check(host, shape, flags);
    }
}
