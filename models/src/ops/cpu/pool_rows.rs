#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Rows of a sequence to one. Columns are independent, so that the compiler's vectors change no order.

use candle_core::Tensor;

use super::launch::Output;
use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, RowPool};

/// `starts` is checked by the caller.
pub(crate) fn pool_rows(
    compute: &Compute,
    x: &Tensor,
    starts: &[usize],
    pool: RowPool,
    width: usize,
) -> Result<Tensor, ModelError> {
    let x = Rows::new(x)?;
    let num_sequences = starts.len() - 1;
    let mut out = vec![0.0; num_sequences * width];
    let output = Output::new(&mut out);
    compute.pool().run(num_sequences, &|sequence| {
        // SAFETY: each row belongs to one task, and the output outlives the run.
        let out: &mut [f32] = unsafe { output.part(sequence * width, width) };
        let rows = starts[sequence]..starts[sequence + 1];
        out.copy_from_slice(x.row(rows.start));
        for (index, row) in rows.clone().enumerate().skip(1) {
            let weight = pool.weight(index);
            for (out, value) in out.iter_mut().zip(x.row(row)) {
                *out = if pool == RowPool::Max { larger(*out, *value) } else { *out + weight * value };
            }
        }
        let divisor = pool.divisor(rows.len());
        out.iter_mut().for_each(|out| *out /= divisor);
    });
    Ok(Tensor::from_vec(out, (num_sequences, width), compute.device())?)
}

/// What is not a number stays.
fn larger(a: f32, b: f32) -> f32 {
    if a >= b || a.is_nan() { a } else { b }
}
