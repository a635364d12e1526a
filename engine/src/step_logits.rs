//! What a step of the model says of its sampled rows: the rows themselves where they are in host memory, else answers to what
//! each sequence asks of its rows, and only those rows that are needed whole.

use std::ops::Range;

use passerelle_models::ops::{RowAnswer, RowQuestion};
use passerelle_models::{DistantLogits, LogitRows, Logits, ModelError};

use crate::event::RequestError;
use crate::survival::survive;

/// The sampled rows of each sequence of a step, or why it has none.
#[derive(Debug, Default)]
pub(crate) struct StepLogits {
    runs: Vec<RunLogits>,
    /// In the order of the sequences; `None` until it is known.
    spans: Vec<Option<Result<RowSpan, RequestError>>>,
}

/// The rows of one run of the model.
#[derive(Debug)]
pub(crate) enum RunLogits {
    Here(LogitRows),
    /// What was found of each row.
    Elsewhere(DistantLogits, Vec<Found>),
}

#[derive(Debug)]
pub(crate) enum Found {
    Whole(Vec<f32>),
    Answer(RowAnswer),
}

#[derive(Debug, Clone)]
struct RowSpan {
    run: usize,
    rows: Range<usize>,
}

/// The rows of one sequence, in the order of its sampled tokens.
#[derive(Debug)]
pub(crate) struct SequenceRows<'a> {
    run: &'a mut RunLogits,
    rows: Range<usize>,
}

/// What is known of a row.
#[derive(Debug)]
pub(crate) enum Seen<'a> {
    Whole(&'a mut [f32]),
    Answer(&'a RowAnswer),
}

impl StepLogits {
    /// Nothing is known yet of so many sequences.
    pub(crate) fn begin(&mut self, num_sequences: usize) {
        self.clear();
        self.spans.resize(num_sequences, None);
    }

    /// Gives the rows back.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.spans.clear();
    }

    /// Of the sequence at `place`.
    pub(crate) fn rows(&mut self, place: usize) -> Result<SequenceRows<'_>, RequestError> {
        let span = self.spans[place].clone().expect("each sequence of a step has logits or an error")?;
        Ok(SequenceRows { run: &mut self.runs[span.run], rows: span.rows })
    }

    /// `sequences`: the places of those that were run, in the order of the rows, each with the number of its own.
    pub(crate) fn put(&mut self, run: RunLogits, sequences: impl Iterator<Item = (usize, usize)>) {
        let mut start = 0;
        for (place, num_rows) in sequences {
            let rows = start..start + num_rows;
            start = rows.end;
            self.spans[place] = Some(Ok(RowSpan { run: self.runs.len(), rows }));
        }
        self.runs.push(run);
    }

    pub(crate) fn put_error(&mut self, place: usize, error: RequestError) {
        self.spans[place] = Some(Err(error));
    }
}

impl RunLogits {
    /// `questions`, which are put only where rows lie elsewhere, are given the size of the vocabulary and say what is asked of
    /// each row; a row without a question is fetched.
    ///
    /// Errors when they are not as many as the rows.
    pub(crate) fn read(
        logits: Logits,
        questions: impl FnOnce(usize) -> Vec<Option<RowQuestion>>,
    ) -> Result<Self, ModelError> {
        let logits = match logits {
            Logits::Here(rows) => return Ok(Self::Here(rows)),
            Logits::Elsewhere(logits) => logits,
        };
        let (mut asked, mut needed) = (Vec::new(), Vec::new());
        let questions = questions(logits.vocab_size());
        if questions.len() != logits.num_rows() {
            let (asked, rows) = (questions.len(), logits.num_rows());
            return Err(ModelError::Input(format!("questions about {asked} of {rows} rows of logits")));
        }
        for (row, question) in questions.iter().enumerate() {
            match question {
                Some(question) => asked.push((row, *question)),
                None => needed.push(row),
            }
        }
        let (mut answers, mut rows) = (logits.ask(&asked)?.into_iter(), logits.fetch(&needed)?.into_iter());
        let found = questions.iter().map(|question| match question {
            Some(_) => answers.next().map(Found::Answer),
            None => rows.next().map(Found::Whole),
        });
        let found = found.collect::<Option<_>>().ok_or_else(|| ModelError::device("a question without an answer"))?;
        Ok(Self::Elsewhere(logits, found))
    }
}

impl SequenceRows<'_> {
    pub(crate) fn vocab_size(&self) -> usize {
        match &self.run {
            RunLogits::Here(rows) => rows.vocab_size(),
            RunLogits::Elsewhere(logits, _) => logits.vocab_size(),
        }
    }

    pub(crate) fn seen(&mut self, index: usize) -> Seen<'_> {
        let row = self.index(index);
        match self.run {
            RunLogits::Here(rows) => Seen::Whole(rows.row_mut(row)),
            RunLogits::Elsewhere(_, found) => match &mut found[row] {
                Found::Whole(row) => Seen::Whole(row),
                Found::Answer(answer) => Seen::Answer(answer),
            },
        }
    }

    /// A row of which only an answer was known.
    pub(crate) fn whole(&self, index: usize) -> Result<Vec<f32>, RequestError> {
        let row = self.index(index);
        survive(|| match &self.run {
            RunLogits::Here(rows) => Ok(rows.row(row).to_vec()),
            RunLogits::Elsewhere(logits, _) => Ok(logits.fetch(&[row])?.concat()),
        })
    }

    fn index(&self, index: usize) -> usize {
        assert!(index < self.rows.len(), "row {index} of {} was not asked for", self.rows.len());
        self.rows.start + index
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_nobody_asked_about_are_an_error_and_not_another_rows_answer() {
        let rows = || Logits::Elsewhere(DistantLogits::pretend(LogitRows::new(2, vec![0.0; 4])).unwrap());
        for asked in [1, 3] {
            let read = RunLogits::read(rows(), |_| vec![None; asked]);
            assert!(matches!(read, Err(ModelError::Input(_))), "{asked} questions about 2 rows");
        }
        assert!(RunLogits::read(rows(), |_| vec![None; 2]).is_ok());
    }
}
