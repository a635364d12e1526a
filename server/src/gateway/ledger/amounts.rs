//! What a request asks of the limits on its path, and what it has used of them.

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle_engine::Usage;

use crate::gateway::account::ServiceClass;
use crate::gateway::attribution::Attribution;
use crate::gateway::quota::{Bound, Limit, Percent, Unit};
use crate::gateway::tariff::Tariff;

/// What a request might use at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// `None`: a request in which no model runs.
    pub model: Option<Arc<str>>,
    pub prompt_tokens: u32,
    /// Of each answer.
    pub max_output_tokens: u32,
    /// Input beside the prompt: what is read once more when the answer is over. No part of the context.
    pub read_again_tokens: u32,
    /// To the one prompt.
    pub num_answers: NonZeroU32,
    pub reserve: Reserve,
    pub class: ServiceClass,
    pub attribution: Attribution,
}

/// How much of its answers a request reserves before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// All that they can be: whoever generates them cannot be told to go on.
    Whole,
    /// A part of each, and more while they are generated, so that a large `max_tokens` blocks nobody.
    InParts,
}

/// What is taken of each unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Amounts {
    pub(super) requests: u64,
    pub(super) input_tokens: u64,
    pub(super) output_tokens: u64,
    pub(super) gpu_micros: u64,
    /// Of requests in the class `batch`, with all of the answer: two that grew into each other's way would both be stuck.
    pub(super) batch_tokens: u64,
    /// Prompt and one answer, as long as it may become. Nobody takes it.
    pub(super) context_tokens: u64,
}

/// What is asked at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Demand {
    pub(super) now: Amounts,
    pub(super) stage: Stage,
    /// Beyond a grant.
    pub(super) overrun: Percent,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Stage {
    /// A request wants to begin. `whole`: with all that may follow.
    First { whole: Amounts },
    /// One that runs wants to go on.
    Further,
}

/// What is asked of one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) now: u64,
    /// What is larger than the limit itself can never be had.
    pub(super) whole: u64,
}

impl Ask {
    /// For one answer, reserved whole.
    pub fn new(model: &str, prompt_tokens: u32, max_output_tokens: u32) -> Self {
        Self {
            model: Some(model.into()),
            prompt_tokens,
            max_output_tokens,
            read_again_tokens: 0,
            num_answers: NonZeroU32::MIN,
            reserve: Reserve::Whole,
            class: ServiceClass::Standard,
            attribution: Attribution::default(),
        }
    }

    /// A request of the caller's in which no model runs.
    pub fn without_model() -> Self {
        Self { model: None, ..Self::new("", 0, 0) }
    }

    /// All that the model reads.
    pub(super) fn input_tokens(&self) -> u32 {
        self.prompt_tokens.saturating_add(self.read_again_tokens)
    }

    /// Output that is reserved at first for each answer, if a part is `part_tokens`.
    pub(super) fn first_part(&self, part_tokens: u32) -> u32 {
        match self.reserve {
            Reserve::Whole => self.max_output_tokens,
            Reserve::InParts => self.max_output_tokens.min(part_tokens),
        }
    }

    pub(super) fn demand(&self, first_part: u32, tariff: &Tariff) -> Demand {
        let whole = self.amounts(tariff);
        let first = if first_part == self.max_output_tokens { whole } else { self.with_output(first_part, tariff) };
        let now = Amounts { batch_tokens: whole.batch_tokens, ..first };
        Demand { now, stage: Stage::First { whole }, overrun: Percent::NONE }
    }

    /// With all that may follow.
    pub(super) fn amounts(&self, tariff: &Tariff) -> Amounts {
        self.with_output(self.max_output_tokens, tariff)
    }

    fn with_output(&self, tokens: u32, tariff: &Tariff) -> Amounts {
        let generated_tokens = tokens.saturating_mul(self.num_answers.get());
        let used = Usage { prompt_tokens: self.input_tokens(), generated_tokens, ..Usage::default() };
        let context_tokens = u64::from(self.prompt_tokens) + u64::from(self.max_output_tokens);
        let whole = Amounts::of(self.model.as_deref(), self.num_answers, used, tariff);
        Amounts { context_tokens, ..whole.in_class(self.class) }
    }
}

impl Demand {
    /// The same in the class `batch`, beyond a grant.
    pub(super) fn overrunning(&self, overrun: Percent) -> Self {
        match self.stage {
            Stage::First { whole } => {
                let whole = whole.in_class(ServiceClass::Batch);
                let now = Amounts { batch_tokens: whole.batch_tokens, ..self.now };
                Self { now, stage: Stage::First { whole }, overrun }
            }
            Stage::Further => Self { overrun, ..*self },
        }
    }

    /// `None`: nothing, so that it cannot be refused.
    pub(super) fn of_limit(&self, limit: &Limit) -> Option<Share> {
        let now = self.now.of_limit(limit);
        match &self.stage {
            Stage::First { whole } => Some(Share { now, whole: whole.of_limit(limit) }),
            Stage::Further => (now > 0).then_some(Share { now, whole: now }),
        }
    }
}

impl Amounts {
    pub(super) fn of(model: Option<&str>, answers: NonZeroU32, used: Usage, tariff: &Tariff) -> Self {
        Self {
            requests: 1,
            input_tokens: used.prompt_tokens.into(),
            output_tokens: used.generated_tokens.into(),
            gpu_micros: tariff.cost_micros(model, used, answers),
            batch_tokens: 0,
            context_tokens: 0,
        }
    }

    #[must_use]
    pub(super) fn in_class(self, class: ServiceClass) -> Self {
        let is_batch = class == ServiceClass::Batch;
        Self { batch_tokens: if is_batch { self.input_tokens.saturating_add(self.output_tokens) } else { 0 }, ..self }
    }

    /// How much of `limit` this is.
    pub(super) fn of_limit(&self, limit: &Limit) -> u64 {
        match limit.bound {
            Bound::Rate { unit, .. } | Bound::Budget { unit, .. } => match unit {
                Unit::Requests => self.requests,
                Unit::InputTokens => self.input_tokens,
                Unit::OutputTokens => self.output_tokens,
                Unit::Tokens => self.input_tokens.saturating_add(self.output_tokens),
                Unit::GpuMicros => self.gpu_micros,
            },
            Bound::ConcurrentRequests(_) => self.requests,
            Bound::QueuedRequests(_) => 0,
            Bound::BatchTokens(_) => self.batch_tokens,
            Bound::ContextTokens(_) => self.context_tokens,
        }
    }

    /// How much requests ask of `limit` that stand together, or the largest of them where each stands by itself.
    pub(super) fn asked_of(requests: &[Self], limit: &Limit) -> u64 {
        let each = requests.iter().map(|one| one.of_limit(limit));
        if limit.is_shared() { each.fold(0, u64::saturating_add) } else { each.max().unwrap_or(0) }
    }

    pub(super) fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What this is beyond `other`.
    pub(super) fn beyond(&self, other: &Self) -> Self {
        self.with(other, u64::saturating_sub)
    }

    fn with(&self, other: &Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: join(self.requests, other.requests),
            input_tokens: join(self.input_tokens, other.input_tokens),
            output_tokens: join(self.output_tokens, other.output_tokens),
            gpu_micros: join(self.gpu_micros, other.gpu_micros),
            batch_tokens: join(self.batch_tokens, other.batch_tokens),
            context_tokens: join(self.context_tokens, other.context_tokens),
        }
    }
}
