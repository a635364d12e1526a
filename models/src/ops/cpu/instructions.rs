#![expect(unsafe_code, reason = "the vector operations of the CPU are unsafe to call without a check of its features")]

//! What a body is compiled for.

use super::bf16_pairs::{self, PairsOf};
use super::vector::{Portable, Sixteen, Vector};

/// A set of instructions: its lanes, and how much of a product its registers hold.
pub(super) trait Instructions: Sized {
    /// Eight f32 lanes.
    type Vector: Vector;
    /// Sixteen: one row of a panel of weights, or of a tile of keys.
    type Panel: Sixteen<Half = Self::Vector>;

    /// Rows that the inner loop of a product of floats carries, at most [`super::tile::MAX_ROWS`].
    const TILE_ROWS: usize;
    /// Running sums of 16 outputs that fit the registers, beside the factors.
    const TILE_SUMS: usize;
    /// Bytes of the panels' pieces when `k` is cut: half of a usual first-level cache, or more where a weight on its way
    /// from the second-level one is used by enough rows.
    const PIECE_BYTES: usize = 16 * 1024;
    /// Bytes of the rows of a task that stay in the second-level cache while all of `k` passes: half of a usual one.
    const STAYING_BYTES: usize = 256 * 1024;
    /// Steps of `k` that the inner loop of a product of floats takes at a time. Several spare it arithmetic on addresses, which
    /// shares its ports with the products where these are narrow.
    const TILE_STEPS: usize = 1;
    /// Rows that the inner loop of a product of integers carries, at most [`super::tile::MAX_ROWS`].
    const INTEGER_ROWS: usize;
    /// Sums of 16 outputs that a product of integers carries where rows meet several panels at a time: what fits the registers
    /// beside the factors, and 1 where several panels gain nothing but for the few rows that wait for memory
    /// ([`super::block_formats::Format::NARROW_ROWS_THAT_WAIT`]).
    const INTEGER_SUMS: usize;

    /// Whether attention to bf16 that waits for memory asks for whole tiles in the second-level cache, rather than for a line with
    /// each step in the first-level one.
    #[inline(always)]
    fn asks_for_whole_tiles() -> bool {
        false
    }

    /// Adds to each of `sums` the products of its pair of bf16 lanes in `x` and `w`, as [`bf16_pairs::add_products`] says.
    ///
    /// # Safety
    /// The CPU must have the instructions.
    #[inline(always)]
    unsafe fn add_bf16_products(x: PairsOf<Self>, w: PairsOf<Self>, sums: Self::Panel) -> Self::Panel {
        // SAFETY: passed on.
        unsafe { bf16_pairs::add_products_of_lanes::<Self>(x, w, sums) }
    }

    /// Runs `piece` as a function of its own, with the instructions enabled in it.
    ///
    /// # Safety
    /// As [`Piece::run`].
    unsafe fn apart(piece: impl Piece);
}

/// A part of a body that is compiled as a function of its own. The tiles of all shapes in one function would keep the
/// compiler busy for minutes.
pub(super) trait Piece {
    /// Must be `#[inline(always)]`, see [`super::lanes::Lanes`].
    ///
    /// # Safety
    /// The CPU must have the instructions; and what the piece says of itself.
    unsafe fn run<I: Instructions>(self);
}

/// Any CPU's. The shapes are those of AVX2, whose registers are many and wide enough for most others.
pub(super) struct AnyCpu;

impl Instructions for AnyCpu {
    type Vector = Portable;
    type Panel = [Portable; 2];

    const TILE_ROWS: usize = 6;
    const TILE_SUMS: usize = 6;
    const INTEGER_ROWS: usize = 5;
    const INTEGER_SUMS: usize = 1;

    #[inline(never)]
    unsafe fn apart(piece: impl Piece) {
        // SAFETY: passed on.
        unsafe { piece.run::<Self>() }
    }
}
