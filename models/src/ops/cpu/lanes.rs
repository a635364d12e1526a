#![expect(unsafe_code, reason = "the vector operations of the CPU are unsafe to call without a check of its features")]

//! Some f32 lanes, and what products do with them.

use half::{bf16, f16};

use super::bf16_rows::rounded;
use super::buffer::Plain;
use super::pairs::Pairs;

/// Some f32 lanes, as many as [`Lanes::LEN`]. Every operation rounds each lane once, to nearest even, so that all
/// implementations give equal bits.
///
/// # Safety
/// The methods may be called only on a CPU that has the implementation's instructions, and pointers must be valid for
/// as many elements as there are lanes. They need no alignment. Implementations are `#[inline(always)]`, as must be
/// whatever calls them up to the function that enables the instructions, or the compiler cannot inline them.
pub(super) trait Lanes: Copy {
    const LEN: usize;

    /// The integers that go with it, two for each lane.
    type Pairs: Pairs;

    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_bf16(from: *const bf16) -> Self;
    /// The same in the order in which they are widened fastest: that of [`Lanes::in_turns`].
    #[inline(always)]
    unsafe fn load_bf16_in_turns(from: *const bf16) -> Self {
        // SAFETY: passed on.
        unsafe { Self::load_bf16(from) }
    }
    /// [`Lanes::load_bf16_in_turns`] of as many elements as two have.
    #[inline(always)]
    unsafe fn load_two_bf16_in_turns(from: *const bf16) -> [Self; 2] {
        // SAFETY: passed on.
        unsafe { [Self::load_bf16(from), Self::load_bf16(from.add(Self::LEN))] }
    }
    /// Lanes in the order in which bf16 elements are widened fastest. Where two registers hold them and that spares
    /// something, the first has those of even places and the second those of odd ones; else the lanes as they are.
    #[inline(always)]
    unsafe fn in_turns(self) -> Self {
        self
    }
    /// What [`Lanes::in_turns`] makes of lanes in two registers.
    #[inline(always)]
    unsafe fn two_in_turns(lanes: [Self; 2]) -> [Self; 2] {
        lanes
    }
    /// The lanes of which [`Lanes::in_turns`] makes these.
    #[inline(always)]
    unsafe fn in_order(self) -> Self {
        self
    }
    /// The lanes of which [`Lanes::two_in_turns`] makes these.
    #[inline(always)]
    unsafe fn two_in_order(lanes: [Self; 2]) -> [Self; 2] {
        lanes
    }
    unsafe fn load_f16(from: *const f16) -> Self;
    unsafe fn load_u8(from: *const u8) -> Self;
    unsafe fn load_i8(from: *const i8) -> Self;
    /// Adds to `sum` a product of integers times `scale` times `factor`, and then, where there is a minimum, that times
    /// the number beside it.
    #[inline(always)]
    unsafe fn add_scaled(
        sum: &mut Self,
        product: <Self::Pairs as Pairs>::Sums,
        scale: Self,
        factor: f32,
        min: Option<(Self, f32)>,
    ) {
        // SAFETY: passed on.
        unsafe {
            *sum = Self::of_sums(product).mul_add(scale.mul(Self::splat(factor)), *sum);
            if let Some((min, factor)) = min {
                *sum = min.mul_add(Self::splat(factor), *sum);
            }
        }
    }
    unsafe fn of_sums(sums: <Self::Pairs as Pairs>::Sums) -> Self;
    /// How far ahead of their use quantised weights are asked for, in all panels together.
    const PREFETCH_BYTES: usize = 2048;
    /// Asks for the cache line at `at`, which need not be valid.
    fn prefetch<T>(at: *const T);
    /// The same, no nearer than the second-level cache where that is faster: the first-level one waits for so few lines at a
    /// time that it, not memory, limits reading.
    fn prefetch_to_second_level<T>(at: *const T) {
        Self::prefetch(at);
    }
    unsafe fn store(self, to: *mut f32);
    /// The same lanes. Where it has a body, the compiler reads nothing before it that is read behind it, and so needs
    /// no registers for what later products take. CPUs read ahead by themselves.
    #[inline(always)]
    unsafe fn settled(self) -> Self {
        self
    }
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn mul(self, other: Self) -> Self;
    /// `self * factor + addend`, rounded once.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
}

