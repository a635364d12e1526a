//! What a token costs, in normalised GPU time.
//!
//! Users are billed by a published table and not by the clock: so a request costs the same alone at night and in a full
//! batch, and on every partition. One *normalised GPU* is a card of [`REFERENCE`]; a price says for how long one token of a
//! class keeps it busy at the stated reference load. Cost is a sum over token positions, so that what is reserved in parts
//! costs what it costs at once.

mod cards;
mod derive;
mod hours;
mod partitions;
mod written;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Arc, PoisonError, RwLock};

use passerelle_engine::Usage;
use serde::{Deserialize, Serialize};

pub use cards::{Cards, UnknownCard};
pub use derive::{DERIVED_TARIFF, REFERENCE, ReferenceCard, price_by_weights};
pub use hours::{HourUse, PartitionHours, TimeUse};
pub use partitions::Hours;
pub use written::{TariffError, WrittenPrice, WrittenTariff};

/// The prices that are in force.
#[derive(Debug)]
pub struct Tariff {
    /// Stands in every entry of the ledger.
    pub version: Arc<str>,
    /// Grows when a model is served that was not served before.
    prices: RwLock<BTreeMap<String, Arc<Price>>>,
}

/// What tokens of one model cost, by the length of the context that they stand in. Never empty; the last band has no end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Price {
    bands: Vec<Band>,
}

/// Prices of tokens at positions below `below`, and not below the band before. In nanoseconds a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Band {
    /// `None` in the last band.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<u32>,
    /// A prompt token that is computed.
    pub input_ns: u64,
    /// A prompt token whose K/V was there already.
    pub cached_ns: u64,
    /// A generated token.
    pub output_ns: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PriceError {
    #[error("a price needs a last band without end")]
    NoEnd,
    #[error("bands stand in the order of their ends, and only the last one has none")]
    Disorder,
}

impl Tariff {
    pub fn new(version: &str, prices: impl IntoIterator<Item = (String, Price)>) -> Self {
        let prices = prices.into_iter().map(|(model, price)| (model, Arc::new(price))).collect();
        Self { version: version.into(), prices: RwLock::new(prices) }
    }

    /// From now on, for a model that nobody uses yet: what was reserved at one price is settled at the same.
    pub fn set(&self, model: &str, price: Price) {
        self.prices.write().unwrap_or_else(PoisonError::into_inner).insert(model.to_owned(), Arc::new(price));
    }

    /// Nothing costs anything.
    pub fn free() -> Self {
        Self::new("free", [])
    }

    pub fn price(&self, model: &str) -> Option<Arc<Price>> {
        self.prices.read().unwrap_or_else(PoisonError::into_inner).get(model).cloned()
    }

    /// Whether it is the version of the other one, and has each of its prices.
    pub fn has_all_of(&self, other: &Self) -> bool {
        let wanted = other.prices.read().unwrap_or_else(PoisonError::into_inner);
        self.version == other.version && wanted.iter().all(|(model, price)| self.price(model).as_ref() == Some(price))
    }

    /// In microseconds, rounded up. Nothing without a model, or for one without a price.
    pub fn cost_micros(&self, model: Option<&str>, used: Usage, answers: NonZeroU32) -> u64 {
        model.and_then(|model| self.price(model)).map_or(0, |price| price.cost_micros(used, answers))
    }
}

impl Price {
    pub fn new(bands: Vec<Band>) -> Result<Self, PriceError> {
        let (last, others) = bands.split_last().ok_or(PriceError::NoEnd)?;
        if last.below.is_some() {
            return Err(PriceError::NoEnd);
        }
        let in_order = others.iter().all(|band| band.below.is_some()) && others.is_sorted_by_key(|band| band.below);
        if in_order { Ok(Self { bands }) } else { Err(PriceError::Disorder) }
    }

    /// One price whatever the context.
    pub fn flat(input_ns: u64, cached_ns: u64, output_ns: u64) -> Self {
        Self { bands: vec![Band { below: None, input_ns, cached_ns, output_ns }] }
    }

    pub fn bands(&self) -> &[Band] {
        &self.bands
    }

