#![expect(unsafe_code, reason = "vector loads through pointers")]

//! `y = x W^T + b` over quantised panels: integer products of 16-bit activations with the quants, a fused multiply-add with
//! both scales for every 32 or 16 inputs.
//!
//! Quants keep their offset in the product, which is taken off again by the sum of the activations. Integers are exact, so
//! only the order of the multiply-adds matters: units ascend, and in a unit the products come before the minimum.

use super::block_panels::{BlockPanels, HIGH_BITS, Layout, STEP, offset};
use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::launch::{Kernel, launch};
use super::pairs::Pairs;
use super::panels::PANEL;
use super::rounded_rows::{RoundedRows, UnitFacts};
use super::target::Target;
use super::tile::with_rows;
use crate::StoredDtype;
use crate::ops::Compute;
use crate::ops::blocks::UNIT;

/// Rows of one task, which fit in the second-level cache: a whole number of tiles of any instructions.
const TASK_ROWS: usize = 80;
/// Rows for which reading a weight takes about as long as using it.
const ROWS_OF_A_READ: usize = 5;
/// Tasks per thread, so that threads that start late or lose their core are helped out.
const TASKS_PER_THREAD: usize = 8;
/// Weights that one task reads at least: some microseconds of work.
const MIN_TASK_BYTES: usize = 32 * 1024;
/// How far ahead of its use a weight is asked for. The CPU's own prefetch stops at the end of a small page.
const PREFETCH_BYTES: usize = 2048;
const CACHE_LINE: usize = 64;

/// The columns of one part: `x` is as wide as the weight.
pub(super) fn linear(compute: &Compute, x: &RoundedRows, weight: &BlockPanels, target: Target<'_>) {
    match weight.dtype {
        StoredDtype::Q4_0 => run::<Q4_0>(compute, x, weight, target),
        StoredDtype::Q4K => run::<Q4K>(compute, x, weight, target),
        StoredDtype::Q6K => run::<Q6K>(compute, x, weight, target),
        _ => run::<Q8_0>(compute, x, weight, target),
    }
}

fn run<F: Format>(compute: &Compute, x: &RoundedRows, weight: &BlockPanels, target: Target<'_>) {
    let num_panels = weight.out_features.div_ceil(PANEL);
    let panel_bytes = weight.size_bytes() / num_panels;
    let panels_per_task = num_panels
        .div_ceil(compute.num_threads() * TASKS_PER_THREAD)
        .max(MIN_TASK_BYTES / (panel_bytes * x.num_rows.min(ROWS_OF_A_READ)));
    let kernel = BlockLinear::<F> {
        x,
        panels: weight.as_slice(),
        num_blocks: weight.in_features / F::DTYPE.block_len(),
        out_features: weight.out_features,
        target,
        num_row_tasks: x.num_rows.div_ceil(TASK_ROWS),
        panels_per_task,
        steps: std::hint::black_box(F::STEPS),
        format: std::marker::PhantomData,
    };
    launch(compute, kernel.num_row_tasks * num_panels.div_ceil(panels_per_task), &kernel);
}

/// How the quants of a dtype come out of their vectors.
///
/// A unit has [`Format::DOTS`] groups of inputs with a scale of their own. A group takes [`Format::STEPS`] steps, each of
/// which gives the inputs `2 (j + n STEPS)` and one more of the group, for all `n`.
trait Format: Sync {
    const DTYPE: StoredDtype;
    const LAYOUT: Layout = Layout::of(Self::DTYPE);
    const DOTS: usize;
    const STEPS: usize;
    /// Factors that a step gives.
    const WIDTH: usize = UNIT / 2 / Self::DOTS / Self::STEPS;

    /// Step `j` of group `dot`, for all 16 outputs. Only the first [`Format::WIDTH`] are used.
    ///
    /// # Safety
    /// The CPU must have the instructions of `P`, of 32 lanes; `unit` points at a unit.
    unsafe fn step<P: Pairs>(unit: *const u8, dot: usize, j: usize) -> [P; 4];

    /// The scales of every group, for all 16 outputs, and the minimum.
    ///
    /// # Safety
    /// The CPU must have the instructions of `L`, of 16 lanes; `block` points at a block of 16 rows.
    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, unit: usize) -> ([L; 2], L) {
        // SAFETY: inside the block.
        unsafe {
            let d = L::load_f16(block.cast());
            let scale = |index: usize| block.add(Self::LAYOUT.scales(unit) + index * PANEL);
            match Self::DTYPE {
                StoredDtype::Q4K => {
                    let dmin = L::load_f16(block.add(2 * PANEL).cast());
                    ([d.mul(L::load_u8(scale(0))); 2], dmin.mul(L::load_u8(scale(1))))
                }
                StoredDtype::Q6K => {
                    ([d.mul(L::load_i8(scale(0).cast())), d.mul(L::load_i8(scale(1).cast()))], L::splat(0.0))
                }
                _ => ([d; 2], L::splat(0.0)),
            }
        }
    }
}

