//! Limits as options.

use std::num::NonZeroU64;

use anyhow::{Context, Result, bail};
use clap::Args;
use passerelle::gateway::quota::{Bound, Calendar, LimitError, Period, Unit, UnixSeconds, WrittenLimit};
use passerelle::gateway::{Limit, Quota};
use passerelle_engine::clock::{Clock, SystemClock};

use super::numbers::{count, number};

/// The limits that most accounts have. `passerelle quota set` knows all of them.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Requests that may be started per minute.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, allow_negative_numbers = true)]
    requests_per_minute: Option<NonZeroU64>,
    /// Tokens, prompt and answer, that may be used per minute.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, allow_negative_numbers = true)]
    tokens_per_minute: Option<NonZeroU64>,
    /// Requests that may run at once.
    #[arg(long, value_name = "N", value_parser = count::<NonZeroU64>, allow_negative_numbers = true)]
    concurrent_requests: Option<NonZeroU64>,
    /// Normalised GPU hours that are granted; the published tariff says what a token takes of them.
    #[arg(long, value_name = "HOURS", requires = "until", value_parser = number, allow_negative_numbers = true)]
    gpu_hours: Option<f64>,
    #[command(flatten)]
    dates: GrantDates,
}

/// When a grant begins and ends.
#[derive(Debug, Args)]
pub(super) struct GrantDates {
    /// The first day of the grant [default: it has begun].
    #[arg(long, value_name = "DATE")]
    from: Option<String>,
    /// The day on which the grant is over, at its first instant.
    #[arg(long, value_name = "DATE")]
    until: Option<String>,
}

const SECONDS_PER_HOUR: f64 = 3600.0;

impl LimitArgs {
    pub(super) fn quota(&self, calendar: &Calendar) -> Result<Quota> {
        let limits = [
            self.requests_per_minute.map(Limit::requests_per_minute),
            self.tokens_per_minute.map(Limit::tokens_per_minute),
            self.concurrent_requests.map(Limit::concurrent_requests),
            self.grant(calendar)?,
        ];
        Ok(Quota::new(limits.into_iter().flatten().collect())?)
    }

    fn grant(&self, calendar: &Calendar) -> Result<Option<Limit>> {
        let dates = self.dates.instants(calendar)?;
        let Some(hours) = self.gpu_hours else {
            return if dates == (None, None) { Ok(None) } else { bail!("--from and --until go with --gpu-hours") };
        };
        let (from, until) = dates;
        Ok(Some(gpu_grant(hours, from.unwrap_or_default(), until.context("--gpu-hours needs --until")?)?))
    }
}

impl GrantDates {
    pub(super) fn instants(&self, calendar: &Calendar) -> Result<(Option<UnixSeconds>, Option<UnixSeconds>)> {
        let instant = |date: &Option<String>| date.as_deref().map(|date| calendar.start_of(date)).transpose();
        let (from, until) = (instant(&self.from)?, instant(&self.until)?);
        if let Some(until) = until.filter(|until| *until <= UnixSeconds::of(SystemClock::new().wall())) {
            bail!("--until: {} is past, so that nothing would be granted", calendar.show(until));
        }
        Ok((from, until))
    }
}

fn gpu_grant(hours: f64, from: UnixSeconds, until: UnixSeconds) -> Result<Limit, LimitError> {
    let period = Period::Grant { from, until };
    let bound = Bound::Budget { unit: Unit::GpuMicros, amount: NonZeroU64::MIN, period };
    let written = WrittenLimit { value: hours * SECONDS_PER_HOUR, ..Limit::of(bound).into() };
    written.try_into()
}
