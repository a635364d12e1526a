#![expect(unsafe_code, reason = "the vector operations of the CPU are unsafe to call without a check of its features")]

//! The vocabulary in which the bodies are written, and its portable form.

use half::{bf16, f16};

use super::bf16_rows::rounded;
use super::lanes::{Element, Lanes};
use super::pairs::{Pairs, PortablePairs};

/// Lanes of a [`Vector`].
pub(super) const LANES: usize = 8;

/// What is asked of lanes that are no sums of products.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait Arithmetic: Lanes {
    unsafe fn sub(self, other: Self) -> Self;
    unsafe fn div(self, other: Self) -> Self;
    /// The greater lane; where either is not a number, `other`'s.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller lane; where either is not a number, `other`'s.
    unsafe fn min(self, other: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane, which must be an integer in `-126..=127`.
    unsafe fn exp2_of_integer(self) -> Self;
    /// `then` where the lane is above 0, `otherwise` elsewhere, where it is not a number included.
    unsafe fn if_positive(self, then: Self, otherwise: Self) -> Self;

    /// `e` to the power of each lane, within 2 units in the last place from -87.3 to 88.3, and the value at these ends
    /// beyond them. Range reduction by Cody and Waite, polynomial from the Cephes library's `expf`.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller has the instructions.
        unsafe {
            let (excess, scale) = self.exp_parts();
            excess.add(Self::splat(1.0)).mul(scale)
        }
    }

    /// `e` to the power of each lane, minus 1, without the loss of digits near 0. Within 4 units in the last place from
    /// -87.3 to 88.3.
    #[inline(always)]
    unsafe fn exp_m1(self) -> Self {
        // SAFETY: the caller has the instructions.
        unsafe {
            let (excess, scale) = self.exp_parts();
            excess.mul_add(scale, scale.sub(Self::splat(1.0)))
        }
    }

    /// `(p, s)` with `exp(self) = (1 + p) * s`, where `s` is a power of two and `p` is small.
    #[inline(always)]
    unsafe fn exp_parts(self) -> (Self, Self) {
        const POLYNOMIAL: [f32; 6] =
            [1.987_569_2e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5.0e-1];
        const LN_2_HIGH: f32 = 0.693_359_4;
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        // SAFETY: the caller has the instructions.
        unsafe {
            // The bound comes first, so that what is not a number stays so.
            let x = Self::splat(88.3).min(Self::splat(-87.3).max(self));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-LN_2_HIGH), x);
            let r = n.mul_add(Self::splat(-LN_2_LOW), r);
            let mut p = Self::splat(POLYNOMIAL[0]);
            for &coefficient in &POLYNOMIAL[1..] {
                p = p.mul_add(r, Self::splat(coefficient));
            }
            (p.mul_add(r.mul(r), r), n.exp2_of_integer())
        }
    }
}

/// Eight f32 lanes, which come together to one number.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait Vector: Arithmetic {
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        // SAFETY: the array holds eight elements; the caller has the instructions.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes
    }

    /// The sum of the lanes as `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    #[inline(always)]
    unsafe fn sum_of_lanes(self) -> f32 {
        // SAFETY: the caller has the instructions.
        let x = unsafe { self.to_array() };
        ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]))
    }

    /// The greatest lane; where one is not a number, another's.
    #[inline(always)]
    unsafe fn max_of_lanes(self) -> f32 {
        // SAFETY: the caller has the instructions.
        let x = unsafe { self.to_array() };
        let max = |a: f32, b: f32| if a > b { a } else { b };
        max(max(max(x[0], x[4]), max(x[2], x[6])), max(max(x[1], x[5]), max(x[3], x[7])))
    }

    /// Writes the lanes of `low` and `high` as [`rounded`] has them.
    ///
    /// # Safety
    /// As [`Lanes`]; `to` must be valid for sixteen elements.
    #[inline(always)]
    unsafe fn store_rounded(low: Self, high: Self, to: *mut bf16) {
        // SAFETY: the caller's.
        unsafe {
            to.cast::<[[bf16; LANES]; 2]>().write_unaligned([low, high].map(|lanes| lanes.to_array().map(rounded)))
        }
    }
}

/// Sixteen f32 lanes, which come apart to two vectors.
///
/// # Safety
/// As [`Lanes`].
pub(super) trait Sixteen: Arithmetic {
    type Half: Vector;

    unsafe fn halves(self) -> [Self::Half; 2];

    /// Writes the lanes as [`rounded`] has them.
    ///
    /// # Safety
    /// As [`Lanes`]; `to` must be valid for sixteen elements.
    #[inline(always)]
    unsafe fn store_rounded(self, to: *mut bf16) {
        // SAFETY: the caller's.
        unsafe {
            let [low, high] = self.halves();
            Self::Half::store_rounded(low, high, to);
        }
    }
}

