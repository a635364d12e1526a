#![expect(unsafe_code, reason = "kernels are launched with addresses of the device's memory")]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaModule, CudaSlice, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, result, sys,
};
use candle_core::cuda_backend::cudarc::nvrtc::Ptx;
use candle_core::cuda_backend::cudarc::{cublas, driver::DevicePtr};
use candle_core::{CudaDevice, Device};

use super::args::activation::ActivationArgs;
use super::args::angles::AnglesArgs;
use super::args::attention::AttentionArgs;
use super::args::bias::BiasArgs;
use super::args::blocks::{DequantiseArgs, QuantisedArgs};
use super::args::choose::ChooseArgs;
use super::args::norm::NormArgs;
use super::args::one_row::OneRowArgs;
use super::args::qkv::QkvArgs;
use super::args::rows::GatherArgs;
use super::args::unequal::UnequalArgs;
use super::launch::Launch;
use super::scratch::Scratch;
use super::to_host::Staging;
use crate::{ModelError, Pulse};

/// A GPU with our kernels loaded, and the one stream on which everything of a model runs.
pub(crate) struct Gpu {
    stream: Arc<CudaStream>,
    /// What cuBLAS works in, see [`workspace`].
    _workspace: CudaSlice<u8>,
    module: Arc<CudaModule>,
    /// Those that were launched before.
    functions: Mutex<HashMap<String, CudaFunction>>,
    staging: Mutex<Staging>,
    scratch: Mutex<Scratch>,
    pulse: Pulse,
}

/// Why no GPU can be used, in one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoGpu(String);

/// What `build.rs` made of `kernels.cu`.
static KERNELS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

impl Gpu {
    /// The visible device `ordinal`, with a stream of its own. `pulse` beats with every launch.
    pub(crate) fn open(ordinal: usize, pulse: Pulse) -> Result<(Device, Self), NoGpu> {
        passerelle_cuda_link::link();
        let load = |stream: &CudaStream| stream.context().load_module(Ptx::from_binary(KERNELS.to_vec())).w();
        Self::with_new_stream(ordinal, pulse, load)
    }

    /// The same device with a stream, and so a memory for tensors, of its own: what is recorded of one stream holds nothing
    /// that another model queues at the same time.
    pub(crate) fn on_own_stream(&self) -> Result<(Device, Self), NoGpu> {
        Self::with_new_stream(self.stream.context().ordinal(), self.pulse.clone(), |_| Ok(self.module.clone()))
    }

    fn with_new_stream(
        ordinal: usize,
        pulse: Pulse,
        module: impl FnOnce(&CudaStream) -> candle_core::Result<Arc<CudaModule>>,
    ) -> Result<(Device, Self), NoGpu> {
        let open = || {
            let device = Device::new_cuda_with_stream(ordinal)?;
            let cuda = device.as_cuda_device()?;
            set_up(cuda)?;
            let (stream, workspace) = (cuda.cuda_stream(), workspace(cuda)?);
            let module = module(&stream)?;
            let (functions, staging, scratch) = (Mutex::default(), Mutex::default(), Mutex::default());
            Ok((device, Self { stream, _workspace: workspace, module, functions, staging, scratch, pulse }))
        };
        open().map_err(|error: candle_core::Error| NoGpu(first_line(&error.to_string())))
    }

    /// As the driver calls the device.
    pub(crate) fn name(&self) -> Option<String> {
        self.stream.context().name().ok()
    }

    /// As the driver tells it, for which all is taken that the pool keeps of what was given back. So the pool lets go of
    /// that first.
    pub(crate) fn free_memory(&self) -> Option<u64> {
        let context = self.stream.context();
        // What was given back in the stream's order is the pool's once the stream has got there.
        self.stream.synchronize().ok()?;
        // SAFETY: the device is open, and what is in use stays where it is.
        let _ = unsafe {
            result::device::get_default_mem_pool(context.cu_device())
                .and_then(|pool| result::mem_pool::trim_to(pool, 0))
        };
        let (free, _) = context.mem_get_info().ok()?;
        Some(free as u64)
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    /// For one copy to the host.
    pub(super) fn staging(&self) -> MutexGuard<'_, Staging> {
        self.staging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For one product: until it is queued, nobody else writes there.
    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What products of quantised weights work in, in bytes.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch().size_bytes()
    }

