//! The bodies that run on the CPU.
//!
//! Each body is written once, over [`vector::Vector`]: eight f32 lanes with the operations that a body needs. The trait has
//! a portable and an AVX2 implementation whose every operation rounds alike, so the two instances of a body are equal bit
//! for bit by construction. [`launch`] picks the instance and spreads its tasks over the threads.

pub(super) mod activation;
pub(super) mod attention;
mod block_linear;
pub(super) mod block_panels;
mod buffer;
pub(super) mod embedding;
pub(super) mod gate_mul;
pub(super) mod launch;
pub(super) mod limits;
pub(super) mod linear;
pub(super) mod norm;
pub(super) mod packed;
mod pairs;
pub(super) mod panels;
pub(crate) mod pool;
pub(super) mod pool_rows;
pub(super) mod rope;
mod rounded_rows;
pub(super) mod store_kv;
mod target;
mod tile;
mod vector;
mod view;

#[cfg(target_arch = "x86_64")]
mod avx2;
