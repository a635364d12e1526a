use crate::ops::cuda::launch::{Address, Launch, WARP};

/// `OneRowArgs` of `one_row.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneRowArgs {
    pub(crate) x: Address,
    pub(crate) weight: Address,
    pub(crate) bias: Address,
    pub(crate) y: Address,
    pub(crate) inputs: i32,
    pub(crate) outputs: i32,
}

/// bf16 numbers of one load.
pub(super) const PIECE: usize = 8;
pub(super) const WARPS: u32 = 8;

impl OneRowArgs {
    /// Whether rows of so many inputs can be read in whole loads.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn takes(inputs: usize) -> bool {
        inputs.is_multiple_of(PIECE)
    }

    /// A warp for each output.
    pub(crate) fn launch(self) -> Launch<Self> {
        let grid = [(self.outputs as u32).div_ceil(WARPS), 1, 1];
        Launch { kernel: "one_row_bf16".into(), grid, threads: WARPS * WARP, shared_bytes: 0, args: self }
    }
}
