#![expect(unsafe_code, reason = "vector loads and stores through pointers")]

//! `y = x W^T + b` over packed panels.
//!
//! A few rows of `x` or many, each output's running sum visits `k` in ascending order. With many rows, `k` is cut so
//! that a piece of a panel stays in a cache ([`Instructions::PIECE_BYTES`]) while all rows of the task pass over it;
//! the running sums then rest in the output between pieces, which keeps their bits. Pieces are visited in the order of
//! their addresses, which memory is fastest with, as long as the rows stay in the second-level cache that way.

use std::ops::Range;

use candle_core::Tensor;

use super::best_of_rows::{BestOfRows, KeptRows};
use super::bf16_rows::Bf16Rows;
use super::block_linear;
use super::gated_rows::GatedRows;
use super::inputs::{FactorRows, Inputs};
use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::new_rows::NewRows;
use super::packed::PackedPart;
use super::panels::{PANEL, PanelData, Panels};
use super::product::{Part, Product, Sink, Tasks};
use super::rounded_rows::RoundedRows;
use super::target::Target;
use super::tile::{self, CacheLevel, Factors, Prefetch, SideBySide, Weight, panels_together, with_panels, with_rows};
use super::view::Rows;
use crate::ops::{Compute, Float, Gate, Matrix, MatrixView};
use crate::{ActivationDtype, ModelError};

/// Rows of one task, but of the last one: a whole number of tiles of any instructions. With a piece of `k` they fit in the
/// second-level cache, half as many more included.
const TASK_ROWS: usize = 72;

/// Rows for which reading a weight takes about as long as using it.
const ROWS_OF_A_READ: usize = 6;

/// Tasks per thread, so that threads that start late or lose their core are helped out.
const TASKS_PER_THREAD: usize = 8;

/// Weights that a task of one row reads at least: some microseconds of work. With more rows so much less, up to
/// [`ROWS_OF_A_READ`].
const MIN_TASK_BYTES: usize = 64 * 1024;

/// Panels that a few rows visit together at most: a row alone then has enough running sums to hide the latency of the
/// multiply-add.
const MAX_PANELS: usize = 4;

/// How far ahead of its use a weight is asked for, in each panel: rows that use it nearly as long as memory takes wait
/// for no less. The CPU's own prefetch stops at the end of a small page.
const PREFETCH_BYTES: usize = 4096;

/// The product of all parts of a weight with `out_features` outputs, each part filling its own columns.
pub(crate) fn linear(
    compute: &Compute,
    x: MatrixView<'_>,
    parts: &[PackedPart],
    out_features: usize,
    bias: Option<&Tensor>,
) -> Result<Matrix, ModelError> {
    let x = Inputs::of(x, parts)?;
    let bias = bias.map(Rows::vector).transpose()?;
    let len = x.num_rows().checked_mul(out_features).expect("fewer outputs than there are addresses");
    let mut y = compute.workspace().unwritten(len);
    let bias = bias.as_ref().map(Rows::as_slice);
    multiply(compute, &x, parts, out_features, &mut Sink::Rows { y: &y.output(), stride: out_features, bias });
    // SAFETY: the parts have all columns between them, and their tasks have written all rows.
    let y = unsafe { y.written() };
    Ok(Matrix::host(y, x.num_rows(), out_features))
}

/// Of a weight in one part, whose outputs are gates and as many that they are multiplied with; both are whole panels. What
/// comes of them is given as `next` takes it.
pub(crate) fn gated_linear(
    compute: &Compute,
    x: MatrixView<'_>,
    (part, width): (&PackedPart, usize),
    (bias, gate, next): (Option<&Tensor>, Gate, Float),
) -> Result<Matrix, ModelError> {
    let parts = std::slice::from_ref(part);
    let x = Inputs::of(x, parts)?;
    let bias = bias.map(Rows::vector).transpose()?;
    let bias = bias.as_ref().map(Rows::as_slice);
    let mut y = NewRows::new(compute, next, x.num_rows(), width);
    let rows = GatedRows { gate, width, bias, out: y.output() };
    multiply(compute, &x, parts, 2 * width, &mut Sink::Gated(&rows));
    // SAFETY: the part has all columns, and its tasks have written all rows.
    Ok(unsafe { y.written() })
}

/// Whether [`gated_linear`] has a body for a weight of these outputs.
pub(crate) fn has_gated_body(parts: &[PackedPart], out_features: usize) -> bool {
    parts.len() == 1 && out_features.is_multiple_of(2 * PANEL)
}

