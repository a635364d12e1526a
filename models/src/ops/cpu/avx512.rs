#![expect(unsafe_code, reason = "AVX-512 instructions are unsafe to call without a check of the CPU")]

//! Sixteen f32 lanes, or thirty-two 16-bit ones, in one AVX-512 register.

use std::arch::x86_64::*;
use std::mem::transmute;

use half::{bf16, f16};

use super::avx2::Ymm;
use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::launch::{IntegerTile, Kernel};
use super::pairs::Pairs;
use super::vector::{Arithmetic, Sixteen};

/// AVX-512 F, BW, DQ and VL with VNNI: 32 registers. 12 x 2 running sums and 2 weights leave some for what is on its way;
/// factors come from memory as the multiply-add takes them. In a product of integers, 6 x 2 running sums and as many of integers
/// stand beside two weights and a part of activations that both meet.
struct Avx512;

impl Instructions for Avx512 {
    type Vector = Ymm;
    type Panel = Zmm;

    const TILE_ROWS: usize = 12;
    const TILE_SUMS: usize = 24;
    const PIECE_BYTES: usize = 64 * 1024;
    const INTEGER_ROWS: usize = 6;
    const INTEGER_SUMS: usize = 12;

    #[inline(always)]
    unsafe fn apart(piece: impl Piece) {
        // SAFETY: passed on.
        unsafe { apart(piece) }
    }
}

pub(super) const INTEGER_TILE: IntegerTile = IntegerTile::of::<Avx512>();

#[derive(Clone, Copy)]
pub(super) struct Zmm(pub(super) __m512);

/// Lanes of the lower and the upper half in turns.
const HALVES_IN_TURNS: [u16; 32] = {
    let mut order = [0; 32];
    let mut lane = 0;
    while lane < order.len() {
        order[lane] = (lane / 2 + lane % 2 * 16) as u16;
        lane += 1;
    }
    order
};

#[derive(Clone, Copy)]
pub(super) struct ZmmPairs(pub(super) __m512i);

/// Runs one task of `kernel` with these instructions enabled for all that it inlines.
///
/// # Safety
/// The CPU must have all that is enabled here; and [`Kernel::run`]'s conditions hold.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, task: usize) {
    align_stack();
    // SAFETY: this function's own conditions.
    unsafe { kernel.run::<Avx512>(task) }
}

/// # Safety
/// As [`Piece::run`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn apart(piece: impl Piece) {
    align_stack();
    // SAFETY: this function's own conditions.
    unsafe { piece.run::<Avx512>() }
}

/// Has the function that inlines it begin its stack on a cache line. Registers that the compiler keeps there for a while
/// would stand across two lines otherwise, depending on who calls, and reading one back takes many times as long: attention
/// lost a quarter of its speed so.
#[inline(always)]
pub(super) fn align_stack() {
    #[repr(align(64))]
    struct Line(#[expect(dead_code, reason = "only its address counts")] [u8; 64]);
    let mut line = std::mem::MaybeUninit::<Line>::uninit();
    std::hint::black_box(line.as_mut_ptr());
}

// SAFETY, for every block below: the methods may be called only where these instructions exist, and with pointers valid for
// the sixteen elements that the unaligned loads and stores touch.
impl Lanes for Zmm {
    const LEN: usize = 16;

    type Pairs = ZmmPairs;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn of_sums(sums: __m512i) -> Self {
        Self(unsafe { _mm512_cvtepi32_ps(sums) })
    }

    const PREFETCH_BYTES: usize = 8192;

    #[inline(always)]
    fn prefetch<T>(at: *const T) {
        // A prefetch never faults, and every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    fn prefetch_to_second_level<T>(at: *const T) {
        // As above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn settled(self) -> Self {
        Self(unsafe { settled(self.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, addend.0) })
    }
}

impl Arithmetic for Zmm {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        unsafe {
            let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn if_positive(self, then: Self, otherwise: Self) -> Self {
        unsafe {
            let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
            Self(_mm512_mask_blend_ps(positive, otherwise.0, then.0))
        }
    }
}

impl Sixteen for Zmm {
    type Half = Ymm;

    #[inline(always)]
    unsafe fn halves(self) -> [Ymm; 2] {
        unsafe { [Ymm(_mm512_castps512_ps256(self.0)), Ymm(_mm512_extractf32x8_ps::<1>(self.0))] }
    }

    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut bf16) {
        unsafe {
            let bits = _mm512_castps_si512(self.0);
            let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0);
            let all = _mm512_mask_or_epi32(nearest, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(all)));
        }
    }
}

impl Pairs for ZmmPairs {
    const BYTES: usize = 64;

    type Sums = __m512i;
    type ByteSums = __m512i;

    #[inline(always)]
    unsafe fn splat_sum(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        Self(unsafe { _mm512_loadu_si512(from.cast()) })
    }

    #[inline(always)]
    unsafe fn splat(from: *const i32) -> Self {
        Self(unsafe { _mm512_set1_epi32(from.read_unaligned()) })
    }

