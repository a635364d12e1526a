#![expect(unsafe_code, reason = "registers are viewed as the lanes that they hold")]

//! Products of bf16 by bf16, two neighbours along `k` at a time: what AVX512-BF16 has one instruction for, and its twin
//! in plain code.

use std::mem::transmute_copy;

use half::bf16;

use super::instructions::Instructions;
use super::lanes::Lanes;
use super::panels::PANEL;

/// Weights of two neighbouring inputs for one output, or the two inputs that they meet.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Bf16Pair(pub(super) [bf16; 2]);

/// Rows of an even number of elements.
#[derive(Debug, Clone, Copy)]
pub(super) struct PairRows<'a> {
    pub(super) pairs: &'a [Bf16Pair],
    pub(super) num_rows: usize,
    /// From one to the next, in pairs.
    pub(super) stride: usize,
}

impl Bf16Pair {
    /// An even number of elements.
    pub(super) fn all_of(values: &[bf16]) -> &[Self] {
        let (pairs, rest) = values.as_chunks::<2>();
        assert!(rest.is_empty(), "elements in pairs");
        // SAFETY: a pair is two elements and nothing else.
        unsafe { std::slice::from_raw_parts(pairs.as_ptr().cast(), pairs.len()) }
    }
}

/// Two 16-bit lanes for each sum of a panel.
pub(super) type PairsOf<I> = <<I as Instructions>::Panel as Lanes>::Pairs;

/// `sum + x[1] w[1] + x[0] w[0]`, as Intel's manual defines `vdpbf16ps`: one fused multiply-add after the other, each
/// rounded to nearest even, with subnormal numbers taken for zeros and replaced by them.
#[inline(always)]
pub(super) fn add_products(x: Bf16Pair, w: Bf16Pair, sum: f32) -> f32 {
    let add = |at: usize, sum: f32| normal(normal(x.0[at].to_f32()).mul_add(normal(w.0[at].to_f32()), normal(sum)));
    add(0, add(1, sum))
}

/// A zero of its sign instead of a subnormal number.
#[inline(always)]
fn normal(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// [`add_products`] in every lane, without an instruction for it. Apart from the tiles that call it: in each of them,
/// once for every running sum, it would keep the compiler busy.
///
/// # Safety
/// The CPU must have the instructions.
#[inline(never)]
pub(super) unsafe fn add_products_of_lanes<I: Instructions>(x: PairsOf<I>, w: PairsOf<I>, sums: I::Panel) -> I::Panel {
    const { assert!(size_of::<PairsOf<I>>() == size_of::<[Bf16Pair; PANEL]>()) };
    let mut lanes = [0.0; PANEL];
    // SAFETY: registers of as many bytes hold nothing but their lanes, in order, and every bit pattern of them is a bf16; a
    // panel has as many sums. The caller has the instructions.
    unsafe {
        let (x, w): ([Bf16Pair; PANEL], [Bf16Pair; PANEL]) = (transmute_copy(&x), transmute_copy(&w));
        sums.store(lanes.as_mut_ptr());
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum = add_products(x[lane], w[lane], *sum);
        }
        I::Panel::load(lanes.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(even: f32, odd: f32) -> Bf16Pair {
        Bf16Pair([even, odd].map(bf16::from_f32))
    }

    #[test]
    fn the_odd_product_is_added_first_and_each_rounds_once() {
        let tiny = f32::EPSILON / 2.0;
        // 1 + 2^-24 is 1, and so it is twice; were both products added first, 1 + 2^-23 would remain.
        assert_eq!(add_products(pair(1.0, 1.0), pair(tiny, tiny), 1.0), 1.0);
        // The odd product takes the sum away before the even one is added, which is then not lost.
        assert_eq!(add_products(pair(1.0, 1.0), pair(tiny, -1.0), 1.0), tiny);
        assert_eq!(add_products(pair(1.0, 1.0), pair(-1.0, tiny), 1.0), 0.0);
    }

    #[test]
    fn subnormal_numbers_are_zeros_of_their_sign() {
        let subnormal = f32::MIN_POSITIVE / 2.0;
        assert_eq!(add_products(pair(subnormal, subnormal), pair(1e30, 1e30), 0.0), 0.0, "factors");
        assert_eq!(add_products(pair(0.0, 0.0), pair(1.0, 1.0), -subnormal).to_bits(), 0.0f32.to_bits(), "sums");
        let result = add_products(pair(0.25, 0.0), pair(-f32::MIN_POSITIVE, 0.0), 0.0);
        assert_eq!(result.to_bits(), (-0.0f32).to_bits(), "results");
        assert!(add_products(pair(f32::NAN, 0.0), pair(1.0, 1.0), 0.0).is_nan());
    }
}