/// What is wanted of the rows of the same product: `best` as [`BestOfRows::new`] has it, one for each row.
pub(crate) fn best_of_linear(
    compute: &Compute,
    x: MatrixView<'_>,
    parts: &[PackedPart],
    out_features: usize,
    best: impl ExactSizeIterator<Item = Option<usize>>,
) -> Result<KeptRows, ModelError> {
    let x = Inputs::of(x, parts)?;
    assert_eq!(x.num_rows(), best.len(), "something is wanted of each row");
    let most_runs = (compute.num_threads() * TASKS_PER_THREAD).min(out_features.div_ceil(PANEL));
    let mut wanted = BestOfRows::new(compute.workspace(), out_features, most_runs, best);
    multiply(compute, &x, parts, out_features, &mut Sink::Best(&mut wanted));
    // SAFETY: the parts have all columns between them, and the sink has merged the lists of each.
    Ok(unsafe { wanted.finish() })
}

fn multiply(compute: &Compute, x: &Inputs<'_>, parts: &[PackedPart], out_features: usize, sink: &mut Sink<'_>) {
    let (mut rounded, mut rounded_to_bytes, mut pairs) = (None, None, None);
    let mut first_column = 0;
    for part in parts {
        match part {
            PackedPart::Floats(panels) => match &panels.data {
                PanelData::F32(data) => {
                    let product = Linear::new(compute, x.floats().into(), panels, data.as_slice());
                    sink.take(compute, &product, first_column);
                }
                PanelData::F16(data) => {
                    let product = Linear::new(compute, x.floats().into(), panels, data.as_slice());
                    sink.take(compute, &product, first_column);
                }
                PanelData::Bf16(data) => {
                    let product = Linear::new(compute, x.floats().into(), panels, data.as_slice());
                    sink.take(compute, &product, first_column);
                }
                PanelData::Bf16Pairs(data) => {
                    let x = match x {
                        Inputs::Rounded(rows) => *rows,
                        Inputs::Floats(rows) => pairs.get_or_insert_with(|| Bf16Rows::new(compute, rows)).pairs(),
                    };
                    sink.take(compute, &Linear::new(compute, x.into(), panels, data.as_slice()), first_column);
                }
            },
            PackedPart::Blocks(panels) => {
                let x = x.floats();
                match compute.activation_dtype() {
                    ActivationDtype::Int16 => {
                        let x = rounded.get_or_insert_with(|| RoundedRows::<i16>::new(compute, x));
                        block_linear::linear(compute, x, panels, sink, first_column);
                    }
                    ActivationDtype::Int8 => {
                        let x = rounded_to_bytes.get_or_insert_with(|| RoundedRows::<i8>::new(compute, x));
                        block_linear::linear(compute, x, panels, sink, first_column);
                    }
                }
            }
        }
        first_column += part.out_features();
    }
    assert_eq!(first_column, out_features, "the parts of a weight have all its outputs between them");
}

struct Linear<'a, W: Weight> {
    x: FactorRows<'a, W::Factor>,
    panels: &'a [W],
    out_features: usize,
    /// Steps of `k`.
    depth: usize,
    tasks: Tasks,
}

/// In which order the pieces of all panels are visited.
#[derive(Clone, Copy)]
enum Order {
    /// As they stand in memory.
    Panels,
    /// The same piece of `k` of all panels, then the next one.
    Pieces,
}

/// Where a tile stands: its first row and panel, and the piece of `k` it runs.
#[derive(Clone)]
struct Place {
    row: usize,
    panel: usize,
    k: Range<usize>,
    ahead: Ahead,
    /// The panel that is visited after those of the row block, where its rows are the last that meet them.
    next_panel: usize,
}

/// What a tile asks memory for on its way.
#[derive(Clone, Copy)]
enum Ahead {
    /// What stands behind its own weights, and then where the next tile's begin.
    Own,
    /// Its share of the piece that is visited next, which begins at step `next` of all panels: the row blocks that find their
    /// weights in the cache keep memory as busy as the first one.
    Share { next: usize, block: usize, num_blocks: usize },
}

