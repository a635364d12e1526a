//! What the host needs of a tensor.

use candle_core::{DType, Tensor};

use super::Compute;
use crate::ModelError;

/// All elements of `x`, f32 or bf16, as f32.
pub(crate) fn to_host(compute: &Compute, x: &Tensor) -> Result<Vec<f32>, ModelError> {
    #[cfg(feature = "cuda")]
    if compute.kernels() == super::KernelSet::Cuda {
        return super::cuda::to_host::to_host(compute, x);
    }
    debug_assert!(compute.is_host(), "other devices copy by bodies of their own");
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
