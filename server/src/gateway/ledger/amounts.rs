//! What a request asks of the limits on its path, and what it has used of them.

use std::sync::Arc;

use passerelle_engine::Usage;

use crate::gateway::quota::{Bound, Limit, Unit};
use crate::gateway::tariff::Tariff;

/// What a request might use at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `None`: a request in which no model runs.
    pub model: Option<Arc<str>>,
    pub prompt_tokens: u32,
    pub max_output_tokens: u32,
}

/// What is taken of each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amounts {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) gpu_micros: u64,
}

impl Ask {
    pub fn new(model: &str, prompt_tokens: u32, max_output_tokens: u32) -> Self {
        Self { model: Some(model.into()), prompt_tokens, max_output_tokens }
    }

    /// A request of the caller's in which no model runs.
    pub fn without_model() -> Self {
        Self { model: None, prompt_tokens: 0, max_output_tokens: 0 }
    }

    pub(super) fn amounts(&self, tariff: &Tariff) -> Amounts {
        let most =
            Usage { prompt_tokens: self.prompt_tokens, generated_tokens: self.max_output_tokens, ..Usage::default() };
        Amounts::of(self.model.as_deref(), most, tariff)
    }
}

impl Amounts {
    pub(super) fn of(model: Option<&str>, used: Usage, tariff: &Tariff) -> Self {
        Self {
            requests: 1,
            input_tokens: used.prompt_tokens.into(),
            output_tokens: used.generated_tokens.into(),
            gpu_micros: tariff.cost_micros(model, used),
        }
    }

    /// How much of `limit` this is.
    pub(super) fn of_limit(&self, limit: &Limit) -> u64 {
        let tokens = self.input_tokens.saturating_add(self.output_tokens);
        match limit.bound {
            Bound::Rate { unit, .. } | Bound::Budget { unit, .. } => match unit {
                Unit::Requests => self.requests,
                Unit::InputTokens => self.input_tokens,
                Unit::OutputTokens => self.output_tokens,
                Unit::Tokens => tokens,
                Unit::GpuMicros => self.gpu_micros,
            },
            Bound::ConcurrentRequests(_) => self.requests,
            Bound::ContextTokens(_) => tokens,
        }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            gpu_micros: self.gpu_micros.saturating_add(other.gpu_micros),
        }
    }
}
