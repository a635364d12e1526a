#![expect(unsafe_code, reason = "AVX2, FMA and F16C instructions are unsafe to call without a check of the CPU")]

//! Eight f32 lanes in one AVX2 register.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::instructions::{Instructions, Piece};
use super::lanes::Lanes;
use super::launch::{IntegerTile, Kernel};
use super::pairs::Pairs;
use super::vector::{Arithmetic, LANES, Vector};

/// AVX2, FMA and F16C: 16 registers. 6 x 2 running sums, 2 weights and 1 factor nearly fill them in a product of
/// floats; 5 x 2 running sums, 2 weights, their 2 vectors and 1 factor do in one of integers, and its sums of floats
/// lie on the stack meanwhile.
struct Avx2;

impl Instructions for Avx2 {
    type Vector = Ymm;
    type Panel = [Ymm; 2];

    const TILE_ROWS: usize = 6;
    const TILE_SUMS: usize = 6;
    const TILE_STEPS: usize = 4;
    const INTEGER_ROWS: usize = 5;
    const INTEGER_SUMS: usize = 1;

    #[inline(always)]
    unsafe fn apart(piece: impl Piece) {
        // SAFETY: passed on.
        unsafe { apart(piece) }
    }
}

pub(super) const INTEGER_TILE: IntegerTile = IntegerTile::of::<Avx2>();

#[derive(Clone, Copy)]
pub(super) struct Ymm(pub(super) __m256);

#[derive(Clone, Copy)]
pub(super) struct YmmPairs(__m256i);

/// Runs one task of `kernel` with these instructions enabled for all that it inlines.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C; and [`Kernel::run`]'s conditions hold.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: &K, task: usize) {
    // SAFETY: this function's own conditions.
    unsafe { kernel.run::<Avx2>(task) }
}

/// # Safety
/// As [`Piece::run`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn apart(piece: impl Piece) {
    // SAFETY: this function's own conditions.
    unsafe { piece.run::<Avx2>() }
}

// SAFETY, for every block below: the methods may be called only where these instructions exist, and with pointers valid for
// the eight elements that the unaligned loads and stores touch, or sixteen where a load gives two.
impl Lanes for Ymm {
    const LEN: usize = LANES;

    type Pairs = YmmPairs;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(value) })
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(from) })
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide)))
        }
    }

    #[inline(always)]
    unsafe fn load_two_bf16_in_turns(from: *const bf16) -> [Self; 2] {
        // One load, a shift and a mask. Widened in their order, they took two shuffles and two shifts, which share two ports.
        unsafe {
            let both = _mm256_loadu_si256(from.cast());
            let even = _mm256_slli_epi32::<16>(both);
            let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()));
            [Self(_mm256_castsi256_ps(even)), Self(_mm256_castsi256_ps(odd))]
        }
    }

    #[inline(always)]
    unsafe fn two_in_turns([low, high]: [Self; 2]) -> [Self; 2] {
        unsafe {
            let even = _mm256_shuffle_ps::<0b10_00_10_00>(low.0, high.0);
            let odd = _mm256_shuffle_ps::<0b11_01_11_01>(low.0, high.0);
            [Self(inner_pairs_swapped(even)), Self(inner_pairs_swapped(odd))]
        }
    }

    #[inline(always)]
    unsafe fn two_in_order([even, odd]: [Self; 2]) -> [Self; 2] {
        unsafe {
            let (first, second) = (_mm256_unpacklo_ps(even.0, odd.0), _mm256_unpackhi_ps(even.0, odd.0));
            let low = _mm256_permute2f128_ps::<0x20>(first, second);
            [Self(low), Self(_mm256_permute2f128_ps::<0x31>(first, second))]
        }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) })
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) })
    }

    #[inline(always)]
    unsafe fn of_sums(sums: __m256i) -> Self {
        Self(unsafe { _mm256_cvtepi32_ps(sums) })
    }

    #[inline(always)]
    fn prefetch<T>(at: *const T) {
        // A prefetch never faults, and every x86-64 CPU has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn settled(self) -> Self {
        Self(unsafe { settled(self.0) })
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, addend.0) })
    }
}

impl Arithmetic for Ymm {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        unsafe {
            let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(self.0), _mm256_set1_epi32(127));
            Self(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
        }
    }

    #[inline(always)]
    unsafe fn if_positive(self, then: Self, otherwise: Self) -> Self {
        unsafe {
            let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0, _mm256_setzero_ps());
            Self(_mm256_blendv_ps(otherwise.0, then.0, positive))
        }
    }
}

