#![expect(unsafe_code, reason = "threads fill disjoint parts of one output")]

//! A product in tasks, and where its outputs go: into rows, or no further than a cache, where of some rows only the largest are
//! kept, or gates are multiplied with what they let through.

use std::ops::Range;
use std::sync::Arc;

use super::best_of_rows::{BestOfRows, Look};
use super::gated_rows::GatedRows;
use super::instructions::Instructions;
use super::launch::{Kernel, Output, Start};
use super::panels::PANEL;
use super::target::Target;
use super::workspace::Workspace;
use crate::ops::Compute;

/// Outputs that go no further than a cache, at a time, in bytes: they stay in the second-level one.
pub(super) const SCRATCH_BYTES: usize = 64 * 1024;

/// A body that computes some outputs of some rows.
pub(super) trait Product: Sync {
    /// Which instances of it are launched.
    type Start: Start;

    fn tasks(&self) -> &Tasks;

    /// Writes the outputs of `part`, which has rows and panels. Must be `#[inline(always)]`, see [`super::lanes::Lanes`].
    ///
    /// # Safety
    /// The CPU must have the instructions, and nobody else may use these outputs in `target`.
    unsafe fn run<I: Instructions>(&self, part: &Part, target: &Target<'_>);
}

/// How the rows and panels of a product are cut into tasks.
pub(super) struct Tasks {
    pub(super) num_rows: usize,
    /// Of most tasks.
    pub(super) rows_per_task: usize,
    pub(super) out_features: usize,
    pub(super) panels_per_task: usize,
}

/// Neighbouring rows, and neighbouring panels of 16 outputs.
#[derive(Clone)]
pub(super) struct Part {
    pub(super) rows: Range<usize>,
    pub(super) panels: Range<usize>,
    /// The panel that is visited next, of which some weights may be asked for.
    pub(super) next_panel: usize,
}

impl Tasks {
    pub(super) fn num_panels(&self) -> usize {
        self.out_features.div_ceil(PANEL)
    }

    /// A few rows that are left are the last task's: alone they would wait for all weights once more.
    fn num_row_tasks(&self) -> usize {
        let (whole, left) = (self.num_rows / self.rows_per_task, self.num_rows % self.rows_per_task);
        (whole + usize::from(left > self.rows_per_task / 2)).max(1)
    }

    /// Rows that a task has at most.
    pub(super) fn most_rows(&self) -> usize {
        let of_last = self.num_rows - (self.num_row_tasks() - 1) * self.rows_per_task;
        of_last.max(self.rows_per_task.min(self.num_rows))
    }

    /// Runs of panels, each of which all rows meet.
    fn num_runs(&self) -> usize {
        self.num_panels().div_ceil(self.panels_per_task)
    }

    pub(super) fn len(&self) -> usize {
        self.num_row_tasks() * self.num_runs()
    }

    fn run_of(&self, task: usize) -> usize {
        task / self.num_row_tasks()
    }

