#![expect(unsafe_code, reason = "threads fill disjoint parts of one output")]

//! Of some rows of a product the largest outputs, of equal ones those of the lower columns first; of others all.

use std::ops::Range;
use std::sync::Arc;

use super::buffer::Plain;
use super::launch::Output;
use super::workspace::{Buffer, Unwritten, Workspace};
use crate::TokenId;

/// A column and its output.
pub(crate) type Ranked = (TokenId, f32);

/// Stands where a list is not full yet. No head has so many columns.
const NOTHING: Ranked = (TokenId::MAX, f32::NAN);

/// What is kept of a row.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct RowPlace {
    /// Where its list begins; where it is kept whole, how many such rows come before.
    pub(crate) start: u32,
    /// How long its list is: 0 where it is kept whole.
    pub(crate) best: u32,
}

impl RowPlace {
    /// Of a list.
    pub(crate) fn range(self) -> Range<usize> {
        self.start as usize..(self.start + self.best) as usize
    }
}

// SAFETY: two integers.
unsafe impl Plain for RowPlace {}
// SAFETY: an integer and a float of its size, in whichever order.
unsafe impl Plain for Ranked {}

/// What is wanted of a product's rows, while they are computed.
pub(super) struct BestOfRows {
    places: Buffer<RowPlace>,
    lists: Buffer<Ranked>,
    whole: Unwritten<f32>,
    width: usize,
}

/// What is left of them.
#[derive(Debug)]
pub(crate) struct KeptRows {
    /// Of each row.
    pub(crate) places: Buffer<RowPlace>,
    pub(crate) lists: Buffer<Ranked>,
    pub(crate) whole: Buffer<f32>,
}

/// What is wanted of them, for the tasks of a part of the product. A run is some neighbouring columns, and has lists of its own
/// until all are merged.
pub(super) struct Look<'a> {
    places: &'a [RowPlace],
    lists: Output<Ranked>,
    lists_len: usize,
    whole: Output<f32>,
    width: usize,
}

impl BestOfRows {
    /// `best`: how many of each row, from 1 on; `None` where all of it is kept, as it is where `most_runs` lists of so many
    /// would take more memory than the row. Rows are `width` columns wide.
    pub(super) fn new(
        workspace: &Arc<Workspace>,
        width: usize,
        most_runs: usize,
        best: impl ExactSizeIterator<Item = Option<usize>>,
    ) -> Self {
        let (mut listed, mut num_whole) = (0, 0);
        let is_short = |best: &usize| best * most_runs * size_of::<Ranked>() <= width * size_of::<f32>();
        let places = workspace.copy_of(best.map(|best| {
            let best = best.filter(is_short).map_or(0, |best| best.clamp(1, width) as u32);
            let place = RowPlace { start: if best > 0 { listed } else { num_whole }, best };
            listed += best;
            num_whole += u32::from(best == 0);
            place
        }));
        let lists = workspace.copy_of(std::iter::repeat_n(NOTHING, listed as usize));
        let len = width.checked_mul(num_whole as usize).expect("fewer outputs than there are addresses");
        Self { places, lists, whole: workspace.unwritten(len), width }
    }

    pub(super) fn lists_len(&self) -> usize {
        self.lists.len()
    }

    /// `lists`: for each run of columns as many as [`Self::lists_len`]. Both must outlive the launch.
    pub(super) fn look(&mut self, lists: Output<Ranked>) -> Look<'_> {
        let whole = self.whole.output();
        Look { places: &self.places, lists, lists_len: self.lists.len(), whole, width: self.width }
    }

    /// The lists of runs, in the order of their columns.
    pub(super) fn merge(&mut self, of_runs: &[Ranked]) {
        let len = self.lists.len();
        for place in self.places.iter().filter(|place| place.best > 0) {
            let list = &mut self.lists[place.range()];
            for of_run in of_runs.chunks(len) {
                // The first that is too small is followed by smaller ones.
                let taken = |&&ranked: &&Ranked| ranked.0 != NOTHING.0 && offer(list, ranked) == Offer::Taken;
                of_run[place.range()].iter().take_while(taken).count();
            }
        }
    }

    /// # Safety
    /// Tasks have kept all columns of all rows, and their lists were merged.
    pub(super) unsafe fn finish(self) -> KeptRows {
        // SAFETY: passed on.
        KeptRows { places: self.places, lists: self.lists, whole: unsafe { self.whole.written() } }
    }
}

