#![expect(unsafe_code, reason = "the vector operations of the CPU are unsafe to call without a check of its features")]

//! 16-bit lanes, two for each of some [`super::lanes::Lanes`]: the vocabulary of integer products.

/// Lanes of [`PortablePairs`].
const LANES: usize = 16;

/// Some 16-bit lanes, an even number. Integer sums are exact, so all implementations give equal bits whatever their order.
///
/// # Safety
/// As [`super::lanes::Lanes`]; pointers must be valid for as many bytes as the method says.
pub(super) trait Pairs: Copy {
    /// Of all lanes together.
    const BYTES: usize;

    /// A 32-bit lane for every two.
    type Sums: Copy;
    /// The same while products of bytes are added to them.
    type ByteSums: Copy;

    /// `value` in every lane.
    unsafe fn splat_sum(value: i32) -> Self::Sums;
    /// [`Pairs::BYTES`], each lane little-endian.
    unsafe fn load(from: *const u8) -> Self;
    /// The four bytes at `from`, which need not be aligned, in every pair of lanes.
    unsafe fn splat(from: *const i32) -> Self;
    /// Lane `i` of each half, one behind the other: the halves stand at `low` and `high`, half of [`Pairs::BYTES`] each.
    unsafe fn interleaved(low: *const u8, high: *const u8) -> Self;
    unsafe fn and(self, mask: i16) -> Self;
    unsafe fn or(self, other: Self) -> Self;
    /// Zeros come in from above.
    unsafe fn shift_right(self, bits: u32) -> Self;
    /// `sums[i] + self[2 i] * x[2 i] + self[2 i + 1] * x[2 i + 1]`, which must fit. One instruction where the CPU has VNNI
    /// (`vpdpwssd`).
    unsafe fn dot(self, x: Self, sums: Self::Sums) -> Self::Sums;
    /// The same with the four bytes at `x`, as [`Pairs::splat`] has them.
    #[inline(always)]
    unsafe fn dot_at(self, x: *const i32, sums: Self::Sums) -> Self::Sums {
        // SAFETY: passed on.
        unsafe { self.dot(Self::splat(x), sums) }
    }
    /// The same of several panels' lanes, each with its own sums.
    #[inline(always)]
    unsafe fn dots_at<const N: usize>(panels: [Self; N], x: *const i32, sums: &mut [Self::Sums; N]) {
        for (lanes, sums) in panels.into_iter().zip(sums) {
            // SAFETY: passed on.
            *sums = unsafe { lanes.dot_at(x, *sums) };
        }
    }
    unsafe fn begin_bytes(sums: Self::Sums) -> Self::ByteSums;
    /// As [`Pairs::dot`] of bytes, four for each sum: unsigned ones of at most so many `bits`, and signed ones of `x`, none of
    /// which is -128. At most eight times before [`Pairs::end_bytes`], with the same `bits`. One instruction where the CPU has
    /// VNNI (`vpdpbusd`).
    unsafe fn dot_bytes(self, bits: u32, x: Self, sums: Self::ByteSums) -> Self::ByteSums;
    /// As [`Pairs::dot_at`].
    #[inline(always)]
    unsafe fn dot_bytes_at(self, bits: u32, x: *const i32, sums: Self::ByteSums) -> Self::ByteSums {
        // SAFETY: passed on.
        unsafe { self.dot_bytes(bits, Self::splat(x), sums) }
    }
    /// As [`Pairs::dots_at`].
    #[inline(always)]
    unsafe fn dots_of_bytes_at<const N: usize>(
        panels: [Self; N],
        bits: u32,
        x: *const i32,
        sums: &mut [Self::ByteSums; N],
    ) {
        for (lanes, sums) in panels.into_iter().zip(sums) {
            // SAFETY: passed on.
            *sums = unsafe { lanes.dot_bytes_at(bits, x, *sums) };
        }
    }
    unsafe fn end_bytes(bits: u32, sums: Self::ByteSums) -> Self::Sums;
}

/// Twice as many, in two registers.
impl<P: Pairs> Pairs for [P; 2] {
    const BYTES: usize = 2 * P::BYTES;

    type Sums = [P::Sums; 2];
    type ByteSums = [P::ByteSums; 2];

