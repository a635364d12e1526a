//! The kernels' text, run on the CPU, beside the ops' reference bodies.

mod attention;
mod elementwise;
mod host;
mod qkv;
mod world;

use candle_core::{DType, Device, Tensor};

use super::launch::Float;
use crate::ops::{Compute, KernelSet};

/// Repeatable values, spread over `-1..1`.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// What `float` can hold, as f32.
    fn tensor(&mut self, shape: &[usize], float: Float) -> Tensor {
        let values = Tensor::from_vec(self.values(shape.iter().product()), shape, &Device::Cpu).unwrap();
        values.to_dtype(dtype(float)).unwrap().to_dtype(DType::F32).unwrap()
    }
}

fn reference() -> Compute {
    Compute::cpu_with_kernels(1, KernelSet::Reference).unwrap()
}

fn dtype(float: Float) -> DType {
    match float {
        Float::F32 => DType::F32,
        Float::Bf16 => DType::BF16,
    }
}

/// What a result may be off by, beside 1: sums in another order, and one rounding to bf16 at the end.
fn tolerance(float: Float) -> f32 {
    match float {
        Float::F32 => 2e-5,
        Float::Bf16 => 1.0 / 200.0,
    }
}

fn values(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn assert_close(what: &str, got: &[f32], want: &Tensor, tolerance: f32) {
    let want = values(want);
    assert_eq!(got.len(), want.len(), "{what}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close = (got - want).abs() <= tolerance * (1.0 + want.abs());
        assert!(is_close || got.is_nan() && want.is_nan(), "{what}: element {index} is {got}, not {want}");
    }
}
