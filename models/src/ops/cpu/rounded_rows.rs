#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Activations as the products with quantised weights take them: integers with an f32 scale for every 32.
//!
//! Of 16 bits, if not asked otherwise: on five random decoders of 2 layers 8 bits alone moved the logits by a mean KL
//! divergence of 5.0e-4 to 2.5e-3, on three of them by more than the quantised weights are allowed to. 16 bits stay
//! below 1e-6, for twice the products.

use std::ops::Range;

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
    /// The elements of a unit as products take them, four after four, each in [`Activation::PARTS`] parts of 32 bits.
    type Elements: Plain;
    /// Sums that products are added to.
    type Running<P: Pairs>: Copy;

    /// The largest magnitude of an element.
    const LARGEST: f32;
    /// Parts of a four of 32 bits each.
    const PARTS: usize = size_of::<Self>();
    /// Of the fours of a unit.
    const PARTS_OF_UNIT: usize = Self::PARTS * UNIT / 4;

    fn elements(values: &[i32; UNIT]) -> Self::Elements;

    /// The quants that meet each part of a four. Only the first [`Activation::PARTS`] are used.
    ///
    /// # Safety
    /// The CPU must have the instructions of `P`.
    unsafe fn factors<P: Pairs>(quants: P) -> [P; 2];

    /// # Safety
    /// As [`Activation::factors`].
    unsafe fn begin<P: Pairs>(sums: P::Sums) -> Self::Running<P>;

    /// Adds the products of some panels' factors, of at most so many `bits`, and one part, in every lane of 32 bits. Of one unit
    /// at most before [`Activation::end`].
    ///
    /// # Safety
    /// As [`Activation::factors`]; a part stands at `part`.
    unsafe fn dots<P: Pairs, const N: usize>(
        factors: [P; N],
        bits: u32,
        part: *const i32,
        sums: &mut [Self::Running<P>; N],
    );

    /// # Safety
    /// As [`Activation::factors`]; `bits` are those of the factors.
    unsafe fn end<P: Pairs>(bits: u32, sums: Self::Running<P>) -> P::Sums;
}

impl Activation for i16 {
    type Elements = [i16; UNIT];
    type Running<P: Pairs> = P::Sums;

    const LARGEST: f32 = i16::MAX as f32;

    /// The first and the third of a four, then the others.
    #[inline(always)]
    fn elements(values: &[i32; UNIT]) -> [i16; UNIT] {
        let mut elements = [0; UNIT];
        for (four, values) in elements.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
            let [a, b, c, d]: [i32; 4] = *values;
            *four = [a as i16, c as i16, b as i16, d as i16];
        }
        elements
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
    unsafe fn dots<P: Pairs, const N: usize>(factors: [P; N], _bits: u32, part: *const i32, sums: &mut [P::Sums; N]) {
        // SAFETY: passed on.
        unsafe { P::dots_at(factors, part, sums) }
    }

    #[inline(always)]
    unsafe fn end<P: Pairs>(_bits: u32, sums: P::Sums) -> P::Sums {
        sums
    }
}

impl Activation for i8 {
    type Elements = [i8; UNIT];
    type Running<P: Pairs> = P::ByteSums;

    const LARGEST: f32 = i8::MAX as f32;

    #[inline(always)]
    fn elements(values: &[i32; UNIT]) -> [i8; UNIT] {
        let mut elements = [0; UNIT];
        for (element, value) in elements.iter_mut().zip(values) {
            *element = *value as i8;
        }
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
    unsafe fn dots<P: Pairs, const N: usize>(
        factors: [P; N],
        bits: u32,
        part: *const i32,
        sums: &mut [P::ByteSums; N],
    ) {
        // SAFETY: passed on.
        unsafe { P::dots_of_bytes_at(factors, bits, part, sums) }
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
/// groups of neighbouring rows  ->  units of 32 columns
/// unit  =  of each row of the group parts of 32 bits: of a four one with int8, two with int16
/// ```
pub(super) struct RoundedRows<A: Activation> {
    pub(super) num_rows: usize,
    pub(super) width: usize,
    pub(super) groups: RowGroups,
    elements: Buffer<A::Elements>,
    /// Of each unit of each row, as the elements lie.
    units: Buffer<UnitFacts>,
}

/// What products take of a unit besides its elements.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct UnitFacts {
    pub(super) scale: f32,
    /// `-scale` times the sum of the elements: what a minimum of 1 in the weights adds to an output.
    pub(super) less: f32,
    pub(super) begins: Begins,
}

/// Where an integer product begins so that the [`StoredDtype::quant_offset`] of its quants is not in it: minus that times the
/// sum of the unit's elements, or of its first 16 and of the other 16.
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
        let groups = RowGroups::new(num_rows, integer_tile(compute).rows);
        let mut elements = compute.workspace().unwritten(num_rows * num_units);
        let mut units = compute.workspace().unwritten(num_rows * num_units);
        let (units_per_task, tasks_per_group) = split_rows(num_units, groups.most_rows * UNIT);
        let output = (elements.output(), units.output());
        let kernel = Round::<A> { x, groups, units_per_task, tasks_per_group, output };
        launch(compute, groups.count * tasks_per_group, &kernel);
        // SAFETY: each unit of a group belongs to a task, which has written it for all rows.
        let (elements, units) = unsafe { (elements.written(), units.written()) };
        Self { num_rows, width: x.width, groups, elements, units }
    }

