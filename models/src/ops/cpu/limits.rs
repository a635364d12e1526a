#![expect(unsafe_code, reason = "vector loads through pointers")]

//! The bodies of [`crate::ops::read_through`] and [`crate::ops::multiply_add`].

use std::hint::black_box;

use super::launch::{Kernel, launch};
use super::vector::{LANES, Vector};
use crate::ops::Compute;

/// Elements of one task's read.
const PIECE: usize = 64 * 1024;
/// Streams of a task: several rows of panels, as a product reads them.
const STREAMS: usize = 4;

/// Independent running sums, enough to hide the latency of the multiply-add.
const SUMS: usize = 12;
const ROUNDS: usize = 16 * 1024;
const TASKS_PER_THREAD: usize = 32;

pub(crate) fn read_through(compute: &Compute, values: &[f32]) {
    launch(compute, values.len() / PIECE, &Read { values });
}

pub(crate) fn multiply_add(compute: &Compute) -> u64 {
    let num_tasks = compute.num_threads() * TASKS_PER_THREAD;
    launch(compute, num_tasks, &MultiplyAdd);
    (num_tasks * ROUNDS * SUMS * LANES * 2) as u64
}

struct Read<'a> {
    values: &'a [f32],
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, task: usize) {
        let piece = &self.values[task * PIECE..(task + 1) * PIECE];
        // SAFETY: a piece is a whole number of vectors for each stream; the launch vouches for the instructions.
        unsafe {
            let mut sums = [[V::splat(0.0); 2]; STREAMS];
            for at in (0..PIECE / STREAMS).step_by(2 * LANES) {
                for (stream, sums) in sums.iter_mut().enumerate() {
                    let from = piece.as_ptr().add(stream * (PIECE / STREAMS) + at);
                    *sums = [sums[0].add(V::load(from)), sums[1].add(V::load(from.add(LANES)))];
                }
            }
            for [low, high] in sums {
                black_box(low.add(high).to_array());
            }
        }
    }
}

struct MultiplyAdd;

impl Kernel for MultiplyAdd {
    #[inline(always)]
    unsafe fn run<V: Vector>(&self, _task: usize) {
        // SAFETY: no pointers; the launch vouches for the instructions.
        unsafe {
            let (factor, addend) = (V::splat(black_box(0.999)), V::splat(black_box(0.001)));
            let mut sums = [V::splat(1.0); SUMS];
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = sum.mul_add(factor, addend);
                }
            }
            for sum in sums {
                black_box(sum.to_array());
            }
        }
    }
}
