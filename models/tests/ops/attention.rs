use candle_core::{Device, Tensor};
use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{
    AttentionParams, AttentionPlan, Compute, Direction, PositionTemperature, paged_attention, store_kv,
};
use passerelle_models::{BlockId, KvCache, KvCacheSpec, KvFormat, KvGroup, ModelInput};

use super::{Random, assert_same_bits, check, fast};

#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    num_kv_heads: usize,
    group: usize,
    head_dim: usize,
    block_size: usize,
    format: KvFormat,
}

/// A sequence with all its queries, keys and values, and the blocks it lives in.
pub(super) struct Sequence {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
    blocks: Vec<BlockId>,
}

/// Which tokens of a sequence run in a step.
pub(super) type Part = (usize, std::ops::Range<usize>);

pub(super) struct World {
    shape: Shape,
    pub(super) params: AttentionParams,
    pub(super) sequences: Vec<Sequence>,
    num_blocks: usize,
}

impl World {
    pub(super) fn new(shape: Shape, lengths: &[usize]) -> Self {
        Self::with(AttentionParams::causal((shape.head_dim as f32).sqrt().recip()), shape, lengths)
    }

    pub(super) fn with(params: AttentionParams, shape: Shape, lengths: &[usize]) -> Self {
        let mut random = Random(shape.head_dim as u64);
        let num_blocks = lengths.iter().map(|len| len.div_ceil(shape.block_size)).sum::<usize>() + 3;
        let mut free = Random(7).shuffled(num_blocks).into_iter().map(BlockId);
        let kv_width = shape.num_kv_heads * shape.head_dim;
        let sequences = lengths
            .iter()
            .map(|&len| Sequence {
                q: (random.tensor(&[len, shape.num_kv_heads * shape.group, shape.head_dim]) * 3.0).unwrap(),
                k: random.tensor(&[len, kv_width]),
                v: random.tensor(&[len, kv_width]),
                blocks: free.by_ref().take(len.div_ceil(shape.block_size)).collect(),
            })
            .collect();
        Self { shape, params, sequences, num_blocks }
    }

    /// A cache whose every element is not a number, as another sequence may have left it.
    pub(super) fn cache(&self) -> KvCache {
        let Shape { num_kv_heads, head_dim, block_size, format, .. } = self.shape;
        let spec = KvCacheSpec { groups: vec![KvGroup::full(1)], num_kv_heads, head_dim, format, block_size };
        let mut cache = KvCache::new(spec, self.num_blocks, &Device::Cpu).unwrap();
        let slots: Vec<_> =
            (0..self.num_blocks * block_size).map(|slot| passerelle_models::Slot(slot as u32)).collect();
        let stale = Tensor::full(f32::NAN, (slots.len(), num_kv_heads * head_dim), &Device::Cpu).unwrap();
        store_kv(&Compute::cpu(1), &stale, &stale, &slots, cache.layer_mut(0)).unwrap();
        cache
    }

    /// Runs one step over `parts` and returns their rows.
    pub(super) fn step(&self, compute: &Compute, cache: &mut KvCache, parts: &[Part]) -> Tensor {
        self.store(compute, cache, parts);
        let (input, q) = (self.input(parts), rows(parts, |part| &self.sequences[part].q));
        paged_attention(compute, &q, cache.layer_mut(0), &AttentionPlan::new(&input), &self.params).unwrap()
    }

    /// Stores the keys and values of `parts`, without attending to them.
    pub(super) fn store(&self, compute: &Compute, cache: &mut KvCache, parts: &[Part]) {
        let (input, layer) = (self.input(parts), cache.layer_mut(0));
        let [k, v] = [rows(parts, |part| &self.sequences[part].k), rows(parts, |part| &self.sequences[part].v)];
        store_kv(compute, &k, &v, input.slots(0), layer).unwrap();
    }

