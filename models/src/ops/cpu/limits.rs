#![expect(unsafe_code, reason = "vector loads through pointers")]

//! The bodies of [`crate::ops::read_through`], [`crate::ops::multiply_add`] and [`crate::ops::multiply_integers`].

use std::hint::black_box;

use half::bf16;

use super::bf16_pairs::{Bf16Pair, PairsOf};
use super::instructions::Instructions;
use super::lanes::Lanes;
use super::launch::{Kernel, launch, launch_bf16};
use super::pairs::Pairs;
use super::panels::PANEL;
use super::rounded_rows::Activation;
use super::tile::{MAX_ROWS, Weight};
use crate::ActivationDtype;
use crate::ops::{Compute, Float};

/// Elements of one task's read.
const PIECE: usize = 64 * 1024;
/// Streams of a task: several rows of panels, as a product reads them.
const STREAMS: usize = 4;

const ROUNDS: usize = 16 * 1024;
const TASKS_PER_THREAD: usize = 32;

/// Of [`MultiplyIntegers`]: a whole number of tiles of any instructions.
const INTEGER_SUMS: usize = 120;
const UNITS: usize = 512;
const PARTS_OF_UNIT: usize = 8;
const FACTORS: usize = 64;
/// Of quants that all instructions are fastest with: others may not reach that with bytes.
const QUANT_BITS: u32 = 4;

pub(crate) fn read_through(compute: &Compute, values: &[f32]) {
    launch(compute, values.len() / PIECE, &Read { values });
}

pub(crate) fn multiply_add(compute: &Compute) -> u64 {
    let num_tasks = compute.num_threads() * TASKS_PER_THREAD;
    let products = num_tasks * ROUNDS * MAX_ROWS * PANEL;
    match compute.factors() {
        Float::F32 => {
            launch(compute, num_tasks, &MultiplyAdd { factor: 0.999f32, weights: [0.001f32; PANEL] });
            2 * products as u64
        }
        Float::Bf16 => {
            let pair = |value: f32| Bf16Pair([bf16::from_f32(value); 2]);
            launch_bf16(compute, num_tasks, &MultiplyAdd { factor: pair(0.5), weights: [pair(0.25); PANEL] });
            4 * products as u64
        }
    }
}

pub(crate) fn multiply_integers(compute: &Compute) -> u64 {
    match compute.activation_dtype() {
        ActivationDtype::Int16 => multiply_by(compute, [1i16, -1]),
        ActivationDtype::Int8 => multiply_by(compute, [1i8, -1, 1, -1]),
    }
}

/// With a part of activations.
fn multiply_by<A: Activation, const LEN: usize>(compute: &Compute, part: [A; LEN]) -> u64 {
    let num_tasks = compute.num_threads() * TASKS_PER_THREAD;
    launch(compute, num_tasks, &MultiplyIntegers { parts: [part; FACTORS + MAX_ROWS], quants: [1; 4 * PANEL] });
    (2 * LEN * num_tasks * UNITS * PARTS_OF_UNIT * INTEGER_SUMS * PANEL) as u64
}

struct Read<'a> {
    values: &'a [f32],
}

impl Kernel for Read<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let piece = &self.values[task * PIECE..(task + 1) * PIECE];
        // SAFETY: a piece is a whole number of rows for each stream; the launch vouches for the instructions.
        unsafe {
            let mut sums = [I::Panel::splat(0.0); STREAMS];
            for at in (0..PIECE / STREAMS).step_by(PANEL) {
                for (stream, sum) in sums.iter_mut().enumerate() {
                    *sum = sum.add(I::Panel::load(piece.as_ptr().add(stream * (PIECE / STREAMS) + at)));
                }
            }
            sums.into_iter().for_each(keep);
        }
    }
}

struct MultiplyAdd<W: Weight> {
    factor: W::Factor,
    weights: [W; PANEL],
}

