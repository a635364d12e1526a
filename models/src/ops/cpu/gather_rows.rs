#![expect(unsafe_code, reason = "rows are written to memory that held nothing")]

use super::view::Rows;
use crate::ModelError;
use crate::ops::{Compute, Matrix, MatrixView};

/// `rows` exist, as the caller has checked. Copies are too short for a second thread to help.
pub(crate) fn gather_rows(compute: &Compute, x: MatrixView<'_>, rows: &[usize]) -> Result<Matrix, ModelError> {
    let x = Rows::of(x)?;
    let mut gathered = compute.workspace().unwritten(rows.len() * x.width);
    let output = gathered.output();
    for (to, &from) in rows.iter().enumerate() {
        // SAFETY: a part for each row, one after the other.
        unsafe { output.part(to * x.width, x.width) }.copy_from_slice(x.row(from));
    }
    // SAFETY: all rows, just now.
    Ok(Matrix::host(unsafe { gathered.written() }, rows.len(), x.width))
}