impl Vector for Ymm {
    #[inline(always)]
    unsafe fn sum_of_lanes(self) -> f32 {
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn max_of_lanes(self) -> f32 {
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(self.0), _mm256_extractf128_ps::<1>(self.0));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    unsafe fn store_rounded(low: Self, high: Self, to: *mut bf16) {
        unsafe {
            // Their saturation finds nothing: what is packed has 16 bits. Lanes of the halves are in turns then.
            let packed = _mm256_packus_epi32(rounded(low), rounded(high));
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
}

/// As [`super::bf16_rows::rounded`], in the lower half of each lane.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded(x: Ymm) -> __m256i {
    let bits = _mm256_castps_si256(x.0);
    let last = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let nearest = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x.0, x.0));
    _mm256_srli_epi32::<16>(_mm256_blendv_epi8(nearest, quiet, is_nan))
}

/// Lanes 0, 1, 4, 5, 2, 3, 6 and 7.
#[inline]
#[target_feature(enable = "avx2")]
fn inner_pairs_swapped(lanes: __m256) -> __m256 {
    _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(lanes)))
}

/// Sums, and what is not in them yet.
#[derive(Clone, Copy)]
pub(super) struct YmmByteSums {
    sums: __m256i,
    /// Of two products each, in 16 bits.
    pairs: __m256i,
}

/// Quants of so many bits meet bytes eight times before [`YmmByteSums::pairs`] may overflow: 16 products of 15 and 127.
const FEW_BITS: u32 = 4;

impl Pairs for YmmPairs {
    const BYTES: usize = 32;

    type Sums = __m256i;
    type ByteSums = YmmByteSums;

    #[inline(always)]
    unsafe fn splat_sum(value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        Self(unsafe { _mm256_loadu_si256(from.cast()) })
    }

    #[inline(always)]
    unsafe fn splat(from: *const i32) -> Self {
        Self(unsafe { _mm256_set1_epi32(from.read_unaligned()) })
    }

    #[inline(always)]
    unsafe fn interleaved(low: *const u8, high: *const u8) -> Self {
        unsafe {
            let (low, high) = (_mm_loadu_si128(low.cast()), _mm_loadu_si128(high.cast()));
            Self(_mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high)))
        }
    }

    #[inline(always)]
    unsafe fn and(self, mask: i16) -> Self {
        Self(unsafe { _mm256_and_si256(self.0, _mm256_set1_epi16(mask)) })
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        Self(unsafe { _mm256_or_si256(self.0, other.0) })
    }

    #[inline(always)]
    unsafe fn shift_right(self, bits: u32) -> Self {
        Self(unsafe { _mm256_srl_epi16(self.0, _mm_cvtsi32_si128(bits.cast_signed())) })
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self, sums: __m256i) -> __m256i {
        unsafe { as_it_is(_mm256_add_epi32(sums, _mm256_madd_epi16(self.0, x.0))) }
    }

    #[inline(always)]
    unsafe fn begin_bytes(sums: __m256i) -> YmmByteSums {
        YmmByteSums { sums, pairs: unsafe { _mm256_setzero_si256() } }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, bits: u32, x: Self, YmmByteSums { sums, pairs }: YmmByteSums) -> YmmByteSums {
        unsafe {
            if bits <= FEW_BITS {
                let pairs = as_it_is(_mm256_add_epi16(pairs, _mm256_maddubs_epi16(self.0, x.0)));
                return YmmByteSums { sums, pairs };
            }
            if bits < u8::BITS {
                // Two products of 7 and 8 bits fit.
                let sums = add_pairs(_mm256_maddubs_epi16(self.0, x.0), sums);
                return YmmByteSums { sums, pairs };
            }
            let even = Self(_mm256_srai_epi16(_mm256_slli_epi16(x.0, 8), 8));
            let odd = Self(_mm256_srai_epi16(x.0, 8));
            YmmByteSums { sums: self.shift_right(8).dot(odd, self.and(0xff).dot(even, sums)), pairs }
        }
    }

    #[inline(always)]
    unsafe fn end_bytes(bits: u32, YmmByteSums { sums, pairs }: YmmByteSums) -> __m256i {
        if bits <= FEW_BITS { unsafe { add_pairs(pairs, sums) } } else { sums }
    }
}

/// Adds both 16-bit lanes of a sum to it.
#[inline]
#[target_feature(enable = "avx2")]
fn add_pairs(pairs: __m256i, sums: __m256i) -> __m256i {
    as_it_is(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
}

/// An empty instruction that the compiler does not look into. Without it, products are added to each other first, and there
/// are more of them than registers.
#[inline]
#[target_feature(enable = "avx2")]
fn as_it_is(mut sums: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) sums, options(pure, nomem, nostack, preserves_flags)) };
    sums
}

/// No instruction, but the compiler must take it for one that reads and writes memory: it moves no read of factors across.
#[inline]
#[target_feature(enable = "avx2")]
fn settled(mut sums: __m256) -> __m256 {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) sums, options(nostack, preserves_flags)) };
    sums
}
