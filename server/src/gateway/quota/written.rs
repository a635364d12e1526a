//! A limit as files, commands and the administration's JSON write it: flat, with GPU time in seconds.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use super::{Bound, Calendar, Enforcement, Limit, LimitName, Period, PeriodName, Unit, UnixSeconds};

/// `{"limit": "gpu_seconds_granted", "value": 18000000, "from": 1767225600, "until": 1798761600}`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenLimit {
    pub limit: String,
    /// A whole number above 0; of GPU seconds, down to the microsecond.
    pub value: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Of a grant, in seconds since 1970. Default: it began long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum LimitError {
    #[error("{0}")]
    Name(String),
    #[error("{0} needs a whole number above 0, not {1}")]
    Value(LimitName, f64),
    #[error("{0} is a grant: say when it ends (`until`)")]
    NoEnd(LimitName),
    #[error("{0} ends before it begins")]
    EndsFirst(LimitName),
    #[error("only a grant begins and ends; {0} does not")]
    Dated(LimitName),
}

const MICROS: f64 = 1e6;
/// The largest whole number up to which a float holds every one.
const LARGEST: f64 = 9_007_199_254_740_992.0;

impl TryFrom<WrittenLimit> for Limit {
    type Error = LimitError;

    fn try_from(written: WrittenLimit) -> Result<Self, LimitError> {
        let name: LimitName = written.limit.parse().map_err(LimitError::Name)?;
        let value = count(name, written.value)?;
        let bound = match name {
            LimitName::Rate(unit) => Bound::Rate { unit, per_minute: value },
            LimitName::Budget(unit, period) => {
                Bound::Budget { unit, amount: value, period: written.period(name, period)? }
            }
            LimitName::ConcurrentRequests => Bound::ConcurrentRequests(value),
            LimitName::QueuedRequests => Bound::QueuedRequests(value),
            LimitName::BatchTokens => Bound::BatchTokens(value),
            LimitName::ContextTokens => Bound::ContextTokens(value),
        };
        let is_grant = matches!(name, LimitName::Budget(_, PeriodName::Grant));
        if !is_grant && (written.from.is_some() || written.until.is_some()) {
            return Err(LimitError::Dated(name));
        }
        let enforcement = if written.dry_run { Enforcement::DryRun } else { Enforcement::Refuse };
        Ok(Self { bound, model: written.model.map(Into::into), enforcement })
    }
}

impl WrittenLimit {
    fn period(&self, name: LimitName, period: PeriodName) -> Result<Period, LimitError> {
        match period {
            PeriodName::Day => Ok(Period::Day),
            PeriodName::Month => Ok(Period::Month),
            PeriodName::Grant => {
                let until = self.until.ok_or(LimitError::NoEnd(name))?;
                let from = self.from.unwrap_or(0);
                if until <= from {
                    return Err(LimitError::EndsFirst(name));
                }
                Ok(Period::Grant { from: UnixSeconds(from), until: UnixSeconds(until) })
            }
        }
    }
}

impl From<Limit> for WrittenLimit {
    fn from(limit: Limit) -> Self {
        let (from, until) = match limit.bound {
            Bound::Budget { period: Period::Grant { from, until }, .. } => (Some(from.0), Some(until.0)),
            _ => (None, None),
        };
        Self {
            limit: limit.name().to_string(),
            value: number(limit.name(), limit.value().get()),
            model: limit.model.as_deref().map(str::to_owned),
            from: from.filter(|from| *from > 0),
            until,
            dry_run: limit.enforcement == Enforcement::DryRun,
        }
    }
}

impl Limit {
    /// `gpu_seconds_granted 18000000.000 s until 2027-01-01`
    pub fn shown(&self, calendar: &Calendar) -> String {
        let mut text = format!("{} {}", self.name(), self.name().shown(self.value().get()));
        if let Bound::Budget { period: Period::Grant { from, until }, .. } = self.bound {
            if from > UnixSeconds(0) {
                text += &format!(" from {}", calendar.show(from));
            }
            text += &format!(" until {}", calendar.show(until));
        }
        if let Some(model) = &self.model {
            text += &format!(" for {model}");
        }
        if self.enforcement == Enforcement::DryRun {
            text += " (on trial)";
        }
        text
    }
}

/// A counted amount as people read it.
pub(super) fn number(name: LimitName, amount: u64) -> f64 {
    if name.unit() == Some(Unit::GpuMicros) { amount as f64 / MICROS } else { amount as f64 }
}

fn count(name: LimitName, value: f64) -> Result<NonZeroU64, LimitError> {
    let scaled = if name.unit() == Some(Unit::GpuMicros) { (value * MICROS).round() } else { value };
    let is_count = (1.0..=LARGEST).contains(&scaled) && scaled.fract() == 0.0;
    NonZeroU64::new(scaled as u64).filter(|_| is_count).ok_or(LimitError::Value(name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Limit, String> {
        let written: WrittenLimit = serde_json::from_str(text).map_err(|error| error.to_string())?;
        Limit::try_from(written).map_err(|error| error.to_string())
    }

    #[test]
    fn what_makes_no_limit_is_refused_with_its_reason() {
        let cases = [
            (r#"{"limit":"tokens","value":1}"#, "is no limit; there are"),
            (r#"{"limit":"tokens_per_dya","value":1}"#, "did you mean 'tokens_per_day'?"),
            (r#"{"limit":"tokens_per_day","value":1.5}"#, "a whole number above 0, not 1.5"),
            (r#"{"limit":"tokens_per_day","value":-1}"#, "a whole number above 0"),
            (r#"{"limit":"tokens_per_day","value":1e300}"#, "a whole number above 0"),
            (r#"{"limit":"gpu_seconds_granted","value":10}"#, "say when it ends"),
            (r#"{"limit":"gpu_seconds_granted","value":10,"from":9,"until":9}"#, "ends before it begins"),
            (r#"{"limit":"tokens_per_day","value":10,"until":9}"#, "only a grant"),
            (r#"{"limit":"tokens_per_day","value":10,"moddel":"x"}"#, "unknown field"),
        ];
        for (text, reason) in cases {
            let error = read(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn gpu_time_is_written_in_seconds_and_counted_in_microseconds() {
        let limit = read(r#"{"limit":"gpu_seconds_per_day","value":0.25}"#).unwrap();
        assert_eq!(limit.value().get(), 250_000);
        assert_eq!(WrittenLimit::from(limit).value, 0.25);
    }
}
