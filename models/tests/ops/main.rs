//! Every op: each fast body against the candle reference over a table of shapes, the fast bodies against each other bit
//! for bit, and the promise that a row's bits depend on nothing but the row.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test by panicking")]

mod attention;
mod bf16_attention;
mod bf16_products;
mod elementwise;
mod int8_kv;
mod linear;
mod pool;
mod prepare_qkv;
mod quantised;
mod spans;

use candle_core::{Device, Tensor};
use passerelle_models::ops::{Compute, KernelSet};
use passerelle_models::random::draw;

/// Repeatable values, spread over `-1..1`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        draw(&mut self.0)
    }

    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    fn tensor(&mut self, shape: &[usize]) -> Tensor {
        Tensor::from_vec(self.values(shape.iter().product()), shape, &Device::Cpu).unwrap()
    }

    fn shuffled(&mut self, len: usize) -> Vec<u32> {
        let mut items: Vec<u32> = (0..len as u32).collect();
        for i in (1..len).rev() {
            items.swap(i, self.next() as usize % (i + 1));
        }
        items
    }
}

fn reference() -> Compute {
    Compute::cpu_with_kernels(1, KernelSet::Reference).unwrap()
}

const FAST: [KernelSet; 4] = [KernelSet::Portable, KernelSet::Avx2Fma, KernelSet::Avx512, KernelSet::Avx512Bf16];

/// Every fast body that this machine runs, on one thread and on three.
fn fast() -> Vec<Compute> {
    FAST.into_iter()
        .filter(|kernels| kernels.is_supported())
        .flat_map(|kernels| [1, 3].map(|threads| Compute::cpu_with_kernels(threads, kernels).unwrap()))
        .collect()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f32) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    for (index, (got, want)) in values(got).into_iter().zip(values(want)).enumerate() {
        let error = (got - want).abs();
        assert!(error <= tolerance * (1.0 + want.abs()), "{what}: element {index} is {got}, not {want}");
    }
}

fn assert_same_bits(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    for (index, (got, want)) in values(got).into_iter().zip(values(want)).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {index} is {got:e}, not {want:e}");
    }
}

/// Runs `op` on every fast body: the first result is held against the reference, the others must equal it bit for bit.
fn check(what: &str, tolerance: f32, op: impl Fn(&Compute) -> Tensor) -> Tensor {
    let want = op(&reference());
    let mut first: Option<Tensor> = None;
    for compute in fast() {
        let got = op(&compute);
        let what = format!("{what} with {} on {} threads", compute.kernels(), compute.num_threads());
        match &first {
            None => assert_close(&what, &got, &want, tolerance),
            Some(first) => assert_same_bits(&what, &got, first),
        }
        first.get_or_insert(got);
    }
    first.expect("the portable body runs everywhere")
}

/// What this machine cannot run is not tested on it, and the log says so (`--nocapture`).
#[test]
fn the_fastest_bodies_that_run_here_are_chosen() {
    for kernels in FAST {
        println!(
            "{kernels}: {}",
            if kernels.is_supported() { "run" } else { "skipped, this CPU lacks the instructions" }
        );
        assert_eq!(Compute::cpu_with_kernels(1, kernels).is_ok(), kernels.is_supported());
    }
    let fastest = FAST.into_iter().rfind(|kernels| kernels.is_supported()).unwrap();
    assert_eq!(KernelSet::detect(), fastest);
}

#[test]
fn kernel_sets_name_themselves_for_the_log() {
    assert_eq!(KernelSet::Portable.to_string(), "portable");
    assert_eq!(KernelSet::Avx2Fma.to_string(), "avx2+fma");
    assert_eq!(KernelSet::Avx512.to_string(), "avx512+vnni");
    assert_eq!(KernelSet::Avx512Bf16.to_string(), "avx512+vnni+bf16");
    assert_eq!(Compute::cpu(2).kernels(), KernelSet::detect());
    assert!(KernelSet::detect().is_supported());
}
