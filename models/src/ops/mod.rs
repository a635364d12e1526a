//! Every operation a model may call. Only this folder looks at the device.
//!
//! Each `<op>.rs` states the contract (shapes, dtypes, order of the sums) and holds the reference body in candle tensor
//! operations, which runs on any device. `cpu/` holds the bodies that run on the CPU, `cuda/` those that run on a GPU. An op
//! picks its body once, by [`Compute::kernels`].
//!
//! Where a contract says that activations are f32, they are f32 or bf16 on a GPU, as the weights are (`cuda/mod.rs`). On a CPU
//! rows that only a product reads may be bf16 already, where it would round them (`PackedWeight::takes`).
//!
//! The promise of the CPU bodies: each output row is accumulated in one fixed order. A row's bits do not depend on the
//! other rows of the batch, on how a sequence was cut into steps, on the number of threads, or on whether the portable
//! or the vector body ran; products of bf16 by bf16 alone belong to the processors that have them. The reference body
//! promises closeness only: candle picks other kernels for other row counts.

mod activation;
mod add;
mod asked;
mod attention;
mod block_planes;
pub(crate) mod blocks;
mod choose;
mod compute;
pub(crate) mod cpu;
#[cfg(any(feature = "cuda", test))]
mod cuda;
mod embedding;
mod float;
mod gate_mul;
mod gather_rows;
mod host;
pub(crate) mod int8_row;
mod layer_norm;
mod limits;
mod linear;
mod matrix;
mod norm;
mod op_times;
mod per_head;
mod pool_rows;
mod prepare_qkv;
mod queries;
mod replays;
mod rope;
mod store_kv;
mod to_host;

pub use activation::{Activation, Xielu, activate};
pub use add::add;
pub(crate) use asked::asked_linear;
pub use asked::{AskedRow, AskedRows};
pub(crate) use attention::{AttentionContext, attended};
pub use attention::{AttentionParams, AttentionPlan, Direction, PositionTemperature, paged_attention};
pub(crate) use block_planes::{BlockPlanes, FEW_ROWS, scratch_bytes};
pub(crate) use blocks::widened;
pub(crate) use choose::choose;
pub use choose::{Detail, MOST_BEST, Pick, PickedToken, RowAnswer, RowAnswerRef, RowQuestion, SoftmaxSums, Weights};
pub use compute::{Compute, KernelSet};
pub(crate) use cpu::panels::PANEL;
pub use cpu::pool::{ComputePool, OnProcessors};
pub(crate) use cpu::row_stride::row_stride;
pub(crate) use cpu::workspace::Buffer;
#[cfg(feature = "cuda")]
pub use cuda::gpu::NoGpu;
pub use embedding::{embedding, embedding_of_step};
pub(crate) use float::Float;
pub use gate_mul::{Gate, gate_mul};
pub use gather_rows::{gather_rows, sampled_rows};
pub use host::{HostError, HostPlacement, InvalidProcessors, MemoryPlacement, ProcessorSet, physical_cores};
pub use layer_norm::{LayerNormParams, add_layer_norm, layer_norm};
pub(crate) use layer_norm::{layer_normed, layer_summed};
pub use limits::{LimitProbe, multiply_add, multiply_integers, read_through};
pub(crate) use linear::{Copied, RoundedUnit, gated_linear, packed_bytes};
pub use linear::{PackedWeight, WeightPart, linear, linear_before_bias};
pub use matrix::{Matrix, MatrixView, Operand};
pub(crate) use norm::{RmsNormParams, rms_normed, rms_summed};
pub use norm::{add_rms_norm, rms_norm};
pub use op_times::{Op, OpTimes};
pub use per_head::PerHead;
pub use pool_rows::{RowPool, pool_rows};
pub use prepare_qkv::{QkNorm, QkvPreparation, prepare_qkv};
pub use queries::{Queries, QueriesView, QueryRows};
pub(crate) use replays::Replays;
pub use rope::{RotaryAngles, RotaryEmbedding, rope};
pub use store_kv::store_kv;
pub(crate) use to_host::rows_to_host;
