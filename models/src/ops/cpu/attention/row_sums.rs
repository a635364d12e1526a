#![expect(unsafe_code, reason = "the vector operations of the CPU are unsafe to call without a check of its features")]

use super::super::vector::Vector;

/// What the keys of one span, or of several, come to for each query row.
pub(super) struct RowSums<'a> {
    /// `[rows, padded_head_dim]`: of values times weights.
    pub(super) out: &'a mut [f32],
    /// `[rows]`, of all scores.
    pub(super) max: &'a mut [f32],
    /// `[rows]`, of all weights.
    pub(super) sum: &'a mut [f32],
}

impl<'a> RowSums<'a> {
    /// Lies in `numbers`, at least `rows * (padded_head_dim + 2)`, and is whatever they are.
    pub(super) fn within(numbers: &'a mut [f32], rows: usize, padded_head_dim: usize) -> Self {
        let (out, numbers) = numbers.split_at_mut(rows * padded_head_dim);
        let (max, numbers) = numbers.split_at_mut(rows);
        Self { out, max, sum: &mut numbers[..rows] }
    }

    /// Becomes that of no key.
    pub(super) fn clear(&mut self) {
        self.out.fill(0.0);
        self.max.fill(f32::NEG_INFINITY);
        self.sum.fill(0.0);
    }

    /// Adds that of later keys for the same rows. A row that sees none of them keeps its bits, and one that saw none before
    /// takes theirs: what other rows of its chunk see is then no matter.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    #[inline(always)]
    pub(super) unsafe fn add<V: Vector>(&mut self, later: &RowSums<'_>) {
        let width = self.out.len() / self.max.len();
        for row in 0..self.max.len() {
            let columns = row * width..(row + 1) * width;
            // The likeliest of the keys that a row sees weighs 1, so only the sum of none is 0.
            if later.sum[row] == 0.0 {
                continue;
            }
            if self.sum[row] == 0.0 {
                self.out[columns.clone()].copy_from_slice(&later.out[columns]);
                (self.max[row], self.sum[row]) = (later.max[row], later.sum[row]);
                continue;
            }
            let max = self.max[row].max(later.max[row]);
            // SAFETY: the caller has the instructions. The exponential of 0 is exactly 1.
            let (own, other) = unsafe {
                (V::splat(self.max[row] - max).exp().to_array()[0], V::splat(later.max[row] - max).exp().to_array()[0])
            };
            for (sum, later) in self.out[columns.clone()].iter_mut().zip(&later.out[columns]) {
                *sum = sum.mul_add(own, later * other);
            }
            (self.max[row], self.sum[row]) = (max, self.sum[row].mul_add(own, later.sum[row] * other));
        }
    }
}
