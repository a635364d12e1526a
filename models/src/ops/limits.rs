//! Work that only the machine itself limits, to hold the ops against: a caller with a clock makes rates of it.

use super::{Compute, cpu};

/// Reads `values` once, on all threads, each along several streams. A few elements at the end may be left out.
pub fn read_through(compute: &Compute, values: &[f32]) {
    cpu::limits::read_through(compute, values);
}

/// Runs fused multiply-adds between registers on all threads, for some milliseconds. Returns how many floating-point
/// operations they were, two for each.
pub fn multiply_add(compute: &Compute) -> u64 {
    cpu::limits::multiply_add(compute)
}
