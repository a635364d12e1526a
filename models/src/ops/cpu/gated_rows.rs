#![expect(unsafe_code, reason = "threads fill disjoint parts of one output")]

//! A product whose outputs are gates and what they let through: both go no further than a cache, and what is written is
//! `activation(gate) * up`, as the next product takes it.

use std::sync::Arc;

use super::gate_mul::gated;
use super::instructions::Instructions;
use super::launch::{Kernel, Output, Start};
use super::new_rows::{RowOutput, STRETCH};
use super::panels::PANEL;
use super::product::{Part, Product, SCRATCH_BYTES, Tasks};
use super::target::Target;
use super::vector::Vector;
use super::workspace::Workspace;
use crate::ops::{Compute, Gate};

/// Panels that a few rows visit together at most, in any product.
const MAX_PANELS: usize = 4;

/// Where the rows go, and how they come about.
pub(super) struct GatedRows<'a> {
    pub(super) gate: Gate,
    /// Of gates and of what they let through, which are whole panels each.
    pub(super) width: usize,
    /// Of both.
    pub(super) bias: Option<&'a [f32]>,
    /// `[num_rows, width]`
    pub(super) out: RowOutput,
}

impl GatedRows<'_> {
    /// Computes `product`.
    pub(super) fn take<P: Product>(&self, compute: &Compute, product: &P) {
        let of_both = product.tasks();
        // As many as the product visits together, if its tasks are whole numbers of them.
        let together = MAX_PANELS.min(1 << of_both.panels_per_task.trailing_zeros());
        let panels_per_task = of_both.panels_per_task.div_ceil(2).next_multiple_of(together);
        let tasks = Tasks { out_features: self.width, panels_per_task, ..*of_both };
        let rows_at_once = tasks.most_rows();
        let panels_at_once = SCRATCH_BYTES / (2 * rows_at_once * PANEL * size_of::<f32>());
        let panels_at_once = (panels_at_once / MAX_PANELS * MAX_PANELS).max(MAX_PANELS).min(panels_per_task);
        let scratch_len = 2 * rows_at_once * panels_at_once * PANEL;
        let workspace = compute.workspace();
        // Each task finds its own, however many run at a time.
        workspace.prepare::<f32>(compute.num_threads().min(tasks.len()), scratch_len);
        let kernel = ToGated { product, rows: self, tasks, workspace, panels_at_once, scratch_len };
        P::Start::launch(compute, kernel.tasks.len(), &kernel);
    }
}

struct ToGated<'a, P> {
    product: &'a P,
    rows: &'a GatedRows<'a>,
    /// Of the gates' panels.
    tasks: Tasks,
    workspace: &'a Arc<Workspace>,
    panels_at_once: usize,
    scratch_len: usize,
}

impl<P: Product> Kernel for ToGated<'_, P> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let Part { rows, panels, .. } = self.tasks.part(task);
        let mut scratch = self.workspace.unwritten(self.scratch_len);
        let scratch = scratch.output();
        for first in panels.clone().step_by(self.panels_at_once) {
            let end = panels.end.min(first + self.panels_at_once);
            // SAFETY: the scratch is this task's, and has room for both parts; the launch vouches for the instructions.
            unsafe { self.group::<I>(&Part { rows: rows.clone(), panels: first..end, next_panel: end }, &scratch) };
        }
    }
}

