//! Tool calls in the text of an answer, Hermes style:
//!
//! ```text
//! <tool_call>
//! {"name": "add", "arguments": {"a": 12, "b": 7}}
//! </tool_call>
//! ```
//!
//! A call is given out when its closing tag arrives, or at the end of the text: only then is it known to be one. What turns
//! out not to be a call (no JSON, no name, arguments that are no object) stays content, tags included. The parser walks
//! character by character, so how the text is cut into pushes cannot change the result.

use serde::Deserialize;
use serde_json::value::RawValue;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
/// A call that grows past this is content.
pub const MAX_CALL_BYTES: usize = 1 << 20;

/// A piece of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolDelta {
    Content(String),
    CallStart {
        index: usize,
        name: String,
    },
    /// JSON text of the arguments object; the fragments of one call joined are the whole. Always one fragment today.
    Arguments {
        index: usize,
        fragment: String,
    },
}

/// Splits an answer into content and tool calls while it is written.
#[derive(Debug, Default)]
pub struct ToolCallParser {
    state: State,
    calls: usize,
    wrote_content: bool,
    deltas: Vec<ToolDelta>,
}

#[derive(Debug)]
enum State {
    /// `held` is whitespace that belongs to a tag if one follows, then what may be the start of an opening tag.
    Content {
        held: String,
        tag: usize,
        after_call: bool,
    },
    Call(Call),
}

impl Default for State {
    fn default() -> Self {
        Self::Content { held: String::new(), tag: 0, after_call: false }
    }
}

/// The inside of a call so far.
#[derive(Debug)]
struct Call {
    /// Whitespace before the opening tag: content again if this is no call.
    before: String,
    body: String,
    /// How much of the closing tag the body ends with.
    tag: usize,
    json: JsonPlace,
    after_call: bool,
}

/// A closing tag inside a JSON string is part of the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum JsonPlace {
    Outside,
    String,
    Escape,
    /// This is no JSON, so the next closing tag ends it wherever it stands.
    Broken,
}

#[derive(Deserialize)]
struct CallBody<'a> {
    name: String,
    #[serde(borrow)]
    arguments: Option<&'a RawValue>,
}

impl ToolCallParser {
    pub fn new() -> Self {
        Self::default()
    }

    /// What this piece of text makes certain.
    pub fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        text.chars().for_each(|c| self.step(c));
        std::mem::take(&mut self.deltas)
    }

    /// The text ends here. A call whose closing tag is missing counts if it is complete.
    pub fn finish(&mut self) -> Vec<ToolDelta> {
        match std::mem::take(&mut self.state) {
            State::Content { held, after_call: true, .. } if held.trim().is_empty() => {}
            State::Content { held, after_call, .. } => self.content_after(&held, after_call),
            State::Call(call) => self.close(call, ""),
        }
        std::mem::take(&mut self.deltas)
    }

    /// How many calls were given out.
    pub fn calls(&self) -> usize {
        self.calls
    }

    fn step(&mut self, c: char) {
        match std::mem::take(&mut self.state) {
            State::Content { held, tag, after_call } => self.content_step(c, held, tag, after_call),
            State::Call(mut call) => {
                call.push(c);
                if call.tag == CLOSE.len() {
                    call.body.truncate(call.body.len() - CLOSE.len());
                    self.close(call, CLOSE);
                } else if call.body.len() > MAX_CALL_BYTES {
                    self.reject(&call, "");
                } else {
                    self.state = State::Call(call);
                }
            }
        }
    }

    fn content_step(&mut self, c: char, mut held: String, tag: usize, after_call: bool) {
        if OPEN[tag..].starts_with(c) {
            held.push(c);
            let tag = tag + c.len_utf8();
            self.state = if tag == OPEN.len() {
                held.truncate(held.len() - OPEN.len());
                State::Call(Call::new(held, after_call))
            } else {
                State::Content { held, tag, after_call }
            };
        } else if tag > 0 {
            // Not a tag after all. OPEN begins with its only '<', so a new tag can begin only at this character.
            self.content_after(&held, after_call);
            self.content_step(c, String::new(), 0, false);
        } else if c.is_whitespace() {
            held.push(c);
            self.state = State::Content { held, tag, after_call };
        } else {
            held.push(c);
            self.content_after(&held, after_call);
        }
    }

    fn close(&mut self, call: Call, closing: &str) {
        let Some((name, arguments)) = parse_call(&call.body) else { return self.reject(&call, closing) };
        let index = self.calls;
        self.calls += 1;
        self.deltas.push(ToolDelta::CallStart { index, name });
        self.deltas.push(ToolDelta::Arguments { index, fragment: arguments });
        self.state = State::Content { held: String::new(), tag: 0, after_call: true };
    }

    fn reject(&mut self, call: &Call, closing: &str) {
        self.content_after(&[&call.before, OPEN, &call.body, closing].concat(), call.after_call);
    }

    /// Content that may follow a call: the whitespace between them is the tag's, unless it parts two contents.
    fn content_after(&mut self, text: &str, after_call: bool) {
        let drops_space = after_call && !self.wrote_content;
        self.content(if drops_space { text.trim_start() } else { text });
    }

    fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        self.wrote_content = true;
        match self.deltas.last_mut() {
            Some(ToolDelta::Content(last)) => last.push_str(text),
            _ => self.deltas.push(ToolDelta::Content(text.to_owned())),
        }
    }
}

impl Call {
    fn new(before: String, after_call: bool) -> Self {
        Self { before, body: String::new(), tag: 0, json: JsonPlace::Outside, after_call }
    }

    fn push(&mut self, c: char) {
        self.body.push(c);
        self.json = self.json.after(c);
        let in_string = matches!(self.json, JsonPlace::String | JsonPlace::Escape);
        self.tag = match c {
            _ if in_string => 0,
            _ if CLOSE[self.tag..].starts_with(c) => self.tag + c.len_utf8(),
            '<' => 1,
            _ => 0,
        };
    }
}

impl JsonPlace {
    fn after(self, c: char) -> Self {
        match (self, c) {
            (Self::Outside, '"') | (Self::Escape, _) => Self::String,
            (Self::String, '"') => Self::Outside,
            (Self::String, '\\') => Self::Escape,
            (Self::String, c) if c.is_ascii_control() => Self::Broken,
            (place, _) => place,
        }
    }
}

/// Name and JSON text of the arguments, or `None` for what is no call. Some models write the arguments object into a
/// string; absent arguments are none.
fn parse_call(body: &str) -> Option<(String, String)> {
    let call: CallBody<'_> = serde_json::from_str(body).ok()?;
    let arguments = call.arguments.map_or("{}", RawValue::get);
    let arguments = match arguments.starts_with('"') {
        true => serde_json::from_str::<String>(arguments).ok()?,
        false => arguments.to_owned(),
    };
    let object: &RawValue = serde_json::from_str(&arguments).ok()?;
    (!call.name.is_empty() && object.get().starts_with('{')).then(|| (call.name, object.get().to_owned()))
}

#[cfg(test)]
mod tests;