    fn input(&self, parts: &[Part]) -> ModelInput {
        let tokens = vec![0; 4096];
        let inputs: Vec<_> = parts
            .iter()
            .map(|(sequence, range)| SequenceInput {
                tokens: &tokens[..range.len()],
                num_computed: range.start,
                block_tables: std::slice::from_ref(&self.sequences[*sequence].blocks),
                sample: &[],
            })
            .collect();
        ModelInput::new(self.shape.block_size, &inputs).unwrap()
    }

    fn len(&self, sequence: usize) -> usize {
        self.sequences[sequence].q.dim(0).unwrap()
    }

    pub(super) fn whole(&self) -> Vec<Part> {
        (0..self.sequences.len()).map(|sequence| (sequence, 0..self.len(sequence))).collect()
    }
}

/// Of each part's tensor, its tokens' rows.
fn rows<'a>(parts: &[Part], of: impl Fn(usize) -> &'a Tensor) -> Tensor {
    let rows: Vec<_> =
        parts.iter().map(|(sequence, range)| of(*sequence).narrow(0, range.start, range.len()).unwrap()).collect();
    Tensor::cat(&rows, 0).unwrap()
}

pub(super) fn shape(num_kv_heads: usize, group: usize, head_dim: usize, block_size: usize, format: KvFormat) -> Shape {
    Shape { num_kv_heads, group, head_dim, block_size, format }
}

#[test]
fn attention_equals_the_reference_for_every_shape() {
    for format in KvFormat::ALL {
        for (num_kv_heads, group, head_dim, block_size) in [
            (1, 1, 32, 16),
            (2, 2, 24, 16),
            (2, 3, 64, 32),
            (1, 4, 128, 16),
            (3, 7, 8, 48),
            (2, 8, 64, 16),
            (1, 5, 80, 16),
        ] {
            let shape = shape(num_kv_heads, group, head_dim, block_size, format);
            let world = World::new(shape, &[1, 15, 16, 17, 61]);
            check(&format!("{shape:?}"), 2e-6, |compute| {
                // Stale numbers that are none poison the reference, which multiplies them by zero weights.
                let mut cache = match compute.kernels() {
                    passerelle_models::ops::KernelSet::Reference => zeroed(&world),
                    _ => world.cache(),
                };
                world.step(compute, &mut cache, &world.whole())
            });
        }
    }
}

/// Windows shorter than a tile, as long as one, and longer; slopes; temperatures; a soft cap; sinks; everything together.
pub(super) fn variants(num_heads: usize, head_dim: usize) -> Vec<AttentionParams> {
    let plain = AttentionParams::causal((head_dim as f32).sqrt().recip());
    let slopes = Some((0..num_heads).map(|head| 0.5f32.powi(head as i32 + 1)).collect::<Vec<_>>().into());
    let temperature = Some(PositionTemperature { beta: 0.3, interval: 7 });
    let mut variants: Vec<_> =
        [1, 5, 15, 16, 17, 31, 40, 1000].map(|window| AttentionParams { window: Some(window), ..plain.clone() }).into();
    variants.push(AttentionParams { alibi_slopes: slopes.clone(), ..plain.clone() });
    variants.push(AttentionParams { temperature, ..plain.clone() });
    let sinks = Some((0..num_heads).map(|head| head as f32 - 1.5).collect::<Vec<_>>().into());
    variants.push(AttentionParams { soft_cap: Some(1.5), ..plain.clone() });
    variants.push(AttentionParams { sinks: sinks.clone(), ..plain.clone() });
    let (soft_cap, alibi_slopes) = (Some(2.0), slopes);
    variants.push(AttentionParams { window: Some(21), soft_cap, alibi_slopes, sinks, temperature, ..plain });
    variants
}

#[test]
fn every_feature_of_attention_equals_the_reference() {
    for format in KvFormat::ALL {
        for (num_kv_heads, group, head_dim, block_size) in [(1, 1, 32, 16), (2, 3, 24, 32), (3, 2, 64, 16)] {
            let shape = shape(num_kv_heads, group, head_dim, block_size, format);
            for params in variants(num_kv_heads * group, head_dim) {
                let what = format!("{shape:?} {params:?}");
                let world = World::with(params, shape, &[1, 16, 17, 75]);
                check(&what, 2e-6, |compute| {
                    let mut cache = match compute.kernels() {
                        passerelle_models::ops::KernelSet::Reference => zeroed(&world),
                        _ => world.cache(),
                    };
                    world.step(compute, &mut cache, &world.whole())
                });
            }
        }
    }
}

