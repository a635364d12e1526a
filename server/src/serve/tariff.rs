//! What tokens cost on this server: by the published file, or by what is derived where none is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use passerelle::config::{self, Config, HubConfig};
use passerelle::gateway::Tariff;
use passerelle::gateway::quota::{Calendar, UnixSeconds};
use passerelle::gateway::tariff::{DERIVED_TARIFF, Price, WrittenTariff};

use super::{engines, models};

/// The kind of partition that other servers are.
pub(super) const UPSTREAM: &str = "upstream";

/// What is served, and what is known of it.
pub(super) struct Served<'a> {
    /// The models here, with where these run and the prices that are derived from their weights.
    pub(super) here: Vec<(String, &'a str, Price)>,
    /// The models that only upstreams have.
    pub(super) elsewhere: &'a [&'a str],
}

/// What a configuration that is read again is held to.
pub(super) struct StartPrices {
    /// As it was read. `None`: what tokens cost is derived.
    pub(super) published: Option<WrittenTariff>,
    /// The kind of device of the server's own process, as in tariffs.
    pub(super) device: &'static str,
}

/// How models are priced that come while the server runs.
pub(super) enum Pricing {
    /// By their weights.
    Derived,
    /// As the file that was read at the start says; one that it does not price is not served.
    Published(WrittenTariff),
}

impl Pricing {
    /// `derived`: the price by weights.
    pub(super) fn price(&self, model: &str, partition: &str, derived: Price) -> Result<Price> {
        match self {
            Self::Derived => Ok(derived),
            Self::Published(written) => {
                written.price(model, partition)?.with_context(|| format!("ledger.tariff: no price on `{partition}`"))
            }
        }
    }

    pub(super) fn published(&self) -> Option<&WrittenTariff> {
        match self {
            Self::Derived => None,
            Self::Published(written) => Some(written),
        }
    }
}

/// A published tariff prices every model that is served, or the server does not start: nothing is free by an oversight.
/// Without one, a model that only upstreams have has no price: whoever is limited in GPU time is refused it.
pub(super) fn in_force(
    file: Option<&Path>,
    calendar: &Calendar,
    served: Served<'_>,
    now: UnixSeconds,
) -> Result<(Tariff, Pricing)> {
    let Some(file) = file else {
        served.elsewhere.iter().for_each(|model| warn_of(model));
        let prices = served.here.into_iter().map(|(name, _, price)| (name, price));
        return Ok((Tariff::new(DERIVED_TARIFF, prices), Pricing::Derived));
    };
    let here = served.here.iter().map(|(name, partition, _)| (name.as_str(), *partition));
    let (tariff, written) = published(file, calendar, here, served.elsewhere, now)?;
    tracing::info!(version = written.version, reference = written.reference, "what tokens cost is published");
    Ok((tariff, Pricing::Published(written)))
}

/// What a file publishes, with which a server starts that has these models here, each with where it runs, and those
/// elsewhere. Errors where it forgets one of them, or does not hold yet.
pub(super) fn published<'a>(
    file: &Path,
    calendar: &Calendar,
    here: impl Iterator<Item = (&'a str, &'a str)>,
    elsewhere: &[&'a str],
    now: UnixSeconds,
) -> Result<(Tariff, WrittenTariff)> {
    let named = || format!("ledger.tariff: {}", file.display());
    let written = begun(file, calendar, now)?;
    let elsewhere = elsewhere.iter().map(|name| (*name, UPSTREAM));
    let price = |(model, partition): (&str, &str)| -> Result<(String, Price)> {
        let price = written.price(model, partition).with_context(named)?;
        let none = || format!("{}: no price for `{model}` on `{partition}`", named());
        Ok((model.to_owned(), price.with_context(none)?))
    };
    let prices: Vec<_> = here.chain(elsewhere).map(price).collect::<Result<_>>()?;
    Ok((Tariff::new(&written.version, prices), written))
}

