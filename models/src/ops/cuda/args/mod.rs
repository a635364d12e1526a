//! What kernels are given, field by field as in the `.cu` file of the same name, and how large their grids are. Nothing here
//! needs a GPU.

pub(super) mod activation;
pub(super) mod angles;
pub(super) mod attention;
pub(super) mod bias;
pub(super) mod blocks;
pub(super) mod choose;
pub(super) mod norm;
pub(super) mod one_row;
pub(super) mod qkv;
pub(super) mod rows;
pub(super) mod unequal;

#[cfg(test)]
mod tests;
