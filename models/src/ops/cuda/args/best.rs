use crate::ops::cuda::launch::{Address, Float, Launch, WARP};

/// `BestArgs` of `best.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct BestArgs {
    pub(crate) logits: Address,
    pub(crate) tokens: Address,
    pub(crate) logprobs: Address,
    pub(crate) vocab_size: i32,
    pub(crate) count: i32,
}

const WARPS: u32 = 8;

impl BestArgs {
    /// A block for each row.
    pub(crate) fn launch(self, num_rows: usize, logits: Float) -> Launch<Self> {
        let kernel = format!("best_{}", logits.name());
        Launch { kernel, grid: [num_rows as u32, 1, 1], threads: WARPS * WARP, shared_bytes: 0, args: self }
    }
}
