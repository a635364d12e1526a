use crate::StoredDtype;
use crate::ops::block_planes::BlockPlanes;
use crate::ops::cuda::launch::{Address, Float, Launch, WARP};

/// `Blocks` of `blocks.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Blocks {
    quants: Address,
    high_bits: Address,
    unit_scales: Address,
    block_scales: Address,
}

/// `QuantisedArgs` of `quantised.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct QuantisedArgs {
    pub(crate) weight: Blocks,
    pub(crate) x: Address,
    pub(crate) bias: Address,
    pub(crate) y: Address,
    pub(crate) inputs: i32,
    pub(crate) outputs: i32,
    pub(crate) rows: i32,
    pub(crate) stride: i32,
}

/// `DequantiseArgs` of `dequantise.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct DequantiseArgs {
    weight: Blocks,
    rows: Address,
    out: Address,
    shift: i64,
    weight_rows: u64,
    inputs: i32,
    padding: i32,
}

/// Which rows are dequantised.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which {
    /// Those from this one on.
    From(usize),
    /// Those that integers at this address name, less this many: others are left to whoever has them.
    Named(Address, usize),
}

/// Of a block.
pub(super) const WARPS: u32 = 8;
const THREADS: u32 = 128;

impl Blocks {
    /// Of a matrix whose planes begin at `start`.
    pub(crate) fn at(start: Address, planes: BlockPlanes) -> Self {
        Self {
            quants: start,
            high_bits: start.behind(planes.high_bits()),
            unit_scales: start.behind(planes.unit_scales()),
            block_scales: start.behind(planes.block_scales()),
        }
    }
}

impl QuantisedArgs {
    /// A warp for each output.
    pub(crate) fn launch(self, dtype: StoredDtype, activations: Float) -> Launch<Self> {
        let rows = (self.rows as u32).next_power_of_two();
        let kernel = format!("quantised_{dtype}_{}_r{rows}", activations.name());
        let grid = [(self.outputs as u32).div_ceil(WARPS), 1, 1];
        Launch { kernel, grid, threads: WARPS * WARP, shared_bytes: 0, args: self }
    }
}

impl DequantiseArgs {
    /// To `out [num_rows, planes.columns]`, in bf16, of the matrix whose planes begin at `start`.
    pub(crate) fn new((start, planes): (Address, BlockPlanes), which: Which, out: Address) -> Self {
        let (rows, shift) = match which {
            Which::From(first) => (Address::NULL, first as i64),
            Which::Named(rows, less) => (rows, -(less as i64)),
        };
        Self {
            weight: Blocks::at(start, planes),
            rows,
            out,
            shift,
            weight_rows: planes.rows as u64,
            inputs: planes.columns as i32,
            padding: 0,
        }
    }

    /// A block for each row.
    pub(crate) fn launch(self, num_rows: usize, dtype: StoredDtype) -> Launch<Self> {
        let kernel = format!("dequantise_{dtype}");
        Launch { kernel, grid: [num_rows as u32, 1, 1], threads: THREADS, shared_bytes: 0, args: self }
    }
}
