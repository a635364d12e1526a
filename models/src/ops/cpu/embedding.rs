#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Rows of a packed matrix, for embeddings that share their memory with the output head.

use super::lanes::Element;
use super::launch::split_rows;
use super::packed::PackedPart;
use super::panels::{Cell, PANEL, PanelData};
use crate::TokenId;
use crate::ops::{Compute, Matrix};

/// `tokens` are below the number of rows that `parts`, each `width` wide, hold together.
pub(crate) fn embedding(compute: &Compute, parts: &[PackedPart], width: usize, tokens: &[TokenId]) -> Matrix {
    let mut rows = compute.workspace().unwritten(tokens.len() * width);
    let output = rows.output();
    let (rows_per_task, num_tasks) = split_rows(tokens.len(), width);
    compute.pool().run(num_tasks, &|task| {
        let first = task * rows_per_task;
        for (index, &token) in tokens.iter().enumerate().skip(first).take(rows_per_task) {
            // SAFETY: each row belongs to one task, and the output outlives the run.
            read_row(parts, token as usize, unsafe { output.part(index * width, width) });
        }
    });
    // SAFETY: each row belongs to a task, which has written all of it.
    let rows = unsafe { rows.written() };
    Matrix::host(rows, tokens.len(), width)
}

fn read_row(parts: &[PackedPart], mut row: usize, values: &mut [f32]) {
    for part in parts {
        if row < part.out_features() {
            return match part {
                PackedPart::Blocks(panels) => panels.read_row(row, values),
                PackedPart::Floats(panels) => match &panels.data {
                    PanelData::F32(data) => widen(data.as_slice(), row, values),
                    PanelData::F16(data) => widen(data.as_slice(), row, values),
                    PanelData::Bf16(data) => widen(data.as_slice(), row, values),
                    PanelData::Bf16Pairs(data) => widen(data.as_slice(), row, values),
                },
            };
        }
        row -= part.out_features();
    }
}

fn widen<C: Cell>(panels: &[C], row: usize, values: &mut [f32]) {
    let cells = PANEL * values.len() / C::LEN;
    let panel = &panels[row / PANEL * cells..][..cells];
    for (to, from) in values.iter_mut().zip(C::column(panel, row % PANEL)) {
        *to = from.to_f32();
    }
}
