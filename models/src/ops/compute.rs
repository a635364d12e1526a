use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;

use super::cpu::workspace::Workspace;
#[cfg(feature = "cuda")]
use super::cuda::gpu::{Gpu, NoGpu};
use super::op_times::OpTimer;
use super::{ComputePool, Float, HostError, HostPlacement, OnProcessors, Op, OpTimes, RoundedUnit};
use crate::{ActivationDtype, KvFormat, ModelError, Pulse, StoredDtype};

/// Where and how the ops run: a device, the bodies chosen for it, and the threads they share.
///
/// Cheap to clone. All models of a process share one, so that together they use one set of threads.
#[derive(Debug, Clone)]
pub struct Compute {
    device: Device,
    kernels: KernelSet,
    pool: Arc<ComputePool>,
    workspace: Arc<Workspace>,
    host: HostPlacement,
    times: Option<Arc<OpTimes>>,
    /// What products round activations to that meet bf16 weights, and attention where it meets a bf16 cache.
    factors: Float,
    activation_dtype: ActivationDtype,
    busy_beside: Option<Arc<AtomicBool>>,
    #[cfg(feature = "cuda")]
    gpu: Option<Arc<Gpu>>,
}

/// Which bodies the ops use. Displayed in the start-up log and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelSet {
    /// candle tensor operations, on any device. Close to the others, without their promise of equal bits.
    Reference,
    /// Plain Rust, on any CPU.
    Portable,
    /// x86-64 with AVX2, FMA and F16C. Bit for bit equal to [`KernelSet::Portable`].
    Avx2Fma,
    /// x86-64 with AVX-512 F, BW, DQ, VL and VNNI besides. Bit for bit equal to [`KernelSet::Portable`].
    Avx512,
    /// The same with AVX512-BF16, for products of bf16 by bf16, those of attention included
    /// ([`Compute::with_bf16_products`]); all else has the bits of [`KernelSet::Portable`].
    Avx512Bf16,
    /// Our own kernels on an NVIDIA GPU, and candle's where there is none of ours.
    #[cfg(feature = "cuda")]
    Cuda,
}

impl KernelSet {
    /// The fastest set that this machine's CPU runs.
    pub fn detect() -> Self {
        let fastest_first = [Self::Avx512Bf16, Self::Avx512, Self::Avx2Fma];
        fastest_first.into_iter().find(|kernels| kernels.is_supported()).unwrap_or(Self::Portable)
    }

    /// Every fast body that it runs.
    #[cfg(test)]
    pub(crate) fn of_this_cpu() -> impl Iterator<Item = Self> {
        let bodies = [Self::Portable, Self::Avx2Fma, Self::Avx512, Self::Avx512Bf16];
        bodies.into_iter().filter(|kernels| kernels.is_supported())
    }

    /// Whether a row's bits depend on the row alone, and not on the batch that it is in.
    pub fn keeps_rows_equal(self) -> bool {
        matches!(self, Self::Portable | Self::Avx2Fma | Self::Avx512 | Self::Avx512Bf16)
    }

    /// The plainest set of equal bits, whatever is computed: what two of them made goes together if it is the same.
    pub fn bits_of(self) -> Self {
        match self {
            Self::Avx2Fma | Self::Avx512 => Self::Portable,
            others => others,
        }
    }

    /// Whether steps like those before are replayed.
    pub fn replays_steps(self) -> bool {
        #[cfg(feature = "cuda")]
        return self == Self::Cuda;
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Whether products of bf16 by bf16 are faster than those of bf16 by f32.
    pub fn has_bf16_products(self) -> bool {
        self == Self::Avx512Bf16
    }

    /// What activations of a model are rounded to where they meet bf16 weights, given how keys and values are cached; `others`
    /// where these bodies have no reason to choose.
    pub(crate) fn factors_beside(self, format: KvFormat, others: Float) -> Float {
        match format {
            KvFormat::F32 => Float::F32,
            KvFormat::Bf16 | KvFormat::Int8 if self.has_bf16_products() => Float::Bf16,
            KvFormat::Bf16 | KvFormat::Int8 => others,
        }
    }

    /// Whether this machine's CPU has the instructions.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Reference | Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2Fma => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2Fma.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => Self::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2Fma | Self::Avx512 | Self::Avx512Bf16 => false,
            #[cfg(feature = "cuda")]
            Self::Cuda => false,
        }
    }
}