#[test]
fn chunks_and_company_give_the_bits_of_the_whole_with_every_feature() {
    for format in [KvFormat::Bf16, KvFormat::Int8] {
        for params in variants(4, 24) {
            let what = format!("{format} {params:?}");
            let world = World::with(params, shape(2, 2, 24, 16, format), &[83, 40]);
            fast().iter().for_each(|compute| chunks_and_company_change_nothing(&what, &world, compute));
        }
    }
}

pub(super) fn chunks_and_company_change_nothing(what: &str, world: &World, compute: &Compute) {
    let whole = world.step(compute, &mut world.cache(), &[(0, 0..83)]);
    for sizes in [vec![1; 83], vec![5, 31, 1, 40, 6], vec![82, 1]] {
        let mut cache = world.cache();
        let mut start = 0;
        for (index, size) in sizes.into_iter().enumerate() {
            let mut parts = vec![(0, start..start + size)];
            if index == 1 {
                parts.push((1, 0..40));
            }
            let rows = world.step(compute, &mut cache, &parts).narrow(0, 0, size).unwrap();
            assert_same_bits(what, &rows, &whole.narrow(0, start, size).unwrap());
            start += size;
        }
    }
}

/// Both sides of a query, with windows shorter than a tile, as long as one, and longer than every sequence.
pub(super) fn two_sided(head_dim: usize) -> Vec<AttentionParams> {
    let plain = AttentionParams::bidirectional((head_dim as f32).sqrt().recip());
    let windows =
        [1, 5, 15, 16, 17, 31, 40, 1000].map(|window| AttentionParams { window: Some(window), ..plain.clone() });
    [plain].into_iter().chain(windows).collect()
}

#[test]
fn attention_to_both_sides_equals_the_reference() {
    for (num_kv_heads, group, head_dim) in [(1, 1, 32), (2, 3, 24), (3, 1, 64), (2, 1, 13)] {
        let shape = shape(num_kv_heads, group, head_dim, 16, KvFormat::F32);
        for params in two_sided(head_dim) {
            let world = World::with(params, shape, &[1, 15, 16, 17, 33, 75]);
            check(&format!("{shape:?} {:?}", world.params), 2e-6, |compute| {
                let mut cache = match compute.kernels() {
                    passerelle_models::ops::KernelSet::Reference => zeroed(&world),
                    _ => world.cache(),
                };
                world.step(compute, &mut cache, &world.whole())
            });
        }
    }
}

#[test]
fn company_changes_no_bit_of_attention_to_both_sides() {
    for params in two_sided(24) {
        let what = format!("{params:?}");
        let world = World::with(params, shape(2, 2, 24, 16, KvFormat::F32), &[83, 1, 40, 16]);
        for compute in fast() {
            let together = world.step(&compute, &mut world.cache(), &world.whole());
            let mut start = 0;
            for (sequence, range) in world.whole() {
                let alone = world.step(&compute, &mut world.cache(), &[(sequence, range.clone())]);
                assert_same_bits(&what, &together.narrow(0, start, range.len()).unwrap(), &alone);
                start += range.len();
            }
        }
    }
}

/// By hand: keys that are all alike weigh the same, so that the output is the mean of the values that are seen.
#[test]
fn a_query_sees_as_far_to_the_right_as_to_the_left() {
    let params = AttentionParams { window: Some(3), direction: Direction::Both, ..AttentionParams::causal(0.25) };
    let mut world = World::with(params, shape(1, 1, 16, 16, KvFormat::F32), &[20]);
    let sequence = &mut world.sequences[0];
    sequence.k = sequence.k.zeros_like().unwrap();
    sequence.v = Tensor::arange(0f32, 20.0, &Device::Cpu).unwrap().reshape((20, 1)).unwrap().repeat((1, 16)).unwrap();
    for compute in fast() {
        let out = world.step(&compute, &mut world.cache(), &world.whole());
        let seen = |row: usize| out.get(row).unwrap().to_vec1::<f32>().unwrap()[0];
        for (row, mean) in [(0, 1.0), (1, 1.5), (10, 10.0), (15, 15.0), (17, 17.0), (18, 17.5), (19, 18.0)] {
            assert!((seen(row) - mean).abs() < 1e-5, "row {row} is {}, not {mean}", seen(row));
        }
    }
}

