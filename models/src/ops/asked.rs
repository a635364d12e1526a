//! The output head for rows of which only the most likely tokens are wanted: on a CPU their logits are never all in memory.

use super::cpu::best_of_rows::{KeptRows, RowPlace};
use super::linear::WeightStorage;
use super::{Compute, Matrix, Op, Operand, PackedWeight, RowQuestion, cpu};
use crate::{ModelError, TokenId};

/// Rows of logits in host memory, of which no more was kept than what was asked for.
#[derive(Debug)]
pub struct AskedRows {
    vocab_size: usize,
    kept: KeptRows,
}

/// What was kept of a row.
#[derive(Debug)]
pub enum AskedRow<'a> {
    /// As many as were asked for, with their logits: the most likely first, of equal ones the smaller id. Where any logit of the
    /// row is no number, the first has such a one, and the others mean nothing.
    Best(&'a [(TokenId, f32)]),
    Whole(&'a mut [f32]),
}

impl AskedRows {
    pub fn num_rows(&self) -> usize {
        self.kept.places.len()
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// # Panics
    /// If there is no such row.
    pub fn row_mut(&mut self, row: usize) -> AskedRow<'_> {
        match self.kept.places[row] {
            RowPlace { start, best: 0 } => {
                let start = start as usize * self.vocab_size;
                AskedRow::Whole(&mut self.kept.whole[start..start + self.vocab_size])
            }
            place => AskedRow::Best(&self.kept.lists[place.range()]),
        }
    }
}

/// As [`super::linear()`], with a question for each row of `x` or none: of those that ask for their likeliest tokens alone, no more
/// is kept. `None` where no row is such a one, or these bodies keep rows whole.
///
/// Logits are those of [`super::linear()`], bit for bit.
pub(crate) fn asked_linear(
    compute: &Compute,
    x: &Matrix,
    weight: &PackedWeight,
    questions: &[Option<RowQuestion>],
) -> Result<Option<AskedRows>, ModelError> {
    let best = |question: &Option<RowQuestion>| question.and_then(RowQuestion::likeliest_alone);
    let WeightStorage::Packed(parts) = weight.storage() else { return Ok(None) };
    if questions.iter().all(|question| best(question).is_none()) {
        return Ok(None);
    }
    if x.num_rows() != questions.len() || x.width() != weight.in_features() {
        let (rows, asked) = (x.num_rows(), questions.len());
        return Err(ModelError::Input(format!("{asked} questions about {rows} rows of {}", x.width())));
    }
    let _timer = compute.time(Op::Linear);
    let vocab_size = weight.out_features();
    let wanted = questions.iter().map(best);
    let kept = cpu::linear::best_of_linear(compute, x.view(), parts, vocab_size, wanted)?;
    Ok(Some(AskedRows { vocab_size, kept }))
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::StoredDtype;
    use crate::ops::{Detail, KernelSet, Pick, RowAnswer, WeightPart, choose, linear};
    use crate::selftest::numbers::Random;

    const WIDTH: usize = 64;

    /// Two parts with the same rows, in `dtype` and in f32: outputs of the one are often nearly those of the other, and where
    /// both are f32, equal.
    fn weight(compute: &Compute, dtype: StoredDtype) -> PackedWeight {
        let values = Random(7).values(1201 * WIDTH).into_iter().map(bf16::from_f32);
        let floats: Vec<u8> = values.clone().flat_map(|value| value.to_f32().to_le_bytes()).collect();
        let halves: Vec<u8> = values.flat_map(bf16::to_le_bytes).collect();
        let part = |dtype, bytes| WeightPart { dtype, bytes };
        let (parts, held_as) = match dtype {
            StoredDtype::Bf16 => ([part(dtype, &halves[..]), part(StoredDtype::F32, &floats)], None),
            dtype => ([part(StoredDtype::F32, &floats[..]), part(StoredDtype::F32, &floats)], Some(dtype)),
        };
        PackedWeight::pack(compute, held_as, WIDTH, &parts).unwrap()
    }

    /// Of every kind in turns; and of one row alone, the last.
    fn questions(num_rows: usize) -> [Vec<Option<RowQuestion>>; 2] {
        let likeliest = |best| Some(RowQuestion { best, ..RowQuestion::BEST });
        let with_sums = Some(RowQuestion { detail: Detail::Logprobs, ..RowQuestion::BEST });
        let given = Some(RowQuestion { pick: Pick::Given(3), ..RowQuestion::BEST });
        let kinds = [likeliest(1), None, likeliest(20), with_sums, likeliest(128), given, likeliest(1)];
        let of_last = (1..num_rows).map(|_| None).chain([likeliest(1)]);
        [kinds.into_iter().cycle().take(num_rows).collect(), of_last.collect()]
    }

    fn check(compute: &Compute, weight: &PackedWeight, num_rows: usize) {
        let values = Random(num_rows as u64).values(num_rows * WIDTH);
        let x = Matrix::host(compute.workspace().copy_of(values.into_iter()), num_rows, WIDTH);
        let rows = linear(compute, &x, weight, None).unwrap().into_tensor().unwrap();
        for questions in questions(num_rows) {
            let mut asked = asked_linear(compute, &x, weight, &questions).unwrap().unwrap();
            assert_eq!((asked.num_rows(), asked.vocab_size()), (num_rows, weight.out_features()));
            for (row, question) in questions.iter().enumerate() {
                let whole: Vec<f32> = rows.get(row).unwrap().to_vec1().unwrap();
                // Where each of many tasks has a list, long ones would take more than the row.
                let is_short = |best: &usize| *best <= 20 || compute.num_threads() == 1;
                match (question.and_then(RowQuestion::likeliest_alone).filter(is_short), asked.row_mut(row)) {
                    (Some(_), AskedRow::Best(best)) => {
                        let of_row = choose(compute, &rows, &[(row, question.unwrap())]).unwrap().remove(0);
                        assert_eq!(RowAnswer::of_likeliest(best).unwrap(), of_row.as_ref(), "row {row} of {num_rows}");
                    }
                    (None, AskedRow::Whole(values)) => assert_eq!(values, whole, "row {row} of {num_rows}"),
                    (wanted, kept) => panic!("row {row} of {num_rows}: {kept:?} where {wanted:?} is wanted"),
                }
            }
        }
    }

    #[test]
    fn the_likeliest_tokens_are_those_of_the_row_with_every_body_and_dtype_and_any_number_of_rows() {
        for kernels in KernelSet::of_this_cpu() {
            for threads in [1, 3] {
                let floats = Compute::cpu_with_kernels(threads, kernels).unwrap();
                let pairs = floats.clone().with_bf16_products();
                for compute in [floats, pairs] {
                    for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16, StoredDtype::Q8_0] {
                        let weight = weight(&compute, dtype);
                        [1, 2, 7, 16, 75, 161].into_iter().for_each(|num_rows| check(&compute, &weight, num_rows));
                    }
                }
            }
        }
    }
}
