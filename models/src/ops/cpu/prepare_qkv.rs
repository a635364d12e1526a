#![expect(unsafe_code, reason = "threads change disjoint rows of one matrix")]

//! What stands between the product of queries, keys and values and attention: bias, norms and rotary positions where they
//! lie, then keys and values into the cache. A few tokens take one thread and no hand-off.

use super::instructions::Instructions;
use super::launch::{Kernel, Output, launch, split_rows};
use super::norm::{Views, normalise_groups};
use super::rope::Angles;
use super::store_kv::store_rows;
use super::view::Rows;
use crate::ModelError;
use crate::kv_cache::KvLayer;
use crate::ops::{AttentionPlan, Compute, Matrix, MatrixView, QkvPreparation, Queries};

/// Shapes and slots are checked by the caller.
pub(crate) fn prepare_qkv(
    compute: &Compute,
    qkv: Matrix,
    preparation: &QkvPreparation<'_>,
    plan: &AttentionPlan<'_>,
    layer: &KvLayer,
) -> Result<Queries, ModelError> {
    let (num_rows, width) = (qkv.num_rows(), qkv.width());
    let mut qkv = match qkv.into_host() {
        Ok(own) => own,
        // Somebody's tensor stays as it is.
        Err(tensor) => compute.workspace().copy_of(tensor.to_tensor()?.flatten_all()?.to_vec1()?.into_iter()),
    };
    let (head_dim, num_heads) = (layer.head_dim(), preparation.num_heads);
    let (queries, keys) = (num_heads * head_dim, layer.num_kv_heads() * head_dim);
    let (rows_per_task, num_tasks) = split_rows(num_rows, width);
    let place = Place {
        rows: Output::new(&mut qkv),
        num_rows,
        width,
        bias: preparation.bias.map(Rows::vector).transpose()?,
        norms: Norms::new(preparation)?,
        angles: preparation.angles.map(Angles::new).transpose()?,
        widths: (queries, keys),
        head_dim,
        rows_per_task,
    };
    launch(compute, num_tasks, &place);
    drop(place);
    let rows = || Rows::of(MatrixView::Host { values: &qkv, num_rows, width });
    let (k, v) = (rows()?.columns(queries, keys), rows()?.columns(queries + keys, keys));
    store_rows(compute, k, v, plan.input().slots(layer.group()), layer)?;
    Ok(Queries { rows: Matrix::host(qkv, num_rows, width), num_heads, head_dim })
}

/// Of queries and of keys.
struct Norms<'a>(Option<(Views<'a>, Views<'a>)>);

impl<'a> Norms<'a> {
    fn new(preparation: &QkvPreparation<'a>) -> Result<Self, ModelError> {
        let Some((q, k)) = &preparation.norms else { return Ok(Self(None)) };
        Ok(Self(Some((Views::new(&q.weights())?, Views::new(&k.weights())?))))
    }
}

/// Brings queries and keys to where attention takes them.
struct Place<'a> {
    rows: Output<f32>,
    num_rows: usize,
    width: usize,
    bias: Option<Rows<'a>>,
    norms: Norms<'a>,
    angles: Option<Angles<'a>>,
    /// Of a row's queries, and of its keys.
    widths: (usize, usize),
    head_dim: usize,
    rows_per_task: usize,
}

impl Kernel for Place<'_> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let (queries, keys) = self.widths;
        let first = task * self.rows_per_task;
        for row in first..(first + self.rows_per_task).min(self.num_rows) {
            // SAFETY: a row of this task, which no other task takes; the launch vouches for the instructions.
            unsafe {
                let values = self.rows.part(row * self.width, self.width);
                if let Some(bias) = &self.bias {
                    values.iter_mut().zip(bias.as_slice()).for_each(|(value, bias)| *value += bias);
                }
                if let Some((q, k)) = &self.norms.0 {
                    normalise_groups::<I::Vector>(&mut values[..queries], q.params());
                    normalise_groups::<I::Vector>(&mut values[queries..queries + keys], k.params());
                }
                if let Some(angles) = &self.angles {
                    angles.turn(row, &mut values[..queries + keys], self.head_dim);
                }
            }
        }
    }
}