struct Q8_0;
struct Q4_0;
struct Q4K;
struct Q6K;

impl Format for Q8_0 {
    const DTYPE: StoredDtype = StoredDtype::Q8_0;
    const DOTS: usize = 1;
    const STEPS: usize = 8;

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 4] {
        // SAFETY: a unit has 8 steps.
        unsafe {
            let both = P::load(unit.add(j * STEP));
            let low = both.shift_left(8).shift_right_signed(8);
            let high = both.shift_right_signed(8);
            [low, high, high, high]
        }
    }
}

impl Format for Q4_0 {
    const DTYPE: StoredDtype = StoredDtype::Q4_0;
    const DOTS: usize = 1;
    const STEPS: usize = 4;

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 4] {
        // SAFETY: passed on.
        unsafe { nibbles(unit, j) }
    }
}

impl Format for Q4K {
    const DTYPE: StoredDtype = StoredDtype::Q4K;
    const DOTS: usize = 1;
    const STEPS: usize = 4;

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 4] {
        // SAFETY: passed on.
        unsafe { nibbles(unit, j) }
    }
}

impl Format for Q6K {
    const DTYPE: StoredDtype = StoredDtype::Q6K;
    const DOTS: usize = 2;
    const STEPS: usize = 4;

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, dot: usize, j: usize) -> [P; 4] {
        // SAFETY: a unit has 4 steps of low bits, then 2 of high bits.
        unsafe {
            let low = P::load(unit.add(j * STEP)).shift_right(8 * dot as u32);
            let high = P::load(unit.add(HIGH_BITS + dot * STEP)).shift_right(2 * j as u32);
            let first = low.and(0xf).or(high.and(3).shift_left(4));
            let second = low.shift_right(4).and(0xf).or(high.shift_right(8).and(3).shift_left(4));
            [first, second, second, second]
        }
    }
}

/// Four 4-bit quants from each lane, lowest first.
///
/// # Safety
/// As [`Format::step`].
#[inline(always)]
unsafe fn nibbles<P: Pairs>(unit: *const u8, j: usize) -> [P; 4] {
    // SAFETY: a unit has 4 steps.
    unsafe {
        let all = P::load(unit.add(j * STEP));
        [all.and(0xf), all.shift_right(4).and(0xf), all.shift_right(8).and(0xf), all.shift_right(12)]
    }
}

struct BlockLinear<'a, F> {
    x: &'a RoundedRows,
    panels: &'a [u8],
    num_blocks: usize,
    out_features: usize,
    target: Target<'a>,
    num_row_tasks: usize,
    panels_per_task: usize,
    /// [`Format::STEPS`], hidden from the compiler: it would unroll the steps, unpack all their weights first, and then move
    /// them between the registers and memory, at half the speed.
    steps: usize,
    format: std::marker::PhantomData<F>,
}

/// `ROWS` rows from `row` on, times the 16 outputs of panel `panel`, which exist and belong to one task.
struct Tile<'a, F, const ROWS: usize> {
    linear: &'a BlockLinear<'a, F>,
    row: usize,
    panel: usize,
}

impl<F: Format, const ROWS: usize> Piece for Tile<'_, F, ROWS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        let Self { linear, row, panel } = self;
        // SAFETY: the panel's blocks; the caller vouches for the rest.
        unsafe {
            let mut sums = [I::Panel::splat(0.0); ROWS];
            let block_bytes = F::LAYOUT.block_bytes();
            for block in 0..linear.num_blocks {
                let at = linear.panels.as_ptr().add((panel * linear.num_blocks + block) * block_bytes);
                for unit in 0..F::LAYOUT.num_units {
                    let x = (row, block * F::LAYOUT.num_units + unit);
                    linear.unit::<I::Panel, ROWS>(x, (at, unit), &mut sums);
                }
            }
            let column = panel * PANEL;
            let num_columns = PANEL.min(linear.out_features - column);
            for (index, sums) in sums.into_iter().enumerate() {
                let mut lanes = [0.0; PANEL];
                sums.store(lanes.as_mut_ptr());
                linear.target.columns(row + index, column, num_columns).copy_from_slice(&lanes[..num_columns]);
                linear.target.add_bias(row + index, column, num_columns);
            }
        }
    }
}

