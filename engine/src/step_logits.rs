//! What a step of the model says of its sampled rows: answers to what each sequence asks of its rows, and whole those rows that
//! are needed whole, or that the model leaves so.

use std::ops::Range;

use passerelle_models::ops::{AskedRow, AskedRows, RowAnswer, RowAnswerRef, RowQuestion};
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
    Asked(AskedRows),
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
    Answer(RowAnswerRef<'a>),
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
    /// `questions` say what is asked of each row; they are put where rows lie elsewhere, and a row without one is fetched.
    ///
    /// Errors when they are put and not as many as the rows.
    pub(crate) fn read(logits: Logits, questions: &[Option<RowQuestion>]) -> Result<Self, ModelError> {
        let logits = match logits {
            Logits::Here(rows) => return Ok(Self::Here(rows)),
            Logits::Asked(rows) => return Ok(Self::Asked(rows)),
            Logits::Elsewhere(logits) => logits,
        };
        let (mut asked, mut needed) = (Vec::new(), Vec::new());
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
            RunLogits::Asked(rows) => rows.vocab_size(),
            RunLogits::Elsewhere(logits, _) => logits.vocab_size(),
        }
    }

    /// Errors when the model kept nothing of the row.
    pub(crate) fn seen(&mut self, index: usize) -> Result<Seen<'_>, RequestError> {
        let row = self.index(index);
        Ok(match self.run {
            RunLogits::Here(rows) => Seen::Whole(rows.row_mut(row)),
            RunLogits::Asked(rows) => match rows.row_mut(row) {
                AskedRow::Whole(row) => Seen::Whole(row),
                AskedRow::Best(best) => {
                    Seen::Answer(RowAnswerRef::of_likeliest(best).ok_or_else(|| missing(row, "likely tokens"))?)
                }
            },
            RunLogits::Elsewhere(_, found) => match &mut found[row] {
                Found::Whole(row) => Seen::Whole(row),
                Found::Answer(answer) => Seen::Answer(answer.as_ref()),
            },
        })
    }

    /// A row of which only an answer was known. Errors where it lies nowhere.
    pub(crate) fn whole(&self, index: usize) -> Result<Vec<f32>, RequestError> {
        let row = self.index(index);
        match &self.run {
            RunLogits::Here(rows) => Ok(rows.row(row).to_vec()),
            RunLogits::Asked(_) => Err(missing(row, "its logits")),
            RunLogits::Elsewhere(logits, _) => survive(|| Ok(logits.fetch(&[row])?.concat())),
        }
    }

    fn index(&self, index: usize) -> usize {
        assert!(index < self.rows.len(), "row {index} of {} was not asked for", self.rows.len());
        self.rows.start + index
    }
}

fn missing(row: usize, what: &str) -> RequestError {
    RequestError::Step(format!("of row {row}, {what} were not kept"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_nobody_asked_about_are_an_error_and_not_another_rows_answer() {
        let rows = || Logits::Elsewhere(DistantLogits::pretend(LogitRows::new(2, vec![0.0; 4])).unwrap());
        for asked in [1, 3] {
            let read = RunLogits::read(rows(), &vec![None; asked]);
            assert!(matches!(read, Err(ModelError::Input(_))), "{asked} questions about 2 rows");
        }
        assert!(RunLogits::read(rows(), &[None; 2]).is_ok());
    }
}
