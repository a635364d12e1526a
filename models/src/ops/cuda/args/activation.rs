use crate::ops::cuda::launch::{Address, Float, Launch};
use crate::ops::{Activation, Gate, Xielu};

/// `ActivationArgs` of `activation.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivationArgs {
    pub(crate) x: Address,
    pub(crate) out: Address,
    pub(crate) width: u64,
    pub(crate) kind: i32,
    pub(crate) gated: i32,
    pub(crate) blocks_of_a_row: u32,
    pub(crate) alpha_positive: f32,
    pub(crate) alpha_negative: f32,
    pub(crate) beta: f32,
    pub(crate) eps: f32,
}

const THREADS: u32 = 256;
/// Elements of a thread, where a row is a whole number of them.
pub(super) const PIECE: usize = 8;

impl ActivationArgs {
    /// Of rows of `width` outputs, at addresses that are null.
    pub(crate) fn plain(activation: Activation, width: usize) -> Self {
        let Xielu { alpha_positive, alpha_negative, beta, eps } = match activation {
            Activation::Xielu(xielu) => xielu,
            _ => Xielu { alpha_positive: 0.0, alpha_negative: 0.0, beta: 0.0, eps: 0.0 },
        };
        Self {
            x: Address::NULL,
            out: Address::NULL,
            width: width as u64,
            kind: kind(activation),
            gated: 0,
            blocks_of_a_row: (threads_of_a_row(width) as u32).div_ceil(THREADS),
            alpha_positive,
            alpha_negative,
            beta,
            eps,
        }
    }

    pub(crate) fn gated(gate: Gate, width: usize) -> Self {
        let activation = match gate {
            Gate::Silu => Activation::Silu,
            Gate::GeluErf => Activation::GeluErf,
            Gate::GeluTanh => Activation::GeluTanh,
        };
        Self { gated: 1, ..Self::plain(activation, width) }
    }

    pub(crate) fn launch(self, num_rows: usize, activations: Float) -> Launch<Self> {
        let kernel = format!("activate_{}", activations.name());
        Launch {
            kernel,
            grid: [num_rows as u32 * self.blocks_of_a_row, 1, 1],
            threads: THREADS,
            shared_bytes: 0,
            args: self,
        }
    }
}

fn threads_of_a_row(width: usize) -> usize {
    if width.is_multiple_of(PIECE) { width / PIECE } else { width }
}

/// As the kernel tells them apart.
fn kind(activation: Activation) -> i32 {
    match activation {
        Activation::Relu2 => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
        Activation::Relu => 3,
        Activation::Silu => 4,
        Activation::Tanh => 5,
        Activation::Xielu(_) => 6,
    }
}
