#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Activations as the products with quantised weights take them: 16-bit integers with an f32 scale for every 32.
//!
//! 8 bits would do for speed, not for the answer: on random decoders of 3 to 8 layers they alone moved the logits by a mean
//! KL divergence of 1e-3 to 5e-3, more than the quantised weights are allowed to. 16 bits stay below 1e-7.

use super::block_panels::{offset, pairs_of};
use super::buffer::Plain;
use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::view::Rows;
use super::workspace::Buffer;
use crate::StoredDtype;
use crate::ops::Compute;
use crate::ops::blocks::UNIT;

/// The largest magnitude of an element.
const LARGEST: f32 = i16::MAX as f32;
/// A unit of smaller numbers is taken for zeros: their scale would not be a normal number.
const SMALLEST: f32 = 1e-30;

/// `x[row][k]` is about `scale(row, k / 32) * element(row, k)`. In memory the pairs of each four of a unit are neighbours, see
/// [`pairs_of`].
pub(super) struct RoundedRows {
    pub(super) num_rows: usize,
    pub(super) width: usize,
    pub(super) elements: Buffer<i16>,
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

impl RoundedRows {
    /// The width of `x` is a whole number of units.
    pub(super) fn new(compute: &Compute, x: &Rows<'_>) -> Self {
        let mut elements = compute.workspace().unwritten(x.num_rows * x.width);
        let mut units = compute.workspace().unwritten(x.num_rows * x.width / UNIT);
        let (rows_per_task, num_tasks) = split_rows(x.num_rows, x.width);
        let kernel = Round { x, rows_per_task, elements: elements.output(), units: units.output() };
        launch(compute, num_tasks, &kernel);
        // SAFETY: each row belongs to a task, which has written all of it: rows are whole units.
        let (elements, units) = unsafe { (elements.written(), units.written()) };
        Self { num_rows: x.num_rows, width: x.width, elements, units }
    }
}

struct Round<'a> {
    x: &'a Rows<'a>,
    rows_per_task: usize,
    elements: Output<i16>,
    units: Output<UnitFacts>,
}

impl Kernel for Round<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let first = task * self.rows_per_task;
        let width = self.x.width;
        for row in first..(first + self.rows_per_task).min(self.x.num_rows) {
            // SAFETY: each row belongs to one task.
            let (elements, units) =
                unsafe { (self.elements.part(row * width, width), self.units.part(row * width / UNIT, width / UNIT)) };
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
fn round_unit(x: &[f32; UNIT], elements: &mut [i16; UNIT]) -> UnitFacts {
    // Integers order as the magnitudes do, infinities and what is not a number above all.
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        elements.fill(0);
        return UnitFacts { scale: f32::NAN, less: f32::NAN, begins: Begins::default() };
    }
    if largest < SMALLEST {
        elements.fill(0);
        return UnitFacts::default();
    }
    let inverse = LARGEST / largest;
    for (four, elements) in elements.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let [first, second] = pairs_of(four).map(|pair| 2 * pair);
        let values = [x[first], x[first + 1], x[second], x[second + 1]];
        *elements = values.map(|value| (value * inverse).round_ties_even() as i16);
    }
    let (first, second) = elements.split_at(UNIT / 2);
    let sums: [i32; 2] = [first, second].map(|half| half.iter().map(|element| i32::from(*element)).sum());
    let (scale, sum) = (largest / LARGEST, sums[0] + sums[1]);
    let begin = |dtype, sum: i32| -offset(dtype) * sum;
    let begins = Begins {
        q8_0: begin(StoredDtype::Q8_0, sum),
        q4_0: begin(StoredDtype::Q4_0, sum),
        q6_k: sums.map(|half| begin(StoredDtype::Q6K, half)),
    };
    UnitFacts { scale, less: -(scale * sum as f32), begins }
}