impl<F: Format> BlockLinear<'_, F> {
    /// Continues `sums` with one unit: of `x`, number `x_unit` of the rows; of the weight, number `unit` of `block`.
    ///
    /// # Safety
    /// As [`Piece::run`] of a [`Tile`].
    #[inline(always)]
    unsafe fn unit<L: Lanes, const ROWS: usize>(
        &self,
        (row, x_unit): (usize, usize),
        (block, unit): (*const u8, usize),
        sums: &mut [L; ROWS],
    ) {
        // SAFETY: inside the block and the rows, for which the caller vouches.
        unsafe {
            let quants = block.add(F::LAYOUT.unit(unit));
            for line in (0..F::LAYOUT.unit_bytes).step_by(CACHE_LINE) {
                L::prefetch(quants.wrapping_add(PREFETCH_BYTES + line));
            }
            let (scales, min): ([L; 2], L) = F::scales(block, unit);
            for (dot, scale) in scales.into_iter().enumerate().take(F::DOTS) {
                let products = self.products::<L, ROWS>((row, x_unit), (quants, dot));
                for (index, (sum, product)) in sums.iter_mut().zip(products).enumerate() {
                    let facts = self.facts(row + index, x_unit);
                    let x_sum = if F::DOTS == 1 { facts.sums[0] + facts.sums[1] } else { facts.sums[dot] };
                    let product = <L::Pairs as Pairs>::less(product, offset(F::DTYPE) * x_sum);
                    *sum = L::of_sums(product).mul_add(scale.mul(L::splat(facts.scale)), *sum);
                }
            }
            if matches!(F::DTYPE, StoredDtype::Q4K) {
                for (index, sum) in sums.iter_mut().enumerate() {
                    let facts = self.facts(row + index, x_unit);
                    let x_sum = L::splat(-(facts.scale * (facts.sums[0] + facts.sums[1]) as f32));
                    *sum = min.mul_add(x_sum, *sum);
                }
            }
        }
    }

    /// The integer products of one group, for 16 outputs.
    ///
    /// # Safety
    /// As [`Piece::run`] of a [`Tile`].
    #[inline(always)]
    unsafe fn products<L: Lanes, const ROWS: usize>(
        &self,
        (row, x_unit): (usize, usize),
        (quants, dot): (*const u8, usize),
    ) -> [<L::Pairs as Pairs>::Sums; ROWS] {
        // SAFETY: inside the unit and the rows, for which the caller vouches.
        unsafe {
            let mut sums = [<L::Pairs as Pairs>::zero(); ROWS];
            let group = dot * UNIT / 2;
            let x = self.x.elements.as_ptr().add(row * self.x.width + x_unit * UNIT + group);
            for j in 0..self.steps {
                let weights: [L::Pairs; 4] = F::step(quants, dot, j);
                for (n, weight) in weights.into_iter().enumerate().take(F::WIDTH) {
                    for (index, sum) in sums.iter_mut().enumerate() {
                        let pair = x.add(index * self.x.width + 2 * (j + n * F::STEPS));
                        *sum = weight.dot(<L::Pairs as Pairs>::splat_pair(pair), *sum);
                    }
                }
            }
            sums
        }
    }

    #[inline(always)]
    fn facts(&self, row: usize, unit: usize) -> UnitFacts {
        self.x.units[row * (self.x.width / UNIT) + unit]
    }
}

impl<F: Format> Kernel for BlockLinear<'_, F> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, task: usize) {
        let first_row = task % self.num_row_tasks * TASK_ROWS;
        let num_rows = TASK_ROWS.min(self.x.num_rows - first_row);
        let first_panel = task / self.num_row_tasks * self.panels_per_task;
        let num_panels = self.panels_per_task.min(self.out_features.div_ceil(PANEL) - first_panel);
        // Row blocks of nearly equal size: 6 rows run as 3 + 3, not as 5 + 1.
        let num_blocks = num_rows.div_ceil(I::INTEGER_ROWS);
        for panel in first_panel..first_panel + num_panels {
            let mut row = first_row;
            for block in 0..num_blocks {
                let block_rows = num_rows / num_blocks + usize::from(block < num_rows % num_blocks);
                // SAFETY: this task's rows and panels; the launch vouches for the instructions.
                unsafe {
                    with_rows!(block_rows, I::INTEGER_ROWS, ROWS => I::apart(Tile::<F, ROWS> { linear: self, row, panel }));
                }
                row += block_rows;
            }
        }
    }
}
