//! The lines of a batch's input: `{"custom_id", "method", "url", "body"}` each.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Endpoint, LineError};

/// The errors of an input that are told; the rest follows from them or is like them.
const MAX_TOLD_ERRORS: usize = 20;
const MAX_CUSTOM_ID_BYTES: usize = 512;

/// One request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLine {
    pub custom_id: String,
    /// JSON as it was written: its route's reader judges it.
    pub body: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    custom_id: String,
    method: String,
    url: String,
    body: Box<RawValue>,
}

/// Every request, or what is wrong with the lines. Blank lines are none.
pub fn read_input(text: &[u8], endpoint: Endpoint, max_requests: usize) -> Result<Vec<BatchLine>, Vec<LineError>> {
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    let mut seen = HashSet::new();
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        if line.trim_ascii().is_empty() {
            continue;
        }
        let read = read_line(line, endpoint).and_then(|line| {
            let is_new = seen.insert(line.custom_id.clone());
            is_new.then_some(line).ok_or_else(|| "`custom_id` was given to an earlier line".to_owned())
        });
        match read {
            Ok(_) if lines.len() == max_requests => {
                return Err(vec![LineError { line: index + 1, message: format!("more than {max_requests} requests") }]);
            }
            Ok(line) => lines.push(line),
            Err(message) => errors.push(LineError { line: index + 1, message }),
        }
        if errors.len() == MAX_TOLD_ERRORS {
            break;
        }
    }
    if lines.is_empty() && errors.is_empty() {
        errors.push(LineError { line: 1, message: "the file holds no request".to_owned() });
    }
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

fn read_line(line: &[u8], endpoint: Endpoint) -> Result<BatchLine, String> {
    // An array of the four would do for serde.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("a line must be a JSON object".to_owned());
    }
    let written: Written = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        text.rsplit_once(" at line ").map_or(text.clone(), |(problem, _)| problem.to_owned())
    })?;
    if written.method != "POST" {
        return Err("`method` must be `POST`".to_owned());
    }
    if written.url != endpoint.as_str() {
        return Err(format!("`url` must be the batch's endpoint, `{}`", endpoint.as_str()));
    }
    if written.custom_id.is_empty() || written.custom_id.len() > MAX_CUSTOM_ID_BYTES {
        return Err(format!("`custom_id` must hold 1 to {MAX_CUSTOM_ID_BYTES} bytes"));
    }
    Ok(BatchLine { custom_id: written.custom_id, body: written.body.get().to_owned() })
}