    #[inline(always)]
    pub(super) fn part(&self, task: usize) -> Part {
        let row_task = task % self.num_row_tasks();
        let first_row = row_task * self.rows_per_task;
        let first_panel = self.run_of(task) * self.panels_per_task;
        let end = self.num_panels().min(first_panel + self.panels_per_task);
        let is_last = row_task + 1 == self.num_row_tasks();
        let rows = first_row..if is_last { self.num_rows } else { first_row + self.rows_per_task };
        Part { rows, panels: first_panel..end, next_panel: end }
    }
}

/// Where the outputs of a weight's parts go.
pub(super) enum Sink<'a> {
    Rows {
        y: &'a Output<f32>,
        stride: usize,
        bias: Option<&'a [f32]>,
    },
    Best(&'a mut BestOfRows),
    /// The first half of the outputs are gates of the second one.
    Gated(&'a GatedRows<'a>),
}

impl Sink<'_> {
    /// Computes `product`, whose outputs are columns from `first_column` on.
    pub(super) fn take<P: Product>(&mut self, compute: &Compute, product: &P, first_column: usize) {
        let tasks = product.tasks();
        match self {
            Self::Rows { y, stride, bias } => {
                let target = Target::new(y, *stride, first_column, *bias);
                P::Start::launch(compute, tasks.len(), &ToRows { product, target });
            }
            Self::Gated(rows) => rows.take(compute, product),
            Self::Best(best) => {
                let workspace = compute.workspace();
                let mut lists = workspace.unwritten(tasks.num_runs() * best.lists_len());
                let rows_at_once = tasks.most_rows();
                let panels_at_once = SCRATCH_BYTES / (rows_at_once * PANEL * size_of::<f32>());
                let panels_at_once = panels_at_once.clamp(1, tasks.panels_per_task);
                let scratch_len = rows_at_once * panels_at_once * PANEL;
                // Each task finds its own, however many run at a time.
                workspace.prepare::<f32>(compute.num_threads().min(tasks.len()), scratch_len);
                let look = best.look(lists.output());
                let kernel = ToBest { product, look, workspace, first_column, panels_at_once, scratch_len };
                P::Start::launch(compute, tasks.len(), &kernel);
                // SAFETY: each task has begun the lists of its rows in its run, and there is one for all of both.
                best.merge(&unsafe { lists.written() });
            }
        }
    }
}

struct ToRows<'a, P> {
    product: &'a P,
    target: Target<'a>,
}

impl<P: Product> Kernel for ToRows<'_, P> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        // SAFETY: passed on; each task has its own part of the target.
        unsafe { self.product.run::<I>(&self.product.tasks().part(task), &self.target) }
    }
}

struct ToBest<'a, P> {
    product: &'a P,
    look: Look<'a>,
    workspace: &'a Arc<Workspace>,
    first_column: usize,
    panels_at_once: usize,
    scratch_len: usize,
}

impl<P: Product> Kernel for ToBest<'_, P> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let tasks = self.product.tasks();
        let Part { rows, panels, .. } = tasks.part(task);
        let run = tasks.run_of(task);
        let mut scratch = self.workspace.unwritten(self.scratch_len);
        let scratch = scratch.output();
        // SAFETY: tasks of one run have rows of their own.
        unsafe { self.look.begin(run, rows.clone()) };
        for first in panels.clone().step_by(self.panels_at_once) {
            let group = first..panels.end.min(first + self.panels_at_once);
            let columns = first * PANEL..tasks.out_features.min(group.end * PANEL);
            let target = Target::of_part(&scratch, self.panels_at_once * PANEL, rows.start, columns.start);
            let part = Part { rows: rows.clone(), next_panel: group.end, panels: group };
            // SAFETY: the scratch is this task's, and has room for the part; the launch vouches for the instructions. What is
            // looked at was written just now.
            unsafe {
                self.product.run::<I>(&part, &target);
                for row in rows.clone() {
                    let values = target.columns(row, columns.start, columns.len());
                    self.look.keep(run, row, self.first_column + columns.start, values);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_of_one_task_and_few_rows_that_are_left_have_none_of_their_own() {
        for (num_rows, sizes) in [
            (1, &[1][..]),
            (72, &[72]),
            (108, &[108]),
            (109, &[72, 37]),
            (144, &[72, 72]),
            (512, &[72, 72, 72, 72, 72, 72, 80]),
        ] {
            let tasks = Tasks { num_rows, rows_per_task: 72, out_features: 40, panels_per_task: 2 };
            assert_eq!(tasks.most_rows(), *sizes.iter().max().unwrap());
            let parts: Vec<Part> = (0..tasks.len()).map(|task| tasks.part(task)).collect();
            let mut next = 0;
            for (part, size) in parts.iter().zip(sizes) {
                assert_eq!((part.rows.start, part.rows.len(), part.panels.clone()), (next, *size, 0..2));
                next = part.rows.end;
            }
            assert_eq!((next, parts.len(), parts.last().unwrap().panels.clone()), (num_rows, 2 * sizes.len(), 2..3));
        }
    }
}
