//! A tariff as it is published: which one it is, since when it holds, at which load it was measured, and what a token of
//! each model costs, in each context, on each kind of partition.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{Band, Price, PriceError};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenTariff {
    /// Stands in every entry of the ledger.
    pub version: String,
    /// The day on which it begins, like 2026-12-01.
    pub since: String,
    /// The load at which it was measured, in words.
    pub reference: String,
    pub prices: Vec<WrittenPrice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenPrice {
    pub model: String,
    /// The kind of partition, like `cpu` or `upstream`. Default: wherever no other price is stated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// In the order of their ends; the last one has none.
    pub bands: Vec<Band>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TariffError {
    #[error("a version is 1 to {MAX_VERSION_BYTES} printable characters")]
    Version,
    #[error("the price of `{0}` is stated twice")]
    Twice(String),
    #[error("the price of `{model}`: {source}")]
    Price { model: String, source: PriceError },
}

const MAX_VERSION_BYTES: usize = 64;

impl WrittenTariff {
    pub fn check(&self) -> Result<(), TariffError> {
        let is_printable = self.version.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_printable || self.version.is_empty() || self.version.len() > MAX_VERSION_BYTES {
            return Err(TariffError::Version);
        }
        let mut stated = HashSet::new();
        for price in &self.prices {
            if !stated.insert((&price.model, &price.partition)) {
                return Err(TariffError::Twice(price.model.clone()));
            }
            price.checked()?;
        }
        Ok(())
    }

    /// Of a model on a kind of partition: the price that is stated for this kind, else the one that is for all.
    pub fn price(&self, model: &str, partition: &str) -> Result<Option<Price>, TariffError> {
        let of = |kind: Option<&str>| {
            self.prices.iter().find(|price| price.model == model && price.partition.as_deref() == kind)
        };
        of(Some(partition)).or_else(|| of(None)).map(WrittenPrice::checked).transpose()
    }

    /// Of the models whose price is the same on every kind of partition.
    pub fn prices_anywhere(&self) -> Result<Vec<(String, Price)>, TariffError> {
        let is_the_only_one = |price: &&WrittenPrice| {
            self.prices.iter().all(|other| other.model != price.model || other.bands == price.bands)
        };
        let prices = self.prices.iter().filter(is_the_only_one);
        prices.map(|price| Ok((price.model.clone(), price.checked()?))).collect()
    }
}

impl WrittenPrice {
    fn checked(&self) -> Result<Price, TariffError> {
        let wrong = |source| TariffError::Price { model: self.model.clone(), source };
        Price::new(self.bands.clone()).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tariff(prices: &[(&str, Option<&str>, u64)]) -> WrittenTariff {
        let band = |ns| Band { below: None, input_ns: ns, cached_ns: 1, output_ns: ns };
        let price = |(model, partition, ns): &(&str, Option<&str>, u64)| WrittenPrice {
            model: (*model).to_owned(),
            partition: partition.map(str::to_owned),
            bands: vec![band(*ns)],
        };
        let prices = prices.iter().map(price).collect();
        WrittenTariff { version: "1".into(), since: "2026-12-01".into(), reference: "one of each".into(), prices }
    }

    #[test]
    fn a_kind_of_partition_has_its_own_price_or_that_of_all() {
        let tariff = tariff(&[("m", None, 5), ("m", Some("cpu"), 7)]);
        let input_ns = |partition| tariff.price("m", partition).unwrap().map(|price| price.bands()[0].input_ns);
        assert_eq!((input_ns("cpu"), input_ns("upstream")), (Some(7), Some(5)));
        assert_eq!(tariff.price("other", "cpu").unwrap(), None);
        tariff.check().unwrap();
    }

    #[test]
    fn only_a_price_that_is_the_same_everywhere_is_known_without_the_partition() {
        let stated = [("m", None, 5), ("m", Some("cpu"), 7), ("same", None, 4), ("same", Some("cpu"), 4)];
        let known = tariff(&[&stated[..], &[("one", Some("upstream"), 3)]].concat()).prices_anywhere().unwrap();
        assert_eq!(known.iter().map(|(model, _)| model.as_str()).collect::<Vec<_>>(), ["same", "same", "one"]);
    }

    #[test]
    fn a_price_that_is_stated_twice_or_has_no_end_is_refused_by_name() {
        assert_eq!(tariff(&[("m", None, 1), ("m", None, 2)]).check(), Err(TariffError::Twice("m".into())));
        let mut endless = tariff(&[("m", None, 1)]);
        endless.prices[0].bands[0].below = Some(9);
        assert!(endless.check().unwrap_err().to_string().contains("`m`"));
        endless.version = "two words".into();
        assert_eq!(endless.check(), Err(TariffError::Version));
    }
}
