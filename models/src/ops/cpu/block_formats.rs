#![expect(unsafe_code, reason = "vector loads through pointers")]

//! What tells the quantised dtypes apart in a product.

use super::block_panels::{Layout, STEP};
use super::lanes::Lanes;
use super::pairs::Pairs;
use super::panels::PANEL;
use super::rounded_rows::Begins;
use crate::StoredDtype;
use crate::ops::blocks::UNIT;

/// How the quants of a dtype come out of their bytes, four neighbouring inputs in the four bytes of each output.
///
/// A unit has [`Format::DOTS`] groups of inputs with a scale of their own. A group takes [`Format::STEPS`] steps, step `j` of
/// which gives its fours `j` and, where there are two, `j + STEPS`. What is left of the group comes last.
pub(super) trait Format: Sync {
    const DTYPE: StoredDtype;
    const LAYOUT: Layout = Layout::of(Self::DTYPE);
    /// With its share of what stands before the units of a block.
    const UNIT_BYTES: usize = Self::LAYOUT.block_bytes() / Self::LAYOUT.num_units;
    /// Of a quant.
    const BITS: u32;
    const DOTS: usize;
    const STEPS: usize;
    /// Fours that a step gives: one or two.
    const WIDTH: usize;
    /// Fours that are left then: none or one.
    const LEFT: usize = UNIT / 4 / Self::DOTS - Self::WIDTH * Self::STEPS;
    /// Rows for which reading a weight takes longer than using it, with several running sums of integers for each.
    const WIDE_ROWS_THAT_WAIT: usize = 3;
    /// With one. On AVX2 four bits take about as long to use, and lose 5 to 20 % to several panels together.
    const NARROW_ROWS_THAT_WAIT: usize = 0;

    /// Where the product of group `dot` begins.
    fn begin(begins: &Begins, dot: usize) -> i32;

    /// Step `j` of group `dot`, for all 16 outputs. Only the first [`Format::WIDTH`] are used.
    ///
    /// # Safety
    /// The CPU must have the instructions of `P`, of 64 bytes; `unit` points at a unit.
    unsafe fn step<P: Pairs>(unit: *const u8, dot: usize, j: usize) -> [P; 2];

    /// What the steps of group `dot` leave, for all 16 outputs, where [`Format::LEFT`] says that there is something.
    ///
    /// # Safety
    /// As [`Format::step`].
    #[inline(always)]
    unsafe fn left<P: Pairs>(unit: *const u8, _dot: usize) -> P {
        // SAFETY: a unit has a first step.
        unsafe { P::load(unit) }
    }

    /// The scales of every group, for all 16 outputs, and the minimum.
    ///
    /// # Safety
    /// The CPU must have the instructions of `L`, of 16 lanes; `block` points at a block of 16 rows.
    #[inline(always)]
    unsafe fn scales<L: Lanes>(block: *const u8, unit: usize, dot: usize) -> (L, L) {
        // SAFETY: inside the block.
        unsafe {
            let d = L::load_f16(block.cast());
            let scale = |index: usize| block.add(Self::LAYOUT.scales(unit) + index * PANEL);
            match Self::DTYPE {
                StoredDtype::Q4K => {
                    let dmin = L::load_f16(block.add(2 * PANEL).cast());
                    (d.mul(L::load_u8(scale(0))), dmin.mul(L::load_u8(scale(1))))
                }
                StoredDtype::Q6K => (d.mul(L::load_i8(scale(dot).cast())), L::splat(0.0)),
                _ => (d, L::splat(0.0)),
            }
        }
    }
}

pub(super) struct Q8_0;
pub(super) struct Q4_0;
pub(super) struct Q4K;
pub(super) struct Q6K;

impl Format for Q8_0 {
    const DTYPE: StoredDtype = StoredDtype::Q8_0;
    const BITS: u32 = 8;
    const DOTS: usize = 1;
    const STEPS: usize = 8;
    const WIDTH: usize = 1;
    const WIDE_ROWS_THAT_WAIT: usize = 5;
    const NARROW_ROWS_THAT_WAIT: usize = 2;

    #[inline(always)]
    fn begin(begins: &Begins, _dot: usize) -> i32 {
        begins.q8_0
    }

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 2] {
        // SAFETY: a unit has 8 steps.
        [unsafe { P::load(unit.add(j * STEP)) }; 2]
    }
}

impl Format for Q4_0 {
    const DTYPE: StoredDtype = StoredDtype::Q4_0;
    const BITS: u32 = 4;
    const DOTS: usize = 1;
    const STEPS: usize = 4;
    const WIDTH: usize = 2;

    #[inline(always)]
    fn begin(begins: &Begins, _dot: usize) -> i32 {
        begins.q4_0
    }

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 2] {
        // SAFETY: passed on.
        unsafe { nibbles(unit, j) }
    }
}

impl Format for Q4K {
    const DTYPE: StoredDtype = StoredDtype::Q4K;
    const BITS: u32 = 4;
    const DOTS: usize = 1;
    const STEPS: usize = 4;
    const WIDTH: usize = 2;

    #[inline(always)]
    fn begin(_begins: &Begins, _dot: usize) -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, _dot: usize, j: usize) -> [P; 2] {
        // SAFETY: passed on.
        unsafe { nibbles(unit, j) }
    }
}

impl Format for Q6K {
    const DTYPE: StoredDtype = StoredDtype::Q6K;
    const BITS: u32 = 6;
    const DOTS: usize = 2;
    const STEPS: usize = 3;
    const WIDTH: usize = 1;

    #[inline(always)]
    fn begin(begins: &Begins, dot: usize) -> i32 {
        begins.q6_k[dot]
    }

    #[inline(always)]
    unsafe fn step<P: Pairs>(unit: *const u8, dot: usize, j: usize) -> [P; 2] {
        // SAFETY: a unit has 2 groups of 3 steps.
        [unsafe { P::load(unit.add((3 * dot + j) * STEP)).and(0x3f3f) }; 2]
    }

    #[inline(always)]
    unsafe fn left<P: Pairs>(unit: *const u8, dot: usize) -> P {
        // SAFETY: a unit has 2 groups of 3 steps.
        unsafe {
            let [low, middle, high] = [0, 1, 2].map(|j| P::load(unit.add((3 * dot + j) * STEP)));
            let lowest = low.shift_right(6).and(0x0303);
            lowest.or(middle.shift_right(4).and(0x0c0c)).or(high.shift_right(2).and(0x3030))
        }
    }
}

/// The lower and the upper 4 bits of each byte.
///
/// # Safety
/// As [`Format::step`].
#[inline(always)]
unsafe fn nibbles<P: Pairs>(unit: *const u8, j: usize) -> [P; 2] {
    // SAFETY: a unit has 4 steps.
    unsafe {
        let both = P::load(unit.add(j * STEP));
        [both.and(0x0f0f), both.shift_right(4).and(0x0f0f)]
    }
}
