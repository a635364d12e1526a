use std::fmt;
use std::ops::{Deref, DerefMut};

use candle_core::{DType, Tensor};

use crate::ModelError;
use crate::ops::{self, AskedRows, Buffer, Compute, Matrix, RowAnswer, RowQuestion};

/// The logits of the sampled rows of one step, `[num_rows, vocab_size]`, where the model left them.
#[derive(Debug)]
pub enum Logits {
    /// In host memory.
    Here(LogitRows),
    /// In host memory, and of some rows no more than was asked.
    Asked(AskedRows),
    /// In the memory of a device, from which whole rows are slow to fetch.
    Elsewhere(DistantLogits),
}

/// Rows of logits, f32, row-major, in host memory.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitRows {
    vocab_size: usize,
    values: Values,
}

/// A copy is a list of its own.
enum Values {
    List(Vec<f32>),
    /// Where the head left them.
    OfStep(Buffer<f32>),
}

/// Rows of logits that are asked about where they are. What the device has still to compute, and errors of it, show when they
/// first are.
#[derive(Debug, Clone)]
pub struct DistantLogits {
    compute: Compute,
    /// `[num_rows, vocab_size]`
    rows: Tensor,
}

impl Logits {
    /// # Panics
    /// As [`LogitRows::new`].
    pub fn new(vocab_size: usize, values: Vec<f32>) -> Self {
        Self::Here(LogitRows::new(vocab_size, values))
    }

    /// `[num_rows, vocab_size]`, f32 or bf16. They stay where they are, unless that is the host's memory.
    pub(crate) fn left_by(compute: &Compute, rows: Matrix) -> Result<Self, ModelError> {
        let vocab_size = rows.width();
        let rows = match rows.into_host() {
            Ok(values) => return Ok(Self::Here(LogitRows { vocab_size, values: Values::OfStep(values) })),
            Err(rows) => rows.into_tensor()?,
        };
        if compute.is_host() {
            return Ok(Self::new(vocab_size, rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?));
        }
        Ok(Self::Elsewhere(DistantLogits { compute: compute.clone(), rows }))
    }

    pub fn num_rows(&self) -> usize {
        match self {
            Self::Here(rows) => rows.num_rows(),
            Self::Asked(rows) => rows.num_rows(),
            Self::Elsewhere(logits) => logits.num_rows(),
        }
    }

    /// All rows, wherever they were. Errors as [`DistantLogits::ask`], and where not all were kept.
    pub fn into_rows(self) -> Result<LogitRows, ModelError> {
        match self {
            Self::Here(rows) => Ok(rows),
            Self::Asked(_) => Err(ModelError::Input("whole rows of logits, where less was asked for".into())),
            Self::Elsewhere(logits) => {
                let rows = ops::rows_to_host(&logits.compute, &logits.rows)?;
                Ok(LogitRows::new(logits.vocab_size(), rows.concat()))
            }
        }
    }
}

impl LogitRows {
    /// # Panics
    /// If `values` is not a whole number of rows.
    pub fn new(vocab_size: usize, values: Vec<f32>) -> Self {
        assert!(vocab_size > 0 && values.len().is_multiple_of(vocab_size), "logits must be whole rows");
        Self { vocab_size, values: Values::List(values) }
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

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::List(values) => values,
            Self::OfStep(values) => values,
        }
    }
}

impl DerefMut for Values {
    fn deref_mut(&mut self) -> &mut [f32] {
        match self {
            Self::List(values) => values,
            Self::OfStep(values) => values,
        }
    }
}

impl Clone for Values {
    fn clone(&self) -> Self {
        Self::List(self.to_vec())
    }
}

impl PartialEq for Values {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&**self).finish()
    }
}

impl DistantLogits {
    /// For tests: as if the host's memory were a device's. The reference bodies answer.
    ///
    /// # Panics
    /// As [`LogitRows::new`].
    pub fn pretend(LogitRows { vocab_size, values }: LogitRows) -> Result<Self, ModelError> {
        let compute = Compute::cpu(1);
        let shape = (values.len() / vocab_size, vocab_size);
        Ok(Self { rows: Tensor::from_slice(&values, shape, compute.device())?, compute })
    }

    pub fn num_rows(&self) -> usize {
        self.rows.dims()[0]
    }

    pub fn vocab_size(&self) -> usize {
        self.rows.dims()[1]
    }

    /// One answer for each question, which comes with its row. Nothing but the answers is copied.
    ///
    /// Errors when a question cannot be asked, and with what went wrong on the device since it last was heard of.
    pub fn ask(&self, questions: &[(usize, RowQuestion)]) -> Result<Vec<RowAnswer>, ModelError> {
        if questions.is_empty() { Ok(Vec::new()) } else { ops::choose(&self.compute, &self.rows, questions) }
    }

    /// Copies whole rows, in the order asked for, as f32. Errors as [`Self::ask`].
    pub fn fetch(&self, rows: &[usize]) -> Result<Vec<Vec<f32>>, ModelError> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        ops::rows_to_host(&self.compute, &ops::gather_rows(&self.compute, &self.rows, rows)?)
    }
}
