//! What a refusal by a limit says to programs, beside its sentence: `error.limit`, which OpenAI's clients pass over.

use serde::Serialize;

use crate::gateway::quota::UnixSeconds;
use crate::gateway::{AccountPath, Refusal, Retry};

/// Amounts as administration writes them: GPU time in seconds, the rest as it is counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ReachedLimit {
    name: &'static str,
    /// The account that the limit stands on.
    scope: AccountPath,
    /// `None`: it is for all models together.
    model: Option<String>,
    /// `None`: it counts what is held now, or one request.
    window: Option<&'static str>,
    /// Of a budget.
    window_start: Option<UnixSeconds>,
    window_end: Option<UnixSeconds>,
    limit: f64,
    used: f64,
    asked: f64,
    /// When the ask would fit, exactly; `Retry-After` is a little later for each in its own way. `None`: nobody needs
    /// to wait for it.
    retry_after_seconds: Option<f64>,
    /// Whether `asked` grows with the prompt.
    #[serde(skip)]
    pub(crate) counts_prompts: bool,
}

impl From<&Refusal> for ReachedLimit {
    fn from(refusal: &Refusal) -> Self {
        let Refusal { limit, scope, model, limit_value, current_value, asked, window, retry } = refusal;
        let [value, used, asked] = [limit_value, current_value, asked].map(|amount| limit.number(*amount));
        Self {
            name: limit.as_str(),
            scope: scope.clone(),
            model: model.as_deref().map(str::to_owned),
            window: limit.window(),
            window_start: window.map(|(start, _)| start),
            window_end: window.map(|(_, end)| end),
            limit: value,
            used,
            asked,
            retry_after_seconds: match retry {
                Retry::After(wait) => Some(wait.as_secs_f64()),
                Retry::Spent | Retry::Never => None,
            },
            counts_prompts: limit.counts_prompts(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::api::errors::ApiError;
    use crate::gateway::LimitName;

    fn limit_of(name: &str, window: Option<(u64, u64)>, retry: Retry) -> Value {
        let (limit, scope): (LimitName, _) = (name.parse().unwrap(), "acme/vision".parse().unwrap());
        let window = window.map(|(start, end)| (UnixSeconds(start), UnixSeconds(end)));
        let model = Some("m".into());
        let (limit_value, current_value, asked) = (2_500_000, 2_000_000, 1_000_000);
        let refusal = Refusal { limit, scope, model, limit_value, current_value, asked, window, retry };
        ApiError::from(refusal).body()["error"]["limit"].clone()
    }

    #[test]
    fn a_refusal_has_its_limit_in_fields() {
        let day = limit_of("gpu_seconds_per_day", Some((86_400, 172_800)), Retry::After(Duration::from_millis(1_500)));
        let expected = json!({
            "name": "gpu_seconds_per_day", "scope": "acme/vision", "model": "m", "window": "day", "window_start": 86_400,
            "window_end": 172_800, "limit": 2.5, "used": 2.0, "asked": 1.0, "retry_after_seconds": 1.5,
        });
        assert_eq!(day, expected);
        let spent = limit_of("tokens_granted", Some((0, 9)), Retry::Spent);
        assert_eq!((&spent["window"], &spent["retry_after_seconds"]), (&json!("grant"), &Value::Null));
        let rate = limit_of("tokens_per_minute", None, Retry::Never);
        assert_eq!(
            (&rate["window"], &rate["window_end"], &rate["used"]),
            (&json!("minute"), &Value::Null, &json!(2e6))
        );
        assert_eq!(limit_of("concurrent_requests", None, Retry::Never)["window"], Value::Null);
    }
}
