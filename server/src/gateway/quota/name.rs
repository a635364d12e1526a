//! The stable names of limits, as refusals, metrics, files and commands spell them.

use std::fmt;
use std::str::FromStr;

use super::{Period, Unit};
use crate::spelling::nearest;

/// The kind of a limit: what is counted, over which time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitName {
    Rate(Unit),
    Budget(Unit, PeriodName),
    ConcurrentRequests,
    QueuedRequests,
    BatchTokens,
    ContextTokens,
}

/// A [`Period`] without its dates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PeriodName {
    Day,
    Month,
    Grant,
}

const UNITS: [Unit; 5] = [Unit::Requests, Unit::InputTokens, Unit::OutputTokens, Unit::Tokens, Unit::GpuMicros];

impl LimitName {
    pub const COUNT: usize = 4 * UNITS.len() + 4;

    pub fn all() -> impl Iterator<Item = Self> {
        let rates = UNITS.into_iter().map(Self::Rate);
        let periods = [PeriodName::Day, PeriodName::Month, PeriodName::Grant];
        let budgets = periods.into_iter().flat_map(|period| UNITS.into_iter().map(move |u| Self::Budget(u, period)));
        let held = [Self::ConcurrentRequests, Self::QueuedRequests, Self::BatchTokens];
        rates.chain(budgets).chain(held).chain([Self::ContextTokens])
    }

    #[rustfmt::skip]
    pub fn as_str(self) -> &'static str {
        use PeriodName::{Day, Grant, Month};
        use Unit::{GpuMicros, InputTokens, OutputTokens, Requests, Tokens};
        match self {
            Self::Rate(Requests)             => "requests_per_minute",
            Self::Rate(InputTokens)          => "input_tokens_per_minute",
            Self::Rate(OutputTokens)         => "output_tokens_per_minute",
            Self::Rate(Tokens)               => "tokens_per_minute",
            Self::Rate(GpuMicros)            => "gpu_seconds_per_minute",
            Self::Budget(Requests, Day)      => "requests_per_day",
            Self::Budget(InputTokens, Day)   => "input_tokens_per_day",
            Self::Budget(OutputTokens, Day)  => "output_tokens_per_day",
            Self::Budget(Tokens, Day)        => "tokens_per_day",
            Self::Budget(GpuMicros, Day)     => "gpu_seconds_per_day",
            Self::Budget(Requests, Month)     => "requests_per_month",
            Self::Budget(InputTokens, Month)  => "input_tokens_per_month",
            Self::Budget(OutputTokens, Month) => "output_tokens_per_month",
            Self::Budget(Tokens, Month)       => "tokens_per_month",
            Self::Budget(GpuMicros, Month)    => "gpu_seconds_per_month",
            Self::Budget(Requests, Grant)     => "requests_granted",
            Self::Budget(InputTokens, Grant)  => "input_tokens_granted",
            Self::Budget(OutputTokens, Grant) => "output_tokens_granted",
            Self::Budget(Tokens, Grant)       => "tokens_granted",
            Self::Budget(GpuMicros, Grant)    => "gpu_seconds_granted",
            Self::ConcurrentRequests         => "concurrent_requests",
            Self::QueuedRequests             => "queued_requests",
            Self::BatchTokens                => "batch_tokens",
            Self::ContextTokens              => "context_tokens",
        }
    }

    /// How a value of this limit is written: GPU time in seconds, the rest as it is counted.
    pub fn shown(self, value: u64) -> String {
        match self.unit() {
            Some(Unit::GpuMicros) => format!("{:.3} s", value as f64 / 1e6),
            _ => value.to_string(),
        }
    }

    /// The same as a number: GPU time in seconds.
    pub fn number(self, value: u64) -> f64 {
        super::written::number(self, value)
    }

    /// The time over which it counts. `None`: it counts what is held now, or one request.
    pub fn window(self) -> Option<&'static str> {
        match self {
            Self::Rate(_) => Some("minute"),
            Self::Budget(_, PeriodName::Day) => Some("day"),
            Self::Budget(_, PeriodName::Month) => Some("month"),
            Self::Budget(_, PeriodName::Grant) => Some("grant"),
            Self::ConcurrentRequests | Self::QueuedRequests | Self::BatchTokens | Self::ContextTokens => None,
        }
    }

    /// Refilled evenly, so that what does not fit now fits a moment later.
    pub fn is_rate(self) -> bool {
        matches!(self, Self::Rate(_))
    }

    /// Counts what is held now, of which some comes free whenever a request ends.
    pub fn is_held(self) -> bool {
        matches!(self, Self::ConcurrentRequests | Self::BatchTokens)
    }

    /// Counts requests, whatever they ask for.
    pub fn counts_requests(self) -> bool {
        matches!(self, Self::ConcurrentRequests | Self::QueuedRequests) || self.unit() == Some(Unit::Requests)
    }

    /// Whether what a request asks of it grows with its prompt.
    pub fn counts_prompts(self) -> bool {
        match self {
            Self::Rate(unit) | Self::Budget(unit, _) => !matches!(unit, Unit::Requests | Unit::OutputTokens),
            Self::BatchTokens | Self::ContextTokens => true,
            Self::ConcurrentRequests | Self::QueuedRequests => false,
        }
    }

    pub(super) fn unit(self) -> Option<Unit> {
        match self {
            Self::Rate(unit) | Self::Budget(unit, _) => Some(unit),
            Self::ConcurrentRequests | Self::QueuedRequests | Self::BatchTokens | Self::ContextTokens => None,
        }
    }
}

impl Period {
    pub fn name(self) -> PeriodName {
        match self {
            Self::Day => PeriodName::Day,
            Self::Month => PeriodName::Month,
            Self::Grant { .. } => PeriodName::Grant,
        }
    }
}

impl fmt::Display for LimitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LimitName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || match nearest(text, Self::all().map(Self::as_str)) {
            Some(known) => format!("'{text}' is no limit; did you mean '{known}'?"),
            None => {
                let names: Vec<_> = Self::all().map(Self::as_str).collect();
                format!("'{text}' is no limit; there are {}", names.join(", "))
            }
        };
        Self::all().find(|name| name.as_str() == text).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_of_limits_on_tokens_and_time_grows_with_the_prompt() {
        let counts = |name: &str| name.parse::<LimitName>().unwrap().counts_prompts();
        for name in ["tokens_per_minute", "input_tokens_per_day", "gpu_seconds_granted", "batch_tokens"] {
            assert!(counts(name), "{name}");
        }
        for name in ["requests_per_day", "output_tokens_per_minute", "concurrent_requests", "queued_requests"] {
            assert!(!counts(name), "{name}");
        }
    }

    #[test]
    fn every_name_is_listed_once_and_reads_back() {
        let names: std::collections::BTreeSet<_> = LimitName::all().map(LimitName::as_str).collect();
        assert_eq!((names.len(), LimitName::all().count()), (LimitName::COUNT, LimitName::COUNT));
        assert!(LimitName::all().all(|name| name.as_str().parse() == Ok(name)));
        let error = "tokens_per_hour".parse::<LimitName>().unwrap_err();
        assert!(error.contains("tokens_per_day"), "{error}");
    }
}
