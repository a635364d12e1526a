//! The bodies that run on NVIDIA GPUs: our own kernels (`*.cu`), and candle's cuBLAS for products of many rows.
//!
//! `build.rs` of this crate compiles `kernels.cu`, which includes the others, into one module for several generations
//! of GPUs. Each kernel takes one struct by value; `args/` mirrors the structs and computes the grids, on any machine.
//! The bodies beside it put tensors' addresses in and launch.
//!
//! Activations on a GPU have the dtype of the weights, bf16 or f32, and every op rounds to it once, at its end; sums
//! are f32. Quantised weights stay quantised: activations beside them are bf16. Attention's bits depend on a row's
//! position and the cached K/V that it sees, and in bf16 on whether its token is alone; cuBLAS picks other kernels for
//! other row counts, so logits are close to those of other batches, not equal.
//!
//! Tests run the kernels' own text on the CPU (`host/`) and hold them against the reference bodies. What that cannot show
//! stands at the top of `host/runtime.h`.

pub(super) mod args;
pub(super) mod launch;
pub(super) mod padded;
pub(super) mod step;

#[cfg(feature = "cuda")]
pub(super) mod angles;
#[cfg(feature = "cuda")]
pub(super) mod attention;
#[cfg(feature = "cuda")]
pub(super) mod choose;
#[cfg(feature = "cuda")]
pub(super) mod device_step;
#[cfg(feature = "cuda")]
pub(super) mod elementwise;
#[cfg(feature = "cuda")]
pub(super) mod gpu;
#[cfg(feature = "cuda")]
pub(super) mod graphs;
#[cfg(feature = "cuda")]
pub(super) mod product;
#[cfg(feature = "cuda")]
pub(super) mod qkv;
#[cfg(feature = "cuda")]
pub(super) mod quantised;
#[cfg(feature = "cuda")]
mod recording;
#[cfg(feature = "cuda")]
pub(super) mod rows;
#[cfg(feature = "cuda")]
mod scratch;
#[cfg(feature = "cuda")]
mod tensors;
#[cfg(feature = "cuda")]
pub(super) mod to_host;
#[cfg(feature = "cuda")]
pub(super) mod weights;

#[cfg(test)]
mod tests;
