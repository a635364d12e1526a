#![expect(unsafe_code, reason = "threads fill disjoint rows of one output")]

//! Rows of a packed matrix, for embeddings that share their memory with the output head.

use candle_core::Tensor;

use super::launch::{Output, split_rows};
use super::panels::{PANEL, PanelData, Panels};
use super::vector::Element;
use crate::ops::Compute;
use crate::{ModelError, TokenId};

/// `tokens` are below `panels.out_features`.
pub(crate) fn embedding(compute: &Compute, panels: &Panels, tokens: &[TokenId]) -> Result<Tensor, ModelError> {
    let rows = match &panels.data {
        PanelData::F32(data) => gather(compute, data.as_slice(), panels.in_features, tokens),
        PanelData::F16(data) => gather(compute, data.as_slice(), panels.in_features, tokens),
        PanelData::Bf16(data) => gather(compute, data.as_slice(), panels.in_features, tokens),
    };
    Ok(Tensor::from_vec(rows, (tokens.len(), panels.in_features), compute.device())?)
}

fn gather<E: Element>(compute: &Compute, panels: &[E], width: usize, tokens: &[TokenId]) -> Vec<f32> {
    let mut rows = vec![0.0; tokens.len() * width];
    let output = Output::new(&mut rows);
    let (rows_per_task, num_tasks) = split_rows(tokens.len(), width);
    compute.pool().run(num_tasks, &|task| {
        let first = task * rows_per_task;
        for (index, &token) in tokens.iter().enumerate().skip(first).take(rows_per_task) {
            let token = token as usize;
            let panel = &panels[token / PANEL * PANEL * width..][..PANEL * width];
            // SAFETY: each row belongs to one task, and the output outlives the run.
            let row: &mut [f32] = unsafe { output.part(index * width, width) };
            for (to, from) in row.iter_mut().zip(panel[token % PANEL..].iter().step_by(PANEL)) {
                *to = from.to_f32();
            }
        }
    });
    rows
}
