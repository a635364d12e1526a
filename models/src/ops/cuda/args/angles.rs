use crate::ops::cuda::launch::{Address, Launch};

/// `AnglesArgs` of `angles.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnglesArgs {
    pub(crate) positions: Address,
    pub(crate) inv_freq: Address,
    pub(crate) cosines: Address,
    pub(crate) sines: Address,
    pub(crate) num_angles: i32,
    pub(crate) half: i32,
    pub(crate) scaling: f32,
}

pub(super) const THREADS: u32 = 128;

impl AnglesArgs {
    pub(crate) fn launch(self) -> Launch<Self> {
        let blocks = (self.num_angles as u32).div_ceil(THREADS);
        Launch { kernel: "rotary_angles".into(), grid: [blocks, 1, 1], threads: THREADS, shared_bytes: 0, args: self }
    }
}