    /// In microseconds, rounded up. Only the sum of several answers is known, so they count as equally long: each stands in
    /// the context behind the prompt, and not behind the others.
    pub fn cost_micros(&self, used: Usage, answers: NonZeroU32) -> u64 {
        self.cost_ns(used, answers).div_ceil(1000)
    }

    fn cost_ns(&self, used: Usage, answers: NonZeroU32) -> u64 {
        let cached = used.cached_tokens.min(used.prompt_tokens);
        // The tokens that do not divide evenly are one more of so many answers.
        let (each, longer) = (used.generated_tokens / answers, used.generated_tokens % answers);
        let end = used.prompt_tokens.saturating_add(each);
        let mut start = 0;
        let mut cost = 0_u64;
        for band in &self.bands {
            let below = band.below.unwrap_or(u32::MAX);
            let within = |from: u32, to: u32| u64::from(to.min(below).saturating_sub(from.max(start)));
            let parts = [
                (within(0, cached), band.cached_ns),
                (within(cached, used.prompt_tokens), band.input_ns),
                (within(used.prompt_tokens, end).saturating_mul(answers.get().into()), band.output_ns),
                (within(end, end.saturating_add(1)).saturating_mul(longer.into()), band.output_ns),
            ];
            cost = parts.iter().fold(cost, |cost, (tokens, ns)| cost.saturating_add(tokens.saturating_mul(*ns)));
            start = below;
        }
        cost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(prompt_tokens: u32, cached_tokens: u32, generated_tokens: u32) -> Usage {
        Usage { prompt_tokens, cached_tokens, generated_tokens, ..Usage::default() }
    }

    fn banded() -> Price {
        let band = |below, ns| Band { below, input_ns: ns, cached_ns: 1, output_ns: 10 * ns };
        Price::new(vec![band(Some(100), 1000), band(None, 2000)]).unwrap()
    }

    #[test]
    fn each_token_costs_what_its_class_and_position_say() {
        let cost = |used| banded().cost_ns(used, NonZeroU32::MIN);
        assert_eq!(cost(used(10, 0, 0)), 10_000);
        assert_eq!(cost(used(10, 4, 1)), 4 + 6_000 + 10_000);
        assert_eq!(cost(used(98, 0, 4)), 98_000 + 2 * 10_000 + 2 * 20_000);
        assert_eq!(cost(used(101, 101, 0)), 101);
    }

    /// Three of 30 tokens end in the band that one of 90 would leave.
    #[test]
    fn several_answers_stand_beside_each_other_and_not_behind() {
        let cost = |generated, answers| banded().cost_ns(used(60, 0, generated), NonZeroU32::new(answers).unwrap());
        assert_eq!(cost(90, 3), 60_000 + 90 * 10_000);
        assert_eq!(cost(90, 1), 60_000 + 40 * 10_000 + 50 * 20_000);
        assert_eq!(cost(122, 3), 60_000 + 120 * 10_000 + 2 * 20_000, "of 41, 41 and 40 tokens");
        assert!((1..400).all(|generated| cost(generated - 1, 3) < cost(generated, 3)), "each token costs something");
    }

    #[test]
    fn an_answer_costs_the_same_in_parts_and_at_once() {
        let tariff = Tariff::new("1", [("m".to_owned(), banded())]);
        let cost = |output| tariff.cost_micros(Some("m"), used(90, 0, output), NonZeroU32::MIN);
        let parts: u64 = (1..=40).map(|n| cost(n) - cost(n - 1)).sum();
        assert_eq!(parts, cost(40) - cost(0));
    }

    #[test]
    fn a_model_without_a_price_costs_nothing_and_bands_in_disorder_are_refused() {
        assert_eq!(Tariff::free().cost_micros(Some("m"), used(1000, 0, 1000), NonZeroU32::MIN), 0);
        let band = |below| Band { below, input_ns: 1, cached_ns: 1, output_ns: 1 };
        assert_eq!(Price::new(vec![]), Err(PriceError::NoEnd));
        assert_eq!(Price::new(vec![band(Some(1))]), Err(PriceError::NoEnd));
        assert_eq!(Price::new(vec![band(Some(9)), band(Some(3)), band(None)]), Err(PriceError::Disorder));
        assert_eq!(Price::new(vec![band(None), band(None)]), Err(PriceError::Disorder));
    }
}
