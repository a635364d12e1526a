#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Activations as the products with quantised weights take them: integers with an f32 scale for every 32.
//!
//! Of 16 bits, if not asked otherwise: on random decoders of 3 to 8 layers 8 bits alone moved the logits by a mean KL divergence
//! of 5e-4 to 5e-3, more than the quantised weights are allowed to. 16 bits stay below 1e-7, for twice the products.

use std::marker::PhantomData;
use std::ops::Range;

use super::block_panels::offset;
use super::buffer::Plain;
use super::instructions::Instructions;
use super::launch::{Kernel, Output, integer_tile, launch, split_rows};
use super::pairs::Pairs;
use super::view::Rows;
use super::workspace::Buffer;
use crate::StoredDtype;
use crate::ops::Compute;
use crate::ops::blocks::UNIT;

/// A unit of smaller numbers is taken for zeros: their scale would not be a normal number.
const SMALLEST: f32 = 1e-30;

/// What an activation is rounded to.
pub(super) trait Activation: Copy + Sync {
    /// Sums that products are added to.
    type Running<P: Pairs>: Copy;

    /// The largest magnitude of an element.
    const LARGEST: f32;
    /// Parts of a four of 32 bits each.
    const PARTS: usize = size_of::<Self>();
    /// Of the fours of a unit.
    const PARTS_OF_UNIT: usize = Self::PARTS * UNIT / 4;

    /// Those of a unit's elements, four after four. Only the first [`Activation::PARTS_OF_UNIT`] are used.
    fn parts(elements: &[i32; UNIT]) -> [i32; UNIT / 2];

    /// The quants that meet each part of a four. Only the first [`Activation::PARTS`] are used.
    ///
    /// # Safety
    /// The CPU must have the instructions of `P`.
    unsafe fn factors<P: Pairs>(quants: P) -> [P; 2];

    /// # Safety
    /// As [`Activation::factors`].
    unsafe fn begin<P: Pairs>(sums: P::Sums) -> Self::Running<P>;

    /// Adds the products of some panels' factors, of at most so many bits, and one part, in every lane of 32 bits. Of one unit at
    /// most before [`Activation::end`].
    ///
    /// # Safety
    /// As [`Activation::factors`]; a part stands at `part`.
    unsafe fn dots<P: Pairs, const N: usize>(
        factors: ([P; N], u32),
        part: *const i32,
        sums: &mut [Self::Running<P>; N],
    );

    /// # Safety
    /// As [`Activation::factors`]; `bits` are those of the factors.
    unsafe fn end<P: Pairs>(bits: u32, sums: Self::Running<P>) -> P::Sums;
}

impl Activation for i16 {
    type Running<P: Pairs> = P::Sums;

    const LARGEST: f32 = i16::MAX as f32;