impl fmt::Display for KernelSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reference => "reference",
            Self::Portable => "portable",
            Self::Avx2Fma => "avx2+fma",
            Self::Avx512 => "avx512+vnni",
            Self::Avx512Bf16 => "avx512+vnni+bf16",
            #[cfg(feature = "cuda")]
            Self::Cuda => "cuda",
        })
    }
}

impl Compute {
    /// The CPU with the fastest bodies it runs. `num_threads` counts the calling thread; 0 is taken as 1.
    pub fn cpu(num_threads: usize) -> Self {
        Self::on_cpu(HostPlacement::default(), num_threads, KernelSet::detect())
    }

    /// The same on a part of the host. Errors when this process may not use that part, or the system cannot do what is asked.
    pub fn cpu_on(host: HostPlacement, num_threads: usize) -> Result<Self, HostError> {
        host.check()?;
        Ok(Self::on_cpu(host, num_threads, KernelSet::detect()))
    }

    /// The visible GPU `ordinal`. The threads serve only loading.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize, num_threads: usize) -> Result<Self, NoGpu> {
        let pool = ComputePool::new(num_threads);
        let (device, gpu) = Gpu::open(ordinal, pool.pulse().clone())?;
        Ok(Self {
            device,
            kernels: KernelSet::Cuda,
            pool: Arc::new(pool),
            workspace: Arc::default(),
            host: HostPlacement::default(),
            times: None,
            factors: Float::F32,
            activation_dtype: ActivationDtype::Int16,
            busy_beside: None,
            gpu: Some(Arc::new(gpu)),
        })
    }

    /// The same for a model that is about to be loaded, with memory of its own to compute in: on a GPU it has a stream of
    /// its own, so that its steps can be recorded while others run.
    pub(crate) fn for_model(&self) -> Result<Self, ModelError> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = &self.gpu {
            let (device, gpu) = gpu.on_own_stream().map_err(|error| ModelError::device(error.to_string()))?;
            return Ok(Self { device, gpu: Some(Arc::new(gpu)), workspace: Arc::default(), ..self.clone() });
        }
        Ok(Self { workspace: Arc::default(), ..self.clone() })
    }

    /// The CPU with bodies that the caller names, for tests and benches that compare them.
    ///
    /// Errors when this machine's CPU lacks the instructions.
    pub fn cpu_with_kernels(num_threads: usize, kernels: KernelSet) -> Result<Self, ModelError> {
        if !kernels.is_supported() {
            return Err(ModelError::Input(format!("this CPU cannot run the {kernels} kernels")));
        }
        Ok(Self::on_cpu(HostPlacement::default(), num_threads, kernels))
    }

    fn on_cpu(host: HostPlacement, num_threads: usize, kernels: KernelSet) -> Self {
        Self {
            device: Device::Cpu,
            kernels,
            pool: Arc::new(ComputePool::on(host.processors.clone(), num_threads)),
            workspace: Arc::default(),
            host,
            times: None,
            factors: Float::F32,
            activation_dtype: ActivationDtype::Int16,
            busy_beside: None,
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// Leaves a processor to somebody else, who is at work while `busy` says so: matrices are packed by one thread less.
    pub fn beside(self, busy: Arc<AtomicBool>) -> Self {
        Self { busy_beside: Some(busy), ..self }
    }

    /// At present.
    pub(crate) fn packing_threads(&self) -> usize {
        let is_busy = self.busy_beside.as_ref().is_some_and(|busy| busy.load(Ordering::Relaxed));
        (self.num_threads() - usize::from(is_busy)).max(1)
    }

    /// The same, adding what each op takes to `times`.
    pub fn timed(self, times: Arc<OpTimes>) -> Self {
        Self { times: Some(times), ..self }
    }

    /// The same, whose products round activations to bf16 where they meet bf16 weights that it packs, of an even number of
    /// inputs, and whose attention rounds queries and weights where they meet a bf16 cache. Where
    /// [`KernelSet::has_bf16_products`] says no, in plain code, which is slow.
    pub fn with_bf16_products(self) -> Self {
        Self { factors: Float::Bf16, ..self }
    }

    /// The same for a model whose keys and values are cached as `format`, which says how exact it is to be: beside f32 ones, no
    /// product takes bf16 activations; beside others, those do that the CPU is faster with.
    pub fn for_kv_of(&self, format: KvFormat) -> Self {
        Self { factors: self.kernels.factors_beside(format, self.factors), ..self.clone() }
    }

    /// What products with weights that are held as `held` round activations to.
    pub(crate) fn rounded_unit(&self, held: StoredDtype) -> RoundedUnit {
        if self.is_host() {
            RoundedUnit::on_cpu(held, self.factors, self.activation_dtype)
        } else {
            RoundedUnit::default()
        }
    }

    /// The same, rounding activations to `dtype` where they meet quantised weights. Errors on a GPU, where no body does.
    pub fn with_activations_in(&self, dtype: ActivationDtype) -> Result<Self, ModelError> {
        if dtype == ActivationDtype::Int8 && !self.is_host() {
            let problem = "activations in int8 are for models on a CPU; on a GPU leave --activation-dtype out";
            return Err(ModelError::Input(problem.into()));
        }
        Ok(Self { activation_dtype: dtype, ..self.clone() })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the device's own memory that are free; `None` where that is the system's, or the driver does not tell.
    pub fn free_memory(&self) -> Option<u64> {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().and_then(|gpu| gpu.free_memory());
        #[cfg(not(feature = "cuda"))]
        None
    }

    /// Bytes that products of quantised weights work in on a GPU, beside the weights; 0 on the CPU.
    pub(crate) fn scratch_bytes(&self) -> usize {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().map_or(0, |gpu| gpu.scratch_bytes());
        #[cfg(not(feature = "cuda"))]
        0
    }

    /// What the driver calls the GPU; `None` on the CPU.
    pub fn gpu_name(&self) -> Option<String> {
        #[cfg(feature = "cuda")]
        return self.gpu.as_ref().and_then(|gpu| gpu.name());
        #[cfg(not(feature = "cuda"))]
        None
    }

    pub fn kernels(&self) -> KernelSet {
        self.kernels
    }

    /// Whether what the ops make lies in the host's memory.
    pub(crate) fn is_host(&self) -> bool {
        self.device.is_cpu()
    }

    /// What activations may be held in.
    pub(crate) fn activations(&self) -> &'static [Float] {
        if self.is_host() { &[Float::F32] } else { &[Float::F32, Float::Bf16] }
    }

    /// What activations are rounded to where they meet bf16 weights.
    pub(crate) fn factors(&self) -> Float {
        self.factors
    }

    /// What activations are rounded to where they meet quantised weights.
    pub(crate) fn activation_dtype(&self) -> ActivationDtype {
        self.activation_dtype
    }

    /// Threads that work on one op, the calling one included.
    pub fn num_threads(&self) -> usize {
        self.pool.num_threads()
    }

    /// Keeps the calling thread on the processors that compute, while what it gets lives.
    pub fn enter(&self) -> OnProcessors {
        self.pool.enter()
    }

    pub(crate) fn host(&self) -> &HostPlacement {
        &self.host
    }

    /// Beats with every task of an op.
    pub fn pulse(&self) -> &Pulse {
        self.pool.pulse()
    }

    /// To be held while `op` runs.
    pub(super) fn time(&self, op: Op) -> Option<OpTimer<'_>> {
        self.times.as_ref().map(|times| times.start(op))
    }

    pub(crate) fn pool(&self) -> &ComputePool {
        &self.pool
    }

    /// What bodies of the CPU compute in.
    pub(crate) fn workspace(&self) -> &Arc<Workspace> {
        &self.workspace
    }

    /// Of [`KernelSet::Cuda`].
    #[cfg(feature = "cuda")]
    pub(super) fn gpu(&self) -> &Gpu {
        self.gpu.as_ref().expect("bodies for a GPU are chosen where one is open")
    }
}
