//! A tariff from what was measured.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use passerelle::gateway::quota::{Calendar, CalendarError};
use passerelle::gateway::tariff::{Band, Cards, WrittenPrice, WrittenTariff};

use super::Report;
use super::measure::{Measured, Workload};
use crate::cli::numbers::count;

/// As it is dated.
const CARDS: &str = include_str!("../../../../configs/tariffs/cards.toml");

/// Which tariff.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tariff")]
pub(super) struct TariffArgs {
    /// Print a tariff of this date, by what the largest batch took, for `ledger.tariff` (with --json for scripts). The batch,
    /// the prompt and the answer are its reference load.
    #[arg(long, value_name = "DATE", value_parser = dated)]
    pub(super) tariff: Option<String>,
    /// The card that this runs on, as configs/tariffs/cards.toml lists it.
    #[arg(long, value_name = "NAME", requires = "tariff")]
    card: Option<String>,
    /// The MIG slice of the card, like 2g.10gb.
    #[arg(long, value_name = "SLICE", requires = "card")]
    slice: Option<String>,
    /// Lengths of context at which another price begins; each band is measured behind so many tokens [default: 8192, or
    /// half of what the model takes].
    #[arg(
        long, value_name = "TOKENS,...", value_delimiter = ',', requires = "tariff",
        value_parser = count::<NonZeroUsize>
    )]
    bands: Option<Vec<NonZeroUsize>>,
    /// Normalised GPU hours in an hour of what this runs on, where no card says it.
    #[arg(long, value_name = "FACTOR", requires = "tariff", conflicts_with = "card")]
    factor: Option<f64>,
}

/// What one batch took behind a context that was there already: prompts and answers, and the same once more, when the keys
/// and values of all of them were there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reference {
    /// Tokens of each sequence before what was measured.
    pub(super) behind: usize,
    pub(super) first: Measured,
    pub(super) again: Measured,
    /// Beyond `behind`.
    pub(super) load: Workload,
}

/// Before anything is measured: no server would take a tariff without a date.
fn dated(date: &str) -> Result<String, CalendarError> {
    Calendar::utc().start_of(date).map(|_| date.to_owned())
}

impl TariffArgs {
    /// Normalised GPU hours in an hour of this partition.
    pub(super) fn factor(&self) -> Result<f64> {
        match (&self.card, self.factor) {
            (Some(card), _) => Ok(toml::from_str::<Cards>(CARDS)?.factor(card, self.slice.as_deref())?),
            (None, Some(factor)) if factor > 0.0 && factor.is_finite() => Ok(factor),
            _ => None.context("what an hour of this counts for is missing; name a --card or state a --factor above 0"),
        }
    }

    /// Where bands begin, for a model that takes `longest` tokens: at nothing first.
    pub(super) fn band_starts(&self, longest: usize) -> Vec<usize> {
        const USUAL: usize = 8192;
        let stated = self.bands.as_ref().map(|bands| bands.iter().map(|start| start.get()).collect());
        let starts: BTreeSet<usize> = stated.unwrap_or_else(|| BTreeSet::from([USUAL.min(longest / 2)]));
        std::iter::once(0).chain(starts).collect()
    }

    /// `factor`: [`TariffArgs::factor`]. `taken`: for each band, in their order.
    pub(super) fn written(&self, report: &Report, taken: &[Reference], factor: f64) -> Result<WrittenTariff> {
        let date = self.tariff.clone().unwrap_or_default();
        let Report { model, dtype, threads, kernels, .. } = report;
        let Workload { batch, prompt_tokens, generate_tokens } = taken.first().context("a tariff has a band")?.load;
        let ends = taken.iter().skip(1).map(|next| u32::try_from(next.behind).ok()).chain([None]);
        let bands: Vec<Band> =
            taken.iter().zip(ends).map(|(band, below)| Band { below, ..band.band(factor) }).collect();
        let reference = format!(
            "{batch} sequences at once, {prompt_tokens} prompt and {generate_tokens} generated tokens each at the beginning of \
             each band; weights {dtype}, {threads} threads, {kernels} kernels; an hour of it is {factor} normalised GPU hours"
        );
        let prices = vec![WrittenPrice { model: model.clone(), partition: None, bands }];
        Ok(WrittenTariff { version: date.clone(), since: date, reference, prices })
    }
}

impl Reference {
    fn band(self, factor: f64) -> Band {
        let ns = |time: Duration, tokens: usize| {
            (time.as_nanos() as f64 * factor / tokens.max(1) as f64).ceil().max(1.0) as u64
        };
        let Self { behind, first, again, load } = self;
        Band {
            below: None,
            input_ns: ns(first.prefill_time, first.prefill_tokens),
            cached_ns: ns(again.prefill_time, load.batch * (behind + load.prompt_tokens)),
            output_ns: ns(first.decode_time, first.decode_tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_costs_its_part_of_what_the_batch_took() {
        let first = Measured {
            prefill_tokens: 100,
            prefill_time: Duration::from_micros(50),
            decode_tokens: 10,
            decode_steps: 5,
            decode_time: Duration::from_micros(20),
            ..Measured::default()
        };
        let again = Measured { prefill_tokens: 4, prefill_time: Duration::from_micros(5), ..first };
        let load = Workload { batch: 5, prompt_tokens: 20, generate_tokens: 2 };
        let band = Reference { behind: 0, first, again, load }.band(2.0);
        assert_eq!((band.input_ns, band.cached_ns, band.output_ns), (1000, 100, 4000));
        let behind = Reference { behind: 80, first, again, load }.band(2.0);
        assert_eq!(behind.cached_ns, 20, "the time is that of the context's tokens too");
    }

    #[test]
    fn bands_begin_at_nothing_and_go_no_further_than_the_model() {
        let args = |bands: Option<&[usize]>| TariffArgs {
            tariff: None,
            card: None,
            slice: None,
            factor: None,
            bands: bands.map(|bands| bands.iter().filter_map(|start| NonZeroUsize::new(*start)).collect()),
        };
        assert_eq!(args(None).band_starts(32_768), [0, 8192]);
        assert_eq!(args(None).band_starts(2048), [0, 1024]);
        assert_eq!(args(Some(&[4096, 512])).band_starts(32_768), [0, 512, 4096]);
    }

    #[test]
    fn a_tariff_without_a_date_is_refused_before_anything_is_measured() {
        assert_eq!(dated("2026-12-31").as_deref(), Ok("2026-12-31"));
        assert_eq!(dated("soon"), Err(CalendarError::BadDate("soon".to_owned())));
    }

    #[test]
    fn the_published_table_of_cards_is_well_formed() {
        let cards: Cards = toml::from_str(CARDS).expect("configs/tariffs/cards.toml is well formed");
        assert_eq!(cards.factor("a100", Some("7g")), cards.factor("a100", None));
    }
}
