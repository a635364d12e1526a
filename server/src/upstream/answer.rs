//! What another server's refusal means here.

use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::RETRY_AFTER;
use serde_json::Value;

use crate::gateway::LimitName;
use crate::gateway::upstream::{Failure, Objection};

/// Longest part of another server's message that is passed on.
const MAX_MESSAGE_CHARS: usize = 1000;
/// Longest name of a field that is passed on.
const MAX_FIELD_BYTES: usize = 200;

/// For an answer that is no success. `body`: as much as was read of it.
pub(super) fn failure(status: u16, headers: &HeaderMap, body: &[u8]) -> Failure {
    match status {
        400 | 413 | 422 => Failure::Refused(Box::new(objection(body))),
        401..=403 => Failure::Misconfigured(format!("it answers {status} to the key")),
        404 | 405 => Failure::Misconfigured(format!("it answers {status} to the route or the model")),
        429 if is_about_the_request(body) => Failure::NoRoom { retry_after: retry_after(headers) },
        408 | 429 | 503 | 529 => Failure::Busy { retry_after: retry_after(headers) },
        504 => Failure::TimedOut,
        _ => Failure::Broke(format!("it answers {status}")),
    }
}

/// Whether a limit that counts what requests ask for has room, but not for this one. Another Passerelle tells of it.
fn is_about_the_request(body: &[u8]) -> bool {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let limit = &parsed["error"]["limit"];
    let name = limit["name"].as_str().and_then(|name| name.parse::<LimitName>().ok());
    let has_room = matches!((limit["used"].as_f64(), limit["limit"].as_f64()), (Some(used), Some(all)) if used < all);
    has_room && name.is_some_and(|name| !name.counts_requests())
}

/// OpenAI's shape, `{"error": {...}}`; vLLM's older one, without the outer object; or nothing that is understood.
fn objection(body: &[u8]) -> Objection {
    let parsed: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = parsed.get("error").unwrap_or(&parsed);
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    let why = text("message").unwrap_or_else(|| "it does not say why".to_owned());
    let exceeds_context =
        text("code").is_some_and(|code| code == "context_length_exceeded") || why.contains("maximum context length");
    let parameter = text("param").filter(|name| name.len() <= MAX_FIELD_BYTES);
    Objection { parameter, exceeds_context, why: why.chars().take(MAX_MESSAGE_CHARS).collect() }
}

/// In seconds, or in milliseconds as OpenAI's SDKs read them. A date counts as unstated.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let number = |value: Option<&hyper::header::HeaderValue>| value?.to_str().ok()?.trim().parse::<f64>().ok();
    let millis = number(headers.get("retry-after-ms")).map(|millis| millis / 1000.0);
    let seconds = millis.or_else(|| number(headers.get(RETRY_AFTER)))?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure_of(status: u16, body: &str) -> Failure {
        failure(status, &HeaderMap::new(), body.as_bytes())
    }

    #[test]
    fn a_mistake_of_the_request_is_told_apart_from_an_illness() {
        for (status, is_illness) in
            [(400, false), (422, false), (429, false), (503, false), (401, true), (402, true), (404, true)]
        {
            assert_eq!(failure_of(status, "").is_illness(), is_illness, "{status}");
        }
        for status in [302, 500, 502, 504, 599] {
            assert!(failure_of(status, "").may_be_poison(), "{status}");
        }
    }

    #[test]
    fn a_limit_that_one_request_is_too_large_for_is_told_apart_from_one_on_requests() {
        let refused_at = |limit: &str, used: f64| {
            failure_of(429, &format!(r#"{{"error": {{"limit": {{"name": "{limit}", "used": {used}, "limit": 9}}}}}}"#))
        };
        let refused = |limit: &str| refused_at(limit, 8.5);
        for limit in ["tokens_per_day", "output_tokens_per_minute", "gpu_seconds_granted", "batch_tokens"] {
            assert_eq!(refused(limit), Failure::NoRoom { retry_after: None }, "{limit}");
        }
        for limit in ["requests_per_minute", "requests_per_day", "concurrent_requests", "queued_requests", "odd"] {
            assert_eq!(refused(limit), Failure::Busy { retry_after: None }, "{limit}");
        }
        assert_eq!(refused_at("tokens_granted", 9.0), Failure::Busy { retry_after: None }, "nobody has room");
        let elsewhere = r#"{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}"#;
        assert_eq!(failure_of(429, elsewhere), Failure::Busy { retry_after: None });
    }

    #[test]
    fn an_objection_is_read_in_either_shape() {
        let openai = r#"{"error": {"message": "no", "param": "top_p", "code": "context_length_exceeded"}}"#;
        let expected = Objection { parameter: Some("top_p".into()), exceeds_context: true, why: "no".into() };
        assert_eq!(failure_of(400, openai), Failure::Refused(Box::new(expected)));
        let flat = r#"{"object": "error", "message": "This model's maximum context length is 8", "code": 400}"#;
        let Failure::Refused(objection) = failure_of(400, flat) else { panic!("it is the request's fault") };
        assert!(objection.exceeds_context && objection.parameter.is_none());
        let long = format!(r#"{{"error": {{"message": "no", "param": "{}"}}}}"#, "p".repeat(MAX_FIELD_BYTES + 1));
        assert_eq!(failure_of(400, &long), failure_of(400, r#"{"error": {"message": "no"}}"#));
        assert!(matches!(failure_of(400, "<html>"), Failure::Refused(_)));
    }

    #[test]
    fn a_pause_is_read_in_seconds_or_milliseconds() {
        let with = |name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            failure(429, &headers, b"")
        };
        let busy = |retry_after: Option<u64>| Failure::Busy { retry_after: retry_after.map(Duration::from_millis) };
        assert_eq!(with("retry-after", "7"), busy(Some(7000)));
        assert_eq!(with("retry-after-ms", "250"), busy(Some(250)));
        for odd in ["Wed, 21 Oct 2026 07:28:00 GMT", "-3", "NaN", "1e300"] {
            assert_eq!(with("retry-after", odd), busy(None), "{odd}");
        }
    }
}