    /// Where a unit stands of all rows of the group that begins with row `first`: its parts, and the facts.
    #[inline(always)]
    pub(super) fn unit(&self, first: usize, num_rows: usize, unit: usize) -> (*const i32, *const UnitFacts) {
        let at = first * (self.width / UNIT) + unit * num_rows;
        (self.elements.as_ptr().wrapping_add(at).cast(), self.units.as_ptr().wrapping_add(at))
    }
}

/// Rows in groups of at most as many as a tile has. The last two share what is left: 13 rows are 6, 4 and 3, not 6, 6 and 1.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowGroups {
    num_rows: usize,
    count: usize,
    /// Of all but the last two.
    pub(super) most_rows: usize,
}

impl RowGroups {
    fn new(num_rows: usize, most_rows: usize) -> Self {
        Self { num_rows, count: num_rows.div_ceil(most_rows).max(1), most_rows: most_rows.min(num_rows.max(1)) }
    }

    /// The groups of some rows, which are whole groups.
    pub(super) fn of(self, rows: &Range<usize>) -> impl ExactSizeIterator<Item = Range<usize>> + Clone {
        let end = if rows.end == self.num_rows { self.count } else { rows.end / self.most_rows };
        (rows.start / self.most_rows..end).map(move |group| self.rows(group))
    }

    fn rows(self, group: usize) -> Range<usize> {
        self.start(group)..self.start(group + 1)
    }

    fn start(self, group: usize) -> usize {
        match self.count - group {
            0 => self.num_rows,
            1 if group > 0 => {
                let before = (group - 1) * self.most_rows;
                before + (self.num_rows - before).div_ceil(2)
            }
            _ => group * self.most_rows,
        }
    }
}

struct Round<'a, A: Activation> {
    x: &'a Rows<'a>,
    groups: RowGroups,
    units_per_task: usize,
    tasks_per_group: usize,
    output: (Output<A::Elements>, Output<UnitFacts>),
}

impl<A: Activation> Kernel for Round<'_, A> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let (group, first_unit) = (task / self.tasks_per_group, task % self.tasks_per_group * self.units_per_task);
        let num_units = self.x.width / UNIT;
        let rows = self.groups.rows(group);
        let units = first_unit..num_units.min(first_unit + self.units_per_task);
        let first = rows.start * num_units + units.start * rows.len();
        let len = units.len() * rows.len();
        // SAFETY: each unit of a group belongs to one task.
        let (elements, facts) = unsafe { (self.output.0.part(first, len), self.output.1.part(first, len)) };
        for (index, row) in rows.clone().enumerate() {
            let x = &self.x.row(row).as_chunks::<UNIT>().0[units.clone()];
            let places = elements[index..].iter_mut().zip(&mut facts[index..]).step_by(rows.len());
            for (x, (elements, facts)) in x.iter().zip(places) {
                (*elements, *facts) = round_unit::<A>(x);
            }
        }
    }
}

/// Rounds to nearest, ties to even. A unit that holds something that is not a finite number makes every sum that it enters
/// not a number.
#[inline(always)]
fn round_unit<A: Activation>(x: &[f32; UNIT]) -> (A::Elements, UnitFacts) {
    // Integers order as the magnitudes do, infinities and what is not a number above all.
    let largest = x.iter().fold(0, |largest: u32, value| largest.max(value.abs().to_bits()));
    let largest = f32::from_bits(largest);
    if !largest.is_finite() {
        let none = UnitFacts { scale: f32::NAN, less: f32::NAN, begins: Begins::default() };
        return (A::elements(&[0; UNIT]), none);
    }
    if largest < SMALLEST {
        return (A::elements(&[0; UNIT]), UnitFacts::default());
    }
    let inverse = A::LARGEST / largest;
    // Loops, here and below, as `array::map` may be a function that is called, without these instructions.
    let mut elements = [0; UNIT];
    for (element, value) in elements.iter_mut().zip(x) {
        let rounded = (value * inverse).round_ties_even();
        // SAFETY: a finite number of at most the largest element's magnitude.
        *element = unsafe { rounded.to_int_unchecked() };
    }
    let (first, second) = elements.split_at(UNIT / 2);
    let sums: [i32; 2] = [first.iter().sum(), second.iter().sum()];
    let (scale, sum) = (largest / A::LARGEST, sums[0] + sums[1]);
    let begin = |dtype: StoredDtype, sum: i32| -dtype.quant_offset() * sum;
    let begins = Begins {
        q8_0: begin(StoredDtype::Q8_0, sum),
        q4_0: begin(StoredDtype::Q4_0, sum),
        q6_k: [begin(StoredDtype::Q6K, sums[0]), begin(StoredDtype::Q6K, sums[1])],
    };
    (A::elements(&elements), UnitFacts { scale, less: -(scale * sum as f32), begins })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_all_rows_and_none_has_few_of_many() {
        for num_rows in 1..200 {
            let groups = RowGroups::new(num_rows, 6);
            let all: Vec<_> = groups.of(&(0..num_rows)).collect();
            assert!(all.is_sorted_by(|before, after| before.end == after.start), "{all:?}");
            assert_eq!((all[0].start, all[all.len() - 1].end, all.len()), (0, num_rows, num_rows.div_ceil(6)));
            assert!(all.iter().all(|rows| rows.len() <= 6 && (rows.len() > 2 || num_rows < 6)), "{all:?}");
            if num_rows > 18 {
                let parts = [groups.of(&(0..6)).collect::<Vec<_>>(), groups.of(&(6..num_rows)).collect()];
                assert_eq!(parts.concat(), all);
            }
        }
    }
}
