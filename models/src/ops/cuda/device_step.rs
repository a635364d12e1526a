#![expect(unsafe_code, reason = "integers are copied to memory of their own on the device")]

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, result};

use super::gpu::Gpu;
use super::launch::Address;
use super::step::{StepLayout, StepWords};
use crate::ModelError;

/// A step's integers on the device.
pub(crate) struct DeviceStep {
    words: CudaSlice<u32>,
    pub(super) layout: StepLayout,
}

impl DeviceStep {
    pub(crate) fn new(gpu: &Gpu, StepWords { words, layout }: StepWords) -> Result<Self, ModelError> {
        let len = words.len();
        Self::with_room(gpu, &StepWords { words, layout }, len)
    }

    /// For `len` words, of which `words` are the first: others of the same layout may be written over them.
    pub(super) fn with_room(gpu: &Gpu, words: &StepWords, len: usize) -> Result<Self, ModelError> {
        // SAFETY: what is read was written before: see `write`.
        let memory = unsafe { gpu.stream().alloc(len) }.w()?;
        let step = Self { words: memory, layout: words.layout.clone() };
        step.write(gpu, &words.words)?;
        Ok(step)
    }

    /// Queues a copy over the first of the words. `words` have the layout of those before them.
    pub(super) fn write(&self, gpu: &Gpu, words: &[u32]) -> Result<(), ModelError> {
        if words.len() > self.words.len() {
            let room = self.words.len();
            return Err(ModelError::Input(format!("{} integers of a step where {room} have room", words.len())));
        }
        let Address(start) = self.address(gpu, 0);
        gpu.stream().context().bind_to_thread().w()?;
        // SAFETY: the memory has room. Of memory that is not pinned, as this is, the driver makes a copy before it returns.
        unsafe { result::memcpy_htod_async(start, words, gpu.stream().cu_stream()) }.w()?;
        Ok(())
    }

    /// Of word `index`.
    pub(super) fn address(&self, gpu: &Gpu, index: usize) -> Address {
        let (start, _) = self.words.device_ptr(gpu.stream());
        Address(start + (index * size_of::<u32>()) as u64)
    }
}

impl std::fmt::Debug for DeviceStep {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("DeviceStep").field("layout", &self.layout).finish_non_exhaustive()
    }
}
