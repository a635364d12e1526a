#![expect(unsafe_code, reason = "AVX-512 instructions are unsafe to call without a check of the CPU")]

//! The instruction for products of bf16 by bf16 that AVX512-BF16 adds to [`super::avx512`].

use std::arch::x86_64::*;
use std::mem::transmute;

use super::avx2::Ymm;
use super::avx512::{Zmm, ZmmPairs, align_stack};
use super::instructions::{Instructions, Piece};
use super::launch::Kernel;

/// AVX512-BF16 beside `Avx512` of [`super::avx512`], for bodies that multiply pairs; all others run with that. 12 x 2
/// running sums and 2 rows of weights leave registers for the factors on their way, each of which meets both.
struct Avx512Bf16;

impl Instructions for Avx512Bf16 {
    type Vector = Ymm;
    type Panel = Zmm;

    const TILE_ROWS: usize = 12;
    const TILE_SUMS: usize = 24;
    // Processors that have it have a megabyte at least in the second-level cache, which is fast enough for both factors:
    // sums leave their registers seldom.
    const PIECE_BYTES: usize = 192 * 1024;
    const STAYING_BYTES: usize = 512 * 1024;
    const INTEGER_ROWS: usize = 6;
    const INTEGER_SUMS: usize = 12;

    #[inline(always)]
    unsafe fn add_bf16_products(x: ZmmPairs, w: ZmmPairs, sums: Zmm) -> Zmm {
        // SAFETY: the caller has the instructions; registers of integers and of bf16 are the same.
        unsafe {
            let (x, w) = (transmute::<__m512i, __m512bh>(x.0), transmute::<__m512i, __m512bh>(w.0));
            Zmm(_mm512_dpbf16_ps(sums.0, x, w))
        }
    }

    // On Zen 4 lines come sooner if the processor reads ahead by itself than if they are asked for one by one; on Zen 5 it is the
    // other way round (loadtests/results: 2026-12-01-zen-4-whole-tiles, 2026-11-30-heads-in-memory-order). AVX-VNNI, which
    // Zen 4 lacks, stands for not being one.
    #[inline(always)]
    fn asks_for_whole_tiles() -> bool {
        !is_x86_feature_detected!("avxvnni")
    }

    #[inline(always)]
    unsafe fn apart(piece: impl Piece) {
        // SAFETY: passed on.
        unsafe { apart(piece) }
    }
}

/// Runs one task of `kernel` with these instructions enabled for all that it inlines.
///
/// # Safety
/// The CPU must have all that is enabled here; and [`Kernel::run`]'s conditions hold.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, task: usize) {
    align_stack();
    // SAFETY: this function's own conditions.
    unsafe { kernel.run::<Avx512Bf16>(task) }
}

/// # Safety
/// As [`Piece::run`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn apart(piece: impl Piece) {
    align_stack();
    // SAFETY: this function's own conditions.
    unsafe { piece.run::<Avx512Bf16>() }
}
