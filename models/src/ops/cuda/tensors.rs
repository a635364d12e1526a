//! Where tensors lie.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaStorage, DType, Storage, Tensor};
use half::bf16;

use super::gpu::Gpu;
use super::launch::{Address, Float};
use crate::ModelError;

/// The first element of `x`. Good for launches that are queued while the tensor lives.
///
/// Errors when `x` is not contiguous, not on a GPU, or of a dtype that no kernel takes.
pub(super) fn address(gpu: &Gpu, x: &Tensor) -> Result<Address, ModelError> {
    let (storage, layout) = x.storage_and_layout();
    let (Storage::Cuda(storage), true) = (&*storage, layout.is_contiguous()) else {
        return Err(ModelError::Input("a tensor that does not lie in one piece on the GPU".into()));
    };
    let start = match x.dtype() {
        DType::F32 => start::<f32>(gpu, storage)?,
        DType::BF16 => start::<bf16>(gpu, storage)?,
        DType::U32 => start::<u32>(gpu, storage)?,
        DType::U8 => start::<u8>(gpu, storage)?,
        dtype => return Err(ModelError::Input(format!("a tensor of {dtype:?}, which no kernel takes"))),
    };
    Ok(Address(start + (layout.start_offset() * x.dtype().size_in_bytes()) as u64))
}

/// Null where there is no tensor.
pub(super) fn address_if_any(gpu: &Gpu, x: Option<&Tensor>) -> Result<Address, ModelError> {
    x.map_or(Ok(Address::NULL), |x| address(gpu, x))
}

/// What the activations `x` are held in.
pub(super) fn float_of(x: &Tensor) -> Result<Float, ModelError> {
    Float::of(x.dtype()).ok_or_else(|| ModelError::Input(format!("activations of {:?} on a GPU", x.dtype())))
}

/// A tensor on `like`'s device whose elements a kernel is about to write, all of them.
#[expect(unsafe_code, reason = "memory is taken without clearing it")]
pub(super) fn unwritten(shape: &[usize], dtype: DType, like: &Tensor) -> Result<Tensor, ModelError> {
    // SAFETY: the caller's next launch writes every element, and nothing reads them before.
    Ok(unsafe { Tensor::empty(shape, dtype, like.device()) }?)
}

fn start<T: candle_core::cuda_backend::CudaDType>(gpu: &Gpu, storage: &CudaStorage) -> Result<u64, ModelError> {
    let slice: &CudaSlice<T> = storage.as_cuda_slice()?;
    Ok(slice.device_ptr(gpu.stream()).0)
}
