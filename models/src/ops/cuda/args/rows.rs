use crate::ops::cuda::launch::{Address, Float, Launch};

/// `GatherArgs` of `rows.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct GatherArgs {
    pub(crate) x: Address,
    pub(crate) rows: Address,
    pub(crate) out: Address,
    pub(crate) width: u64,
}

const THREADS: u32 = 256;

impl GatherArgs {
    /// A block for each row.
    pub(crate) fn launch(self, num_rows: usize, elements: Float) -> Launch<Self> {
        let kernel = format!("gather_{}", elements.name());
        Launch { kernel, grid: [num_rows as u32, 1, 1], threads: THREADS, shared_bytes: 0, args: self }
    }
}
