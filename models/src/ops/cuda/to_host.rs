#![expect(unsafe_code, reason = "the device writes to memory of the host")]

use candle_core::Tensor;
use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaStream, PinnedHostSlice, result};
use half::bf16;

use super::gpu::Gpu;
use super::launch::{Address, Float};
use super::tensors::{address, float_of};
use crate::ModelError;
use crate::ops::Compute;

/// Memory of the host that the GPU copies to without a detour, as much as the largest piece so far.
#[derive(Debug, Default)]
pub(super) struct Staging(Option<PinnedHostSlice<u8>>);

/// Bytes that are copied together, unless one row is more.
const MOST_STAGED: usize = 16 << 20;

/// The rows of `x [m, width]`, as f32.
pub(crate) fn rows_to_host(compute: &Compute, x: &Tensor) -> Result<Vec<Vec<f32>>, ModelError> {
    let x = x.contiguous()?;
    let mut rows = Vec::with_capacity(x.dim(0)?);
    let float = float_of(&x)?;
    compute.gpu().read(&x, |bytes| {
        rows.push(match float {
            Float::F32 => bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect(),
            Float::Bf16 => bytes.as_chunks::<2>().0.iter().map(|bytes| bf16::from_ne_bytes(*bytes).to_f32()).collect(),
        });
    })?;
    Ok(rows)
}

impl Gpu {
    /// Waits for all that was queued before, and shows the bytes of each row of `x [m, width]`, which lies in one piece.
    pub(super) fn read(&self, x: &Tensor, mut show: impl FnMut(&[u8])) -> Result<(), ModelError> {
        let ((m, width), Address(start)) = (x.dims2()?, address(self, x)?);
        let row_bytes = width * x.dtype().size_in_bytes();
        let rows_together = (MOST_STAGED / row_bytes.max(1)).max(1);
        self.stream().context().bind_to_thread().w()?;
        let mut staging = self.staging();
        for row in (0..m).step_by(rows_together) {
            let bytes = staging.at_least(self.stream(), rows_together.min(m - row) * row_bytes)?;
            // SAFETY: so many rows of a tensor that lives until the copy has ended, which is waited for.
            unsafe { result::memcpy_dtoh_async(bytes, start + (row * row_bytes) as u64, self.stream().cu_stream()) }
                .w()?;
            self.stream().synchronize().w()?;
            bytes.chunks_exact(row_bytes).for_each(&mut show);
        }
        Ok(())
    }
}

impl Staging {
    /// The first `len` bytes, whatever they hold.
    fn at_least(&mut self, stream: &CudaStream, len: usize) -> Result<&mut [u8], ModelError> {
        if self.0.as_ref().is_none_or(|memory| memory.len() < len) {
            // Given back first, so that both are never held.
            self.0 = None;
            // SAFETY: bytes that nobody reads before the device has written them.
            self.0 = Some(unsafe { stream.context().alloc_pinned_with_flags(len.next_power_of_two(), 0) }.w()?);
        }
        let memory = self.0.as_mut().expect("it was just made");
        Ok(&mut memory.as_mut_slice().w()?[..len])
    }
}
