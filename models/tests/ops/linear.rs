use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use passerelle_models::StoredDtype;
use passerelle_models::ops::{Compute, PackedWeight, WeightPart, embedding, gather_rows, linear};

use super::{Random, assert_same_bits, check, fast, reference, values};

const DTYPES: [StoredDtype; 3] = [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16];

fn bytes(dtype: StoredDtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        StoredDtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        StoredDtype::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        StoredDtype::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        other => panic!("no floats of {other:?}"),
    }
}

pub(super) fn pack(compute: &Compute, dtype: StoredDtype, k: usize, values: &[f32]) -> PackedWeight {
    PackedWeight::pack(compute, None, k, &[WeightPart { dtype, bytes: &bytes(dtype, values) }]).unwrap()
}

#[test]
fn linear_equals_the_reference_for_every_shape_and_dtype() {
    let shapes = [(1, 1), (16, 16), (17, 3), (31, 257), (64, 48), (97, 1031), (130, 64)];
    for dtype in DTYPES {
        for (n, k) in shapes {
            for m in [1, 2, 3, 5, 6, 7, 16, 33, 75] {
                let mut random = Random(m as u64);
                let (x, w) = (random.tensor(&[m, k]), random.values(n * k));
                let bias = (m % 2 == 1).then(|| random.tensor(&[n]));
                check(&format!("{dtype:?} [{m}, {k}] x [{n}, {k}]"), 2e-5 * (k as f32).sqrt(), |compute| {
                    linear(compute, &x, &pack(compute, dtype, k, &w), bias.as_ref()).unwrap()
                });
            }
        }
    }
}

/// Instructions differ in how many rows and panels they take at a time: small matrices of every shape that any of them has.
#[test]
fn tiles_of_every_shape_have_the_same_bits() {
    for dtype in DTYPES {
        for (n, k) in [(130, 3), (64, 1), (9, 5)] {
            for m in 1..=26 {
                let mut random = Random(m as u64);
                let (x, w) = (random.tensor(&[m, k]), random.values(n * k));
                check(&format!("{dtype:?} [{m}, {k}] x [{n}, {k}]"), 1e-5, |compute| {
                    linear(compute, &x, &pack(compute, dtype, k, &w), None).unwrap()
                });
            }
        }
    }
}

/// The order is part of the contract, so that a new body can be written from it.
#[test]
fn linear_adds_in_ascending_order_and_the_bias_last() {
    let (n, k) = (19, 301);
    let mut random = Random(5);
    let (x, w, bias) = (random.values(k), random.values(n * k), random.values(n));
    for compute in fast() {
        let x = Tensor::from_slice(&x, (1, k), &Device::Cpu).unwrap();
        let bias = Tensor::from_slice(&bias, n, &Device::Cpu).unwrap();
        let y = linear(&compute, &x, &pack(&compute, StoredDtype::F32, k, &w), Some(&bias)).unwrap();
        let (x, bias) = (values(&x), values(&bias));
        for (j, y) in values(&y).into_iter().enumerate() {
            let sum = (0..k).fold(0.0f32, |sum, i| x[i].mul_add(w[j * k + i], sum));
            assert_eq!(y.to_bits(), (sum + bias[j]).to_bits(), "output {j} with {}", compute.kernels());
        }
    }
}

#[test]
fn a_row_is_bit_identical_alone_and_in_any_batch() {
    let (n, k) = (70, 1500);
    for dtype in DTYPES {
        let mut random = Random(9);
        let (x, w) = (random.tensor(&[150, k]), random.values(n * k));
        for compute in fast() {
            let weight = pack(&compute, dtype, k, &w);
            let together = linear(&compute, &x, &weight, None).unwrap();
            for (start, len) in [(0, 1), (149, 1), (3, 2), (50, 3), (7, 4), (9, 7), (0, 33), (71, 79)] {
                let part = linear(&compute, &x.narrow(0, start, len).unwrap(), &weight, None).unwrap();
                let what = format!("{dtype:?}: rows {start}..{} with {}", start + len, compute.kernels());
                assert_same_bits(&what, &part, &together.narrow(0, start, len).unwrap());
            }
        }
    }
}

