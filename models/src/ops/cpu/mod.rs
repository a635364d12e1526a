//! The bodies that run on the CPU.
//!
//! Each body is written once, over [`instructions::Instructions`]: [`vector::Vector`], eight f32 lanes, and for products the
//! sixteen of a panel ([`lanes::Lanes`]), with the operations that a body needs. They have portable, AVX2 and AVX-512
//! implementations whose every operation rounds alike, so all instances of a body are equal bit for bit by
//! construction. Products of bf16 by bf16 are a body of their own ([`bf16_pairs`]), for the instruction that
//! AVX512-BF16 has.
//! [`launch`] picks the instance and spreads its tasks over the threads.

// The bodies of ops, called as their op is.
pub(super) mod activation;
pub(super) mod add;
pub(super) mod attention;
pub(super) mod embedding;
pub(super) mod gate_mul;
pub(super) mod gather_rows;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod pool_rows;
pub(super) mod prepare_qkv;
pub(super) mod rope;
pub(super) mod store_kv;

// How weights lie in memory.
mod block_formats;
pub(super) mod block_panels;
mod buffer;
pub(super) mod packed;
pub(super) mod panels;

// What goes into a product, and what comes out.
pub(crate) mod best_of_rows;
mod bf16_pairs;
mod bf16_rows;
mod gated_rows;
pub(super) mod inputs;
mod new_rows;
mod pairs;
mod rounded_rows;
pub(crate) mod row_stride;
mod target;
mod view;

// Products, tile by tile.
mod block_linear;
mod product;
mod task_ranges;
mod tile;

// What bodies are written with.
mod cache_element;
mod instructions;
mod lanes;
mod vector;

// Threads, memory, and the system below.
pub(super) mod launch;
pub(super) mod limits;
mod places;
pub(crate) mod pool;
pub(crate) mod populate;
pub(crate) mod system;
pub(crate) mod workspace;

// Instructions that some processors have.
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