/// Twice as many lanes, in two registers.
impl<L: Lanes> Lanes for [L; 2] {
    const LEN: usize = 2 * L::LEN;

    type Pairs = [L::Pairs; 2];

    // SAFETY, for every block below: passed on, each half with its own half of the elements.
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [unsafe { L::splat(value) }; 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        unsafe { [L::load(from), L::load(from.add(L::LEN))] }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16) -> Self {
        unsafe { [L::load_bf16(from), L::load_bf16(from.add(L::LEN))] }
    }

    #[inline(always)]
    unsafe fn load_bf16_in_turns(from: *const bf16) -> Self {
        unsafe { L::load_two_bf16_in_turns(from) }
    }

    #[inline(always)]
    unsafe fn in_turns(self) -> Self {
        unsafe { L::two_in_turns(self) }
    }

    #[inline(always)]
    unsafe fn in_order(self) -> Self {
        unsafe { L::two_in_order(self) }
    }

    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self {
        unsafe { [L::load_f16(from), L::load_f16(from.add(L::LEN))] }
    }

    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> Self {
        unsafe { [L::load_u8(from), L::load_u8(from.add(L::LEN))] }
    }

    #[inline(always)]
    unsafe fn load_i8(from: *const i8) -> Self {
        unsafe { [L::load_i8(from), L::load_i8(from.add(L::LEN))] }
    }

    #[inline(always)]
    unsafe fn of_sums(sums: [<L::Pairs as Pairs>::Sums; 2]) -> Self {
        unsafe { [L::of_sums(sums[0]), L::of_sums(sums[1])] }
    }

    #[inline(always)]
    fn prefetch<T>(at: *const T) {
        L::prefetch(at);
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe {
            self[0].store(to);
            self[1].store(to.add(L::LEN));
        }
    }

    #[inline(always)]
    unsafe fn settled(self) -> Self {
        unsafe { [self[0].settled(), self[1].settled()] }
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        unsafe { [self[0].add(other[0]), self[1].add(other[1])] }
    }

    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        unsafe { [self[0].mul(other[0]), self[1].mul(other[1])] }
    }

    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        unsafe { [self[0].mul_add(factor[0], addend[0]), self[1].mul_add(factor[1], addend[1])] }
    }
}

/// A weight or cache element that widens to f32.
pub(super) trait Element: Plain {
    /// Whether [`Element::load_for_products`] has them in the order of [`Lanes::in_turns`].
    const IN_TURNS: bool;

    /// # Safety
    /// As [`Lanes`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
    /// The same in the order in which products take them.
    ///
    /// # Safety
    /// As [`Lanes`].
    unsafe fn load_for_products<L: Lanes>(from: *const Self) -> L;
    fn to_f32(self) -> f32;
    /// Rounded to nearest even.
    fn from_f32(value: f32) -> Self;
}

macro_rules! element {
    ($type:ty, $load:ident, ($load_for_products:ident, $in_turns:literal), $to_f32:expr, $from_f32:expr) => {
        impl Element for $type {
            const IN_TURNS: bool = $in_turns;

            #[inline(always)]
            unsafe fn load<L: Lanes>(from: *const Self) -> L {
                // SAFETY: passed on.
                unsafe { L::$load(from) }
            }

            #[inline(always)]
            unsafe fn load_for_products<L: Lanes>(from: *const Self) -> L {
                // SAFETY: passed on.
                unsafe { L::$load_for_products(from) }
            }

            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to_f32(self)
            }

            #[inline(always)]
            fn from_f32(value: f32) -> Self {
                $from_f32(value)
            }
        }
    };
}
element!(f32, load, (load, false), std::convert::identity, std::convert::identity);
element!(bf16, load_bf16, (load_bf16_in_turns, true), bf16::to_f32, rounded);
element!(f16, load_f16, (load_f16, false), f16::to_f32, f16::from_f32);
element!(i8, load_i8, (load_i8, false), f32::from, |value: f32| value.round_ties_even() as i8);