    /// The first and the third of a four, then the others.
    #[inline(always)]
    fn parts(elements: &[i32; UNIT]) -> [i32; UNIT / 2] {
        std::array::from_fn(|part| {
            let first = part / 2 * 4 + part % 2;
            (elements[first] & 0xffff) | (elements[first + 2] << 16)
        })
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
    unsafe fn dots<P: Pairs, const N: usize>((factors, _): ([P; N], u32), part: *const i32, sums: &mut [P::Sums; N]) {
        // SAFETY: passed on.
        unsafe { P::dots_at(factors, part, sums) }
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
    fn parts(elements: &[i32; UNIT]) -> [i32; UNIT / 2] {
        let byte = |at: usize| elements[at % UNIT] & 0xff;
        std::array::from_fn(|part| {
            let [first, second, third, fourth] = [0, 1, 2, 3].map(|at| byte(4 * part + at));
            first | (second << 8) | (third << 16) | (fourth << 24)
        })
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
    unsafe fn dots<P: Pairs, const N: usize>(factors: ([P; N], u32), part: *const i32, sums: &mut [P::ByteSums; N]) {
        // SAFETY: passed on.
        unsafe { P::dots_of_bytes_at(factors, part, sums) }
    }

    #[inline(always)]
    unsafe fn end<P: Pairs>(bits: u32, sums: P::ByteSums) -> P::Sums {
        // SAFETY: passed on.
        unsafe { P::end_bytes(bits, sums) }
    }
}

/// `x[row][k]` is about `scale(row, k / 32) * element(row, k)`, in the order in which a product's inner loop takes them:
///
/// ```text
/// groups of neighbouring rows, all of as many but the last  ->  units of 32 columns
/// unit  =  parts of 32 bits, each of all rows of the group: of a four one with int8, two with int16
/// ```
pub(super) struct RoundedRows<A> {
    pub(super) num_rows: usize,
    pub(super) width: usize,
    /// Rows of a group, at most as many as a tile has.
    pub(super) group_rows: usize,
    parts: Buffer<i32>,
    /// Of each unit of each row, as the parts lie: those of a group's rows side by side.
    units: Buffer<UnitFacts>,
    activation: PhantomData<A>,
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
        let (num_rows, num_units) = (x.num_rows, x.width / UNIT);
        let num_groups = num_rows.div_ceil(integer_tile(compute).rows).max(1);
        // 13 rows are 7 and 6, not 12 and 1.
        let group_rows = num_rows.div_ceil(num_groups).max(1);
        let mut parts = compute.workspace().unwritten(num_rows * num_units * A::PARTS_OF_UNIT);
        let mut units = compute.workspace().unwritten(num_rows * num_units);
        let (units_per_task, tasks_per_group) = split_rows(num_units, group_rows * UNIT);
        let output = (parts.output(), units.output());
        let kernel = Round::<A> { x, group_rows, units_per_task, tasks_per_group, output, activation: PhantomData };
        launch(compute, num_groups * tasks_per_group, &kernel);
        // SAFETY: each unit of a group belongs to a task, which has written it for all rows.
        let (parts, units) = unsafe { (parts.written(), units.written()) };
        Self { num_rows, width: x.width, group_rows, parts, units, activation: PhantomData }
    }

    /// The groups of some rows, which are whole groups.
    pub(super) fn groups(&self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
        let (group_rows, num_rows) = (self.group_rows, self.num_rows);
        let groups = rows.start / group_rows..rows.end.div_ceil(group_rows);
        groups.map(move |group| group * group_rows..num_rows.min((group + 1) * group_rows))
    }

    /// Where the parts of a unit stand for all rows of the group that begins with row `first`, and the facts.
    #[inline(always)]
    pub(super) fn unit(&self, (first, num_rows): (usize, usize), unit: usize) -> (*const i32, *const UnitFacts) {
        let at = first * (self.width / UNIT) + unit * num_rows;
        (self.parts.as_ptr().wrapping_add(at * A::PARTS_OF_UNIT), self.units.as_ptr().wrapping_add(at))
    }
}

struct Round<'a, A> {
    x: &'a Rows<'a>,
    group_rows: usize,
    units_per_task: usize,
    tasks_per_group: usize,
    output: (Output<i32>, Output<UnitFacts>),
    activation: PhantomData<A>,
}

impl<A: Activation> Kernel for Round<'_, A> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let (group, first_unit) = (task / self.tasks_per_group, task % self.tasks_per_group * self.units_per_task);
        let num_units = self.x.width / UNIT;
        let rows = group * self.group_rows..self.x.num_rows.min((group + 1) * self.group_rows);
        let units = first_unit..num_units.min(first_unit + self.units_per_task);
        let first = rows.start * num_units + units.start * rows.len();
        let len = units.len() * rows.len();
        // SAFETY: each unit of a group belongs to one task.
        let (parts, facts) = unsafe {
            (self.output.0.part(first * A::PARTS_OF_UNIT, len * A::PARTS_OF_UNIT), self.output.1.part(first, len))
        };
        for (index, row) in rows.clone().enumerate() {
            let x = &self.x.row(row).as_chunks::<UNIT>().0[units.clone()];
            let places = parts.chunks_exact_mut(rows.len() * A::PARTS_OF_UNIT).zip(facts.chunks_exact_mut(rows.len()));
            for (x, (parts, facts)) in x.iter().zip(places) {
                let mut elements = [0; UNIT];
                facts[index] = round_unit::<A>(x, &mut elements);
                for (part, place) in A::parts(&elements).into_iter().zip(parts[index..].iter_mut().step_by(rows.len()))
                {
                    *place = part;
                }
            }
        }
    }
}

/// Rounds to nearest, ties to even. A unit that holds something that is not a finite number makes every sum that it enters
/// not a number.
#[inline(always)]
fn round_unit<A: Activation>(x: &[f32; UNIT], elements: &mut [i32; UNIT]) -> UnitFacts {
    // Integers order as the magnitudes do, infinities and what is not a number above all.
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        return UnitFacts { scale: f32::NAN, less: f32::NAN, begins: Begins::default() };
    }
    if largest < SMALLEST {
        return UnitFacts::default();
    }
    let inverse = A::LARGEST / largest;
    for (element, value) in elements.iter_mut().zip(x) {
        let rounded = (value * inverse).round_ties_even();
        // SAFETY: a finite number of at most the largest element's magnitude.
        *element = unsafe { rounded.to_int_unchecked() };
    }
    let (first, second) = elements.split_at(UNIT / 2);
    let sums: [i32; 2] = [first.iter().sum(), second.iter().sum()];
    let (scale, sum) = (largest / A::LARGEST, sums[0] + sums[1]);
    let begin = |dtype, sum: i32| -offset(dtype) * sum;
    let begins = Begins {
        q8_0: begin(StoredDtype::Q8_0, sum),
        q4_0: begin(StoredDtype::Q4_0, sum),
        q6_k: [begin(StoredDtype::Q6K, sums[0]), begin(StoredDtype::Q6K, sums[1])],
    };
    UnitFacts { scale, less: -(scale * sum as f32), begins }
}
