#![expect(unsafe_code, reason = "vector loads through pointers")]

//! `y = x W^T + b` over quantised panels: integer products of rounded activations with the quants, a fused multiply-add with
//! both scales for every 32 or 16 inputs.
//!
//! Quants keep their offset in the product, which begins with what that adds, negative. Integers are exact, so only the order of
//! the multiply-adds matters: units ascend, and in a unit the products come before the minimum.

use std::ops::Range;

use super::block_formats::{Format, Q4_0, Q4K, Q6K, Q8_0};
use super::block_panels::{BlockPanels, Layout};
use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::launch::{Usual, integer_tile};
use super::pairs::Pairs;
use super::panels::PANEL;
use super::product::{Part, Product, Sink, Tasks};
use super::rounded_rows::{Activation, RoundedRows, UnitFacts};
use super::target::Target;
use super::tile::with_rows;
use crate::StoredDtype;
use crate::ops::Compute;
use crate::ops::blocks::UNIT;

/// Rows of one task at most, but of the last one: as many groups as fit. They fit in the second-level cache, half as many more
/// included.
const TASK_ROWS: usize = 80;
/// Rows for which reading a weight takes about as long as using it.
const ROWS_OF_A_READ: usize = 5;
/// Tasks per thread, so that threads that start late or lose their core are helped out.
const TASKS_PER_THREAD: usize = 8;
/// Weights that a task of one row reads at least: some microseconds of work. With more rows so much less, up to
/// [`ROWS_OF_A_READ`].
const MIN_TASK_BYTES: usize = 32 * 1024;
/// Panels that rows visit together at most.
const MAX_PANELS: usize = 4;
/// Rows that have enough running sums only with so many, though these are more than have registers.
const FEW_ROWS: usize = 4;
const CACHE_LINE: usize = 64;

/// The columns of one part: `x` is as wide as the weight.
pub(super) fn linear<A: Activation>(
    compute: &Compute,
    x: &RoundedRows<A>,
    weight: &BlockPanels,
    sink: &mut Sink<'_>,
    first_column: usize,
) {
    match weight.dtype {
        StoredDtype::Q4_0 => run::<Q4_0, A>(compute, x, weight, sink, first_column),
        StoredDtype::Q4K => run::<Q4K, A>(compute, x, weight, sink, first_column),
        StoredDtype::Q6K => run::<Q6K, A>(compute, x, weight, sink, first_column),
        _ => run::<Q8_0, A>(compute, x, weight, sink, first_column),
    }
}

fn run<F: Format, A: Activation>(
    compute: &Compute,
    x: &RoundedRows<A>,
    weight: &BlockPanels,
    sink: &mut Sink<'_>,
    first_column: usize,
) {
    let out_features = weight.out_features;
    let tile = integer_tile(compute);
    let together = panels_of_a_group(tile.sums, tile.rows);
    // Whole groups.
    let rows_per_task = TASK_ROWS - TASK_ROWS % x.groups.most_rows;
    let num_panels = out_features.div_ceil(PANEL);
    let panel_bytes = weight.size_bytes() / num_panels;
    let panels_per_task = num_panels
        .div_ceil(compute.num_threads() * TASKS_PER_THREAD)
        .max(MIN_TASK_BYTES / (panel_bytes * x.num_rows.min(ROWS_OF_A_READ)))
        .next_multiple_of(if x.num_rows < ROWS_OF_A_READ { MAX_PANELS } else { together });
    let product = BlockLinear::<F, A> {
        x,
        panels: weight.as_slice(),
        panel_bytes,
        out_features,
        tasks: Tasks { num_rows: x.num_rows, rows_per_task, out_features, panels_per_task },
        steps: std::hint::black_box(F::STEPS),
        format: std::marker::PhantomData,
    };
    sink.take(compute, &product, first_column);
}

/// Panels that the rows of a task visit together where they are one group of `num_rows`. Where reading takes longer than
/// computing, as many streams of memory as are fastest: one where registers are wide (of those, Zen 5 was measured), four
/// elsewhere (Zen 3). Else as many as give the products enough running sums.
const fn panels_of_one_group<F: Format>(sums: usize, num_rows: usize) -> usize {
    if sums == 1 {
        return if num_rows <= F::NARROW_ROWS_THAT_WAIT { MAX_PANELS } else { 1 };
    }
    if num_rows <= F::WIDE_ROWS_THAT_WAIT {
        1
    } else if num_rows <= FEW_ROWS {
        MAX_PANELS
    } else {
        panels_of_a_group(sums, num_rows)
    }
}

