//! The price of a model that nobody measured, from the size of its weights alone.
//!
//! Generating is bound by memory: each step reads the weights once for its whole batch, so a token costs
//! `bytes / bandwidth / batch`. Reading a prompt is bound by arithmetic: two operations a parameter and token (Kaplan et al.
//! 2020, arXiv 2001.08361), at the part of the peak that prompts reach. A token whose K/V is there costs a tenth of
//! reading it.

use super::Price;

/// The version of a tariff that was derived by [`price_by_weights`], as it is dated here.
pub const DERIVED_TARIFF: &str = "derived-2026-11-25";

/// The card that a normalised GPU hour is an hour of, and the load at which it is priced.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceCard {
    pub memory_bytes_per_s: u64,
    /// At the precision that weights are stored in, and already at the part of the peak that prompts reach.
    pub operations_per_s: u64,
    /// Sequences that share a step.
    pub batch: u64,
}

/// One V100 SXM2, in whose hours French public compute is granted: 900 GB/s, and 40 % of 125 Tflop/s (NVIDIA's data
/// sheet, 2018), with 32 sequences in each step.
pub const REFERENCE: ReferenceCard =
    ReferenceCard { memory_bytes_per_s: 900_000_000_000, operations_per_s: 50_000_000_000_000, batch: 32 };

const CACHED_PER_INPUT: u64 = 10;

/// Never nothing: the smallest model's tokens cost a nanosecond.
pub fn price_by_weights(weight_bytes: u64, parameters: u64) -> Price {
    let ns = |amount: u64, per_s: u64| {
        let ns = u128::from(amount) * 1_000_000_000 / u128::from(per_s);
        u64::try_from(ns).unwrap_or(u64::MAX).max(1)
    };
    let input_ns = ns(parameters.saturating_mul(2), REFERENCE.operations_per_s);
    let output_ns = ns(weight_bytes, REFERENCE.memory_bytes_per_s.saturating_mul(REFERENCE.batch));
    Price::flat(input_ns, (input_ns / CACHED_PER_INPUT).max(1), output_ns.max(input_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_seven_billion_parameters_costs_what_the_formula_says() {
        let price = price_by_weights(14_000_000_000, 7_000_000_000);
        let band = price.bands()[0];
        assert_eq!((band.input_ns, band.cached_ns, band.output_ns), (280_000, 28_000, 486_111));
        let smallest = price_by_weights(1, 1).bands()[0];
        assert_eq!((smallest.input_ns, smallest.cached_ns, smallest.output_ns), (1, 1, 1));
    }
}