impl<V: Vector> Sixteen for [V; 2] {
    type Half = V;

    #[inline(always)]
    unsafe fn halves(self) -> [V; 2] {
        self
    }
}

impl<V: Arithmetic> Arithmetic for [V; 2] {
    // SAFETY, for every block below: passed on, each half with its own half of the lanes.
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        unsafe { [self[0].sub(other[0]), self[1].sub(other[1])] }
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        unsafe { [self[0].div(other[0]), self[1].div(other[1])] }
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        unsafe { [self[0].max(other[0]), self[1].max(other[1])] }
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        unsafe { [self[0].min(other[0]), self[1].min(other[1])] }
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { [self[0].round(), self[1].round()] }
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        unsafe { [self[0].exp2_of_integer(), self[1].exp2_of_integer()] }
    }

    #[inline(always)]
    unsafe fn if_positive(self, then: Self, otherwise: Self) -> Self {
        unsafe { [self[0].if_positive(then[0], otherwise[0]), self[1].if_positive(then[1], otherwise[1])] }
    }
}

/// The form for any CPU.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(mut self, f: impl Fn(f32) -> f32) -> Self {
        for lane in &mut self.0 {
            *lane = f(*lane);
        }
        self
    }

    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (lane, other) in self.0.iter_mut().zip(other.0) {
            *lane = f(*lane, other);
        }
        self
    }

    #[inline(always)]
    unsafe fn widen<E: Element>(from: *const E) -> Self {
        let mut lanes = [0.0; LANES];
        for (index, lane) in lanes.iter_mut().enumerate() {
            // SAFETY: the caller's pointer is valid for eight elements.
            *lane = unsafe { from.add(index).read_unaligned() }.to_f32();
        }
        Self(lanes)
    }
}

impl Lanes for Portable {
    const LEN: usize = LANES;

    type Pairs = PortablePairs;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: passed on.
        unsafe { Self::widen(from) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        // SAFETY: passed on.
        unsafe { Self::widen(from) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        // SAFETY: passed on.
        unsafe { Self::widen(from) }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        // SAFETY: the caller's pointer is valid for eight elements.
        Self(unsafe { from.cast::<[u8; LANES]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        // SAFETY: the caller's pointer is valid for eight elements.
        Self(unsafe { from.cast::<[i8; LANES]>().read_unaligned() }.map(f32::from))
    }

    #[inline(always)]
    unsafe fn of_sums(sums: <PortablePairs as Pairs>::Sums) -> Self {
        Self(sums.map(|sum| sum as f32))
    }

    #[inline(always)]
    fn prefetch<T>(_at: *const T) {}

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller's pointer is valid for eight elements.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) };
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn mul_add(mut self, factor: Self, addend: Self) -> Self {
        for (lane, (factor, addend)) in self.0.iter_mut().zip(factor.0.into_iter().zip(addend.0)) {
            *lane = lane.mul_add(factor, addend);
        }
        self
    }
}

impl Arithmetic for Portable {
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(f32::round_ties_even)
    }

    #[inline(always)]
    unsafe fn exp2_of_integer(self) -> Self {
        self.map(|n| f32::from_bits(((n as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    unsafe fn if_positive(mut self, then: Self, otherwise: Self) -> Self {
        for (lane, (then, otherwise)) in self.0.iter_mut().zip(then.0.into_iter().zip(otherwise.0)) {
            *lane = if *lane > 0.0 { then } else { otherwise };
        }
        self
    }
}

impl Vector for Portable {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in 0..1_000_000 {
            let x = -87.3 + step as f32 * (175.6 / 1e6);
            // SAFETY: portable code.
            let got = unsafe { Portable::splat(x).exp().to_array()[0] };
            let want = f64::from(x).exp();
            let unit = f64::from((want as f32).next_up() - want as f32);
            assert!((f64::from(got) - want).abs() <= 2.0 * unit, "exp({x}) is {got:e}, not {want:e}");
        }
    }

    #[test]
    fn exp_m1_is_within_four_units_in_the_last_place() {
        for step in 0..1_000_000 {
            let x = -40.0 + step as f32 * (60.0 / 1e6);
            for x in [x, x * 1e-3, x * 1e-6] {
                // SAFETY: portable code.
                let got = unsafe { Portable::splat(x).exp_m1().to_array()[0] };
                let want = f64::from(x).exp_m1();
                let unit = f64::from((want.abs() as f32).next_up() - want.abs() as f32);
                assert!((f64::from(got) - want).abs() <= 4.0 * unit, "exp_m1({x}) is {got:e}, not {want:e}");
            }
        }
    }

    #[test]
    fn exp_keeps_what_is_not_a_number() {
        // SAFETY: portable code.
        assert!(unsafe { Portable::splat(f32::NAN).exp().to_array()[3] }.is_nan());
    }
}
