/// The logits of the sampled rows of one step, f32, row-major `[num_rows, vocab_size]`, in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    vocab_size: usize,
    values: Vec<f32>,
}

impl Logits {
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn new(vocab_size: usize, values: Vec<f32>) -> Self {
        assert!(vocab_size > 0 && values.len().is_multiple_of(vocab_size), "logits must be whole rows");
        Self { vocab_size, values }
    }

    pub fn num_rows(&self) -> usize {
        self.values.len() / self.vocab_size
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.vocab_size..(row + 1) * self.vocab_size]
    }

    /// For bias, penalties and masks, which are applied in place.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.vocab_size..(row + 1) * self.vocab_size]
    }
}