impl Look<'_> {
    /// Empties the lists of `rows`.
    ///
    /// # Safety
    /// As [`Output::part`], of these rows' lists of the run.
    pub(super) unsafe fn begin(&self, run: usize, rows: Range<usize>) {
        for place in self.places[rows].iter().filter(|place| place.best > 0) {
            // SAFETY: passed on.
            unsafe { self.list(run, *place).fill(NOTHING) }
        }
    }

    /// Keeps what is wanted of `values`, which are the outputs of a row from column `first` on. Those of a run come in order.
    ///
    /// # Safety
    /// As [`Output::part`], of this row's list of the run, and of these columns of the row.
    #[inline(always)]
    pub(super) unsafe fn keep(&self, run: usize, row: usize, first: usize, values: &[f32]) {
        let place = self.places[row];
        // SAFETY: passed on.
        unsafe {
            if place.best > 0 {
                offer_all(self.list(run, place), first as TokenId, values);
            } else {
                let start = place.start as usize * self.width + first;
                self.whole.part(start, values.len()).copy_from_slice(values);
            }
        }
    }

    #[expect(clippy::mut_from_ref, reason = "a task's own list")]
    #[inline(always)]
    unsafe fn list(&self, run: usize, place: RowPlace) -> &mut [Ranked] {
        // SAFETY: passed on.
        unsafe { self.lists.part(run * self.lists_len + place.start as usize, place.best as usize) }
    }
}

/// Most stretches of a row have nothing for the list: one comparison for each output tells.
#[inline(always)]
fn offer_all(list: &mut [Ranked], first: TokenId, values: &[f32]) {
    const STRETCH: usize = 64;
    for (start, stretch) in (first..).step_by(STRETCH).zip(values.chunks(STRETCH)) {
        let least = list[list.len() - 1].1;
        // Also where one of both is no number.
        #[expect(clippy::neg_cmp_op_on_partial_ord, reason = "what cannot be compared is looked at")]
        let may_enter = stretch.iter().fold(false, |any, value| any | !(*value <= least));
        if may_enter {
            (start..).zip(stretch).for_each(|(column, &value)| _ = offer(list, (column, value)));
        }
    }
}

#[derive(PartialEq, Eq)]
enum Offer {
    Taken,
    TooSmall,
}

/// Columns come in ascending order. A number that is none stays first for good.
fn offer(list: &mut [Ranked], (column, value): Ranked) -> Offer {
    let is_empty = |ranked: Ranked| ranked.0 == NOTHING.0;
    let is_none = |ranked: Ranked| ranked.1.is_nan() && !is_empty(ranked);
    let last = list[list.len() - 1];
    if value.is_nan() && !is_none(list[0]) {
        list[0] = (column, value);
        return Offer::Taken;
    }
    if is_none(list[0]) || !is_empty(last) && value <= last.1 {
        return Offer::TooSmall;
    }
    let place = list.iter().position(|&other| is_empty(other) || value > other.1);
    let place = place.unwrap_or(list.len() - 1);
    list[place..].rotate_right(1);
    list[place] = (column, value);
    Offer::Taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn best(len: usize, values: &[f32]) -> Vec<Ranked> {
        let mut list = vec![NOTHING; len];
        offer_all(&mut list, 0, values);
        list
    }

    #[test]
    fn a_list_has_the_largest_in_order_and_of_equal_ones_the_lower_column_first() {
        let mut values = vec![-1.0; 300];
        (values[70], values[200], values[201], values[299]) = (5.0, 7.0, 5.0, 5.0);
        assert_eq!(best(4, &values), [(200, 7.0), (70, 5.0), (201, 5.0), (299, 5.0)]);
        assert_eq!(best(6, &values)[4..], [(0, -1.0), (1, -1.0)]);
        assert_eq!(best(1, &[-0.0, 0.0]), [(0, -0.0)]);
    }

    #[test]
    fn what_cannot_be_drawn_has_a_place_where_there_is_nothing_else() {
        assert_eq!(
            best(3, &[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY]),
            [(1, 1.0), (0, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)]
        );
    }

    #[test]
    fn a_number_that_is_none_is_found_wherever_it_stands() {
        for at in [0, 63, 64, 299] {
            let mut values = vec![1.0; 300];
            values[at] = f32::NAN;
            for len in [1, 5] {
                let found = best(len, &values)[0];
                assert!(found.0 == at as TokenId && found.1.is_nan(), "{at} {len} {found:?}");
            }
        }
    }
}
