//! How usage is kept and priced, checked.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checked::{check_exists, count, period};
use super::{ConfigError, WrittenLedger};

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
    pub longest_park: Duration,
    /// Requests that wait for a limit to have room for them.
    pub max_waiting: usize,
    pub max_waiting_per_account: usize,
    pub longest_wait: Duration,
    pub overrun_percent: u32,
    /// By how much the wall clock may leap ahead before budgets are closed.
    pub largest_clock_leap: Duration,
    /// Reservations of other gateways that are remembered.
    pub max_remote_reservations: NonZeroUsize,
    /// `None`: prices are derived from the models' weights.
    pub tariff: Option<PathBuf>,
    /// Normalised GPU hours in an hour of what the models here run on.
    pub gpu_factor: f64,
}

pub(super) fn check_ledger(written: WrittenLedger) -> Result<LedgerConfig, ConfigError> {
    if let Some(file) = &written.tariff {
        check_exists("ledger.tariff", file, Path::is_file)?;
    }
    let gpu_factor = written.gpu_factor.unwrap_or(1.0);
    if !(gpu_factor > 0.0 && gpu_factor.is_finite()) {
        return Err(ConfigError::value("ledger.gpu_factor", format!("{gpu_factor} is no number above 0")));
    }
    Ok(LedgerConfig {
        time_zone: written.time_zone.unwrap_or_else(|| "UTC".to_owned()),
        sync_interval: period(written.sync_interval, Duration::from_millis(50)),
        retry_interval: period(written.retry_interval, Duration::from_secs(1)),
        longest_stall: period(written.longest_stall, Duration::from_secs(5)),
        max_backlog: count(written.max_backlog, 65_536),
        reserve_tokens: written.reserve_tokens.unwrap_or(const { NonZeroU32::new(64).unwrap() }),
        longest_park: period(written.longest_park, Duration::from_secs(60)),
        max_waiting: count(written.max_waiting, 256),
        max_waiting_per_account: count(written.max_waiting_per_account, 16),
        longest_wait: period(written.longest_wait, Duration::from_secs(5)),
        overrun_percent: written.overrun_percent.unwrap_or(25),
        largest_clock_leap: period(written.largest_clock_leap, Duration::from_secs(24 * 60 * 60)),
        max_remote_reservations: written
            .max_remote_reservations
            .unwrap_or(const { NonZeroUsize::new(65_536).unwrap() }),
        tariff: written.tariff,
        gpu_factor,
    })
}
