#![expect(unsafe_code, reason = "vector loads through pointers")]

//! The inner loop of every product in this folder: a few rows of `x` times a few panels of 16 columns, all running sums
//! in registers.

use super::bf16_pairs::{Bf16Pair, PairsOf};
use super::instructions::Instructions;
use super::lanes::{Element, Lanes};
use super::launch::{Start, Usual, WithBf16Products};
use super::pairs::Pairs;
use super::panels::PANEL;
use crate::kv_cache::KV_TILE;

/// One row of a panel of weights, and one of a tile of keys, is what the lanes of a product hold.
const _: () = assert!(PANEL == KV_TILE);

/// Rows of the largest tile that any instructions have registers for.
pub(super) const MAX_ROWS: usize = 12;

/// Runs `$call` with the constant `$ROWS` that equals `$num_rows`, which is at least 1 and at most the constant
/// `$most`, itself at most [`MAX_ROWS`]. What is above `$most` is not even compiled.
macro_rules! with_rows {
    ($num_rows:expr, $most:expr, $ROWS:ident => $call:expr) => {
        with_rows!($num_rows, $most, $ROWS => $call; 1 2 3 4 5 6 7 8 9 10 11 12)
    };
    ($num_rows:expr, $most:expr, $ROWS:ident => $call:expr; $($rows:literal)*) => {
        match $num_rows {
            $($rows if const { $rows <= $most } => {
                const $ROWS: usize = $rows;
                $call
            })*
            _ => unreachable!("a tile has rows, and at most as many as its instructions carry"),
        }
    };
}
pub(super) use with_rows;

/// Panels, of `most`, whose running sums for so many rows fit the registers, at most 8: a power of two.
#[inline(always)]
pub(super) fn panels_together<I: Instructions>(num_rows: usize, most: usize) -> usize {
    1 << (I::TILE_SUMS / num_rows).min(most).clamp(1, 8).ilog2()
}

/// Runs `$call` with the constant `$PANELS` that equals `$together`, what [`panels_together`] gave for `$ROWS` rows or
/// a smaller power of two: one of the list, in descending order, or 1. Whose sums do not fit the registers is not even
/// compiled.
macro_rules! with_panels {
    ($I:ident, $ROWS:ident, $together:expr, [$($most:literal)*], $PANELS:ident => $call:expr) => {
        match $together {
            $($most if const { $most * $ROWS <= $I::TILE_SUMS } => {
                const $PANELS: usize = $most;
                $call
            })*
            together => {
                debug_assert_eq!(together, 1, "a tile has as many panels as registers hold the sums of");
                const $PANELS: usize = 1;
                $call
            }
        }
    };
}
pub(super) use with_panels;

/// Running sums of `ROWS` rows by `PANELS` panels of 16 columns.
pub(super) type Sums<L, const ROWS: usize, const PANELS: usize> = [[L; PANELS]; ROWS];

/// What a step of `k` takes of each column: a weight or cached element, or two neighbours along `k`.
pub(super) trait Weight: Copy + Send + Sync + 'static {
    /// Which instances of its products are launched.
    type Start: Start;
    /// What it meets in a row of `x`.
    type Factor: Copy + Send + Sync;
    /// Those of 16 columns, or one factor for all of them, in registers.
    type Columns<I: Instructions>: Copy;

    /// # Safety
    /// As [`Lanes`]; 16 weights stand at `from`, and what else a step takes in between there and the next step, `stride` behind.
    unsafe fn load<I: Instructions>(from: *const Self, stride: usize) -> Self::Columns<I>;
    /// # Safety
    /// As [`Lanes`].
    unsafe fn splat<I: Instructions>(factor: *const Self::Factor) -> Self::Columns<I>;
    /// Sums of 16 columns in the order of the lanes in [`Weight::Columns`].
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn begin<I: Instructions>(sums: I::Panel) -> I::Panel {
        sums
    }
    /// The sums of which [`Weight::begin`] makes these.
    ///
    /// # Safety
    /// As [`Lanes`].
    #[inline(always)]
    unsafe fn end<I: Instructions>(sums: I::Panel) -> I::Panel {
        sums
    }
    /// `sums` and the products, in the order of `k`'s neighbours that the type says, each rounded once.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn add_products<I: Instructions>(
        factor: Self::Columns<I>,
        columns: Self::Columns<I>,
        sums: I::Panel,
    ) -> I::Panel;
}

impl<E: Element> Weight for E {
    type Start = Usual;
    type Factor = f32;
    type Columns<I: Instructions> = I::Panel;

    // SAFETY, for every block below: passed on.
    #[inline(always)]
    unsafe fn load<I: Instructions>(from: *const Self, _stride: usize) -> I::Panel {
        unsafe { E::load_for_products(from) }
    }

    #[inline(always)]
    unsafe fn splat<I: Instructions>(factor: *const f32) -> I::Panel {
        unsafe { I::Panel::splat(*factor) }
    }

