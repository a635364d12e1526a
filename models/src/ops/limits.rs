//! Work that only the machine itself limits, to hold the ops against: a caller with a clock makes rates of it.

use candle_core::{DType, Tensor};

use super::{Compute, cpu};
use crate::ModelError;

/// Far larger than any cache.
const BUFFER_BYTES: usize = 512 << 20;
/// Rows and columns of the matrices that a GPU multiplies.
const MATRIX: usize = 8192;

/// What a device can do at most: of the CPU reads and multiply-adds between registers, of a GPU copies within its memory and
/// products of large matrices in bf16. Holds half a gigabyte.
#[derive(Debug)]
pub struct LimitProbe {
    compute: Compute,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Cpu { buffer: Vec<f32> },
    Gpu { source: Tensor, matrix: Tensor },
}

impl LimitProbe {
    /// Errors when the device's memory is short.
    pub fn new(compute: &Compute) -> Result<Self, ModelError> {
        let (device, len) = (compute.device(), BUFFER_BYTES / size_of::<f32>());
        let work = if device.is_cpu() {
            Work::Cpu { buffer: vec![1.0; len] }
        } else {
            let source = Tensor::ones(len, DType::F32, device)?;
            // Of equal numbers a GPU multiplies more than of others: they take less power.
            let matrix = Tensor::rand(-1.0f32, 1.0, (MATRIX, MATRIX), device)?.to_dtype(DType::BF16)?;
            Work::Gpu { source, matrix }
        };
        Ok(Self { compute: compute.clone(), work })
    }

    /// Once through the memory. Returns how many bytes were read and written.
    pub fn move_memory(&self) -> Result<u64, ModelError> {
        match &self.work {
            Work::Cpu { buffer } => {
                read_through(&self.compute, buffer);
                Ok(BUFFER_BYTES as u64)
            }
            Work::Gpu { source, .. } => {
                source.copy()?;
                self.compute.device().synchronize()?;
                Ok(2 * BUFFER_BYTES as u64)
            }
        }
    }

    /// For some milliseconds, as a model multiplies whose weights are quantised or not. Returns how many operations they were,
    /// two for each multiply-add.
    pub fn multiply(&self, is_quantised: bool) -> Result<u64, ModelError> {
        match &self.work {
            Work::Cpu { .. } if is_quantised => Ok(multiply_integers(&self.compute)),
            Work::Cpu { .. } => Ok(multiply_add(&self.compute)),
            Work::Gpu { matrix, .. } => {
                matrix.matmul(matrix)?;
                self.compute.device().synchronize()?;
                Ok(2 * (MATRIX as u64).pow(3))
            }
        }
    }
}

/// Reads `values` once, on all threads, each along several streams. A few elements at the end may be left out.
pub fn read_through(compute: &Compute, values: &[f32]) {
    cpu::limits::read_through(compute, values);
}

/// Runs fused multiply-adds between registers on all threads, for some milliseconds: of f32, or of bf16 where `compute` has
/// [`Compute::with_bf16_products`]. Returns how many floating-point operations they were, two for each.
pub fn multiply_add(compute: &Compute) -> u64 {
    cpu::limits::multiply_add(compute)
}

/// The same of integers, of as many bits as activations are rounded to where they meet quantised weights. Returns how many
/// operations they were.
pub fn multiply_integers(compute: &Compute) -> u64 {
    cpu::limits::multiply_integers(compute)
}
