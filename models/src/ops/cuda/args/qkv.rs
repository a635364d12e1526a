use crate::ops::cuda::launch::{Address, Float, Launch, WARP};

/// `QkvArgs` of `qkv.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct QkvArgs {
    pub(crate) qkv: Address,
    pub(crate) q: Address,
    pub(crate) k: Address,
    pub(crate) v: Address,
    pub(crate) slots: Address,
    pub(crate) bias: Address,
    pub(crate) q_weight: Address,
    pub(crate) k_weight: Address,
    pub(crate) q_bias: Address,
    pub(crate) k_bias: Address,
    pub(crate) cosines: Address,
    pub(crate) sines: Address,
    pub(crate) num_heads: i32,
    pub(crate) num_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) padded_head_dim: i32,
    pub(crate) block_size: i32,
    pub(crate) half: i32,
    pub(crate) whole_token: i32,
    pub(crate) q_eps: f32,
    pub(crate) k_eps: f32,
}

pub(super) const WARPS: u32 = 4;

impl QkvArgs {
    /// A block for each token, or a warp for each of its heads where none needs to know the others.
    pub(crate) fn launch(self, num_tokens: usize, activations: Float, cache: Float) -> Launch<Self> {
        let heads = (self.num_heads + 2 * self.num_kv_heads) as u32;
        let blocks = if self.whole_token == 0 { heads.div_ceil(WARPS) } else { 1 };
        Launch {
            kernel: format!("prepare_qkv_{}_{}", activations.name(), cache.name()),
            grid: [num_tokens as u32, blocks, 1],
            threads: WARPS * WARP,
            shared_bytes: 0,
            args: self,
        }
    }
}
