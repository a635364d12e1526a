#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Activations as the products with quantised weights take them: integers with an f32 scale for every 32.
//!
//! Of 16 bits, if not asked otherwise: on random decoders of 3 to 8 layers 8 bits alone moved the logits by a mean KL divergence
//! of 5e-4 to 5e-3, more than the quantised weights are allowed to. 16 bits stay below 1e-7, for twice the products.

use super::block_panels::offset;
use super::buffer::Plain;
use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::pairs::Pairs;
use super::row_stride::row_stride;
use super::view::Rows;
use super::workspace::Buffer;
use crate::StoredDtype;
use crate::ops::Compute;
use crate::ops::blocks::UNIT;

/// A unit of smaller numbers is taken for zeros: their scale would not be a normal number.
const SMALLEST: f32 = 1e-30;

/// What an activation is rounded to.
pub(super) trait Activation: Plain + Default + Into<i32> {
    /// Sums that products are added to.
    type Running<P: Pairs>: Copy;

    /// The largest magnitude of an element.
    const LARGEST: f32;
    /// Parts of a four of 32 bits each.
    const PARTS: usize = size_of::<Self>();

    /// `value` is a whole number of at most this magnitude.
    fn of(value: f32) -> Self;

    /// Neighbouring inputs as they lie in memory.
    fn four(elements: [Self; 4]) -> [Self; 4];

    /// The quants that meet each part of a four. Only the first [`Activation::PARTS`] are used.
    ///
    /// # Safety
    /// The CPU must have the instructions of `P`.
    unsafe fn factors<P: Pairs>(quants: P) -> [P; 2];

    /// # Safety
    /// As [`Activation::factors`].
    unsafe fn begin<P: Pairs>(sums: P::Sums) -> Self::Running<P>;

    /// Adds the products of some factors, of at most so many bits, and one part, in every lane of 32 bits. Of one unit at most
    /// before [`Activation::end`].
    ///
    /// # Safety
    /// As [`Activation::factors`]; a part stands at `part`.
    unsafe fn dot<P: Pairs>(factors: (P, u32), part: *const i32, sums: Self::Running<P>) -> Self::Running<P>;

    /// # Safety
    /// As [`Activation::factors`]; `bits` are those of the factors.
    unsafe fn end<P: Pairs>(bits: u32, sums: Self::Running<P>) -> P::Sums;
}

impl Activation for i16 {
    type Running<P: Pairs> = P::Sums;

    const LARGEST: f32 = i16::MAX as f32;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value as Self
    }

    #[inline(always)]
    fn four([first, second, third, fourth]: [Self; 4]) -> [Self; 4] {
        [first, third, second, fourth]
    }

    #[inline(always)]
    unsafe fn factors<P: Pairs>(quants: P) -> [P; 2] {
        // SAFETY: passed on.
        unsafe { [quants.and(0xff), quants.shift_right(8)] }
    }

    #[inline(always)]
    unsafe fn begin<P: Pairs>(sums: P::Sums) -> P::Sums {
        sums
    }

    #[inline(always)]
    unsafe fn dot<P: Pairs>((factors, _): (P, u32), part: *const i32, sums: P::Sums) -> P::Sums {
        // SAFETY: passed on.
        unsafe { factors.dot_at(part, sums) }
    }

    #[inline(always)]
    unsafe fn end<P: Pairs>(_bits: u32, sums: P::Sums) -> P::Sums {
        sums
    }
}

impl Activation for i8 {
    type Running<P: Pairs> = P::ByteSums;

    const LARGEST: f32 = i8::MAX as f32;

    #[inline(always)]
    fn of(value: f32) -> Self {
        value as Self
    }

    #[inline(always)]
    fn four(elements: [Self; 4]) -> [Self; 4] {
        elements
    }

    #[inline(always)]
    unsafe fn factors<P: Pairs>(quants: P) -> [P; 2] {
        [quants; 2]
    }

    #[inline(always)]
    unsafe fn begin<P: Pairs>(sums: P::Sums) -> P::ByteSums {
        // SAFETY: passed on.
        unsafe { P::begin_bytes(sums) }
    }

    #[inline(always)]
    unsafe fn dot<P: Pairs>((factors, bits): (P, u32), part: *const i32, sums: P::ByteSums) -> P::ByteSums {
        // SAFETY: passed on.
        unsafe { factors.dot_bytes_at(bits, part, sums) }
    }

    #[inline(always)]
    unsafe fn end<P: Pairs>(bits: u32, sums: P::ByteSums) -> P::Sums {
        // SAFETY: passed on.
        unsafe { P::end_bytes(bits, sums) }
    }
}