/// The same of one of several groups, which visit them one after the other.
const fn panels_of_a_group(sums: usize, num_rows: usize) -> usize {
    if 2 * num_rows <= sums { 2 } else { 1 }
}

struct BlockLinear<'a, F, A: Activation> {
    x: &'a RoundedRows<A>,
    panels: &'a [u8],
    panel_bytes: usize,
    out_features: usize,
    tasks: Tasks,
    /// [`Format::STEPS`], hidden from the compiler: it would unroll the steps, unpack all their weights first, and then move
    /// them between the registers and memory, at half the speed.
    steps: usize,
    format: std::marker::PhantomData<F>,
}

/// `ROWS` rows from `row` on, times the 16 outputs of each of `PANELS` panels from `panel` on, which exist and belong to one
/// task.
struct Tile<'a, F, A: Activation, const ROWS: usize, const PANELS: usize> {
    linear: &'a BlockLinear<'a, F, A>,
    target: &'a Target<'a>,
    /// The first of a group.
    row: usize,
    panel: usize,
    ahead: Ahead,
}

/// What a tile asks memory for on its way.
#[derive(Clone, Copy)]
enum Ahead {
    /// What stands behind its own weights, and then where the next tile's begin.
    Own,
    /// Its share of the panels that are visited next, where several groups of rows meet a few panels before they go on: those
    /// that find their weights in the cache keep memory as busy as the first one. In bytes behind the begin of all panels, for
    /// the first panel and unit, and from one unit to the next.
    Share { start: usize, step: usize },
}

impl<F: Format, A: Activation, const ROWS: usize, const PANELS: usize> Piece for Tile<'_, F, A, ROWS, PANELS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        let linear = self.linear;
        // SAFETY: the panels' units; the caller vouches for the rest.
        unsafe {
            self.target.ask::<I::Panel, ROWS, PANELS>(self.row, self.panel * PANEL);
            let mut sums = [[I::Panel::splat(0.0); PANELS]; ROWS];
            for unit in 0..linear.x.width / UNIT {
                self.unit(unit, &mut sums);
            }
            for (row, sums) in (self.row..).zip(sums) {
                for (panel, sums) in (self.panel..).zip(sums) {
                    let column = panel * PANEL;
                    let num_columns = PANEL.min(linear.out_features - column);
                    if num_columns == PANEL {
                        sums.store(self.target.at(row, column));
                    } else {
                        let mut lanes = [0.0; PANEL];
                        sums.store(lanes.as_mut_ptr());
                        self.target.columns(row, column, num_columns).copy_from_slice(&lanes[..num_columns]);
                    }
                    self.target.add_bias(row, column, num_columns);
                }
            }
        }
    }
}

