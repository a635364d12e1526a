//! The kernels' text, run on the CPU, beside the ops' reference bodies.

mod attention;
mod choose;
mod elementwise;
mod host;
mod padded;
mod product;
mod qkv;
mod quantised;

use candle_core::{DType, Tensor};

use crate::ops::{Compute, KernelSet};
pub(super) use crate::selftest::numbers::Random;
pub(super) use crate::selftest::tables::tolerance;

fn reference() -> Compute {
    Compute::cpu_with_kernels(1, KernelSet::Reference).unwrap()
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
