//! Quantised weights. The blocks and what they mean are those of the gguf package, see fixtures/gguf/make.py.

use candle_core::{Device, Tensor};
use passerelle_models::ops::{Compute, PackedWeight, WeightPart, embedding, linear};
use passerelle_models::{ActivationDtype, StoredDtype};
use safetensors::SafeTensors;

use super::{Random, assert_close, assert_same_bits, check, fast, reference, values};

const QUANTISED: [StoredDtype; 4] = [StoredDtype::Q8_0, StoredDtype::Q4_0, StoredDtype::Q4K, StoredDtype::Q6K];
const BLOCKS: &[u8] = include_bytes!("../fixtures/gguf/blocks.safetensors");
/// Of every matrix of blocks.
const ROWS: usize = 19;

fn golden_bytes(name: &str) -> Vec<u8> {
    SafeTensors::deserialize(BLOCKS).unwrap().tensor(name).unwrap().data().to_vec()
}

fn golden_values(name: &str) -> Vec<f32> {
    golden_bytes(name).as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn stored(dtype: StoredDtype) -> (Vec<u8>, Tensor) {
    let values = golden_values(&format!("{dtype}_values"));
    let width = values.len() / ROWS;
    (golden_bytes(&format!("{dtype}_bytes")), Tensor::from_vec(values, (ROWS, width), &Device::Cpu).unwrap())
}

fn pack(compute: &Compute, dtype: StoredDtype) -> PackedWeight {
    let (bytes, values) = stored(dtype);
    PackedWeight::pack(compute, None, values.dims()[1], &[WeightPart { dtype, bytes: &bytes }]).unwrap()
}

fn all_rows(compute: &Compute, weight: &PackedWeight) -> Tensor {
    let rows: Vec<u32> = (0..weight.out_features() as u32).collect();
    embedding(compute, weight, &rows).unwrap()
}

#[test]
fn every_block_means_what_the_gguf_package_says_bit_for_bit() {
    for dtype in QUANTISED {
        let (_, expected) = stored(dtype);
        for compute in fast().into_iter().chain([reference()]) {
            let what = format!("{dtype} with {}", compute.kernels());
            assert_same_bits(&what, &all_rows(&compute, &pack(&compute, dtype)), &expected);
        }
    }
}

#[test]
fn rounding_at_load_gives_the_gguf_package_s_blocks_bit_for_bit() {
    let source = golden_bytes("source");
    for dtype in [StoredDtype::Q8_0, StoredDtype::Q4_0] {
        let encoded = golden_bytes(&format!("{dtype}_encoded"));
        for compute in fast().into_iter().chain([reference()]) {
            let weight = |target, dtype, bytes| {
                all_rows(&compute, &PackedWeight::pack(&compute, target, 256, &[WeightPart { dtype, bytes }]).unwrap())
            };
            let rounded = weight(Some(dtype), StoredDtype::F32, &source);
            assert_same_bits(&dtype.to_string(), &rounded, &weight(None, dtype, &encoded));
        }
    }
}

/// Of 512 products with a weight of about 1, where each activation is off by at most 1.5e-5: a few 1e-4 together. A weight
/// that is off by one quant moves a sum by some 1e-2.
const TOLERANCE: f32 = 1.5e-3;

#[test]
fn products_are_those_of_the_dequantised_weights_for_every_number_of_rows() {
    for dtype in QUANTISED {
        for m in (1..=13).chain([16, 65, 130]) {
            let mut random = Random(m as u64);
            let (_, weights) = stored(dtype);
            let x = random.tensor(&[m, weights.dims()[1]]);
            let bias = (m % 2 == 1).then(|| random.tensor(&[ROWS]));
            check(&format!("{dtype}, {m} rows"), TOLERANCE, |compute| {
                linear(compute, &x, &pack(compute, dtype), bias.as_ref()).unwrap()
            });
        }
    }
}

#[test]
fn a_row_is_bit_identical_alone_and_in_any_batch() {
    for dtype in QUANTISED {
        for compute in fast() {
            let weight = pack(&compute, dtype);
            let x = Random(9).tensor(&[67, weight.in_features()]);
            let together = linear(&compute, &x, &weight, None).unwrap();
            for row in [0, 1, 4, 63, 64, 66] {
                let alone = linear(&compute, &x.narrow(0, row, 1).unwrap(), &weight, None).unwrap();
                assert_same_bits(&format!("{dtype}, row {row}"), &alone, &together.narrow(0, row, 1).unwrap());
            }
        }
    }
}

/// Each 32 of `x` as multiples of a 127th of the largest of them.
fn in_bytes(x: &Tensor) -> Tensor {
    let mut rounded = values(x);
    for unit in rounded.as_chunks_mut::<32>().0 {
        let scale = unit.iter().fold(0.0f32, |largest, value| largest.max(value.abs())) / 127.0;
        unit.iter_mut().for_each(|value| *value = (*value / scale).round_ties_even() * scale);
    }
    Tensor::from_vec(rounded, x.dims(), &Device::Cpu).unwrap()
}

fn with_bytes(computes: impl IntoIterator<Item = Compute>) -> Vec<Compute> {
    computes.into_iter().map(|compute| compute.with_activations_in(ActivationDtype::Int8).unwrap()).collect()
}

#[test]
fn activations_in_8_bits_meet_the_weights_as_they_are_rounded_in_every_body_alike() {
    for dtype in QUANTISED {
        for m in [1, 2, 3, 5, 7, 12, 66] {
            let (_, weights) = stored(dtype);
            let x = Random(m as u64).tensor(&[m, weights.dims()[1]]);
            let expected = in_bytes(&x).matmul(&weights.t().unwrap()).unwrap();
            let in_16_bits = linear(&Compute::cpu(1), &x, &pack(&Compute::cpu(1), dtype), None).unwrap();
            let mut bits: Option<Tensor> = None;
            for compute in with_bytes(fast()) {
                let what = format!("{dtype}, {m} rows, {}", compute.kernels());
                let y = linear(&compute, &x, &pack(&compute, dtype), None).unwrap();
                assert_close(&what, &y, &expected, TOLERANCE);
                assert!(values(&y) != values(&in_16_bits), "{what}: they are rounded");
                assert_same_bits(&what, &y, bits.get_or_insert_with(|| y.clone()));
                let last = linear(&compute, &x.narrow(0, m - 1, 1).unwrap(), &pack(&compute, dtype), None).unwrap();
                assert_same_bits(&what, &last, &y.narrow(0, m - 1, 1).unwrap());
            }
        }
    }
}

/// As many panels as are visited together, and a few more.
#[test]
fn rows_of_a_large_weight_have_the_bits_of_those_of_small_ones() {
    const COPIES: usize = 7;
    for dtype in QUANTISED {
        let (bytes, weights) = stored(dtype);
        let copies = [WeightPart { dtype, bytes: &bytes }; COPIES];
        for compute in fast().into_iter().chain(with_bytes(fast())) {
            let large = PackedWeight::pack(&compute, None, weights.dims()[1], &copies).unwrap();
            for m in 1..=13 {
                let x = Random(m as u64).tensor(&[m, weights.dims()[1]]);
                let together = linear(&compute, &x, &large, None).unwrap();
                let alone = linear(&compute, &x, &pack(&compute, dtype), None).unwrap();
                let expected = Tensor::cat(&[&alone; COPIES], 1).unwrap();
                assert_same_bits(&format!("{dtype}, {m} rows, {}", compute.kernels()), &together, &expected);
            }
        }
    }
}

/// The largest quants of either sign, times the largest activations: sums of 16 bits would not hold all of their products.
#[test]
fn the_largest_products_of_bytes_are_exact() {
    const ONE: [u8; 2] = [0x00, 0x3c];
    let q8_0 = |quant: i8| [&ONE[..], &[quant.cast_unsigned(); 32]].concat();
    let q4_0 = |byte: u8| [&ONE[..], &[byte; 16]].concat();
    let q6_k = |low: u8, high: u8| [&[low; 128][..], &[high; 64], &[1; 16], &ONE].concat();
    // Scales of 1 and minima of 0, see `blocks.rs`.
    let q4_k = |byte: u8| [&ONE[..], &[0; 2], &[1; 4], &[0; 4], &[1; 4], &[byte; 128]].concat();
    let blocks = [
        (StoredDtype::Q8_0, q8_0(-128), -128.0),
        (StoredDtype::Q8_0, q8_0(127), 127.0),
        (StoredDtype::Q4_0, q4_0(0xff), 7.0),
        (StoredDtype::Q4_0, q4_0(0), -8.0),
        (StoredDtype::Q4K, q4_k(0xff), 15.0),
        (StoredDtype::Q6K, q6_k(0xff, 0xff), 31.0),
        (StoredDtype::Q6K, q6_k(0, 0), -32.0),
    ];
    for (dtype, bytes, quant) in blocks {
        let width = dtype.block_len();
        for sign in [1.0f32, -1.0] {
            let x = Tensor::full(sign * 127.0, (3, width), &Device::Cpu).unwrap();
            for compute in with_bytes(fast()) {
                let part = WeightPart { dtype, bytes: &bytes };
                let weight = PackedWeight::pack(&compute, None, width, &[part]).unwrap();
                let y = values(&linear(&compute, &x, &weight, None).unwrap());
                assert_eq!(y, [sign * 127.0 * quant * width as f32; 3], "{dtype} with {}", compute.kernels());
            }
        }
    }
}

#[test]
fn quantised_weights_stay_quantised_in_memory() {
    let bits = |weight: &PackedWeight| 8.0 * weight.size_bytes() as f64 / (32 * weight.in_features()) as f64;
    for (dtype, expected) in
        [(StoredDtype::Q8_0, 8.5), (StoredDtype::Q4_0, 4.5), (StoredDtype::Q4K, 4.625), (StoredDtype::Q6K, 6.5625)]
    {
        // Nineteen rows take the room of two panels of sixteen.
        assert_eq!(bits(&pack(&Compute::cpu(1), dtype)), expected, "{dtype}");
    }
}

/// As in files that give values more bits than queries.
#[test]
fn parts_of_several_dtypes_stack_without_rounding_any() {
    let part = |dtype| (dtype, stored(dtype).0, stored(dtype).1);
    let parts = [part(StoredDtype::Q4K), part(StoredDtype::Q6K), part(StoredDtype::Q8_0)];
    let floats = Random(3).values(5 * 512);
    let float_bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
    let x = Random(4).tensor(&[3, 512]);
    let bias = Random(5).tensor(&[3 * ROWS + 5]);
    for compute in fast().into_iter().chain(with_bytes(fast())) {
        let mut stacked: Vec<_> = parts.iter().map(|(dtype, bytes, _)| WeightPart { dtype: *dtype, bytes }).collect();
        stacked.push(WeightPart { dtype: StoredDtype::F32, bytes: &float_bytes });
        let weight = PackedWeight::pack(&compute, None, 512, &stacked).unwrap();
        let together = linear(&compute, &x, &weight, Some(&bias)).unwrap();
        for (index, stored) in stacked.iter().enumerate() {
            let one = PackedWeight::pack(&compute, None, 512, &[*stored]).unwrap();
            let (start, len) = (index * ROWS, one.out_features());
            let expected = linear(&compute, &x, &one, Some(&bias.narrow(0, start, len).unwrap())).unwrap();
            assert_same_bits("stacked", &together.narrow(1, start, len).unwrap().contiguous().unwrap(), &expected);
        }
        let rows = embedding(&compute, &weight, &[ROWS as u32 + 2, 3 * ROWS as u32 + 4]).unwrap();
        assert_eq!(values(&rows)[512..], floats[4 * 512..]);
        assert_same_bits("embedding", &rows.narrow(0, 0, 1).unwrap(), &parts[1].2.narrow(0, 2, 1).unwrap());
    }
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    for compute in fast().into_iter().chain(with_bytes(fast())) {
        let weight = pack(&compute, StoredDtype::Q8_0);
        for poison in [f32::NAN, f32::INFINITY] {
            let mut x = Random(6).values(2 * 512);
            x[512 + 40] = poison;
            let x = Tensor::from_vec(x, (2, 512), &Device::Cpu).unwrap();
            let y = values(&linear(&compute, &x, &weight, None).unwrap());
            assert!(y[..ROWS].iter().all(|value| value.is_finite()), "the other row");
            assert!(y[ROWS..].iter().all(|value| value.is_nan()), "{poison}");
        }
    }
    let mut source = Random(7).values(64);
    source[3] = f32::INFINITY;
    let bytes: Vec<u8> = source.iter().flat_map(|value| value.to_le_bytes()).collect();
    for dtype in [StoredDtype::Q8_0, StoredDtype::Q4_0] {
        let compute = Compute::cpu(1);
        let part = WeightPart { dtype: StoredDtype::F32, bytes: &bytes };
        let rows = all_rows(&compute, &PackedWeight::pack(&compute, Some(dtype), 32, &[part]).unwrap());
        assert!(values(&rows)[..32].iter().all(|value| value.is_nan()), "{dtype}");
        assert!(values(&rows)[32..].iter().all(|value| value.is_finite()), "{dtype}");
    }
}

#[test]
fn small_activations_keep_their_digits() {
    for compute in fast() {
        let weight = pack(&compute, StoredDtype::Q8_0);
        let x = Random(8).tensor(&[1, 512]);
        let scaled = (&x * 1e-20).unwrap();
        let want = (linear(&compute, &x, &weight, None).unwrap() * 1e-20).unwrap();
        let got = linear(&compute, &scaled, &weight, None).unwrap();
        let factor = 1e20;
        assert_close("scaled", &(got * factor).unwrap(), &(want * factor).unwrap(), TOLERANCE);
        let vanishing = (&x * 1e-35).unwrap();
        assert!(values(&linear(&compute, &vanishing, &weight, None).unwrap()).iter().all(|value| value.abs() < 1e-25));
    }
}

/// Every number of rows that a tile has, in one panel and in many, with quants and activations that are often the largest.
#[test]
fn tiles_of_every_shape_have_the_bits_of_the_portable_body() {
    const COPIES: usize = 9;
    for dtype in QUANTISED {
        let (mut bytes, weights) = stored(dtype);
        let mut random = Random(77);
        bytes.chunks_exact_mut(dtype.block_bytes()).for_each(|block| roughen(dtype, block, &mut random));
        let parts = vec![WeightPart { dtype, bytes: &bytes }; COPIES];
        let width = weights.dims()[1];
        for bodies in [fast(), with_bytes(fast())] {
            let bodies: Vec<_> = bodies.iter().filter(|compute| compute.num_threads() == 1).collect();
            let pack = |compute: &&Compute| PackedWeight::pack(compute, None, width, &parts).unwrap();
            let packed: Vec<_> = bodies.iter().map(pack).collect();
            for m in (1..=24).chain([40, 81]) {
                let x = Tensor::from_vec(rough_values(m * width, &mut random), (m, width), &Device::Cpu).unwrap();
                let mut products =
                    bodies.iter().zip(&packed).map(|(compute, weight)| linear(compute, &x, weight, None).unwrap());
                let portable = products.next().unwrap();
                for (compute, y) in bodies[1..].iter().zip(products) {
                    assert_same_bits(&format!("{dtype}, {m} rows, {}", compute.kernels()), &y, &portable);
                }
            }
        }
    }
}

/// Other quants under the same scales.
fn roughen(dtype: StoredDtype, block: &mut [u8], random: &mut Random) {
    let quants = match dtype {
        StoredDtype::Q4K => 16..block.len(),
        StoredDtype::Q6K => 0..192,
        _ => 2..block.len(),
    };
    for byte in &mut block[quants] {
        *byte = match random.next() >> 60 {
            0..4 => 0xff,
            4..6 => 0x80,
            6 => 0,
            _ => (random.next() >> 50) as u8,
        };
    }
}

fn rough_values(len: usize, random: &mut Random) -> Vec<f32> {
    let rough = |value: f32, random: &mut Random| match random.next() >> 61 {
        0..3 => 127.0,
        3..5 => -127.0,
        _ => value * 127.0,
    };
    random.values(len).into_iter().map(|value| rough(value, random)).collect()
}
