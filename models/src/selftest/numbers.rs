use candle_core::{Device, Tensor};
use half::bf16;

use crate::ops::Float;
use crate::random::draw;

/// Repeatable values, spread over `-1..1`.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        draw(&mut self.0)
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
