//! The only reader of time in this crate.
//!
//! Monotonic time is the runtime's, so that a test with paused time sees the same clock as the code that it drives.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

pub fn now() -> Instant {
    Instant::now()
}

/// Wall time since the Unix epoch, for the dates of reports.
#[expect(clippy::disallowed_methods, reason = "this is the one place of the crate that reads the wall clock")]
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `2026-01-31T12:00:00Z`.
pub fn utc(since_epoch: Duration) -> String {
    const SECONDS_PER_DAY: u64 = 86_400;
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let of_day = seconds % SECONDS_PER_DAY;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", of_day / 3600, of_day % 3600 / 60, of_day % 60)
}

/// The Gregorian date of a day since 1970-01-01. Years are counted from March, so that the leap day ends a year.
fn civil_date(days: u64) -> (u64, u64, u64) {
    const DAYS_FROM_YEAR_0_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days + DAYS_FROM_YEAR_0_TO_1970;
    let (era, of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_the_calendar_date() {
        assert_eq!(utc(Duration::ZERO), "1970-01-01T00:00:00Z");
        assert_eq!(utc(Duration::from_secs(951_782_400)), "2000-02-29T00:00:00Z");
        assert_eq!(utc(Duration::from_secs(1_767_225_599)), "2025-12-31T23:59:59Z");
    }
}