    #[inline(always)]
    unsafe fn interleaved(low: *const u8, high: *const u8) -> Self {
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(low.cast()));
            let both = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(high.cast()));
            let order = const { transmute::<[u16; 32], __m512i>(HALVES_IN_TURNS) };
            Self(_mm512_permutexvar_epi16(order, both))
        }
    }

    #[inline(always)]
    unsafe fn and(self, mask: i16) -> Self {
        Self(unsafe { _mm512_and_si512(self.0, _mm512_set1_epi16(mask)) })
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        Self(unsafe { _mm512_or_si512(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn shift_right(self, bits: u32) -> Self {
        Self(unsafe { _mm512_srl_epi16(self.0, _mm_cvtsi32_si128(bits.cast_signed())) })
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self, sums: __m512i) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sums, self.0, x.0) }
    }

    #[inline(always)]
    unsafe fn dot_at(self, x: *const i32, sums: __m512i) -> __m512i {
        unsafe { add_products(self.0, x, sums) }
    }

    #[inline(always)]
    unsafe fn dots_at<const N: usize>(panels: [Self; N], x: *const i32, sums: &mut [__m512i; N]) {
        unsafe {
            for at in (0..N - N % 2).step_by(2) {
                let pair = [panels[at].0, panels[at + 1].0];
                [sums[at], sums[at + 1]] = add_products_twice(pair, x, [sums[at], sums[at + 1]]);
            }
            if const { N % 2 == 1 } {
                sums[N - 1] = panels[N - 1].dot_at(x, sums[N - 1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn dots_of_bytes_at<const N: usize>(panels: [Self; N], bits: u32, x: *const i32, sums: &mut [__m512i; N]) {
        unsafe {
            for at in (0..N - N % 2).step_by(2) {
                let pair = [panels[at].0, panels[at + 1].0];
                [sums[at], sums[at + 1]] = add_products_of_bytes_twice(pair, x, [sums[at], sums[at + 1]]);
            }
            if const { N % 2 == 1 } {
                sums[N - 1] = panels[N - 1].dot_bytes_at(bits, x, sums[N - 1]);
            }
        }
    }

    #[inline(always)]
    unsafe fn begin_bytes(sums: __m512i) -> __m512i {
        sums
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, _bits: u32, x: Self, sums: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, self.0, x.0) }
    }

    #[inline(always)]
    unsafe fn dot_bytes_at(self, _bits: u32, x: *const i32, sums: __m512i) -> __m512i {
        unsafe { add_products_of_bytes(self.0, x, sums) }
    }

    #[inline(always)]
    unsafe fn end_bytes(_bits: u32, sums: __m512i) -> __m512i {
        sums
    }
}

/// An instruction of VNNI with the same four bytes for every sum, which the compiler does not look into: it would make
/// multiplications and additions of most of them again, to shorten the wait for one sum where there are others to go on with.
macro_rules! vnni {
    ($name:ident, $instruction:literal) => {
        /// # Safety
        /// Four bytes stand at `x`.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        unsafe fn $name(weights: __m512i, x: *const i32, mut sums: __m512i) -> __m512i {
            // SAFETY: an instruction that the CPU has, on registers and the bytes at `x`.
            unsafe {
                std::arch::asm!(
                    concat!($instruction, " {sums}, {weights}, dword ptr [{x}]{{1to16}}"),
                    sums = inout(zmm_reg) sums,
                    weights = in(zmm_reg) weights,
                    x = in(reg) x,
                    options(pure, readonly, nostack, preserves_flags),
                );
            }
            sums
        }
    };
}
vnni!(add_products, "vpdpwssd");
vnni!(add_products_of_bytes, "vpdpbusd");

/// The same for two panels, which meet the four bytes in a register: a load for each product is as many as the CPU can do. There
/// are registers for those of all rows, should the compiler load them first.
macro_rules! vnni_twice {
    ($name:ident, $instruction:literal) => {
        /// # Safety
        /// Four bytes stand at `x`.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vnni")]
        unsafe fn $name(weights: [__m512i; 2], x: *const i32, [mut sums, mut others]: [__m512i; 2]) -> [__m512i; 2] {
            // SAFETY: the bytes at `x`, and instructions that the CPU has, on registers.
            unsafe {
                std::arch::asm!(
                    concat!($instruction, " {sums}, {weights}, {x_lanes}"),
                    concat!($instruction, " {others}, {other_weights}, {x_lanes}"),
                    x_lanes = in(zmm_reg) _mm512_set1_epi32(x.read_unaligned()),
                    sums = inout(zmm_reg) sums,
                    others = inout(zmm_reg) others,
                    weights = in(zmm_reg) weights[0],
                    other_weights = in(zmm_reg) weights[1],
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            [sums, others]
        }
    };
}
vnni_twice!(add_products_twice, "vpdpwssd");
vnni_twice!(add_products_of_bytes_twice, "vpdpbusd");

/// No instruction, but the compiler must take it for one that reads and writes memory: it moves no read of factors across.
#[inline]
#[target_feature(enable = "avx512f")]
fn settled(mut sums: __m512) -> __m512 {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(zmm_reg) sums, options(nostack, preserves_flags)) };
    sums
}