/// `x[row][k]` is about `scale(row, k / 32) * element(row, k)`. In memory they lie as [`Activation::four`] has it.
pub(super) struct RoundedRows<A> {
    pub(super) num_rows: usize,
    pub(super) width: usize,
    /// From the elements of a row to the next row's: [`row_stride`].
    pub(super) stride: usize,
    pub(super) elements: Buffer<A>,
    /// Of each unit of each row.
    pub(super) units: Buffer<UnitFacts>,
}

/// What products take of a unit besides its elements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnitFacts {
    pub(super) scale: f32,
    /// `-scale` times the sum of the elements: what a minimum of 1 in the weights adds to an output.
    pub(super) less: f32,
    pub(super) begins: Begins,
}

/// Where an integer product begins so that the [`offset`] of its quants is not in it: minus that times the sum of the unit's
/// elements, or of its first 16 and of the other 16.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Begins {
    pub(super) q8_0: i32,
    pub(super) q4_0: i32,
    pub(super) q6_k: [i32; 2],
}

// SAFETY: numbers, whatever their bits.
unsafe impl Plain for UnitFacts {}

impl<A: Activation> RoundedRows<A> {
    /// The width of `x` is a whole number of units.
    pub(super) fn new(compute: &Compute, x: &Rows<'_>) -> Self {
        let stride = row_stride::<A>(x.width);
        let mut elements = compute.workspace().unwritten(x.num_rows * stride);
        let mut units = compute.workspace().unwritten(x.num_rows * x.width / UNIT);
        let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
        let kernel = Round { x, rows_per_task, stride, elements: elements.output(), units: units.output() };
        launch(compute, num_tasks, &kernel);
        // SAFETY: each row belongs to a task, which has written all of it, and what is behind it: rows are whole units.
        let (elements, units) = unsafe { (elements.written(), units.written()) };
        Self { num_rows: x.num_rows, width: x.width, stride, elements, units }
    }
}

struct Round<'a, A> {
    x: &'a Rows<'a>,
    rows_per_task: usize,
    stride: usize,
    elements: Output<A>,
    units: Output<UnitFacts>,
}

impl<A: Activation> Kernel for Round<'_, A> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let first = task * self.rows_per_task;
        let width = self.x.width;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: each row belongs to one task.
            let (elements, units) = unsafe {
                (self.elements.part(row * self.stride, self.stride), self.units.part(row * width / UNIT, width / UNIT))
            };
            let (elements, behind) = elements.split_at_mut(width);
            behind.fill(A::default());
            let places = elements.as_chunks_mut::<UNIT>().0.iter_mut().zip(units);
            for (x, (elements, unit)) in self.x.row(row).as_chunks::<UNIT>().0.iter().zip(places) {
                *unit = round_unit(x, elements);
            }
        }
    }
}

/// Rounds to nearest, ties to even. A unit that holds something that is not a finite number makes every sum that it enters
/// not a number.
#[inline(always)]
fn round_unit<A: Activation>(x: &[f32; UNIT], elements: &mut [A; UNIT]) -> UnitFacts {
    // Integers order as the magnitudes do, infinities and what is not a number above all.
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        elements.fill(A::default());
        return UnitFacts { scale: f32::NAN, less: f32::NAN, begins: Begins::default() };
    }
    if largest < SMALLEST {
        elements.fill(A::default());
        return UnitFacts::default();
    }
    let inverse = A::LARGEST / largest;
    let mut rounded = [A::default(); UNIT];
    for (rounded, value) in rounded.iter_mut().zip(x) {
        *rounded = A::of((value * inverse).round_ties_even());
    }
    for (elements, rounded) in elements.as_chunks_mut().0.iter_mut().zip(rounded.as_chunks().0) {
        *elements = A::four(*rounded);
    }
    let (first, second) = elements.split_at(UNIT / 2);
    let sums: [i32; 2] = [first, second].map(|half| half.iter().map(|element| (*element).into()).sum());
    let (scale, sum) = (largest / A::LARGEST, sums[0] + sums[1]);
    let begin = |dtype, sum: i32| -offset(dtype) * sum;
    let begins = Begins {
        q8_0: begin(StoredDtype::Q8_0, sum),
        q4_0: begin(StoredDtype::Q4_0, sum),
        q6_k: sums.map(|half| begin(StoredDtype::Q6K, half)),
    };
    UnitFacts { scale, less: -(scale * sum as f32), begins }
}
