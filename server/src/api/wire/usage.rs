//! Token counts as OpenAI reports them.

use passerelle_engine::Usage;
use serde_json::{Value, json};

pub(crate) fn usage_json(usage: Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.generated_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.generated_tokens),
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    })
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
