//! What the host needs of a matrix.

use candle_core::{DType, Tensor};

use super::Compute;
use crate::ModelError;

/// The rows of `x [m, width]`, f32 or bf16, as f32. Each has memory of its own: an allocator keeps pieces of such a size at
/// hand, where it would give one of all rows back to the system, and take new pages for it, at every step.
pub(crate) fn rows_to_host(compute: &Compute, x: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda {
        return super::cuda::to_host::rows_to_host(compute, x);
    }
    debug_assert!(compute.is_host(), "other devices copy by bodies of their own");
    Ok(x.to_dtype(DType::F32)?.to_vec2()?)
}
