//! The arguments of a call while they are written: an object in JSON, from behind its first brace to its last.

use super::block::JsonPlace;
use super::format::BlockEnd;

#[derive(Debug)]
pub(super) struct Arguments {
    /// Brackets that are open.
    depth: usize,
    place: JsonPlace,
    /// What ends the block that the call is in, if that is a tag.
    close: Option<&'static str>,
    /// How much of the closing tag was just read.
    tag: usize,
}

/// Where arguments stand after one more character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Open,
    Whole,
    /// The closing tag of the block came first.
    Cut,
}

impl Arguments {
    pub(super) fn opened(end: BlockEnd) -> Self {
        let close = match end {
            BlockEnd::Tag(close) => Some(close),
            BlockEnd::Value(_) => None,
        };
        Self { depth: 1, place: JsonPlace::Outside, close, tag: 0 }
    }

    /// Adds to `written` what `c` makes certain.
    pub(super) fn push(&mut self, c: char, written: &mut String) -> Step {
        if self.place == JsonPlace::Outside
            && let Some(step) = self.push_to_tag(c, written)
        {
            return step;
        }
        if self.place == JsonPlace::String && c.is_ascii_control() {
            // Some models break lines inside a string, which JSON has to write otherwise.
            let quoted = serde_json::Value::from(c.to_string()).to_string();
            written.push_str(&quoted[1..quoted.len() - 1]);
            return Step::Open;
        }
        written.push(c);
        self.place = self.place.after(c);
        match c {
            '{' | '[' if self.place == JsonPlace::Outside => self.depth += 1,
            '}' | ']' if self.place == JsonPlace::Outside => self.depth -= 1,
            _ => {}
        }
        if self.depth == 0 { Step::Whole } else { Step::Open }
    }

    /// What was held back, once nothing more comes.
    pub(super) fn rest(&self) -> &'static str {
        self.close.map_or("", |close| &close[..self.tag])
    }

    /// `None`: `c` is no part of the tag, which is no part of JSON outside a string.
    fn push_to_tag(&mut self, c: char, written: &mut String) -> Option<Step> {
        let close = self.close?;
        if close[self.tag..].starts_with(c) {
            self.tag += c.len_utf8();
            return Some(if self.tag == close.len() { Step::Cut } else { Step::Open });
        }
        written.push_str(self.rest());
        let was_tag = std::mem::take(&mut self.tag) > 0;
        if was_tag { self.push_to_tag(c, written) } else { None }
    }
}
