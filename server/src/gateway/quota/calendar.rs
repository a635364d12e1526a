//! Days and months in the time zone that the configuration names. The zones are compiled in: no file of the machine and
//! no environment variable changes where a day begins.

use std::fmt;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};
use serde::{Deserialize, Serialize};

use super::Period;

/// Wall time, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

#[derive(Debug, Clone)]
pub struct Calendar {
    zone: TimeZone,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CalendarError {
    #[error("'{0}' is no time zone; write one like Europe/Paris or UTC")]
    UnknownZone(String),
    #[error("'{0}' is no date; write one like 2026-12-31")]
    BadDate(String),
}

impl UnixSeconds {
    pub fn of(wall: Duration) -> Self {
        Self(wall.as_secs())
    }

    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span.as_secs()))
    }
}

/// In universal time, whatever the calendar.
impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match i64::try_from(self.0).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()) {
            Some(instant) => write!(f, "{instant}"),
            None => f.write_str("never"),
        }
    }
}

impl Calendar {
    pub fn utc() -> Self {
        Self { zone: TimeZone::UTC }
    }

    pub fn in_zone(name: &str) -> Result<Self, CalendarError> {
        let zone = TimeZone::get(name).map_err(|_| CalendarError::UnknownZone(name.to_owned()))?;
        Ok(Self { zone })
    }

    /// As the configuration names it.
    pub fn zone(&self) -> &str {
        self.zone.iana_name().unwrap_or("UTC")
    }

    /// Start and end of the period that holds `now`; of a grant, its own.
    pub fn window(&self, period: Period, now: UnixSeconds) -> (UnixSeconds, UnixSeconds) {
        let (start, days, months) = match period {
            Period::Grant { from, until } => return (from, until),
            Period::Day => (self.midnight(now, false), 1, 0),
            Period::Month => (self.midnight(now, true), 0, 1),
        };
        let Some(start) = start else { return (UnixSeconds(0), UnixSeconds(u64::MAX)) };
        let end = start.checked_add(days.days().months(months)).ok().and_then(|end| end.start_of_day().ok());
        (seconds(&start), end.as_ref().map_or(UnixSeconds(u64::MAX), seconds))
    }

    /// The instant at which that date begins here.
    pub fn start_of(&self, date: &str) -> Result<UnixSeconds, CalendarError> {
        let bad = || CalendarError::BadDate(date.to_owned());
        let date: jiff::civil::Date = date.parse().map_err(|_| bad())?;
        date.to_zoned(self.zone.clone()).map(|zoned| seconds(&zoned)).map_err(|_| bad())
    }

    /// `2026-12-31`, and with a time of day where it is not midnight.
    pub fn show(&self, instant: UnixSeconds) -> String {
        let Some(zoned) = self.at(instant) else { return "never".to_owned() };
        let format = if zoned.time() == jiff::civil::Time::midnight() { "%Y-%m-%d" } else { "%Y-%m-%d %H:%M:%S" };
        zoned.strftime(format).to_string()
    }

    fn midnight(&self, now: UnixSeconds, of_month: bool) -> Option<Zoned> {
        let zoned = self.at(now)?;
        let day = if of_month { zoned.first_of_month().ok()? } else { zoned };
        day.start_of_day().ok()
    }

    /// `None` past the years that calendars know.
    fn at(&self, instant: UnixSeconds) -> Option<Zoned> {
        let timestamp = Timestamp::from_second(i64::try_from(instant.0).ok()?).ok()?;
        Some(timestamp.to_zoned(self.zone.clone()))
    }
}

fn seconds(zoned: &Zoned) -> UnixSeconds {
    UnixSeconds(u64::try_from(zoned.timestamp().as_second()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_the_hours_that_it_has_where_the_clock_changes() {
        let paris = Calendar::in_zone("Europe/Paris").unwrap();
        for (date, hours) in [("2026-03-28", 24), ("2026-03-29", 23), ("2026-10-25", 25)] {
            let start = paris.start_of(date).unwrap();
            let (first, end) = paris.window(Period::Day, UnixSeconds(start.0 + 7 * 3600));
            assert_eq!((first, end.since(start)), (start, Duration::from_secs(hours * 3600)), "{date}");
        }
    }

    #[test]
    fn a_month_begins_and_ends_at_local_midnight() {
        let paris = Calendar::in_zone("Europe/Paris").unwrap();
        let (start, end) = paris.window(Period::Month, paris.start_of("2026-02-28").unwrap());
        assert_eq!((paris.show(start), paris.show(end)), ("2026-02-01".to_owned(), "2026-03-01".to_owned()));
        let utc = Calendar::utc().window(Period::Month, start);
        assert_eq!(Calendar::utc().show(utc.0), "2026-01-01", "an hour earlier it is still January there");
    }

    #[test]
    fn what_is_no_zone_and_no_date_is_said() {
        assert!(Calendar::in_zone("Europe/Atlantis").is_err());
        assert!(Calendar::utc().start_of("2026-02-30").is_err() && Calendar::utc().start_of("soon").is_err());
        let (start, end) = Calendar::utc().window(Period::Day, UnixSeconds(u64::MAX));
        assert!(start < end);
    }
}