    /// Queues a launch; what is wrong with the kernel itself shows at a later call.
    ///
    /// # Safety
    /// The arguments are the kernel's, and their addresses are of memory of this device, as long as the kernel takes it to
    /// be, that is freed on this stream if at all.
    pub(super) unsafe fn launch<A: KernelArgs>(&self, launch: Launch<A>) -> Result<(), ModelError> {
        let Launch { kernel, grid: [x, y, z], threads, shared_bytes, args } = launch;
        if x == 0 || y == 0 || z == 0 {
            return Ok(());
        }
        let function = self.function(kernel, shared_bytes)?;
        let args = ByValue(args);
        let mut builder = self.stream.launch_builder(&function);
        builder.arg(&args);
        let config = LaunchConfig { grid_dim: (x, y, z), block_dim: (threads, 1, 1), shared_mem_bytes: shared_bytes };
        // SAFETY: passed on.
        unsafe { builder.launch(config) }.w()?;
        self.pulse.beat();
        Ok(())
    }

    /// A kernel is given as much shared memory at every launch.
    fn function(&self, kernel: String, shared_bytes: u32) -> Result<CudaFunction, ModelError> {
        let mut functions = self.functions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(function) = functions.get(&kernel) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(&kernel).w()?;
        let most = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        function.set_attribute(most, shared_bytes.cast_signed()).w()?;
        functions.insert(kernel, function.clone());
        Ok(function)
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gpu").field("device", &self.stream.context().ordinal()).finish_non_exhaustive()
    }
}

/// The struct that a kernel takes.
pub(super) trait KernelArgs: Copy {}

impl KernelArgs for ActivationArgs {}
impl KernelArgs for AnglesArgs {}
impl KernelArgs for AttentionArgs {}
impl KernelArgs for BiasArgs {}
impl KernelArgs for ChooseArgs {}
impl KernelArgs for DequantiseArgs {}
impl KernelArgs for GatherArgs {}
impl KernelArgs for NormArgs {}
impl KernelArgs for OneRowArgs {}
impl KernelArgs for QkvArgs {}
impl KernelArgs for QuantisedArgs {}
impl KernelArgs for UnequalArgs {}

#[repr(transparent)]
struct ByValue<A>(A);

// SAFETY: plain numbers and addresses in the layout of C, which tests hold against the kernels' own.
unsafe impl<A: KernelArgs> DeviceRepr for ByValue<A> {}

/// One stream orders everything, so tensors need no events. Memory that ops give back stays in the pool: without that, each
/// synchronisation would return it to the driver.
fn set_up(device: &CudaDevice) -> candle_core::Result<()> {
    // SAFETY: nothing of this device is used on another stream.
    unsafe { device.disable_event_tracking() };
    let mut kept = u64::MAX;
    // SAFETY: the device is open; the attribute is one u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(device.cuda_stream().context().cu_device()).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut kept).cast()).w()
    }
}

/// Memory for cuBLAS that is there from the start: what it would take while launches are recorded would be part of the
/// recording. As much as NVIDIA recommends for Hopper (cuBLAS' documentation, section 2.1.8 "cublasSetWorkspace").
fn workspace(device: &CudaDevice) -> candle_core::Result<CudaSlice<u8>> {
    const BYTES: usize = 32 << 20;
    // SAFETY: cuBLAS writes before it reads.
    let memory = unsafe { device.alloc::<u8>(BYTES) }?;
    let start = memory.device_ptr(memory.stream()).0;
    // SAFETY: the memory lives as long as the handle is used: both are of one `Gpu` and its device.
    unsafe { cublas::sys::cublasSetWorkspace_v2(*device.cublas_handle().handle(), start as *mut _, BYTES) }
        .result()
        .map_err(candle_core::Error::wrap)?;
    Ok(memory)
}

/// candle's errors go on with a backtrace.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}
