//! How usage is kept and priced: as it is written, and checked.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::checked::{check_exists, count, period};
use super::written::lay_over;
use super::{ConfigError, Period};

#[derive(Debug, Clone, PartialEq)]
pub struct LedgerConfig {
    /// Where days and months begin.
    pub time_zone: String,
    pub sync_interval: Duration,
    pub retry_interval: Duration,
    pub longest_stall: Duration,
    pub max_backlog: usize,
    /// Output tokens of an answer that are reserved at a time.
    pub reserve_tokens: NonZeroU32,
    /// Accounts whose answers are reserved whole, with those below them.
    pub reserve_whole: Vec<String>,
    pub longest_park: Duration,
    /// Requests that wait for a limit to have room for them.
    pub max_waiting: usize,
    pub max_waiting_per_account: usize,
    pub longest_wait: Duration,
    pub overrun_percent: u32,
    /// By how much the wall clock may leap ahead before budgets are closed.
    pub largest_clock_leap: Duration,
    /// How long a server may have been off without its clock being doubted when it starts.
    pub longest_absence: Duration,
    /// Reservations of other gateways that are remembered.
    pub max_remote_reservations: NonZeroUsize,
    /// `None`: prices are derived from the models' weights.
    pub tariff: Option<PathBuf>,
    /// Normalised GPU hours in an hour of what the models here run on.
    pub gpu_factor: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenLedger {
    /// Where days and months begin, like Europe/Paris.
    pub time_zone: Option<String>,
    /// Settlements are on the disk this long after they were made, many at once.
    pub sync_interval: Option<Period>,
    /// How often a disk that refused is tried again.
    pub retry_interval: Option<Period>,
    /// How long a stream of an account with a budget waits for it.
    pub longest_stall: Option<Period>,
    /// Records that may wait to be written; while there are more, nothing is admitted.
    pub max_backlog: Option<NonZeroUsize>,
    /// Output tokens of an answer that are reserved at a time.
    pub reserve_tokens: Option<NonZeroU32>,
    /// Accounts whose answers are reserved whole instead, theirs and those of accounts below.
    pub reserve_whole: Option<Vec<String>>,
    /// How long a begun answer waits for its next part where a rate has no room or others hold the rest of a budget;
    /// then it ends.
    pub longest_park: Option<Period>,
    /// Requests that wait for a limit to have room for them, at the same time.
    pub max_waiting: Option<NonZeroUsize>,
    /// Of one account.
    pub max_waiting_per_account: Option<NonZeroUsize>,
    /// How long they wait; what would fit only later is refused at once.
    pub longest_wait: Option<Period>,
    /// How far a grant may be overrun, in hundredths of it.
    pub overrun_percent: Option<u32>,
    /// By how much the wall clock may leap ahead before budgets are closed.
    pub largest_clock_leap: Option<Period>,
    /// How long a server may have been off without its clock being doubted when it starts.
    pub longest_absence: Option<Period>,
    /// Reservations of other gateways that are remembered, so that what asks twice pays once.
    pub max_remote_reservations: Option<NonZeroUsize>,
    /// The published tariff. Default: prices that are derived from the models' weights.
    pub tariff: Option<PathBuf>,
    /// Normalised GPU hours in an hour of what the models here run on.
    pub gpu_factor: Option<f64>,
}
lay_over!(WrittenLedger {
    time_zone,
    sync_interval,
    retry_interval,
    longest_stall,
    max_backlog,
    reserve_tokens,
    reserve_whole,
    longest_park,
    max_waiting,
    max_waiting_per_account,
    longest_wait,
    overrun_percent,
    largest_clock_leap,
    longest_absence,
    max_remote_reservations,
    tariff,
    gpu_factor,
});

/// Whether time can be normalised by it.
pub(super) fn is_factor(factor: f64) -> bool {
    factor > 0.0 && factor.is_finite()
}

pub(super) fn check_ledger(written: WrittenLedger) -> Result<LedgerConfig, ConfigError> {
    if let Some(file) = &written.tariff {
        check_exists("ledger.tariff", file, Path::is_file)?;
    }
    let gpu_factor = written.gpu_factor.unwrap_or(1.0);
    if !is_factor(gpu_factor) {
        return Err(ConfigError::value("ledger.gpu_factor", format!("{gpu_factor} is no number above 0")));
    }
    Ok(LedgerConfig {
        time_zone: written.time_zone.unwrap_or_else(|| "UTC".to_owned()),
        sync_interval: period(written.sync_interval, Duration::from_millis(50)),
        retry_interval: period(written.retry_interval, Duration::from_secs(1)),
        longest_stall: period(written.longest_stall, Duration::from_secs(5)),
        max_backlog: count(written.max_backlog, 65_536),
        reserve_tokens: written.reserve_tokens.unwrap_or(const { NonZeroU32::new(64).unwrap() }),
        reserve_whole: written.reserve_whole.unwrap_or_default(),
        longest_park: period(written.longest_park, Duration::from_secs(60)),
        max_waiting: count(written.max_waiting, 256),
        max_waiting_per_account: count(written.max_waiting_per_account, 16),
        longest_wait: period(written.longest_wait, Duration::from_secs(5)),
        overrun_percent: written.overrun_percent.unwrap_or(25),
        largest_clock_leap: period(written.largest_clock_leap, Duration::from_secs(24 * 60 * 60)),
        longest_absence: period(written.longest_absence, Duration::from_secs(90 * 24 * 60 * 60)),
        max_remote_reservations: written
            .max_remote_reservations
            .unwrap_or(const { NonZeroUsize::new(65_536).unwrap() }),
        tariff: written.tariff,
        gpu_factor,
    })
}
