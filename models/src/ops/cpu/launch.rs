#![expect(unsafe_code, reason = "a body's instance is chosen here, where the CPU's features are known")]

//! From an op's body to the threads that run it.

use super::instructions::{AnyCpu, Instructions};
use crate::ops::{Compute, KernelSet};

/// A body with its arguments.
pub(super) trait Kernel: Sync {
    /// Runs task `task` of the launch. Must be `#[inline(always)]`, see [`super::lanes::Lanes`].
    ///
    /// # Safety
    /// The CPU must have the instructions, and tasks of one launch must have distinct numbers: each writes its own part
    /// of the output.
    unsafe fn run<I: Instructions>(&self, task: usize);
}

/// Runs tasks `0..num_tasks` of `kernel`, with the body chosen for `compute`.
pub(super) fn launch<K: Kernel>(compute: &Compute, num_tasks: usize, kernel: &K) {
    compute.pool().run(num_tasks, &|task| match compute.kernels() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Compute` holds this set only if the CPU has the instructions; the pool runs each task once.
        KernelSet::Avx2Fma => unsafe { super::avx2::run(kernel, task) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        KernelSet::Avx512 | KernelSet::Avx512Bf16 => unsafe { super::avx512::run(kernel, task) },
        // SAFETY: portable code; the pool runs each task once.
        _ => unsafe { kernel.run::<AnyCpu>(task) },
    });
}

/// As [`launch`], for bodies that multiply bf16 by bf16: with the CPU's instruction for it, or in plain code.
pub(super) fn launch_bf16<K: Kernel>(compute: &Compute, num_tasks: usize, kernel: &K) {
    compute.pool().run(num_tasks, &|task| match compute.kernels() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Compute` holds this set only if the CPU has the instructions; the pool runs each task once.
        KernelSet::Avx512Bf16 => unsafe { super::avx512_bf16::run(kernel, task) },
        // SAFETY: portable code; the pool runs each task once.
        _ => unsafe { kernel.run::<AnyCpu>(task) },
    });
}

/// What the inner loop of a product of integers carries, as [`Instructions`] has it.
#[derive(Clone, Copy)]
pub(super) struct IntegerTile {
    pub(super) rows: usize,
    pub(super) sums: usize,
}

impl IntegerTile {
    pub(super) const fn of<I: Instructions>() -> Self {
        Self { rows: I::INTEGER_ROWS, sums: I::INTEGER_SUMS }
    }
}

/// That of what [`launch`] runs.
pub(super) fn integer_tile(compute: &Compute) -> IntegerTile {
    match compute.kernels() {
        #[cfg(target_arch = "x86_64")]
        KernelSet::Avx2Fma => super::avx2::INTEGER_TILE,
        #[cfg(target_arch = "x86_64")]
        KernelSet::Avx512 | KernelSet::Avx512Bf16 => super::avx512::INTEGER_TILE,
        _ => IntegerTile::of::<AnyCpu>(),
    }
}

/// Which instances of a body are launched.
pub(super) trait Start {
    fn launch<K: Kernel>(compute: &Compute, num_tasks: usize, kernel: &K);
}

/// As [`launch`].
pub(super) struct Usual;

/// As [`launch_bf16`].
pub(super) struct WithBf16Products;

impl Start for Usual {
    fn launch<K: Kernel>(compute: &Compute, num_tasks: usize, kernel: &K) {
        launch(compute, num_tasks, kernel);
    }
}

impl Start for WithBf16Products {
    fn launch<K: Kernel>(compute: &Compute, num_tasks: usize, kernel: &K) {
        launch_bf16(compute, num_tasks, kernel);
    }
}

/// An output that the tasks of a launch fill together, each its own part.
pub(super) struct Output<T>(*mut T, usize);

// SAFETY: the parts that tasks take are disjoint, which `Output::part` demands.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    /// `values` must outlive the launch.
    pub(super) fn new(values: &mut [T]) -> Self {
        Self::of_raw(values.as_mut_ptr(), values.len())
    }

    /// The same of `len` elements from `start` on, which may be yet to be written.
    pub(super) fn of_raw(start: *mut T, len: usize) -> Self {
        Self(start, len)
    }

    /// # Safety
    /// No two parts that live at the same time may overlap, and the slice behind the output must be alive.
    #[expect(clippy::mut_from_ref, reason = "parts are disjoint, as the function demands")]
    #[inline(always)]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start + len <= self.1, "a task writes inside its output");
        // SAFETY: in bounds by the assertion, disjoint by the function's condition.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }

    /// Where element `start` is, if it is one.
    #[inline(always)]
    pub(super) fn address(&self, start: usize) -> *const T {
        self.0.wrapping_add(start)
    }

    /// The address of element `start`.
    ///
    /// # Safety
    /// `start` must be in bounds; what is written through the pointer follows [`Output::part`].
    #[inline(always)]
    pub(super) unsafe fn at(&self, start: usize) -> *mut T {
        // SAFETY: in bounds by the function's condition.
        unsafe { self.0.add(start) }
    }
}

/// Elements of a cheap op that are worth handing to another thread.
const MIN_TASK_ELEMENTS: usize = 16 * 1024;

/// Cuts `num_rows` rows of `width` elements into tasks: rows per task, and tasks.
pub(super) fn split_rows(num_rows: usize, width: usize) -> (usize, usize) {
    let rows_per_task = (MIN_TASK_ELEMENTS / width.max(1)).clamp(1, num_rows.max(1));
    (rows_per_task, num_rows.div_ceil(rows_per_task))
}