/// What is published; errors where it does not hold yet.
fn begun(file: &Path, calendar: &Calendar, now: UnixSeconds) -> Result<WrittenTariff> {
    let named = || format!("ledger.tariff: {}", file.display());
    let written = read(file)?;
    if calendar.start_of(&written.since).with_context(named)? > now {
        bail!("{}: tariff {} begins on {} only", named(), written.version, written.since);
    }
    Ok(written)
}

/// Said where nobody published what a model of other servers costs.
pub(super) fn warn_of(model: &str) {
    tracing::warn!(
        model,
        "no tariff prices this model, which only upstreams have: it costs no GPU time, and accounts with a limit of GPU time \
         are refused it (ledger.tariff states a price)"
    );
}

/// What a published tariff says of models wherever they run, for who has no server to ask where that is.
pub(super) fn wherever(file: &Path) -> Result<Tariff> {
    let written = read(file)?;
    Ok(Tariff::new(&written.version, written.prices_anywhere()?))
}

/// What is derived for a model of the configuration where no tariff is published, from its files and without loading it.
/// Nothing for another model. Nothing is fetched for that.
pub(super) fn derived(config: &Config, name: &str) -> Result<Tariff> {
    let hub = HubConfig { offline: true, ..config.hub.clone() };
    let model = config.models.iter().find(|model| model.name == name);
    let description = model.map(|model| models::describe(model, &hub)).transpose();
    let description = description.with_context(|| format!("model `{name}`"))?;
    let price = description.map(|is| (name.to_owned(), engines::price(is.model())));
    Ok(Tariff::new(DERIVED_TARIFF, price))
}

fn read(file: &Path) -> Result<WrittenTariff> {
    let named = || format!("ledger.tariff: {}", file.display());
    let text = fs::read_to_string(file).with_context(named)?;
    let written: WrittenTariff = config::parse(file, &text).context("ledger.tariff")?;
    written.check().with_context(named)?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "version = \"2026-12\"\nsince = \"2026-12-01\"\nreference = \"a test\"\n\
                        [[prices]]\nmodel = \"m\"\nbands = [{ input_ns = 5, cached_ns = 1, output_ns = 9 }]\n\
                        [[prices]]\nmodel = \"big\"\npartition = \"upstream\"\n\
                        bands = [{ below = 100, input_ns = 1, cached_ns = 1, output_ns = 1 },\n\
                        { input_ns = 2, cached_ns = 1, output_ns = 2 }]\n";
    /// The first of December 2026, and the second before.
    const BEGUN: UnixSeconds = UnixSeconds(1_796_083_200);
    const TOO_EARLY: UnixSeconds = UnixSeconds(BEGUN.0 - 1);

    fn in_force_at(now: UnixSeconds, here: &str, elsewhere: &[&str]) -> Result<Tariff> {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("tariff.toml");
        fs::write(&file, FILE).expect("the folder is writable");
        let here = vec![(here.to_owned(), "cpu", Price::flat(77, 77, 77))];
        in_force(Some(&file), &Calendar::utc(), Served { here, elsewhere }, now).map(|(tariff, _)| tariff)
    }

    #[test]
    fn a_published_tariff_prices_models_here_and_elsewhere() {
        let tariff = in_force_at(BEGUN, "m", &["big"]).expect("it has begun");
        assert_eq!(&*tariff.version, "2026-12");
        let input_ns = |model| tariff.price(model).map(|price| price.bands()[0].input_ns);
        assert_eq!((input_ns("m"), input_ns("big")), (Some(5), Some(1)));
    }

    #[test]
    fn one_that_has_not_begun_or_that_forgets_a_model_is_refused() {
        let refusal = |tariff: Result<Tariff>| format!("{:#}", tariff.expect_err("it must be refused"));
        assert!(refusal(in_force_at(TOO_EARLY, "m", &[])).contains("begins on 2026-12-01"));
        assert!(refusal(in_force_at(BEGUN, "m", &["m2"])).contains("no price for `m2` on `upstream`"));
        assert!(refusal(in_force_at(BEGUN, "big", &[])).contains("no price for `big` on `cpu`"));
    }
}