    #[inline(always)]
    unsafe fn begin<I: Instructions>(sums: I::Panel) -> I::Panel {
        if E::IN_TURNS { unsafe { sums.in_turns() } } else { sums }
    }

    #[inline(always)]
    unsafe fn end<I: Instructions>(sums: I::Panel) -> I::Panel {
        if E::IN_TURNS { unsafe { sums.in_order() } } else { sums }
    }

    #[inline(always)]
    unsafe fn add_products<I: Instructions>(factor: I::Panel, columns: I::Panel, sums: I::Panel) -> I::Panel {
        unsafe { factor.mul_add(columns, sums) }
    }
}

impl Weight for Bf16Pair {
    type Start = WithBf16Products;
    type Factor = Self;
    type Columns<I: Instructions> = PairsOf<I>;

    // SAFETY, for every block below: passed on; a pair is two 16-bit lanes, of whatever type.
    #[inline(always)]
    unsafe fn load<I: Instructions>(from: *const Self, _stride: usize) -> PairsOf<I> {
        unsafe { PairsOf::<I>::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat<I: Instructions>(factor: *const Self) -> PairsOf<I> {
        unsafe { PairsOf::<I>::splat(factor.cast()) }
    }

    #[inline(always)]
    unsafe fn add_products<I: Instructions>(factor: PairsOf<I>, columns: PairsOf<I>, sums: I::Panel) -> I::Panel {
        unsafe { I::add_bf16_products(factor, columns, sums) }
    }
}

/// Where the factors of a product stand. `x[row * x_stride + k]` meets `w.panel(panel)[k * w_stride + column]` for `k` in
/// `0..depth`; what else a step takes of a column stands before the next step's.
#[derive(Clone, Copy)]
pub(super) struct Factors<W: Weight, P = SideBySide<W>> {
    pub(super) x: *const W::Factor,
    pub(super) x_stride: usize,
    pub(super) w: P,
    pub(super) w_stride: usize,
    pub(super) depth: usize,
    pub(super) ahead: Prefetch<P>,
}

/// Where panels stand.
pub(super) trait PanelStarts<W>: Copy {
    fn panel(&self, panel: usize) -> *const W;
}

/// Each so many elements behind the one before.
#[derive(Clone, Copy)]
pub(super) struct SideBySide<W> {
    pub(super) first: *const W,
    pub(super) stride: usize,
}

impl<W: Copy> PanelStarts<W> for SideBySide<W> {
    #[inline(always)]
    fn panel(&self, panel: usize) -> *const W {
        self.first.wrapping_add(panel * self.stride)
    }
}

/// Each anywhere.
impl<W, const PANELS: usize> PanelStarts<W> for [*const W; PANELS] {
    #[inline(always)]
    fn panel(&self, panel: usize) -> *const W {
        self[panel]
    }
}

/// What will be read later: step `k` asks for what is at `panels.panel(panel)[k * stride]`. It need not be valid.
#[derive(Clone, Copy)]
pub(super) struct Prefetch<P> {
    pub(super) panels: P,
    pub(super) stride: usize,
    pub(super) to: CacheLevel,
}

/// Where what is asked for shall be when it is read.
#[derive(Clone, Copy)]
pub(super) enum CacheLevel {
    /// A little ahead of its use: the time from the second-level cache to the registers is spared as well.
    First,
    Second,
}

impl<W: Weight> Factors<W> {
    /// Those of the first `steps` steps, and the others, which ask for what is at `ahead`.
    #[inline(always)]
    pub(super) fn split(self, steps: usize, ahead: *const W) -> [Self; 2] {
        let x = self.x.wrapping_add(steps);
        let w = SideBySide { first: self.w.first.wrapping_add(steps * self.w_stride), ..self.w };
        let ahead = Prefetch { panels: SideBySide { first: ahead, ..self.ahead.panels }, ..self.ahead };
        [Self { depth: steps, ..self }, Self { x, w, depth: self.depth - steps, ahead, ..self }]
    }
}

/// Continues `sums` with the products for each `k`, in ascending order.
///
/// # Safety
/// The CPU must have the instructions; `factors` must be valid for `ROWS` rows and `PANELS` panels.
#[inline(always)]
pub(super) unsafe fn multiply<I: Instructions, W: Weight, P: PanelStarts<W>, const ROWS: usize, const PANELS: usize>(
    factors: Factors<W, P>,
    mut sums: Sums<I::Panel, ROWS, PANELS>,
) -> Sums<I::Panel, ROWS, PANELS> {
    let together = const { if ROWS > MEMORY_BOUND_ROWS { I::TILE_STEPS } else { 1 } };
    let whole = factors.depth - factors.depth % together;
    for first in (0..whole).step_by(together) {
        for k in first..first + together {
            // SAFETY: `k < depth`; the caller vouches for the rest.
            sums = unsafe { step::<I, W, P, ROWS, PANELS>(&factors, k, sums) };
        }
    }
    for k in whole..factors.depth {
        // SAFETY: as above.
        sums = unsafe { step::<I, W, P, ROWS, PANELS>(&factors, k, sums) };
    }
    sums
}

/// Rows that wait for their weights.
const MEMORY_BOUND_ROWS: usize = 2;

/// # Safety
/// As [`multiply`]; `k` is below the depth.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "rows and panels index the factors and the sums alike")]
unsafe fn step<I: Instructions, W: Weight, P: PanelStarts<W>, const ROWS: usize, const PANELS: usize>(
    factors: &Factors<W, P>,
    k: usize,
    mut sums: Sums<I::Panel, ROWS, PANELS>,
) -> Sums<I::Panel, ROWS, PANELS> {
    let Factors { x, x_stride, w, w_stride, ahead, .. } = *factors;
    // SAFETY: registers of numbers, for which zeros are numbers. `row < ROWS` and `panel < PANELS`; the caller vouches for `k`.
    unsafe {
        let mut columns = [std::mem::zeroed::<W::Columns<I>>(); PANELS];
        for panel in 0..PANELS {
            ahead.to.ask::<I, W>(ahead.panels.panel(panel).wrapping_add(k * ahead.stride));
            columns[panel] = W::load::<I>(w.panel(panel).wrapping_add(k * w_stride), w_stride);
            if !const { many_rows(ROWS, PANELS) } {
                for row in 0..ROWS {
                    let factor = W::splat::<I>(x.add(row * x_stride + k));
                    sums[row][panel] = W::add_products::<I>(factor, columns[panel], sums[row][panel]);
                    if const { I::TILE_STEPS > 1 && fills_registers::<I>(ROWS, PANELS) } {
                        sums[row][panel] = sums[row][panel].settled();
                    }
                }
            }
        }
        if const { many_rows(ROWS, PANELS) } {
            for row in 0..ROWS {
                let factor = W::splat::<I>(x.add(row * x_stride + k));
                for panel in 0..PANELS {
                    sums[row][panel] = W::add_products::<I>(factor, columns[panel], sums[row][panel]);
                    if const { fills_registers::<I>(ROWS, PANELS) } {
                        sums[row][panel] = sums[row][panel].settled();
                    }
                }
            }
        }
    }
    sums
}

impl CacheLevel {
    #[inline(always)]
    fn ask<I: Instructions, W>(self, line: *const W) {
        match self {
            Self::First => I::Panel::prefetch(line),
            Self::Second => I::Panel::prefetch_to_second_level(line),
        }
    }
}

/// Whether these are nearly all the sums that registers have room for. A compiler that reads the factors of later
/// products early has none left for them then, and keeps sums on the stack; `models/benches/registers_on_the_stack.py`
/// tells what it did.
const fn fills_registers<I: Instructions>(rows: usize, panels: usize) -> bool {
    8 * rows * panels > 7 * I::TILE_SUMS
}

/// Whether the columns stay in registers while the factors pass, or the factors while the columns pass: both together
/// are more than there are registers. Of several steps at a time the factors do not stay either, and are read again for
/// each panel.
const fn many_rows(rows: usize, panels: usize) -> bool {
    panels > 1 && rows > 2 * panels
}

/// What [`multiply`] continues: `ROWS` rows of `PANELS * 16` sums at `from`.
///
/// # Safety
/// As [`multiply`]; `from` must be valid for all of them.
#[inline(always)]
pub(super) unsafe fn load<I: Instructions, W: Weight, const ROWS: usize, const PANELS: usize>(
    from: *const f32,
    stride: usize,
) -> Sums<I::Panel, ROWS, PANELS> {
    // SAFETY: inside the rows for which the caller vouches.
    unsafe {
        let mut sums = [[I::Panel::splat(0.0); PANELS]; ROWS];
        for (row, panels) in sums.iter_mut().enumerate() {
            for (panel, sum) in panels.iter_mut().enumerate() {
                *sum = W::begin::<I>(I::Panel::load(from.add(row * stride + panel * PANEL)));
            }
        }
        sums
    }
}

/// Writes what [`multiply`] gives.
///
/// # Safety
/// As [`load`], for writing.
#[inline(always)]
pub(super) unsafe fn store<I: Instructions, W: Weight, const ROWS: usize, const PANELS: usize>(
    sums: Sums<I::Panel, ROWS, PANELS>,
    to: *mut f32,
    stride: usize,
) {
    for (row, panels) in sums.into_iter().enumerate() {
        for (panel, sum) in panels.into_iter().enumerate() {
            // SAFETY: inside the rows for which the caller vouches.
            unsafe { W::end::<I>(sum).store(to.add(row * stride + panel * PANEL)) };
        }
    }
}
