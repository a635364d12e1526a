//! Token counts as OpenAI reports them.

use passerelle_engine::Usage;
use serde_json::{Value, json};

use crate::api::delta::{ChoiceDelta, Delta};
use crate::units::saturating_u32;

pub(crate) fn usage_json(usage: Usage, reasoning: &ReasoningTokens) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.generated_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": reasoning.total()},
    })
}

/// How many of an answer's tokens are reasoning: in each choice those up to the last one that gave some, with the marker
/// that opened it.
#[derive(Debug, Clone, Default)]
pub(crate) struct ReasoningTokens {
    of_choices: Vec<SeenTokens>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SeenTokens {
    all: u32,
    up_to_reasoning: u32,
}

impl ReasoningTokens {
    pub(crate) fn count(&mut self, piece: &ChoiceDelta) {
        if self.of_choices.len() <= piece.index {
            self.of_choices.resize_with(piece.index + 1, SeenTokens::default);
        }
        let seen = &mut self.of_choices[piece.index];
        match &piece.delta {
            Delta::Text(part) => seen.all = seen.all.saturating_add(saturating_u32(part.token_ids.len())),
            Delta::Reasoning(_) => seen.up_to_reasoning = seen.all,
            Delta::Prompt(_) | Delta::ToolCall(_) | Delta::Finished(_) => {}
        }
    }

    pub(crate) fn total(&self) -> u32 {
        self.of_choices.iter().map(|seen| seen.up_to_reasoning).sum()
    }
}

/// The usage of an answer is the sum over its choices.
pub(crate) fn sum_usage(parts: impl Iterator<Item = Usage>) -> Usage {
    parts.fold(Usage::default(), |sum, part| Usage {
        prompt_tokens: sum.prompt_tokens.saturating_add(part.prompt_tokens),
        cached_tokens: sum.cached_tokens.saturating_add(part.cached_tokens),
        generated_tokens: sum.generated_tokens.saturating_add(part.generated_tokens),
        measured_ns: sum.measured_ns.saturating_add(part.measured_ns),
    })
}

/// A log-probability as a JSON number. JSON has no infinity, so impossible tokens get the floor that the field uses.
pub(crate) fn logprob_json(logprob: f32) -> f64 {
    const FLOOR: f32 = -9999.0;
    f64::from(logprob.max(FLOOR))
}
