//! What an account may use: pure arithmetic, no clock and no lock.
//!
//! A [`Limit`] is one rule on one node of the tree of accounts, for one model or for all. Its [`Bound`] says what is counted
//! and over which time:
//!
//! | bound | counted by | over |
//! | --- | --- | --- |
//! | rate | [`Gcra`] | a minute, refilled evenly |
//! | budget | [`Budget`] | a day or a month of the [`Calendar`], or a grant with start and end |
//! | concurrent requests, batch tokens | what is held now | |
//! | queued requests | who waits in the ledger's line | |
//! | context tokens | nothing: each request by itself | |
//!
//! Rates and budgets never stand in for each other: an evenly refilled budget could not be spent where it is needed, and
//! an accumulated rate would let a whole minute through at each full minute.

mod budget;
mod calendar;
mod gcra;
mod name;
mod written;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use budget::Budget;
pub use calendar::{Calendar, CalendarError, UnixSeconds};
pub use gcra::Gcra;
pub use name::{LimitName, PeriodName};
pub use written::{LimitError, WrittenLimit};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    Requests,
    /// Prompt tokens, cached ones included.
    InputTokens,
    /// Generated tokens.
    OutputTokens,
    /// Prompt and generated tokens together.
    Tokens,
    /// Normalised GPU time by the tariff, counted in microseconds; people write seconds.
    GpuMicros,
}