impl<F: Format, A: Activation, const ROWS: usize, const PANELS: usize> Tile<'_, F, A, ROWS, PANELS> {
    /// Continues `sums` with unit `unit` of the rows and panels.
    ///
    /// # Safety
    /// As [`Piece::run`].
    #[inline(always)]
    unsafe fn unit<L: Lanes>(&self, unit: usize, sums: &mut [[L; PANELS]; ROWS]) {
        let Layout { num_units, .. } = F::LAYOUT;
        let block_bytes = const { F::LAYOUT.block_bytes() };
        let panels: [*const u8; PANELS] = std::array::from_fn(|index| {
            self.linear.panels.as_ptr().wrapping_add((self.panel + index) * self.linear.panel_bytes)
        });
        let blocks = panels.map(|panel| panel.wrapping_add(unit / num_units * block_bytes));
        let quants = blocks.map(|block| block.wrapping_add(F::LAYOUT.unit(unit % num_units)));
        let ahead = self.ahead_of(panels, unit, L::PREFETCH_BYTES);
        ahead.iter().for_each(|ahead| L::prefetch_to_second_level(ahead.wrapping_add(F::DOTS * F::STEPS * CACHE_LINE)));
        let (parts, facts) = self.linear.x.unit(self.row, ROWS, unit);
        // SAFETY: of all rows.
        let facts = unsafe { &*facts.cast::<[UnitFacts; ROWS]>() };
        for dot in 0..F::DOTS {
            let ahead = ahead.map(|ahead| ahead.wrapping_add(dot * F::STEPS * CACHE_LINE));
            // SAFETY: inside the panels and the rows, for which the caller vouches.
            unsafe {
                let products = self.products::<L>((&quants, dot), (parts, facts), &ahead);
                for (panel, &block) in blocks.iter().enumerate() {
                    let (scale, min): (L, L) = F::scales(block, unit % num_units, dot);
                    for row in 0..ROWS {
                        let facts = &facts[row];
                        let product = A::end::<L::Pairs>(F::BITS, products[row][panel]);
                        let min = matches!(F::DTYPE, StoredDtype::Q4K).then_some((min, facts.less));
                        L::add_scaled(&mut sums[row][panel], product, scale, facts.scale, min);
                    }
                }
            }
        }
    }

    /// What is asked for while the tile is at unit `unit` of `panels`.
    #[inline(always)]
    fn ahead_of(&self, panels: [*const u8; PANELS], unit: usize, bytes_ahead: usize) -> [*const u8; PANELS] {
        let BlockLinear { panels: all, panel_bytes, .. } = *self.linear;
        match self.ahead {
            // As far ahead as the unit has come of its block, scales included; behind the panels stand those that are visited
            // next, unless gates are followed by what they let through.
            Ahead::Own => {
                let further = unit * F::UNIT_BYTES + bytes_ahead / PANELS;
                let further = if further < panel_bytes { further } else { further + (PANELS - 1) * panel_bytes };
                panels.map(|panel| panel.wrapping_add(further))
            }
            Ahead::Share { start, step } => {
                let first = all.as_ptr().wrapping_add(start + unit * step);
                std::array::from_fn(|index| first.wrapping_add(index * panel_bytes))
            }
        }
    }

    /// The integer products of one group. In turns with its steps it asks for what is at `ahead`, a line for each: a burst of
    /// all panels' lines would wait for itself.
    ///
    /// # Safety
    /// As [`Piece::run`]; `quants`, `parts` and `facts` are those of one unit in each panel and each row.
    #[inline(always)]
    unsafe fn products<L: Lanes>(
        &self,
        (quants, dot): (&[*const u8; PANELS], usize),
        (parts, facts): (*const i32, &[UnitFacts; ROWS]),
        ahead: &[*const u8; PANELS],
    ) -> [[A::Running<L::Pairs>; PANELS]; ROWS] {
        // SAFETY: inside the unit and the rows, for which the caller vouches.
        unsafe {
            // Loops, as `array::map` may be a function that is called.
            let mut sums = [[A::begin::<L::Pairs>(<L::Pairs as Pairs>::splat_sum(0)); PANELS]; ROWS];
            for (sums, facts) in sums.iter_mut().zip(facts) {
                let begin = <L::Pairs as Pairs>::splat_sum(F::begin(&facts.begins, dot));
                *sums = [A::begin::<L::Pairs>(begin); PANELS];
            }
            let fours_of_dot = dot * UNIT / 4 / F::DOTS;
            let parts_of = |four: usize| parts.add((fours_of_dot + four) * A::PARTS);
            for j in 0..self.linear.steps {
                let mut fours = [[std::mem::zeroed::<L::Pairs>(); PANELS]; 2];
                for (panel, &quants) in quants.iter().enumerate() {
                    L::prefetch_to_second_level(ahead[panel].wrapping_add(j * CACHE_LINE));
                    [fours[0][panel], fours[1][panel]] = F::step(quants, dot, j);
                }
                for (n, fours) in fours.into_iter().enumerate().take(F::WIDTH) {
                    self.add_fours::<L>(fours, parts_of(j + n * F::STEPS), &mut sums);
                }
            }
            if const { F::LEFT > 0 } {
                let mut fours = [std::mem::zeroed::<L::Pairs>(); PANELS];
                for (four, &quants) in fours.iter_mut().zip(quants) {
                    *four = F::left(quants, dot);
                }
                self.add_fours::<L>(fours, parts_of(F::WIDTH * F::STEPS), &mut sums);
            }
            sums
        }
    }

    /// Adds the products of all panels' quants with a four of each row, the first of which stands at `parts`.
    ///
    /// # Safety
    /// As [`Piece::run`].
    #[inline(always)]
    unsafe fn add_fours<L: Lanes>(
        &self,
        quants: [L::Pairs; PANELS],
        parts: *const i32,
        sums: &mut [[A::Running<L::Pairs>; PANELS]; ROWS],
    ) {
        // SAFETY: inside the rows, for which the caller vouches.
        unsafe {
            let mut factors = [quants; 2];
            for (panel, &quants) in quants.iter().enumerate() {
                [factors[0][panel], factors[1][panel]] = A::factors(quants);
            }
            for (part, factors) in factors.into_iter().enumerate().take(A::PARTS) {
                for (row, sums) in sums.iter_mut().enumerate() {
                    A::dots(factors, F::BITS, parts.add(row * A::PARTS_OF_UNIT + part), sums);
                }
            }
        }
    }
}

