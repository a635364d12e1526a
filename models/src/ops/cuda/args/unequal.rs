use crate::ops::cuda::launch::{Address, Float, Launch};

/// `UnequalArgs` of `unequal.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct UnequalArgs {
    pub(crate) one: Address,
    pub(crate) other: Address,
    pub(crate) differ: Address,
    pub(crate) num_elements: u64,
}

const THREADS: u32 = 256;

impl UnequalArgs {
    pub(crate) fn launch(self, elements: Float) -> Launch<Self> {
        let blocks = self.num_elements.div_ceil(u64::from(THREADS)) as u32;
        let kernel = format!("unequal_{}", elements.name());
        Launch { kernel, grid: [blocks, 1, 1], threads: THREADS, shared_bytes: 0, args: self }
    }
}
