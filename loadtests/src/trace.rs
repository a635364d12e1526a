//! Traces: one request a line, as JSON.
//!
//! ```json
//! {"at_s": 0.5, "prompt_tokens": 120, "output_tokens": 40, "tenant": "light"}
//! {"at_s": 0.9, "messages": [{"role": "user", "content": "Hello"}], "output_tokens": 40}
//! {"timestamp": 1200, "input_length": 900, "output_length": 60, "hash_ids": [1, 2]}
//! ```
//!
//! The last form is that of Mooncake's published traces (FAST'25): milliseconds, and ids of blocks of 512 tokens that
//! requests share.

use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::lengths::MAX_TOKENS;
use crate::scenario::MAX_DURATION_S;

/// Of one `hash_id`.
pub const BLOCK_TOKENS: u32 = 512;

#[derive(Debug, Clone, PartialEq)]
pub struct TraceLine {
    pub at: Duration,
    pub prompt: TracePrompt,
    pub output_tokens: u32,
    pub tenant: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum TracePrompt {
    Words { tokens: u32, blocks: Vec<u64> },
    Messages(Vec<serde_json::Value>),
}

#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{path}: {source}")]
    Unreadable { path: String, source: std::io::Error },
    #[error("line {line}: {what}")]
    Malformed { line: usize, what: String },
    #[error("no line of it is a request")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLine {
    at_s: Option<f64>,
    timestamp: Option<f64>,
    #[serde(alias = "input_length")]
    prompt_tokens: Option<u32>,
    #[serde(alias = "output_length")]
    output_tokens: u32,
    messages: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    hash_ids: Vec<u64>,
    tenant: Option<String>,
}

pub fn read(path: &Path) -> Result<Vec<TraceLine>, TraceError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| TraceError::Unreadable { path: path.display().to_string(), source })?;
    parse(&text)
}

/// The lines, in the order of their times.
pub fn parse(text: &str) -> Result<Vec<TraceLine>, TraceError> {
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        lines.push(parse_line(line).map_err(|what| TraceError::Malformed { line: index + 1, what })?);
    }
    lines.sort_by_key(|line| line.at);
    if lines.is_empty() { Err(TraceError::Empty) } else { Ok(lines) }
}

fn parse_line(line: &str) -> Result<TraceLine, String> {
    if !line.trim_start().starts_with('{') {
        return Err("is no JSON object".to_owned());
    }
    let written: WrittenLine = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let seconds = match (written.at_s, written.timestamp) {
        (Some(at_s), None) => at_s,
        (None, Some(timestamp_ms)) => timestamp_ms / 1000.0,
        _ => return Err("needs one of `at_s` and `timestamp`".to_owned()),
    };
    if !(0.0..=MAX_DURATION_S).contains(&seconds) {
        return Err(format!("{seconds} s is not a time between 0 and {MAX_DURATION_S}"));
    }
    let at = Duration::from_secs_f64(seconds);
    let prompt = match (written.messages, written.prompt_tokens) {
        (Some(messages), None) if !messages.is_empty() => TracePrompt::Messages(messages),
        (None, Some(tokens)) if (1..=MAX_TOKENS).contains(&tokens) => {
            TracePrompt::Words { tokens, blocks: written.hash_ids }
        }
        _ => return Err(format!("needs one of `messages` and `prompt_tokens` (1 to {MAX_TOKENS})")),
    };
    if !(1..=MAX_TOKENS).contains(&written.output_tokens) {
        return Err(format!("`output_tokens` must be 1 to {MAX_TOKENS}"));
    }
    Ok(TraceLine { at, prompt, output_tokens: written.output_tokens, tenant: written.tenant })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_in_the_order_of_time() {
        let lines = parse(concat!(
            r#"{"timestamp": 1200, "input_length": 900, "output_length": 60, "hash_ids": [1, 2]}"#,
            "\n\n",
            r#"{"at_s": 0.5, "prompt_tokens": 12, "output_tokens": 4, "tenant": "light"}"#,
        ))
        .unwrap();
        assert_eq!(lines[0].at, Duration::from_millis(500));
        assert_eq!(lines[0].tenant.as_deref(), Some("light"));
        assert_eq!(lines[1].prompt, TracePrompt::Words { tokens: 900, blocks: vec![1, 2] });
    }

    #[test]
    fn the_sample_that_comes_with_the_source_is_a_trace() {
        let lines = parse(include_str!("../traces/sample.jsonl")).unwrap();
        assert_eq!(lines.len(), 40);
        assert!(lines.iter().any(|line| line.tenant.as_deref() == Some("greedy")));
    }

    #[test]
    fn a_trace_of_nothing_is_no_trace() {
        assert!(matches!(parse("\n \n"), Err(TraceError::Empty)));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for wrong in [
            r#"[1, null, 3, 4, null, [], null]"#,
            r#"{"at_s": 1, "messages": [], "output_tokens": 4}"#,
            r#"{"at_s": 1, "prompt_tokens": 3, "output_tokens": 0}"#,
            r#"{"at_s": 1, "prompt_tokens": 3, "output_tokens": 4000000000}"#,
            r#"{"at_s": 1, "prompt_tokens": 0, "output_tokens": 4}"#,
            r#"{"at_s": 1, "timestamp": 1, "prompt_tokens": 3, "output_tokens": 4}"#,
            r#"{"at_s": 1e300, "prompt_tokens": 3, "output_tokens": 4}"#,
            r#"{"at_s": 1, "prompt_tokens": 4000000000, "output_tokens": 4}"#,
            r#"{"at_s": -1, "prompt_tokens": 3, "output_tokens": 4}"#,
            r#"{"at_s": 1, "prompt_tokens": 3, "output_tokens": 4, "speed": 1}"#,
        ] {
            let error = parse(&format!("\n{wrong}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2"), "{error}");
        }
    }
}
