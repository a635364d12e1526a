use candle_core::{Device, Tensor};
use half::bf16;

use crate::ops::Float;

/// Repeatable values, spread over `-1..1` (SplitMix64: Steele et al., 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// What `float` can hold, as f32 on the CPU.
    pub(crate) fn tensor(&mut self, shape: &[usize], float: Float) -> Tensor {
        let values = self.values(shape.iter().product());
        let values = match float {
            Float::F32 => values,
            Float::Bf16 => values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect(),
        };
        Tensor::from_vec(values, shape, &Device::Cpu).expect("there are as many values as the shape has elements")
    }
}
