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

/// Elements of one load.
pub(super) const PIECE: u32 = 8;
/// Of a block.
pub(super) const MOST_WARPS: u32 = 16;
const MOST_THREADS: u32 = MOST_WARPS * WARP;

impl NormArgs {
    /// A block for each row, with a thread for each piece of it where there are not too many.
    pub(crate) fn launch(self, num_rows: usize, activations: Float) -> Launch<Self> {
        let kernel = format!("norm_{}", activations.name());
        let threads = (self.width as u32).div_ceil(PIECE).next_multiple_of(WARP).min(MOST_THREADS);
        Launch { kernel, grid: [num_rows as u32, 1, 1], threads, shared_bytes: 0, args: self }
    }
}