#[test]
fn a_window_of_one_token_returns_its_own_value() {
    let shape = shape(2, 1, 16, 16, KvFormat::F32);
    let params = AttentionParams { window: Some(1), ..AttentionParams::causal(0.25) };
    let world = World::with(params, shape, &[40]);
    for compute in fast() {
        let out = world.step(&compute, &mut world.cache(), &world.whole());
        assert_same_bits("values", &out, &world.sequences[0].v);
    }
}

/// So that a cache may give away blocks that no later token sees.
#[test]
fn what_lies_before_the_window_does_not_count() {
    let params = AttentionParams { window: Some(9), ..AttentionParams::causal(0.2) };
    let world = World::with(params, shape(2, 2, 24, 16, KvFormat::F32), &[61]);
    for compute in fast() {
        let whole = world.step(&compute, &mut world.cache(), &[(0, 0..61)]);
        // Tokens 30 and 31 are the first that token 38 and 39 see; all before 30 are stale.
        let mut cache = world.cache();
        world.step(&compute, &mut cache, &[(0, 30..38)]);
        let rest = world.step(&compute, &mut cache, &[(0, 38..61)]);
        assert_same_bits("after the window", &rest, &whole.narrow(0, 38, 23).unwrap());
    }
}

pub(super) fn zeroed(world: &World) -> KvCache {
    let spec = world.cache().spec().clone();
    KvCache::new(spec, world.num_blocks, &Device::Cpu).unwrap()
}

#[test]
fn chunks_and_single_tokens_give_the_bits_of_the_whole() {
    for format in KvFormat::ALL {
        let world = World::new(shape(2, 3, 64, 16, format), &[83]);
        for compute in fast() {
            let whole = world.step(&compute, &mut world.cache(), &[(0, 0..83)]);
            for sizes in [vec![1; 83], vec![16, 16, 16, 16, 19], vec![5, 31, 1, 40, 6], vec![82, 1]] {
                let mut cache = world.cache();
                let mut start = 0;
                for size in sizes {
                    let part = world.step(&compute, &mut cache, &[(0, start..start + size)]);
                    let what = format!("{format}: tokens {start}..{} with {}", start + size, compute.kernels());
                    assert_same_bits(&what, &part, &whole.narrow(0, start, size).unwrap());
                    start += size;
                }
            }
        }
    }
}

/// The last one has its heads in one task where one thread has them all. Their values come in one pass and in several,
/// of 8 panels and fewer, and their blocks have one tile and two.
#[test]
fn a_token_of_several_heads_gives_the_bits_of_the_whole() {
    const SHAPES: [(usize, usize, usize, usize); 6] =
        [(2, 2, 128, 16), (2, 4, 128, 16), (2, 1, 144, 16), (2, 1, 192, 16), (3, 2, 64, 32), (4, 3, 64, 16)];
    for format in KvFormat::ALL {
        for (num_kv_heads, group, head_dim, block_size) in SHAPES {
            let world = World::new(shape(num_kv_heads, group, head_dim, block_size, format), &[83]);
            for compute in fast().into_iter().flat_map(|compute| [compute.clone().with_bf16_products(), compute]) {
                let mut cache = world.cache();
                let whole = world.step(&compute, &mut cache, &[(0, 0..83)]);
                for token in [64, 79, 82] {
                    let row = world.step(&compute, &mut cache, &[(0, token..token + 1)]);
                    let what =
                        format!("{format}, {num_kv_heads} x {group} heads of {head_dim} with {}", compute.kernels());
                    assert_same_bits(&what, &row, &whole.narrow(0, token, 1).unwrap());
                }
            }
        }
    }
}