impl<'a, W: Weight> Linear<'a, W> {
    fn new(compute: &Compute, x: FactorRows<'a, W::Factor>, weight: &Panels, panels: &'a [W]) -> Self {
        let out_features = weight.out_features;
        let num_panels = out_features.div_ceil(PANEL);
        let depth = panels.len() / (num_panels * PANEL);
        let panel_bytes = depth * PANEL * size_of::<W>();
        let panels_per_task = num_panels
            .div_ceil(compute.num_threads() * TASKS_PER_THREAD)
            .max(MIN_TASK_BYTES / (panel_bytes * x.num_rows.min(ROWS_OF_A_READ)))
            .next_multiple_of(MAX_PANELS);
        let tasks = Tasks { num_rows: x.num_rows, rows_per_task: TASK_ROWS, out_features, panels_per_task };
        Self { x, panels, out_features, depth, tasks }
    }

    /// One row block of at most [`Instructions::TILE_ROWS`] rows times `num_panels` panels, as many of them together as the
    /// registers hold.
    ///
    /// # Safety
    /// As [`Product::run`]; rows and panels exist and belong to the task.
    #[inline(always)]
    unsafe fn row_block<I: Instructions>(
        &self,
        num_rows: usize,
        num_panels: usize,
        mut place: Place,
        target: &Target<'_>,
    ) {
        let (end, next_panel) = (place.panel + num_panels, place.next_panel);
        let full_end = end.min(self.out_features / PANEL);
        let mut together = panels_together::<I>(num_rows, MAX_PANELS);
        while place.panel < end {
            while together > 1 && place.panel + together > full_end {
                together /= 2;
            }
            let next = place.panel + together;
            place.next_panel = if next < end { next } else { next_panel };
            // SAFETY: several panels stay below `full_end`; the caller vouches for the rest.
            unsafe {
                with_rows!(num_rows, I::TILE_ROWS, ROWS => with_panels!(I, ROWS, together, [4 2], PANELS => {
                    I::apart(Tile::<W, ROWS, PANELS> { linear: self, place: place.clone(), target });
                }));
            }
            place.panel += together;
        }
    }
}

/// Rows and panels that exist and belong to one task; several panels are all full.
struct Tile<'a, W: Weight, const ROWS: usize, const PANELS: usize> {
    linear: &'a Linear<'a, W>,
    place: Place,
    target: &'a Target<'a>,
}

impl<W: Weight, const ROWS: usize, const PANELS: usize> Piece for Tile<'_, W, ROWS, PANELS> {
    #[inline(always)]
    unsafe fn run<I: Instructions>(self) {
        let Self { target, .. } = self;
        let Linear { ref x, panels, out_features, depth, .. } = *self.linear;
        let Place { row, panel, k: Range { start: k_start, end: k_end }, ahead, next_panel } = self.place;
        let k_len = k_end - k_start;
        let first_column = panel * PANEL;
        let num_columns = (PANELS * PANEL).min(out_features - first_column);
        // SAFETY: rows below `num_rows`, panels below `num_panels` and `k` below `depth`; a padded panel goes
        // through `edge`, so that only columns of the output are touched.
        unsafe {
            let w = panels.as_ptr().add((panel * depth + k_start) * PANEL);
            // The steps before those that have no weights of their own so far ahead.
            let (whole, ahead, ahead_stride) = match ahead {
                Ahead::Own => {
                    let steps_ahead = PREFETCH_BYTES / (PANEL * size_of::<W>());
                    (k_len.saturating_sub(steps_ahead), w.wrapping_byte_add(PREFETCH_BYTES), PANEL)
                }
                Ahead::Share { next, block, num_blocks } => {
                    let first = next * PANEL + k_len * PANEL * block / num_blocks;
                    (k_len, panels.as_ptr().wrapping_add(first), PANEL.div_ceil(num_blocks))
                }
            };
            let factors = Factors {
                x: x.values.as_ptr().add(row * x.stride + k_start),
                x_stride: x.stride,
                w: SideBySide { first: w, stride: depth * PANEL },
                w_stride: PANEL,
                depth: k_len,
                ahead: Prefetch {
                    panels: SideBySide { first: ahead, stride: depth * PANEL },
                    stride: ahead_stride,
                    to: CacheLevel::Second,
                },
            };
            let (y, y_stride) = (target.at(row, first_column), target.stride());
            if PANELS > 1 || num_columns == PANEL {
                let mut sums = if k_start == 0 {
                    target.ask::<I::Panel, ROWS, PANELS>(row, first_column);
                    [[I::Panel::splat(0.0); PANELS]; ROWS]
                } else {
                    tile::load::<I, W, ROWS, PANELS>(y, y_stride)
                };
                let next = panels.as_ptr().wrapping_add((next_panel * depth + k_start) * PANEL);
                for factors in factors.split(whole, next) {
                    sums = tile::multiply::<I, W, _, ROWS, PANELS>(factors, sums);
                }
                tile::store::<I, W, ROWS, PANELS>(sums, y, y_stride);
            } else {
                let mut edge = [[0.0; PANEL]; ROWS];
                // The first piece begins with zeros, and there is nothing yet to go on from.
                for (index, edge) in edge.iter_mut().enumerate().skip(if k_start == 0 { ROWS } else { 0 }) {
                    edge[..num_columns].copy_from_slice(target.columns(row + index, first_column, num_columns));
                }
                let sums = tile::load::<I, W, ROWS, 1>(edge.as_ptr().cast(), PANEL);
                let sums = tile::multiply::<I, W, _, ROWS, 1>(factors, sums);
                tile::store::<I, W, ROWS, 1>(sums, edge.as_mut_ptr().cast(), PANEL);
                for (index, edge) in edge.iter().enumerate() {
                    target.columns(row + index, first_column, num_columns).copy_from_slice(&edge[..num_columns]);
                }
            }
            if k_end == depth {
                (row..row + ROWS).for_each(|row| target.add_bias(row, first_column, num_columns));
            }
        }
    }
}