impl<P: Product> ToGated<'_, P> {
    /// Gates of some rows and panels, and what they let through, side by side in `scratch`; then what comes of both.
    ///
    /// # Safety
    /// Nobody else may use the scratch or these outputs, and the CPU must have the instructions.
    #[inline(always)]
    unsafe fn group<I: Instructions>(&self, gates: &Part, scratch: &Output<f32>) {
        let GatedRows { width, bias, .. } = *self.rows;
        let half = self.panels_at_once * PANEL;
        let (first_row, first_column) = (gates.rows.start, gates.panels.start * PANEL);
        let num_panels = self.tasks.num_panels();
        let [ups_start, ups_end] = [gates.panels.start, gates.panels.end].map(|panel| num_panels + panel);
        let ups = Part { panels: ups_start..ups_end, ..gates.clone() };
        let target_of_gates = Target::of_part(scratch, 2 * half, first_row, first_column).behind(0, bias);
        let target_of_ups = Target::of_part(scratch, 2 * half, first_row, width + first_column).behind(half, bias);
        let num_columns = gates.panels.len() * PANEL;
        // SAFETY: the two targets are halves of the scratch's rows; the caller vouches for the rest.
        unsafe {
            self.product.run::<I>(&Part { next_panel: ups_start, ..gates.clone() }, &target_of_gates);
            self.product.run::<I>(&ups, &target_of_ups);
            for row in gates.rows.clone() {
                let gates = target_of_gates.columns(row, first_column, num_columns);
                let ups = target_of_ups.columns(row, width + first_column, num_columns);
                self.write::<I::Vector>(row, first_column, gates, ups);
            }
        }
    }

    /// # Safety
    /// As [`Self::group`]; both slices are as long.
    #[inline(always)]
    unsafe fn write<V: Vector>(&self, row: usize, column: usize, gates: &[f32], ups: &[f32]) {
        let mut numbers = [0.0; STRETCH];
        for (index, (gates, ups)) in gates.chunks(STRETCH).zip(ups.chunks(STRETCH)).enumerate() {
            let numbers = &mut numbers[..gates.len()];
            // SAFETY: the outputs of the task's rows and columns; the caller vouches for the instructions.
            unsafe {
                gated::<V>(self.rows.gate, gates, ups, numbers);
                self.rows.out.write::<V>(row, column + index * STRETCH, numbers);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::super::linear::has_gated_body;
    use super::super::panels::PANEL;
    use crate::ops::linear::WeightStorage;
    use crate::ops::{self, Compute, Gate, KernelSet, Matrix, PackedWeight, WeightPart, gated_linear};
    use crate::selftest::numbers::Random;
    use crate::{ActivationDtype, StoredDtype};

    fn weight(compute: &Compute, dtype: StoredDtype, outputs: usize, inputs: usize) -> PackedWeight {
        let values = Random(outputs as u64).values(outputs * inputs).into_iter();
        let bytes: Vec<u8> = values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect();
        let part = WeightPart { dtype: StoredDtype::Bf16, bytes: &bytes };
        PackedWeight::pack(compute, Some(dtype), inputs, &[part]).unwrap()
    }

    fn bits(rows: Matrix) -> Vec<u32> {
        rows.into_tensor()
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .map(f32::to_bits)
            .collect()
    }

    /// Compares what the product behind the gates makes of them.
    fn check(compute: &Compute, dtype: StoredDtype, inputs: usize, width: usize, num_rows: usize) {
        let [gate_up, down] = [(2 * width, inputs), (32, width)].map(|(n, k)| weight(compute, dtype, n, k));
        let WeightStorage::Packed(parts) = gate_up.storage() else { panic!("for a CPU") };
        assert_eq!(has_gated_body(parts, 2 * width), width.is_multiple_of(PANEL), "{width}");
        let mut random = Random(num_rows as u64);
        let values = random.values(num_rows * inputs);
        let x = Matrix::host(compute.workspace().copy_of(values.into_iter()), num_rows, inputs);
        let bias = random.tensor(&[2 * width], ops::Float::F32);
        for (gate, bias) in [(Gate::Silu, None), (Gate::GeluTanh, Some(&bias)), (Gate::GeluErf, Some(&bias))] {
            let apart = ops::gate_mul(compute, &ops::linear(compute, &x, &gate_up, bias).unwrap(), gate).unwrap();
            let together = gated_linear(compute, &x, (&gate_up, bias), (gate, &down)).unwrap();
            assert_eq!((together.num_rows(), together.width()), (num_rows, width));
            let [apart, together] = [apart, together].map(|x| bits(ops::linear(compute, &x, &down, None).unwrap()));
            assert_eq!(apart, together, "{compute:?} {dtype} {gate:?} [{num_rows}, {inputs}, {width}]");
        }
    }

    /// On one thread a task has more panels than stand in its scratch at a time; and `k` is cut, before rows or behind them.
    #[test]
    fn gates_of_many_inputs_give_the_same_bits() {
        let compute = Compute::cpu_with_kernels(1, KernelSet::detect()).unwrap();
        for compute in [compute.clone(), compute.for_kv_of(crate::KvFormat::Bf16)] {
            for dtype in [StoredDtype::F32, StoredDtype::F16, StoredDtype::Bf16, StoredDtype::Q8_0] {
                [(3104, 20), (4096, 80)].into_iter().for_each(|(k, rows)| check(&compute, dtype, k, 1024, rows));
            }
        }
    }

    #[test]
    fn gates_that_stay_in_the_cache_give_the_bits_of_gates_that_do_not() {
        for kernels in KernelSet::of_this_cpu() {
            let floats = Compute::cpu_with_kernels(3, kernels).unwrap();
            let bytes = floats.with_activations_in(ActivationDtype::Int8).unwrap();
            for compute in [floats.clone(), floats.with_bf16_products(), bytes] {
                for dtype in [StoredDtype::F32, StoredDtype::Bf16, StoredDtype::Q8_0] {
                    // The last are more than a task's rows with few left, with many left, and no whole panel.
                    for (width, num_rows) in
                        [(32_usize, 1), (96, 2), (608, 13), (160, 79), (160, 140), (320, 200), (40, 5)]
                    {
                        if dtype != StoredDtype::Q8_0 || width.is_multiple_of(32) {
                            check(&compute, dtype, 96, width, num_rows);
                        }
                    }
                }
            }
        }
    }
}