#[test]
fn a_ragged_batch_gives_the_bits_of_each_sequence_alone() {
    let world = World::new(shape(2, 2, 32, 16, KvFormat::Bf16), &[40, 7, 33, 90]);
    for compute in fast() {
        let mut together = world.cache();
        let prefix: Vec<Part> = vec![(0, 0..39), (1, 0..3), (2, 0..32), (3, 0..10)];
        world.step(&compute, &mut together, &prefix);
        let parts: Vec<Part> = vec![(0, 39..40), (1, 3..7), (2, 32..33), (3, 10..90)];
        let rows = world.step(&compute, &mut together, &parts);
        let mut start = 0;
        for (sequence, range) in parts {
            let alone = world.step(&compute, &mut world.cache(), &[(sequence, 0..world.len(sequence))]);
            let want = alone.narrow(0, range.start, range.len()).unwrap();
            assert_same_bits(&format!("sequence {sequence}"), &rows.narrow(0, start, range.len()).unwrap(), &want);
            start += range.len();
        }
    }
}

#[test]
fn block_size_and_the_choice_of_blocks_do_not_change_a_bit() {
    for format in KvFormat::ALL {
        let worlds = [16, 32, 64].map(|block_size| World::new(shape(1, 4, 64, block_size, format), &[70, 19]));
        for compute in fast() {
            let [a, b, c] = worlds.each_ref().map(|world| world.step(&compute, &mut world.cache(), &world.whole()));
            assert_same_bits("blocks of 32", &b, &a);
            assert_same_bits("blocks of 64", &c, &a);
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let world = World::new(shape(2, 1, 16, 16, KvFormat::F32), &[4]);
    let mut cache = world.cache();
    let compute = Compute::cpu(1);
    let k = Random(1).tensor(&[2, 32]);
    let slot = |slot| passerelle_models::Slot(slot);
    let outside = world.num_blocks as u32 * 16;
    assert!(store_kv(&compute, &k, &k, &[slot(0)], cache.layer_mut(0)).is_err(), "fewer slots than rows");
    assert!(store_kv(&compute, &k, &k, &[slot(0), slot(outside)], cache.layer_mut(0)).is_err(), "slot outside");
    let foreign = [vec![BlockId(world.num_blocks as u32)]];
    let sequence = SequenceInput { tokens: &[1], num_computed: 0, block_tables: &foreign, sample: &[] };
    let input = ModelInput::new(16, &[sequence]).unwrap();
    let (q, params) = (Random(1).tensor(&[1, 2, 16]), AttentionParams::causal(1.0));
    let plan = AttentionPlan::new(&input);
    assert!(paged_attention(&compute, &q, cache.layer_mut(0), &plan, &params).is_err(), "block outside");
    let odd = AttentionParams { alibi_slopes: Some(vec![0.5].into()), ..params.clone() };
    assert!(paged_attention(&compute, &q, cache.layer_mut(0), &plan, &odd).is_err(), "a slope for two heads");
    let none = AttentionParams { window: Some(0), ..params };
    assert!(paged_attention(&compute, &q, cache.layer_mut(0), &plan, &none).is_err(), "a window without keys");
    let odd = KvCacheSpec { block_size: 24, ..cache.spec().clone() };
    assert!(KvCache::new(odd, 1, &Device::Cpu).is_err(), "a tile would span two blocks");
}

#[test]
fn block_bytes_is_what_a_block_really_takes() {
    let of = |format| {
        let groups = vec![KvGroup::full(3)];
        KvCacheSpec { groups, num_kv_heads: 2, head_dim: 24, format, block_size: 32 }.block_bytes()
    };
    // Values of 24 are padded to 32.
    assert_eq!(of(KvFormat::Bf16), 3 * 2 * (24 + 32) * 2 * 32);
    assert_eq!(of(KvFormat::Int8), 3 * 2 * (24 + 4 + 32 + 4) * 32);
}