    // SAFETY, for every block below: passed on, each half with its own half of the bytes.
    #[inline(always)]
    unsafe fn splat_sum(value: i32) -> Self::Sums {
        [unsafe { P::splat_sum(value) }; 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        unsafe { [P::load(from), P::load(from.add(P::BYTES))] }
    }

    #[inline(always)]
    unsafe fn splat(from: *const i32) -> Self {
        [unsafe { P::splat(from) }; 2]
    }

    #[inline(always)]
    unsafe fn interleaved(low: *const u8, high: *const u8) -> Self {
        unsafe {
            let quarter = P::BYTES / 2;
            [P::interleaved(low, high), P::interleaved(low.add(quarter), high.add(quarter))]
        }
    }

    #[inline(always)]
    unsafe fn and(self, mask: i16) -> Self {
        unsafe { [self[0].and(mask), self[1].and(mask)] }
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        unsafe { [self[0].or(other[0]), self[1].or(other[1])] }
    }

    #[inline(always)]
    unsafe fn shift_right(self, bits: u32) -> Self {
        unsafe { [self[0].shift_right(bits), self[1].shift_right(bits)] }
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self, sums: Self::Sums) -> Self::Sums {
        unsafe { [self[0].dot(x[0], sums[0]), self[1].dot(x[1], sums[1])] }
    }

    #[inline(always)]
    unsafe fn begin_bytes(sums: Self::Sums) -> Self::ByteSums {
        unsafe { [P::begin_bytes(sums[0]), P::begin_bytes(sums[1])] }
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, bits: u32, x: Self, sums: Self::ByteSums) -> Self::ByteSums {
        unsafe { [self[0].dot_bytes(bits, x[0], sums[0]), self[1].dot_bytes(bits, x[1], sums[1])] }
    }

    #[inline(always)]
    unsafe fn end_bytes(bits: u32, sums: Self::ByteSums) -> Self::Sums {
        unsafe { [P::end_bytes(bits, sums[0]), P::end_bytes(bits, sums[1])] }
    }
}

/// The form for any CPU.
#[derive(Clone, Copy)]
pub(super) struct PortablePairs([i16; LANES]);

impl PortablePairs {
    #[inline(always)]
    fn map(self, f: impl Fn(i16) -> i16) -> Self {
        Self(self.0.map(f))
    }
}

impl Pairs for PortablePairs {
    const BYTES: usize = LANES * size_of::<i16>();

    type Sums = [i32; LANES / 2];
    type ByteSums = Self::Sums;

    #[inline(always)]
    unsafe fn splat_sum(value: i32) -> Self::Sums {
        [value; LANES / 2]
    }

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: the caller's pointer is valid for 32 bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        Self(bytes.map(i16::from_le_bytes))
    }

    #[inline(always)]
    unsafe fn splat(from: *const i32) -> Self {
        // SAFETY: the caller's pointer is valid for four bytes.
        let [even, odd] = unsafe { from.cast::<[[u8; 2]; 2]>().read_unaligned() }.map(i16::from_le_bytes);
        Self(std::array::from_fn(|lane| if lane % 2 == 0 { even } else { odd }))
    }

    #[inline(always)]
    unsafe fn interleaved(low: *const u8, high: *const u8) -> Self {
        Self(std::array::from_fn(|lane| {
            let half = if lane.is_multiple_of(2) { low } else { high };
            // SAFETY: the caller's pointers are valid for half as many lanes each.
            i16::from_le_bytes(unsafe { half.cast::<[u8; 2]>().add(lane / 2).read() })
        }))
    }

    #[inline(always)]
    unsafe fn and(self, mask: i16) -> Self {
        self.map(|lane| lane & mask)
    }

    #[inline(always)]
    unsafe fn or(self, other: Self) -> Self {
        Self(std::array::from_fn(|lane| self.0[lane] | other.0[lane]))
    }

    #[inline(always)]
    unsafe fn shift_right(self, bits: u32) -> Self {
        self.map(|lane| (lane.cast_unsigned() >> bits).cast_signed())
    }

    #[inline(always)]
    unsafe fn dot(self, x: Self, mut sums: Self::Sums) -> Self::Sums {
        for (index, sum) in sums.iter_mut().enumerate() {
            let product = |lane: usize| i32::from(self.0[lane]) * i32::from(x.0[lane]);
            *sum += product(2 * index) + product(2 * index + 1);
        }
        sums
    }

    #[inline(always)]
    unsafe fn begin_bytes(sums: Self::Sums) -> Self::Sums {
        sums
    }

    #[inline(always)]
    unsafe fn dot_bytes(self, _bits: u32, x: Self, mut sums: Self::Sums) -> Self::Sums {
        for (index, sum) in sums.iter_mut().enumerate() {
            for lane in [2 * index, 2 * index + 1] {
                let products = self.0[lane].to_le_bytes().into_iter().zip(x.0[lane].to_le_bytes());
                *sum += products.map(|(one, other)| i32::from(one) * i32::from(other.cast_signed())).sum::<i32>();
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn end_bytes(_bits: u32, sums: Self::Sums) -> Self::Sums {
        sums
    }
}
