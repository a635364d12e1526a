//! Products of bf16 by bf16: by the CPU's instruction where it has one, else in plain code that rounds as Intel's
//! manual says.

use candle_core::{Device, Tensor};
use half::bf16;
use passerelle_models::StoredDtype::Bf16;
use passerelle_models::ops::{Compute, KernelSet, embedding, linear};

use super::linear::pack;
use super::{Random, assert_close, assert_same_bits, fast, reference, values};

/// Every fast body, on one thread and on three.
fn bodies() -> impl Iterator<Item = Compute> {
    fast().into_iter().map(Compute::with_bf16_products)
}

fn rounded(x: &Tensor) -> Tensor {
    let values: Vec<f32> = values(x).into_iter().map(|value| bf16::from_f32(value).to_f32()).collect();
    Tensor::from_vec(values, x.dims(), &Device::Cpu).unwrap()
}

/// The sum that the contract of `linear` writes down.
fn sum_in_pairs(x: &[f32], w: &[f32]) -> f32 {
    let add = |at: usize, sum: f32| bf16::from_f32(x[at]).to_f32().mul_add(bf16::from_f32(w[at]).to_f32(), sum);
    (0..x.len()).step_by(2).fold(0.0, |sum, k| add(k, add(k + 1, sum)))
}

#[test]
fn they_equal_the_reference_of_rounded_activations_for_every_shape() {
    for (n, k) in [(1, 2), (16, 16), (17, 4), (31, 258), (64, 48), (97, 1030), (130, 64)] {
        for m in [1, 2, 3, 5, 6, 7, 12, 16, 33, 75] {
            let mut random = Random(m as u64);
            let (x, w) = (random.tensor(&[m, k]), random.values(n * k));
            let bias = (m % 2 == 1).then(|| random.tensor(&[n]));
            let reference = reference();
            let want = linear(&reference, &rounded(&x), &pack(&reference, Bf16, k, &w), bias.as_ref()).unwrap();
            for compute in bodies() {
                let what = format!("[{m}, {k}] x [{n}, {k}] with {}", compute.kernels());
                let got = linear(&compute, &x, &pack(&compute, Bf16, k, &w), bias.as_ref()).unwrap();
                assert_close(&what, &got, &want, 2e-5 * (k as f32).sqrt());
            }
        }
    }
}

/// Rows, panels and the cuts along `k` meet in every shape that a tile has.
#[test]
fn a_row_is_bit_identical_alone_and_in_any_batch_on_any_number_of_threads() {
    let (n, k) = (70, 1500);
    let mut random = Random(9);
    let (x, w) = (random.tensor(&[150, k]), random.values(n * k));
    for kernels in fast().into_iter().map(|compute| compute.kernels()) {
        let on = |threads| Compute::cpu_with_kernels(threads, kernels).unwrap().with_bf16_products();
        let weight = pack(&on(1), Bf16, k, &w);
        let together = linear(&on(1), &x, &weight, None).unwrap();
        let ranges = (1..=25).map(|len| (len, len)).chain([(0, 1), (149, 1), (3, 2), (0, 73), (71, 79), (0, 150)]);
        for (start, len) in ranges {
            let part = linear(&on(3), &x.narrow(0, start, len).unwrap(), &weight, None).unwrap();
            let what = format!("rows {start}..{} with {kernels}", start + len);
            assert_same_bits(&what, &part, &together.narrow(0, start, len).unwrap());
        }
    }
}

/// In plain code. What the instruction does inside is the processor's own: see the next test.
#[test]
fn plain_code_adds_the_odd_neighbour_first() {
    for compute in bodies().filter(|compute| !compute.kernels().has_bf16_products()) {
        assert_order(&compute);
    }
}

#[test]
#[ignore = "a processor may round inside its instruction otherwise than Intel's manual says"]
fn the_instruction_rounds_as_the_manual_says() {
    let Ok(compute) = Compute::cpu_with_kernels(1, KernelSet::Avx512Bf16) else { return };
    assert_order(&compute.with_bf16_products());
}

fn assert_order(compute: &Compute) {
    let (n, k) = (19, 302);
    let mut random = Random(5);
    let (x, w) = (random.values(k), random.values(n * k));
    let row = Tensor::from_slice(&x, (1, k), &Device::Cpu).unwrap();
    let y = values(&linear(compute, &row, &pack(compute, Bf16, k, &w), None).unwrap());
    for (j, y) in y.into_iter().enumerate() {
        let want = sum_in_pairs(&x, &w[j * k..(j + 1) * k]);
        assert_eq!(y.to_bits(), want.to_bits(), "output {j} with {}: {y:e}, not {want:e}", compute.kernels());
    }
}

#[test]
fn weights_in_pairs_take_no_more_memory_and_are_read_back_exactly() {
    let (n, k) = (53, 40);
    let (tokens, w) = ([0, 52, 16, 15, 7, 7], Random(4).values(n * k));
    let want = embedding(&reference(), &pack(&reference(), Bf16, k, &w), &tokens).unwrap();
    for compute in fast() {
        let plain = pack(&compute, Bf16, k, &w);
        let compute = compute.with_bf16_products();
        let paired = pack(&compute, Bf16, k, &w);
        assert_eq!((paired.size_bytes(), paired.dtype()), (plain.size_bytes(), Bf16));
        assert_same_bits("a table", &embedding(&compute, &paired, &tokens).unwrap(), &want);
    }
}

#[test]
fn an_odd_number_of_inputs_and_other_dtypes_keep_activations_as_they_are() {
    use passerelle_models::StoredDtype::{F16, F32};
    for (dtype, k) in [(Bf16, 33), (F16, 32), (F32, 32)] {
        let mut random = Random(k as u64);
        let (x, w) = (random.tensor(&[5, k]), random.values(20 * k));
        for compute in fast() {
            let plain = linear(&compute, &x, &pack(&compute, dtype, k, &w), None).unwrap();
            let compute = compute.with_bf16_products();
            assert_same_bits("rows", &linear(&compute, &x, &pack(&compute, dtype, k, &w), None).unwrap(), &plain);
        }
    }
}

#[test]
fn what_is_no_number_or_too_large_stays_so() {
    let k = 32;
    for (value, is_expected) in [(f32::NAN, f32::is_nan as fn(f32) -> bool), (f32::INFINITY, f32::is_infinite)] {
        let mut x = vec![1.0; k];
        x[7] = value;
        let x = Tensor::from_vec(x, (1, k), &Device::Cpu).unwrap();
        for compute in bodies() {
            let y = values(&linear(&compute, &x, &pack(&compute, Bf16, k, &vec![0.5; 3 * k]), None).unwrap());
            assert!(y.iter().all(|y| is_expected(*y)), "{value}: {y:?}");
        }
    }
}
