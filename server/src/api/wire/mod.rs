//! OpenAI's types on the wire: requests read strictly, answers written exactly.

pub(crate) mod answer;
pub(crate) mod chat;
pub(crate) mod chat_answer;
pub(crate) mod completion_answer;
pub(crate) mod completions;
pub(crate) mod messages;
pub(crate) mod request;
pub(crate) mod sampling;
pub(crate) mod structure;
pub(crate) mod tools;
pub(crate) mod usage;

use serde_json::Value;

use super::errors::{ApiError, ErrorKind};

/// Parses a body. Nesting deeper than serde_json's limit (128) is an error, not a stack overflow.
pub(crate) fn parse_json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        ApiError::new(ErrorKind::InvalidJson, format!("The body is not valid JSON ({place})."))
    })
}

#[cfg(test)]
mod tests;
