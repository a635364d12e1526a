use crate::ops::cuda::launch::{Address, Float, Launch, WARP};

/// `NormArgs` of `norm.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormArgs {
    pub(crate) x: Address,
    pub(crate) residual: Address,
    pub(crate) sum: Address,
    pub(crate) normed: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) width: i32,
    pub(crate) eps: f32,
}

const WARPS: u32 = 8;

impl NormArgs {
    /// A block for each row.
    pub(crate) fn launch(self, num_rows: usize, activations: Float) -> Launch<Self> {
        let kernel = format!("norm_{}", activations.name());
        Launch { kernel, grid: [num_rows as u32, 1, 1], threads: WARPS * WARP, shared_bytes: 0, args: self }
    }
}
