//! Why a request was not admitted, and when it would be.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::gateway::account::AccountPath;
use crate::gateway::quota::{LimitName, Unit, UnixSeconds};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub limit: LimitName,
    /// The node that the limit stands on.
    pub scope: AccountPath,
    /// `None`: the limit is for all models together.
    pub model: Option<Arc<str>>,
    pub limit_value: u64,
    /// How much of the limit is taken now.
    pub current_value: u64,
    /// How much this request asked of it.
    pub asked: u64,
    /// Start and end of a budget's window.
    pub window: Option<(UnixSeconds, UnixSeconds)>,
    pub retry: Retry,
}

/// Ordered by how long it is kept out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// For rates and budgets: the first instant, from now, at which this ask would fit, once those who wait in line before
    /// it have had what they ask. For concurrent requests and batch tokens, whose end nobody knows, and for a budget that
    /// has room but for what requests that run hold: the mean time after which so much comes free, as this account's
    /// requests went so far.
    After(Duration),
    /// A grant is used up or over.
    Spent,
    /// The ask is larger than the limit.
    Never,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, scope, limit_value, current_value, asked, .. } = self;
        let [value, current, asked] = [limit_value, current_value, asked].map(|amount| limit.shown(*amount));
        write!(f, "the limit {limit} of '{scope}'")?;
        if let Some(model) = &self.model {
            write!(f, " for '{model}'")?;
        }
        write!(f, " is {value}")?;
        if let Some((start, end)) = self.window {
            write!(f, " from {start} until {end}")?;
        }
        write!(f, ", of which {current} are in use; this request asks for {asked}")?;
        match self.retry {
            Retry::After(wait) => write!(f, " and would fit in {:.3} s", wait.as_secs_f64()),
            Retry::Spent => write!(f, ", and what was granted is used up or over"),
            Retry::Never => write!(f, ", which can never fit{}", what_fits(*limit)),
        }
    }
}

/// What to do about a request that is larger than a limit.
fn what_fits(limit: LimitName) -> &'static str {
    let (LimitName::Rate(unit) | LimitName::Budget(unit, _)) = limit else { return "" };
    match unit {
        Unit::Tokens => {
            "; what is read and the longest answer that it allows count together: allow a shorter one, or send less"
        }
        Unit::OutputTokens => "; allow a shorter answer",
        Unit::InputTokens => "; send less at once",
        Unit::Requests | Unit::GpuMicros => "",
    }
}

impl std::error::Error for Refusal {}
