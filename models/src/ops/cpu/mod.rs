//! The bodies that run on the CPU.
//!
//! Each body is written once, over [`instructions::Instructions`]: [`vector::Vector`], eight f32 lanes, and for products the
//! sixteen of a panel ([`lanes::Lanes`]), with the operations that a body needs. They have portable, AVX2 and AVX-512
//! implementations whose every operation rounds alike, so all instances of a body are equal bit for bit by
//! construction. Products of bf16 by bf16 are a body of their own ([`bf16_pairs`]), for the instruction that
//! AVX512-BF16 has.
//! [`launch`] picks the instance and spreads its tasks over the threads.

pub(super) mod activation;
pub(super) mod add;
pub(super) mod attention;
pub(crate) mod best_of_rows;
mod bf16_pairs;
mod bf16_rows;
mod block_formats;
mod block_linear;
pub(super) mod block_panels;
mod buffer;
mod cache_element;
pub(super) mod embedding;
pub(super) mod gate_mul;
mod gated_rows;
pub(super) mod gather_rows;
pub(super) mod inputs;
mod instructions;
mod lanes;
pub(super) mod launch;
pub(super) mod limits;
pub(super) mod linear;
mod new_rows;
pub(super) mod norm;
pub(super) mod packed;
mod pairs;
pub(super) mod panels;
mod places;
pub(crate) mod pool;
pub(super) mod pool_rows;
pub(crate) mod populate;
pub(super) mod prepare_qkv;
mod product;
pub(super) mod rope;
mod rounded_rows;
pub(crate) mod row_stride;
pub(super) mod store_kv;
pub(crate) mod system;
mod target;
mod task_ranges;
mod tile;
mod vector;
mod view;
pub(crate) mod workspace;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
