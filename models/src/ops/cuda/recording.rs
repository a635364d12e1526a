#![expect(unsafe_code, reason = "a recording is sent to another thread")]

use std::sync::Arc;

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use candle_core::cuda_backend::cudarc::driver::{CudaGraph, CudaStream};

use super::gpu::Gpu;
use crate::ModelError;
use crate::ops::Compute;

/// Launches that were recorded, to be queued again as one. Their arguments are fixed: what changes from step to step lies in
/// memory that they read.
pub(super) struct Recording(CudaGraph);

// SAFETY: CUDA's graphs belong to no thread, they must only not be used by two at once, and whoever has the recording is the
// only one to use it.
unsafe impl Send for Recording {}

impl Recording {
    /// Of what `queue` queues on the stream of `compute`, which is not run. It must have been run before: what is loaded at a
    /// first use cannot be recorded. Memory that it takes it must give back, as then each replay does.
    ///
    /// Errors when it copies something from or to the host, since that would happen once and not at each replay.
    pub(super) fn of(compute: &Compute, queue: impl FnOnce() -> Result<(), ModelError>) -> Result<Self, ModelError> {
        let stream = compute.gpu().stream();
        // With the guard, candle refuses copies from the host that it did not make before under a guard, and all to it.
        let guard = compute.device().as_cuda_device()?.enable_cuda_graph_htod_cache();
        let capture = Capture::begin(stream)?;
        let queued = queue();
        let graph = capture.end();
        drop(guard);
        queued?;
        let graph = graph?.ok_or_else(|| ModelError::device("nothing was recorded"))?;
        graph.upload().w()?;
        Ok(Self(graph))
    }

    /// Queues everything again.
    ///
    /// # Safety
    /// The memory that was recorded is still what it was.
    pub(super) unsafe fn replay(&self, gpu: &Gpu) -> Result<(), ModelError> {
        self.0.launch().w()?;
        gpu.pulse().beat();
        Ok(())
    }
}

/// While it lives the stream runs nothing. It ends also where a panic passes.
struct Capture<'a> {
    stream: &'a Arc<CudaStream>,
    is_over: bool,
}

impl<'a> Capture<'a> {
    fn begin(stream: &'a Arc<CudaStream>) -> Result<Self, ModelError> {
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).w()?;
        Ok(Self { stream, is_over: false })
    }

    fn end(mut self) -> Result<Option<CudaGraph>, ModelError> {
        self.is_over = true;
        // A tensor whose memory could not be given back leaves an error behind. The next call would return it, and do nothing.
        let given_back = self.stream.context().check_err();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        given_back.w()?;
        Ok(graph.w()?)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            // Whatever it is, nobody wants it.
            let _ = self.stream.context().check_err();
            let _ = self.stream.end_capture(CUgraphInstantiate_flags(0));
        }
    }
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Recording")
    }
}
