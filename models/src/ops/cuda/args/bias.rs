use crate::ops::cuda::launch::{Address, Float, Launch};

/// `BiasArgs` of `bias.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct BiasArgs {
    pub(crate) x: Address,
    pub(crate) bias: Address,
    pub(crate) width: u64,
    pub(crate) num_elements: u64,
}

const THREADS: u32 = 256;

impl BiasArgs {
    pub(crate) fn launch(self, elements: Float) -> Launch<Self> {
        let blocks = self.num_elements.div_ceil(u64::from(THREADS)) as u32;
        let kernel = format!("add_bias_{}", elements.name());
        Launch { kernel, grid: [blocks, 1, 1], threads: THREADS, shared_bytes: 0, args: self }
    }
}
