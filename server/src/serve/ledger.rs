//! The ledger of a server that asks for keys: in its data directory, and owned by this process alone.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context, Result};
use passerelle::api::ServedModel;
use passerelle::config::{Config, ConfigError, LedgerConfig};
use passerelle::gateway::journal::{JournalConfig, JournalThread, LedgerStore, SqliteStore, UsageReader};
use passerelle::gateway::ledger::{ClockBounds, JournalParts, LineBounds, ModelFacts};
use passerelle::gateway::quota::{Calendar, Percent, UnixSeconds};
use passerelle::gateway::tariff::Hours;
use passerelle::gateway::{AccountPath, DataDir, Ledger, LedgerParts, PartBounds, Tariff};
use passerelle_engine::clock::Clock;

use super::tariff;

/// The right to the data directory, and to write the ledger in it. Dropped in this order: what was settled is on the
/// disk before another server may come.
#[derive(Debug)]
pub(super) struct LedgerKeeper {
    /// `None`: nothing is written, and yet nobody else may write.
    _thread: Option<JournalThread>,
    _lock: File,
}

/// Taken before any model is loaded.
#[derive(Debug)]
pub(super) struct LedgerLock {
    data: DataDir,
    lock: File,
}

/// What an open server and one that asks for keys have in common.
pub(super) struct LedgerBasis {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) tariff: Arc<Tariff>,
    pub(super) hours: Arc<Hours>,
}

impl LedgerLock {
    pub(super) fn take(config: &Config) -> Result<Self> {
        let data = DataDir::open(&config.server.data_dir)?;
        let lock = data.lock_for_serving()?;
        Ok(Self { data, lock })
    }

    /// Settles what an earlier process left open, and goes on from there.
    pub(super) fn open(
        self,
        basis: LedgerBasis,
        config: &LedgerConfig,
        models: BTreeMap<String, ModelFacts>,
    ) -> Result<(Ledger, LedgerKeeper)> {
        let LedgerBasis { clock, tariff, hours } = basis;
        let mut store = SqliteStore::open(&self.data, Arc::clone(&tariff))?;
        let (latest, clock_bounds) = (store.latest_instant()?, clock_bounds(config));
        let recovered = store.recover(clock_bounds.at_start(latest, UnixSeconds::of(clock.wall())))?;
        if recovered > 0 {
            tracing::warn!(recovered, "reservations of a process that died were settled at their last mark");
        }
        let (next_id, asked_before) = (store.next_id()?, store.asked_before(config.max_remote_reservations.get())?);
        let journal_config = JournalConfig {
            sync_interval: config.sync_interval,
            retry_interval: config.retry_interval,
            longest_stall: config.longest_stall,
            max_backlog: config.max_backlog,
        };
        let (thread, journal) =
            JournalThread::start(Box::new(store), journal_config).context("cannot start the ledger's threads")?;
        let binary = env!("CARGO_PKG_VERSION").into();
        let ledger = Ledger::new(LedgerParts {
            clock,
            calendar: calendar(config)?,
            tariff,
            spent: Box::new(UsageReader::open(&self.data)?),
            in_parts: in_parts(config),
            reserve_whole: reserve_whole(config)?,
            line: line(config),
            overrun: Percent(config.overrun_percent),
            clock_bounds,
            max_origins: config.max_remote_reservations,
            hours: Some(hours),
            journal: Some(JournalParts { journal, next_id, latest, asked_before, binary, models }),
        });
        Ok((ledger, LedgerKeeper { _thread: Some(thread), _lock: self.lock }))
    }

    /// The right alone, for a server that keeps no ledger.
    pub(super) fn leave_shut(self) -> LedgerKeeper {
        LedgerKeeper { _thread: None, _lock: self.lock }
    }
}

/// Of an open server, whose one account nobody bills.
pub(super) fn without_keeping(basis: LedgerBasis, config: &LedgerConfig) -> Result<Ledger> {
    let LedgerBasis { clock, tariff, hours } = basis;
    let (calendar, in_parts, line) = (calendar(config)?, in_parts(config), line(config));
    let hours = Some(hours);
    Ok(Ledger::new(LedgerParts { calendar, tariff, in_parts, line, hours, ..LedgerParts::without_past(clock) }))
}

/// What is left to whom by what was settled, where no server runs: to be asked about one model at most, and not to be
/// taken from. A tariff that cannot be read prices nothing, and keeps nobody from administering.
pub(crate) fn on_the_shelf(
    data: &DataDir,
    clock: Arc<dyn Clock>,
    config: &Config,
    model: Option<&str>,
) -> Result<Ledger> {
    let tariff = match (&config.ledger.tariff, model) {
        (Some(file), _) => tariff::wherever(file),
        (None, Some(model)) => tariff::derived(config, model),
        (None, None) => Ok(Tariff::free()),
    };
    let tariff = tariff.unwrap_or_else(|error| {
        tell!("passerelle: {error:#}");
        Tariff::free()
    });
    let config = &config.ledger;
    Ok(Ledger::new(LedgerParts {
        calendar: calendar(config)?,
        tariff: Arc::new(tariff),
        spent: Box::new(UsageReader::open(data)?),
        in_parts: in_parts(config),
        reserve_whole: reserve_whole(config)?,
        overrun: Percent(config.overrun_percent),
        ..LedgerParts::without_past(clock)
    }))
}

fn clock_bounds(config: &LedgerConfig) -> ClockBounds {
    ClockBounds { largest_leap: config.largest_clock_leap, longest_absence: config.longest_absence }
}

fn line(config: &LedgerConfig) -> LineBounds {
    LineBounds {
        max_waiting: config.max_waiting,
        max_waiting_per_account: config.max_waiting_per_account,
        longest_wait: config.longest_wait,
    }
}

fn in_parts(config: &LedgerConfig) -> PartBounds {
    PartBounds { tokens: config.reserve_tokens, longest_park: config.longest_park }
}

pub(super) fn reserve_whole(config: &LedgerConfig) -> Result<Vec<AccountPath>> {
    let named = |path: &String| path.parse::<AccountPath>().with_context(|| format!("ledger.reserve_whole: `{path}`"));
    config.reserve_whole.iter().map(named).collect()
}

pub(crate) fn calendar(config: &LedgerConfig) -> Result<Calendar, ConfigError> {
    let calendar = Calendar::in_zone(&config.time_zone);
    calendar.map_err(|error| ConfigError::value("ledger.time_zone", error.to_string()))
}

pub(super) fn facts(served: &[ServedModel], partition: &str) -> BTreeMap<String, ModelFacts> {
    let partition: Arc<str> = partition.into();
    let named = |model: &ServedModel| (model.name.clone(), facts_of(model, &partition));
    served.iter().map(named).collect()
}

/// What entries say of a model.
pub(super) fn facts_of(model: &ServedModel, partition: &Arc<str>) -> ModelFacts {
    ModelFacts { digest: model.digest.to_string().into(), partition: Arc::clone(partition) }
}