#[test]
fn parts_of_any_dtype_and_alignment_stack_into_one_weight() {
    let k = 24;
    let (a, b) = (Random(1).values(5 * k), Random(2).values(30 * k));
    let rounded = |values: &[f32]| values.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>();
    let whole = [rounded(&a), rounded(&b)].concat();
    // One byte in front moves the part off every alignment.
    let (a_bytes, b_bytes) = (bytes(StoredDtype::F32, &a), [vec![0], bytes(StoredDtype::Bf16, &b)].concat());
    let parts = [
        WeightPart { dtype: StoredDtype::F32, bytes: &a_bytes },
        WeightPart { dtype: StoredDtype::Bf16, bytes: &b_bytes[1..] },
    ];
    let x = Random(3).tensor(&[4, k]);
    for compute in fast() {
        let stacked = PackedWeight::pack(&compute, Some(StoredDtype::Bf16), k, &parts).unwrap();
        assert_eq!((stacked.out_features(), stacked.in_features(), stacked.dtype()), (35, k, StoredDtype::Bf16));
        assert_eq!(stacked.size_bytes(), 48 * k * 2);
        let plain = pack(&compute, StoredDtype::Bf16, k, &whole);
        let want = linear(&compute, &x, &plain, None).unwrap();
        assert_same_bits("stacked", &linear(&compute, &x, &stacked, None).unwrap(), &want);
    }
}

#[test]
fn embedding_widens_the_packed_rows_exactly() {
    let (n, k) = (53, 40);
    let tokens = [0, 52, 16, 15, 7, 7];
    for dtype in DTYPES {
        let w = Random(4).values(n * k);
        let rows = check(&format!("{dtype:?}"), 0.0, |compute| {
            embedding(compute, &pack(compute, dtype, k, &w), &tokens).unwrap()
        });
        assert_eq!(rows.dims(), [tokens.len(), k]);
    }
    let table = pack(&reference(), StoredDtype::F32, k, &Random(4).values(n * k));
    assert!(embedding::<Tensor>(&reference(), &table, &[53]).is_err(), "a token outside the table");
}

#[test]
fn gather_rows_keeps_the_order_asked_for() {
    let x = Random(6).tensor(&[5, 3]);
    let compute = Compute::cpu(1);
    let rows = gather_rows(&compute, &x, &[4, 0, 4]).unwrap();
    let all = values(&x);
    assert_eq!(values(&rows), [&all[12..15], &all[0..3], &all[12..15]].concat());
    assert_eq!(gather_rows(&compute, &x, &[]).unwrap().dims(), [0, 3]);
    assert!(gather_rows(&compute, &x, &[5]).is_err());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let compute = Compute::cpu(1);
    let part = |bytes| [WeightPart { dtype: StoredDtype::F32, bytes }];
    assert!(PackedWeight::pack(&compute, None, 4, &part(&[0; 17])).is_err(), "half a row");
    assert!(PackedWeight::pack(&compute, None, 4, &[]).is_err(), "no rows");
    for dtype in [StoredDtype::Q4K, StoredDtype::Q6K] {
        assert!(
            PackedWeight::pack(&compute, Some(dtype), 256, &part(&[0; 1024])).is_err(),
            "nothing rounds to {dtype}"
        );
    }
    assert!(PackedWeight::pack(&compute, Some(StoredDtype::Q8_0), 33, &part(&[0; 132])).is_err(), "a broken block");
    let weight = pack(&compute, StoredDtype::F32, 4, &[0.0; 8]);
    assert!(linear(&compute, &Random(1).tensor(&[2, 5]), &weight, None).is_err(), "rows too long");
    assert!(linear(&compute, &Random(1).tensor(&[2, 4]), &weight, Some(&Random(1).tensor(&[3]))).is_err(), "bias");
    let empty = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    assert_eq!(linear(&compute, &empty, &weight, None).unwrap().dims(), [0, 2]);
}
