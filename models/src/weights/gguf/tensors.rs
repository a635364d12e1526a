//! The table of tensors of a GGUF file.

use std::collections::HashSet;

use super::cursor::Cursor;
use crate::weights::coding::Coding;
use crate::weights::safetensors::StoredTensor;
use crate::{ModelError, StoredDtype};

/// Of 1,024 layers with 32 tensors each.
const MAX_TENSORS: u64 = 1 << 15;
const MAX_DIMENSIONS: u32 = 4;

/// A row of the table, its place relative to the data.
#[derive(Debug)]
struct Row {
    name: String,
    dtype: StoredDtype,
    coding: Coding,
    shape: Vec<usize>,
    offset: u64,
    num_bytes: usize,
}

/// Reads `num_tensors` rows; `alignment` and `file_len` then say where their bytes must be. In the order of the file's
/// bytes.
pub(super) fn read(
    cursor: &mut Cursor<'_>,
    num_tensors: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<StoredTensor>, ModelError> {
    if num_tensors > MAX_TENSORS {
        return Err(cursor.refuse("tensor_count", format!("{num_tensors} tensors; at most {MAX_TENSORS} are read")));
    }
    let mut names = HashSet::new();
    let mut rows = Vec::new();
    for index in 0..num_tensors {
        let row = read_row(cursor, index)?;
        if !names.insert(row.name.clone()) {
            return Err(cursor.refuse(&row.name, "occurs twice among the tensors"));
        }
        if !row.offset.is_multiple_of(alignment) {
            return Err(cursor.refuse(&row.name, format!("offset {} is no multiple of {alignment}", row.offset)));
        }
        rows.push(row);
    }
    rows.sort_by_key(|row| row.offset);
    let data_start = (cursor.position() as u64).next_multiple_of(alignment);
    place(cursor, rows, data_start, file_len)
}

fn read_row(cursor: &mut Cursor<'_>, index: u64) -> Result<Row, ModelError> {
    let name = cursor.name(&format!("tensor {index}"))?;
    let num_dimensions = cursor.u32(&name)?;
    if !(1..=MAX_DIMENSIONS).contains(&num_dimensions) {
        return Err(cursor.refuse(&name, format!("{num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read")));
    }
    let mut dimensions = Vec::new();
    for _ in 0..num_dimensions {
        dimensions.push(cursor.u64(&name)?);
    }
    let (dtype, coding) = dtype_and_coding(cursor, &name)?;
    let offset = cursor.u64(&name)?;
    let too_many = || cursor.refuse(&name, format!("dimensions {dimensions:?} have more elements than any file"));
    // The first dimension runs fastest: a row of a matrix.
    let shape = dimensions.iter().rev().map(|side| usize::try_from(*side)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|_| too_many())?;
    let elements = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side)).ok_or_else(too_many)?;
    let width = shape[shape.len() - 1];
    if !width.is_multiple_of(dtype.block_len()) {
        let problem = format!("rows of {width} elements are no whole number of {dtype} blocks");
        return Err(cursor.refuse(&name, problem));
    }
    if shape.len() == 1 && dtype.is_quantised() {
        return Err(cursor.refuse(&name, format!("one row of {dtype} blocks; vectors are read as F32, F16 or BF16")));
    }
    let num_bytes = coding.bytes_of(dtype, elements).ok_or_else(too_many)?;
    Ok(Row { name, dtype, coding, shape, offset, num_bytes })
}

/// Where each tensor's bytes are in the file: inside it, and none in two tensors.
fn place(cursor: &Cursor<'_>, rows: Vec<Row>, data_start: u64, file_len: u64) -> Result<Vec<StoredTensor>, ModelError> {
    let mut tensors = Vec::with_capacity(rows.len());
    let mut end = data_start;
    for row in rows {
        let begin = data_start.checked_add(row.offset);
        let Some(bytes) = begin.and_then(|begin| Some(begin..begin.checked_add(row.num_bytes as u64)?)) else {
            return Err(cursor.refuse(&row.name, format!("offset {} is beyond any file", row.offset)));
        };
        if bytes.end > file_len {
            let problem = format!("bytes {bytes:?} of a file of {file_len}; fetch the file again");
            return Err(cursor.refuse(&row.name, problem));
        }
        if bytes.start < end {
            return Err(cursor
                .refuse(&row.name, format!("bytes {bytes:?} begin inside the tensor before, which ends at {end}")));
        }
        end = bytes.end;
        let bytes = bytes.start as usize..bytes.end as usize;
        tensors.push(StoredTensor { name: row.name, dtype: row.dtype, coding: row.coding, shape: row.shape, bytes });
    }
    Ok(tensors)
}

/// What the elements of a tensor are read as, and how they are written.
fn dtype_and_coding(cursor: &mut Cursor<'_>, name: &str) -> Result<(StoredDtype, Coding), ModelError> {
    let as_read = |dtype| Ok((dtype, Coding::AsRead));
    let other = match cursor.u32(name)? {
        0 => return as_read(StoredDtype::F32),
        1 => return as_read(StoredDtype::F16),
        2 => return as_read(StoredDtype::Q4_0),
        6 => return Ok((StoredDtype::Q8_0, Coding::Q5_0)),
        8 => return as_read(StoredDtype::Q8_0),
        12 => return as_read(StoredDtype::Q4K),
        14 => return as_read(StoredDtype::Q6K),
        30 => return as_read(StoredDtype::Bf16),
        3 => "Q4_1",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        number => {
            return Err(cursor
                .refuse(name, format!("type {number} is not known; use a file in Q8_0, Q5_0, Q4_0, Q4_K or Q6_K")));
        }
    };
    let problem = format!("type {other} is not served; use a file in F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q4_K or Q6_K");
    Err(cursor.refuse(name, problem))
}