impl<F: Format, A: Activation> BlockLinear<'_, F, A> {
    /// One group of rows times some panels, as many of them together as such a group visits.
    ///
    /// # Safety
    /// As [`Product::run`]; rows and panels exist and belong to the task.
    #[inline(always)]
    unsafe fn row_group<I: Instructions>(
        &self,
        rows: Range<usize>,
        ahead: Ahead,
        panels: Range<usize>,
        target: &Target<'_>,
    ) {
        // SAFETY: passed on.
        unsafe {
            with_rows!(rows.len(), I::INTEGER_ROWS, ROWS => {
                let together = match ahead {
                    Ahead::Own => const { panels_of_one_group::<F>(I::INTEGER_SUMS, ROWS) },
                    Ahead::Share { .. } => const { panels_of_a_group(I::INTEGER_SUMS, ROWS) },
                };
                let rest = panels.end - panels.len() % together;
                match together {
                    MAX_PANELS if const { panels_of_one_group::<F>(I::INTEGER_SUMS, ROWS) == MAX_PANELS } => {
                        self.tiles::<I, ROWS, MAX_PANELS>(panels.start..rest, rows.start, ahead, target);
                    }
                    2 if const { panels_of_a_group(I::INTEGER_SUMS, ROWS) == 2 } => {
                        self.tiles::<I, ROWS, 2>(panels.start..rest, rows.start, ahead, target);
                    }
                    _ => return self.tiles::<I, ROWS, 1>(panels, rows.start, ahead, target),
                }
                // At the end of a weight. More shapes than these would be more to compile, for few panels.
                self.tiles::<I, ROWS, 1>(rest..panels.end, rows.start, ahead, target);
            });
        }
    }

    /// # Safety
    /// As [`BlockLinear::row_group`]; a whole number of times as many panels.
    #[inline(always)]
    unsafe fn tiles<I: Instructions, const ROWS: usize, const PANELS: usize>(
        &self,
        panels: Range<usize>,
        row: usize,
        ahead: Ahead,
        target: &Target<'_>,
    ) {
        for panel in panels.step_by(PANELS) {
            // SAFETY: passed on.
            unsafe { I::apart(Tile::<F, A, ROWS, PANELS> { linear: self, target, row, panel, ahead }) };
        }
    }
}

impl<F: Format, A: Activation> Product for BlockLinear<'_, F, A> {
    type Start = Usual;

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, part: &Part, target: &Target<'_>) {
        let panels = part.panels.clone();
        let groups = self.x.groups.of(&part.rows);
        let together = match groups.len() {
            1 => panels.len(),
            _ => const { panels_of_a_group(I::INTEGER_SUMS, I::INTEGER_ROWS) },
        };
        for first in panels.clone().step_by(together) {
            let panels = first..panels.end.min(first + together);
            let next = if panels.end < part.panels.end { panels.end } else { part.next_panel };
            for (group, rows) in groups.clone().enumerate() {
                let ahead = match groups.len() {
                    1 => Ahead::Own,
                    num_groups => Ahead::Share {
                        start: next * self.panel_bytes + group * self.panel_bytes / num_groups,
                        step: F::UNIT_BYTES.div_ceil(num_groups),
                    },
                };
                // SAFETY: rows and panels of the part; the caller vouches for the instructions.
                unsafe { self.row_group::<I>(rows, ahead, panels.clone(), target) };
            }
        }
    }
}