impl<W: Weight> Kernel for MultiplyAdd<W> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, _task: usize) {
        let Self { factor, weights } = black_box(self);
        // SAFETY: a factor, and the weights of a panel; the launch vouches for the instructions.
        unsafe {
            let (factor, columns) = (W::splat::<I>(factor), W::load::<I>(weights.as_ptr(), 0));
            // As many running sums at a time as hide the latency of the multiply-add and fit the registers.
            for _ in 0..MAX_ROWS / I::TILE_ROWS {
                let mut sums = [I::Panel::splat(1.0); MAX_ROWS];
                for _ in 0..ROUNDS {
                    for sum in &mut sums[..I::TILE_ROWS] {
                        *sum = W::add_products::<I>(factor, columns, *sum);
                    }
                }
                sums.into_iter().for_each(keep);
            }
        }
    }
}

/// Parts of activations, another one in each step: equal ones, which the compiler cannot know, or it would multiply once for
/// all.
struct MultiplyIntegers<A, const LEN: usize> {
    parts: [[A; LEN]; FACTORS + MAX_ROWS],
    quants: [u8; 4 * PANEL],
}

impl<A: Activation, const LEN: usize> Kernel for MultiplyIntegers<A, LEN> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, _task: usize) {
        // SAFETY: passed on.
        unsafe {
            if const { 2 * I::INTEGER_ROWS <= I::INTEGER_SUMS } {
                self.multiply::<I, 2>();
            } else {
                self.multiply::<I, 1>();
            }
        }
    }
}

impl<A: Activation, const LEN: usize> MultiplyIntegers<A, LEN> {
    /// In tiles of so many panels.
    ///
    /// # Safety
    /// As [`Kernel::run`].
    #[inline(always)]
    unsafe fn multiply<I: Instructions, const PANELS: usize>(&self) {
        let Self { parts, quants } = black_box(self);
        const { assert!(LEN * size_of::<A>() == size_of::<i32>()) };
        // SAFETY: parts of 32 bits, and those of a panel's columns; the launch vouches for the instructions.
        unsafe {
            let quants = PairsOf::<I>::load(quants.as_ptr());
            for _ in 0..const { whole_parts(INTEGER_SUMS, PANELS * I::INTEGER_ROWS) } {
                let mut sums = [[PairsOf::<I>::splat_sum(0); PANELS]; MAX_ROWS];
                for unit in 0..UNITS {
                    let mut running = [[A::begin::<PairsOf<I>>(sums[0][0]); PANELS]; MAX_ROWS];
                    for (running, sums) in running.iter_mut().zip(sums).take(I::INTEGER_ROWS) {
                        for (running, sums) in running.iter_mut().zip(sums) {
                            *running = A::begin::<PairsOf<I>>(sums);
                        }
                    }
                    for place in 0..PARTS_OF_UNIT {
                        let parts = parts[(unit + place) % FACTORS..].as_ptr();
                        for (row, sums) in running.iter_mut().enumerate().take(I::INTEGER_ROWS) {
                            A::dots([quants; PANELS], QUANT_BITS, parts.add(row).cast(), sums);
                        }
                    }
                    for (sums, running) in sums.iter_mut().zip(running).take(I::INTEGER_ROWS) {
                        for (sums, running) in sums.iter_mut().zip(running) {
                            *sums = A::end::<PairsOf<I>>(QUANT_BITS, running);
                        }
                    }
                }
                sums.into_iter().flatten().for_each(|sums| keep(I::Panel::of_sums(sums)));
            }
        }
    }
}

const fn whole_parts(of: usize, part: usize) -> usize {
    assert!(of.is_multiple_of(part));
    of / part
}

/// Lets the compiler think that the lanes are looked at.
#[inline(always)]
fn keep<L: Lanes>(lanes: L) {
    let mut values = [0.0; PANEL];
    // SAFETY: an array of as many elements as a panel has columns; whoever has lanes has their instructions.
    unsafe { lanes.store(values.as_mut_ptr()) };
    black_box(values);
}
