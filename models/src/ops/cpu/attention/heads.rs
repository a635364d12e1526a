#![expect(unsafe_code, reason = "the sums of several heads are parts of one list")]

//! What a task keeps of each K/V head that it attends.

use super::super::launch::Output;
use super::row_sums::RowSums;

/// The state of one K/V head's query rows; row `token * group + g` is query head `g` of the group.
pub(super) struct ChunkState<'a> {
    pub(super) kv_head: usize,
    /// `[rows, head_dim]`, as [`super::paired::Cached::put_factors`] leaves them.
    pub(super) q: &'a [f32],
    /// `[rows, VISIT]`: the scores of the tiles that are visited together, then their weights, as
    /// [`super::paired::Cached::put_weights`] leaves them.
    pub(super) weights: &'a mut [f32],
    /// Of the span's keys so far.
    pub(super) sums: RowSums<'a>,
}

/// Those of all heads of a task.
pub(super) struct HeadStates<'a> {
    pub(super) numbers: &'a mut [f32],
    pub(super) first_kv_head: usize,
    /// Numbers of each head, but for its sums.
    pub(super) len: usize,
    /// Where its weights begin.
    pub(super) weights_start: usize,
    pub(super) sums: HeadSums<'a>,
}

/// The sums of all heads of a task, wherever they lie.
pub(super) struct HeadSums<'a> {
    numbers: &'a Output<f32>,
    /// Of the first head, and how far apart they are.
    first: usize,
    stride: usize,
    len: usize,
    /// And elements of each.
    rows: (usize, usize),
}

impl<'a> HeadSums<'a> {
    /// One after the other from `first` on, `len` numbers each, which are enough for `rows` rows of so many elements.
    pub(super) fn of(numbers: &'a Output<f32>, first: usize, len: usize, rows: (usize, usize)) -> Self {
        Self { numbers, first, stride: len, len, rows }
    }

    /// The same, so far apart.
    pub(super) fn apart(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// # Safety
    /// Nobody else may hold the sums of this head.
    #[inline(always)]
    pub(super) unsafe fn head(&self, head: usize) -> RowSums<'a> {
        // SAFETY: passed on.
        let numbers = unsafe { self.numbers.part(self.first + head * self.stride, self.len) };
        RowSums::within(numbers, self.rows.0, self.rows.1)
    }
}

impl HeadStates<'_> {
    /// # Safety
    /// Nobody else may hold the sums of this head.
    #[inline(always)]
    pub(super) unsafe fn head(&mut self, kv_head: usize) -> ChunkState<'_> {
        let head = kv_head - self.first_kv_head;
        let (q, weights) = self.numbers[head * self.len..][..self.len].split_at_mut(self.weights_start);
        // SAFETY: passed on.
        ChunkState { kv_head, q, weights, sums: unsafe { self.sums.head(head) } }
    }
}
