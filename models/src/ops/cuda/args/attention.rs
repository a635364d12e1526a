use crate::ops::AttentionParams;
use crate::ops::attention::Direction;
use crate::ops::cuda::launch::{Address, Float, Launch, WARP};
use crate::ops::cuda::step::{ITEM_TOKENS, Items};

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
    pub(crate) split_keys: i32,
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

/// No position is as far from another, so a longer window is none.
const MOST_WINDOW: usize = 1 << 30;

/// Which kernels a layer's attention runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// Of `attention_tiles.cu`: tensor cores.
    Tiles,
    /// Of `attention.cu`: every dtype and length of heads.
    Rows,
}

impl Kernels {
    /// Keys whose sums are one partial result of decode.
    fn split_keys(self) -> usize {
        match self {
            Self::Tiles => TILE_SPLIT,
            Self::Rows => ROW_SPLIT,
        }
    }
}

pub(super) const TILE_SPLIT: usize = 256;
pub(super) const ROW_SPLIT: usize = 128;
/// Of a block.
pub(super) const WARPS: usize = 4;
pub(super) const DECODE_WARPS: usize = 2;
/// Query rows of a matrix product.
const TILE_ROWS: usize = 16;
/// Keys that a warp of decode takes at a time.
pub(super) const TILE_KEYS: usize = 16;
/// Places for keys and values in shared memory: one is computed with while the other is filled.
pub(super) const STAGES: usize = 2;
const BF16_BYTES: usize = 2;
/// f32 numbers that decode leaves for one merge: 256 MiB.
pub(crate) const MOST_PARTIAL: usize = (256 << 20) / size_of::<f32>();

impl AttentionShape {
    /// f32 numbers that the decode of `items` leaves for the merge.
    pub(crate) fn partial_len(&self, items: Items) -> usize {
        items.count * self.num_heads * self.max_splits(items) * (self.head_dim + 2)
    }

    /// `items` in runs, each of which leaves at most `most` numbers for the merge, or is one item: where one sequence is
    /// long, all others get room for as many splits.
    pub(crate) fn runs(&self, items: Items, most: usize) -> impl Iterator<Item = Items> {
        let of_one = self.partial_len(Items { count: 1, ..items });
        let at_once = (most / of_one.max(1)).max(1);
        let run = move |first: usize| items.part(first..(first + at_once).min(items.count));
        (0..items.count).step_by(at_once).map(run)
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
            max_splits: number(self.max_splits(items)),
            split_keys: number(self.kernels().split_keys()),
            window: params.window.filter(|&window| window <= MOST_WINDOW).map_or(0, number),
            both_directions: i32::from(params.direction == Direction::Both),
            bf16_activations: i32::from(self.activations == Float::Bf16),
            temperature_interval: params.temperature.map_or(0, |temperature| number(temperature.interval)),
            temperature_beta: params.temperature.map_or(0.0, |temperature| temperature.beta),
            scale: params.scale,
            soft_cap: params.soft_cap.unwrap_or(0.0),
        }
    }

    pub(crate) fn decode(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        match self.kernels() {
            Kernels::Tiles => self.decode_tiles(args, items),
            Kernels::Rows => self.decode_rows(args, items),
        }
    }

    /// Makes one result of a token's splits.
    pub(crate) fn merge(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let (kernel, threads) = match self.kernels() {
            Kernels::Tiles => ("attention_merge_tiles", WARPS as u32 * WARP),
            Kernels::Rows => ("attention_merge", self.head_dim.next_multiple_of(WARP as usize) as u32),
        };
        let grid = [self.num_heads as u32, items.count as u32, 1];
        Launch { kernel: kernel.into(), grid, threads, shared_bytes: 0, args }
    }

    pub(crate) fn prefill(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        match self.kernels() {
            Kernels::Tiles => self.prefill_tiles(args, items),
            Kernels::Rows => self.prefill_rows(args, items),
        }
    }

    /// A block for each split of each K/V head, and for each 16 of the query heads that share it.
    fn decode_tiles(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let turns = self.group().div_ceil(TILE_ROWS);
        Launch {
            kernel: format!("attention_decode_tiles_d{}", self.width()),
            grid: [self.max_splits(items), self.num_kv_heads * turns, items.count].map(|side| side as u32),
            threads: DECODE_WARPS as u32 * WARP,
            shared_bytes: (DECODE_WARPS * STAGES * self.kv_bytes(TILE_KEYS)) as u32,
            args,
        }
    }

    /// A block for every 128 query rows of an item, or for every 64 of wide heads.
    fn prefill_tiles(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let width = self.width();
        let (tiles_per_warp, keys) = if width > 128 { (1, 32) } else { (2, 64) };
        let rows = WARPS * tiles_per_warp * TILE_ROWS;
        Launch {
            kernel: format!("attention_prefill_tiles_d{width}"),
            grid: self.row_groups(rows, items),
            threads: WARPS as u32 * WARP,
            shared_bytes: (rows * width * BF16_BYTES + STAGES * self.kv_bytes(keys)) as u32,
            args,
        }
    }

    /// A warp for each split of each K/V head, and query heads in turns of as many rows as a warp holds.
    fn decode_rows(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let width = self.width();
        let rows = match self.group() {
            1 => 1,
            2..=4 => 4,
            _ if width > 128 => 4,
            _ => 8,
        };
        let splits = self.max_splits(items);
        Launch {
            kernel: format!("attention_decode_{}_d{width}_r{rows}", self.cache.name()),
            grid: [splits.div_ceil(WARPS), self.num_kv_heads, items.count].map(|side| side as u32),
            threads: WARPS as u32 * WARP,
            shared_bytes: 0,
            args,
        }
    }

    /// A warp for every few query rows of an item.
    fn prefill_rows(&self, args: AttentionArgs, items: Items) -> Launch<AttentionArgs> {
        let width = self.width();
        Launch {
            kernel: format!("attention_prefill_{}_d{width}", self.cache.name()),
            grid: self.row_groups(WARPS * if width > 128 { 4 } else { 8 }, items),
            threads: WARPS as u32 * WARP,
            shared_bytes: 0,
            args,
        }
    }

    /// Blocks for items of any length, of so many rows each.
    fn row_groups(&self, rows: usize, items: Items) -> [u32; 3] {
        [(ITEM_TOKENS * self.group()).div_ceil(rows), self.num_kv_heads, items.count].map(|side| side as u32)
    }

    /// Tiles are copied in pieces of 16 bytes, and multiplied 16 elements of a head at a time.
    fn kernels(&self) -> Kernels {
        let is_bf16 = self.activations == Float::Bf16 && self.cache == Float::Bf16;
        if is_bf16 && self.head_dim.is_multiple_of(16) { Kernels::Tiles } else { Kernels::Rows }
    }

    /// Of keys and values in shared memory.
    fn kv_bytes(&self, keys: usize) -> usize {
        2 * keys * self.width() * BF16_BYTES
    }

    /// Query heads that share a K/V head.
    fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Elements of a head that the kernel has room for.
    fn width(&self) -> usize {
        self.head_dim.next_multiple_of(64)
    }

    fn max_splits(&self, items: Items) -> usize {
        items.most_keys.div_ceil(self.kernels().split_keys())
    }
}