/// The time over which a budget is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    Day,
    Month,
    /// Given once. Nothing fits before `from`, nor at `until` and later.
    Grant {
        from: UnixSeconds,
        until: UnixSeconds,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Bound {
    Rate {
        unit: Unit,
        per_minute: NonZeroU64,
    },
    Budget {
        unit: Unit,
        amount: NonZeroU64,
        period: Period,
    },
    /// Requests that hold a reservation.
    ConcurrentRequests(NonZeroU64),
    /// Requests that wait for a limit to have room for them.
    QueuedRequests(NonZeroU64),
    /// Prompts and reserved answers of the requests in the class `batch` that hold a reservation.
    BatchTokens(NonZeroU64),
    /// Prompt and answer of one request.
    ContextTokens(NonZeroU64),
}

/// One rule. What is not stated is not limited.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "WrittenLimit", into = "WrittenLimit")]
pub struct Limit {
    pub bound: Bound,
    /// `None`: all models together.
    pub model: Option<Arc<str>>,
    pub enforcement: Enforcement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Enforcement {
    #[default]
    Refuse,
    /// On trial: counted beside what is enforced, and reported where it would have refused.
    DryRun,
}

/// The limits of one node: of a name and model at most one that is enforced, and one on trial.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Limit>", into = "Vec<Limit>")]
pub struct Quota {
    limits: Vec<Limit>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuotaError {
    #[error("the limit {0} is stated twice")]
    Duplicate(LimitName),
    #[error("there are {0} limits, the most that one account has")]
    TooMany(usize),
}

/// Hundredths of an amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Percent(pub u32);

impl Percent {
    pub const NONE: Self = Self(0);

    pub fn of(self, amount: u64) -> u64 {
        u64::try_from(u128::from(amount) * u128::from(self.0) / 100).unwrap_or(u64::MAX)
    }
}

/// Whether an ask fits a limit. Ordered by how long it is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fit {
    Now,
    /// The first instant, counted from now, at which this very ask would fit if nobody else asked.
    After(Duration),
    /// It would have fitted, but what was given is used up or over, and nothing comes after it.
    Spent,
    /// Larger than the limit itself.
    Never,
}

impl Limit {
    pub fn of(bound: Bound) -> Self {
        Self { bound, model: None, enforcement: Enforcement::Refuse }
    }

    pub fn requests_per_minute(n: impl Into<NonZeroU64>) -> Self {
        Self::of(Bound::Rate { unit: Unit::Requests, per_minute: n.into() })
    }

    /// Prompt and generated tokens together.
    pub fn tokens_per_minute(n: impl Into<NonZeroU64>) -> Self {
        Self::of(Bound::Rate { unit: Unit::Tokens, per_minute: n.into() })
    }

    pub fn concurrent_requests(n: impl Into<NonZeroU64>) -> Self {
        Self::of(Bound::ConcurrentRequests(n.into()))
    }

    pub fn name(&self) -> LimitName {
        self.bound.name()
    }

    pub fn value(&self) -> NonZeroU64 {
        match self.bound {
            Bound::Rate { per_minute: n, .. } | Bound::Budget { amount: n, .. } => n,
            Bound::ConcurrentRequests(n) | Bound::QueuedRequests(n) => n,
            Bound::BatchTokens(n) | Bound::ContextTokens(n) => n,
        }
    }

    /// Whether two limits are the same rule, perhaps of another value. One on trial is not the one that is enforced.
    pub fn is_same_rule(&self, other: &Self) -> bool {
        self.name() == other.name() && self.model == other.model && self.enforcement == other.enforcement
    }

    pub fn is_enforced(&self) -> bool {
        self.enforcement == Enforcement::Refuse
    }

    /// Whether it enforces just what `other` has on trial.
    fn ends_trial(&self, other: &Self) -> bool {
        self.is_enforced() && !other.is_enforced() && self.bound == other.bound && self.model == other.model
    }

    /// Whether an answer's length counts against it, so that it is asked again while an answer grows.
    pub fn counts_output(&self) -> bool {
        match self.bound {
            Bound::Rate { unit, .. } | Bound::Budget { unit, .. } => {
                matches!(unit, Unit::OutputTokens | Unit::Tokens | Unit::GpuMicros)
            }
            Bound::BatchTokens(_) => true,
            Bound::ConcurrentRequests(_) | Bound::QueuedRequests(_) | Bound::ContextTokens(_) => false,
        }
    }

    /// Whether it counts `unit` over some time.
    pub fn counts(&self, of: Unit) -> bool {
        matches!(self.bound, Bound::Rate { unit, .. } | Bound::Budget { unit, .. } if unit == of)
    }

    /// Whether requests share it, or each is looked at by itself.
    pub fn is_shared(&self) -> bool {
        !matches!(self.bound, Bound::ContextTokens(_))
    }

    pub fn is_budget(&self) -> bool {
        matches!(self.bound, Bound::Budget { .. })
    }

    pub fn covers(&self, model: Option<&str>) -> bool {
        self.model.as_deref().is_none_or(|limited| Some(limited) == model)
    }
}

impl Bound {
    pub fn name(&self) -> LimitName {
        match self {
            Self::Rate { unit, .. } => LimitName::Rate(*unit),
            Self::Budget { unit, period, .. } => LimitName::Budget(*unit, period.name()),
            Self::ConcurrentRequests(_) => LimitName::ConcurrentRequests,
            Self::QueuedRequests(_) => LimitName::QueuedRequests,
            Self::BatchTokens(_) => LimitName::BatchTokens,
            Self::ContextTokens(_) => LimitName::ContextTokens,
        }
    }
}

impl Quota {
    const MAX_LIMITS: usize = 64;

    pub fn new(limits: Vec<Limit>) -> Result<Self, QuotaError> {
        for (index, limit) in limits.iter().enumerate() {
            if limits[..index].iter().any(|earlier| earlier.is_same_rule(limit)) {
                return Err(QuotaError::Duplicate(limit.name()));
            }
        }
        if limits.len() > Self::MAX_LIMITS {
            return Err(QuotaError::TooMany(Self::MAX_LIMITS));
        }
        Ok(Self { limits })
    }

    pub fn unlimited() -> Self {
        Self::default()
    }

    pub fn limits(&self) -> &[Limit] {
        &self.limits
    }

    pub fn states(&self, rule: &Limit) -> bool {
        self.limits.iter().any(|limit| limit.is_same_rule(rule))
    }

    /// These limits with `limit` among them, in the place of an earlier one of the same rule, and of its own trial.
    pub fn with(mut self, limit: Limit) -> Result<Self, QuotaError> {
        self.limits.retain(|earlier| !earlier.is_same_rule(&limit) && !limit.ends_trial(earlier));
        self.limits.push(limit);
        Self::new(self.limits)
    }

    /// These limits without the rule of that name and model, which is enforced or on trial; `None` if there is none.
    pub fn without(mut self, name: LimitName, model: Option<&str>, enforcement: Enforcement) -> Option<Self> {
        let before = self.limits.len();
        let is_it =
            |limit: &Limit| limit.name() == name && limit.model.as_deref() == model && limit.enforcement == enforcement;
        self.limits.retain(|limit| !is_it(limit));
        (self.limits.len() < before).then_some(self)
    }
}

impl TryFrom<Vec<Limit>> for Quota {
    type Error = QuotaError;

    fn try_from(limits: Vec<Limit>) -> Result<Self, QuotaError> {
        Self::new(limits)
    }
}

impl From<Quota> for Vec<Limit> {
    fn from(quota: Quota) -> Self {
        quota.limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(value: u64) -> NonZeroU64 {
        NonZeroU64::new(value).unwrap()
    }

    #[test]
    fn a_quota_states_each_rule_once_and_survives_a_file() {
        let twice = vec![Limit::requests_per_minute(n(1)), Limit::requests_per_minute(n(2))];
        assert_eq!(Quota::new(twice), Err(QuotaError::Duplicate(LimitName::Rate(Unit::Requests))));
        let of_one_model = Limit { model: Some("demo".into()), ..Limit::requests_per_minute(n(2)) };
        let grant = Period::Grant { from: UnixSeconds(60), until: UnixSeconds(120) };
        let granted = Limit::of(Bound::Budget { unit: Unit::GpuMicros, amount: n(3_600_500_000), period: grant });
        let quota = Quota::new(vec![Limit::requests_per_minute(n(1)), of_one_model, granted]).unwrap();
        let text = serde_json::to_string(&quota).unwrap();
        let expected = r#"[{"limit":"requests_per_minute","value":1.0},{"limit":"requests_per_minute","value":2.0,"model":"demo"},{"limit":"gpu_seconds_granted","value":3600.5,"from":60,"until":120}]"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Quota>(&text).unwrap(), quota);
        assert!(serde_json::from_str::<Quota>(r#"[{"limit":"tokens_per_minute","value":0}]"#).is_err());
    }

    #[test]
    fn a_changed_limit_takes_the_place_of_the_earlier_one() {
        let quota = Quota::unlimited().with(Limit::tokens_per_minute(n(5))).unwrap();
        let quota = quota.with(Limit::tokens_per_minute(n(7))).unwrap();
        assert_eq!(quota.limits(), [Limit::tokens_per_minute(n(7))]);
        assert!(quota.clone().without(LimitName::Rate(Unit::Requests), None, Enforcement::Refuse).is_none());
        assert_eq!(quota.without(LimitName::Rate(Unit::Tokens), None, Enforcement::Refuse), Some(Quota::unlimited()));
    }

    #[test]
    fn a_limit_on_trial_stands_beside_the_enforced_one_until_it_is_enforced_itself() {
        let on_trial = |value| Limit { enforcement: Enforcement::DryRun, ..Limit::tokens_per_minute(n(value)) };
        let enforced = Quota::unlimited().with(Limit::tokens_per_minute(n(60))).unwrap();
        let both = enforced.clone().with(on_trial(20)).unwrap().with(on_trial(30)).unwrap();
        assert_eq!(both.limits(), [Limit::tokens_per_minute(n(60)), on_trial(30)]);
        let text = serde_json::to_string(&both).unwrap();
        assert_eq!(serde_json::from_str::<Quota>(&text).unwrap(), both);
        let raised = both.clone().with(Limit::tokens_per_minute(n(90))).unwrap();
        assert_eq!(raised.limits(), [on_trial(30), Limit::tokens_per_minute(n(90))]);
        let name = LimitName::Rate(Unit::Tokens);
        assert_eq!(both.clone().without(name, None, Enforcement::DryRun), Some(enforced));
        assert_eq!(both.with(Limit::tokens_per_minute(n(30))).unwrap().limits(), [Limit::tokens_per_minute(n(30))]);
    }
}