impl<W: Weight> Product for Linear<'_, W> {
    type Start = W::Start;

    fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    #[inline(always)]
    unsafe fn run<I: Instructions>(&self, part: &Part, target: &Target<'_>) {
        let Part { rows, panels, next_panel } = part.clone();
        let num_rows = rows.len();
        let num_blocks = num_rows.div_ceil(I::TILE_ROWS);
        if num_blocks == 1 {
            // Neighbouring panels together.
            let place = Place { row: rows.start, panel: panels.start, k: 0..self.depth, ahead: Ahead::Own, next_panel };
            // SAFETY: rows and panels of the part; the caller vouches for the instructions.
            return unsafe { self.row_block::<I>(num_rows, panels.len(), place, target) };
        }
        let together = panels_together::<I>(num_rows.div_ceil(num_blocks), MAX_PANELS);
        let most = I::PIECE_BYTES / (together * PANEL * size_of::<W>());
        // Of nearly equal size.
        let piece = self.depth.div_ceil(self.depth.div_ceil(most));
        let pieces = (0..self.depth).step_by(piece).map(|start| start..self.depth.min(start + piece));
        let groups = panels.clone().step_by(together).map(|start| start..panels.end.min(start + together));
        let next_of = |group: &Range<usize>| if group.end < panels.end { group.end } else { next_panel };
        let stays = num_rows * self.depth * size_of::<W::Factor>() <= I::STAYING_BYTES;
        // SAFETY: as above.
        let visit = |group: Range<usize>, k, order| unsafe {
            let part = Part { rows: rows.clone(), next_panel: next_of(&group), panels: group };
            self.visit::<I>(&part, k, order, target);
        };
        if stays {
            groups.for_each(|group| pieces.clone().for_each(|k| visit(group.clone(), k, Order::Panels)));
        } else {
            pieces.for_each(|k| groups.clone().for_each(|group| visit(group, k.clone(), Order::Pieces)));
        }
    }
}

impl<W: Weight> Linear<'_, W> {
    /// A piece of `k` of a few panels, which all rows meet before it leaves its cache.
    ///
    /// # Safety
    /// As [`Product::run`], of this part.
    #[inline(always)]
    unsafe fn visit<I: Instructions>(&self, part: &Part, k: Range<usize>, order: Order, target: &Target<'_>) {
        let Part { ref rows, ref panels, next_panel } = *part;
        // Row blocks of nearly equal size: 7 rows run as 4 + 3, not as 6 + 1.
        let num_blocks = rows.len().div_ceil(I::TILE_ROWS);
        let next = if k.end < self.depth { panels.start * self.depth + k.end } else { next_panel * self.depth };
        let mut row = rows.start;
        for block in 0..num_blocks {
            let num_rows = rows.len() / num_blocks + usize::from(block < rows.len() % num_blocks);
            let ahead = match order {
                Order::Panels => Ahead::Share { next, block, num_blocks },
                Order::Pieces => Ahead::Own,
            };
            let place = Place { row, panel: panels.start, k: k.clone(), ahead, next_panel };
            // SAFETY: passed on.
            unsafe { self.row_block::<I>(num_rows, panels.len(), place, target) };
            row += num_rows;
        }
    }
}
