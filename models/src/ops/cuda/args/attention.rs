use crate::ops::AttentionParams;
use crate::ops::attention::{CHUNK_TOKENS, Direction};
use crate::ops::cuda::launch::{Address, Float, Launch, WARP};
use crate::ops::cuda::step::Items;

/// `AttentionArgs` of `attention.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionArgs {
    pub(crate) q: Address,
    pub(crate) k: Address,
    pub(crate) v: Address,
    pub(crate) out: Address,
    pub(crate) partial: Address,
    pub(crate) positions: Address,
    pub(crate) blocks: Address,
    pub(crate) items: Address,
    pub(crate) slopes: Address,
    pub(crate) sinks: Address,
    pub(crate) num_heads: i32,
    pub(crate) num_kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) padded_head_dim: i32,
    pub(crate) block_size: i32,
    pub(crate) max_splits: i32,
    pub(crate) window: i32,
    pub(crate) both_directions: i32,
    pub(crate) bf16_activations: i32,
    pub(crate) temperature_interval: i32,
    pub(crate) temperature_beta: f32,
    pub(crate) scale: f32,
    pub(crate) soft_cap: f32,
}

/// What a layer's attention looks like to the kernels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) padded_head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) activations: Float,
    pub(crate) cache: Float,
}

/// The longest head that the kernels take.
#[cfg(feature = "cuda")]
pub(crate) const MOST_HEAD_DIM: usize = 256;

/// No position is as far from another, so a longer window is none.
const MOST_WINDOW: usize = 1 << 30;

/// Keys whose sums are one partial result.
const SPLIT: usize = 128;
/// Of a block.
const WARPS: usize = 4;

impl AttentionShape {
    /// f32 numbers that the decode of `items` leaves for the merge.
    pub(crate) fn partial_len(&self, items: Items) -> usize {
        items.count * self.num_heads * max_splits(items) * (self.head_dim + 2)
    }

    /// Everything but the addresses, which are null.
    pub(crate) fn args(&self, params: &AttentionParams, items: Items) -> AttentionArgs {
        let number = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        AttentionArgs {
            q: Address::NULL,
            k: Address::NULL,
            v: Address::NULL,
            out: Address::NULL,
            partial: Address::NULL,
            positions: Address::NULL,
            blocks: Address::NULL,
            items: Address::NULL,
            slopes: Address::NULL,
            sinks: Address::NULL,
            num_heads: number(self.num_heads),
            num_kv_heads: number(self.num_kv_heads),
            head_dim: number(self.head_dim),
            padded_head_dim: number(self.padded_head_dim),
            block_size: number(self.block_size),
            max_splits: number(max_splits(items)),
            window: params.window.filter(|&window| window <= MOST_WINDOW).map_or(0, number),
            both_directions: i32::from(params.direction == Direction::Both),
            bf16_activations: i32::from(self.activations == Float::Bf16),
            temperature_interval: params.temperature.map_or(0, |temperature| number(temperature.interval)),
            temperature_beta: params.temperature.map_or(0.0, |temperature| temperature.beta),
            scale: params.scale,
            soft_cap: params.soft_cap.unwrap_or(0.0),
        }
    }

    /// A warp for each split of each K/V head, and query heads in turns of as many rows as a warp holds.
    pub(crate) fn decode(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let (width, group) = (self.width(), self.num_heads / self.num_kv_heads);
        let rows = match group {
            1 => 1,
            2..=4 => 4,
            _ if width > 128 => 4,
            _ => 8,
        };
        Launch {
            kernel: format!("attention_decode_{}_d{width}_r{rows}", self.cache.name()),
            grid: [max_splits(items).div_ceil(WARPS), self.num_kv_heads, items.count].map(|side| side as u32),
            threads: WARPS as u32 * WARP,
            args,
        }
    }

    /// Makes one result of a token's splits.
    pub(crate) fn merge(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let grid = [self.num_heads as u32, items.count as u32, 1];
        Launch { kernel: "attention_merge".into(), grid, threads: WARP, args }
    }

    /// A warp for every few query rows of a chunk of tokens.
    pub(crate) fn prefill(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let width = self.width();
        let rows_per_block = WARPS * if width > 128 { 4 } else { 8 };
        let row_groups = (CHUNK_TOKENS * self.num_heads / self.num_kv_heads).div_ceil(rows_per_block);
        Launch {
            kernel: format!("attention_prefill_{}_d{width}", self.cache.name()),
            grid: [row_groups, self.num_kv_heads, items.count].map(|side| side as u32),
            threads: WARPS as u32 * WARP,
            args,
        }
    }

    /// Elements of a head that the kernel has room for.
    fn width(&self) -> usize {
        self.head_dim.next_multiple_of(64)
    }
}

fn max_splits(items: Items) -> usize {
    items.most_keys.div_ceil(SPLIT)
}
