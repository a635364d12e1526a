//! The inside of a block of calls, character by character, until it ends.

use super::format::{BlockEnd, ValueStart};

/// Longest body in which the beginning of a call is looked for; a call that begins behind it is given out whole.
const MAX_HEAD_BYTES: usize = 2048;

/// A block that has been opened.
#[derive(Debug)]
pub(super) struct Block {
    /// White space and the opener before the body: content again if this is no call.
    before: String,
    /// Without what stands in the arguments of calls that were given out.
    body: String,
    /// What would close the brackets that are open, the innermost last.
    closers: String,
    /// Calls of the body that were given out while they were written.
    given_out: usize,
    /// Where the body goes on behind them.
    rest: usize,
    end: BlockEnd,
    /// How much of the closing tag the body ends with.
    tag: usize,
    /// Brackets of the value that are open; `None` before it begins.
    depth: Option<usize>,
    json: JsonPlace,
    pub(super) opened: Opened,
}

/// What opened a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    ByTag,
    /// By its first bracket: it may be an ordinary answer in JSON.
    Bare,
}

/// Where a block stands after one more character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Ended,
}

/// A bracket or tag inside a JSON string is part of the string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JsonPlace {
    Outside,
    String,
    Escape,
    /// This is no JSON, so the next closing tag ends it wherever it stands.
    Broken,
}

impl Block {
    pub(super) fn after_tag(before: String, end: BlockEnd) -> Self {
        let (body, closers) = (String::new(), String::new());
        let (json, opened) = (JsonPlace::Outside, Opened::ByTag);
        Self { before, body, closers, given_out: 0, rest: 0, end, tag: 0, depth: None, json, opened }
    }

    /// Opened by a bracket, which the caller pushes next.
    pub(super) fn bare(before: String) -> Self {
        let end = BlockEnd::Value(ValueStart::AnyBracket);
        Self { opened: Opened::Bare, ..Self::after_tag(before, end) }
    }

    /// The body without its closing tag.
    pub(super) fn body(&self) -> &str {
        &self.body[..self.body.len() - self.closing_len()]
    }

    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    pub(super) fn end(&self) -> BlockEnd {
        self.end
    }

    pub(super) fn given_out(&self) -> usize {
        self.given_out
    }

    /// The block as it was written, as far as nothing of it was given out.
    pub(super) fn as_written(&self) -> String {
        match self.given_out {
            0 => [self.before.as_str(), &self.body].concat(),
            _ => self.body[self.rest..].to_owned(),
        }
    }

    /// Whether nothing but brackets follows the calls that were given out: models lose and double them.
    pub(super) fn ends_with_brackets(&self) -> bool {
        let rest = self.body().get(self.rest..).unwrap_or_default();
        self.given_out > 0 && rest.chars().all(|c| c.is_whitespace() || matches!(c, '}' | ']'))
    }

    /// Where the last character may have opened the arguments of a call: the body as if they held `members` and everything
    /// ended.
    pub(super) fn closed_with(&self, members: &str) -> Option<String> {
        let opens = self.json == JsonPlace::Outside && self.body.ends_with('{') && self.body.len() <= MAX_HEAD_BYTES;
        opens.then(|| {
            let closers: String = self.closers.chars().rev().collect();
            [&self.body, members, &closers].concat()
        })
    }

    /// What follows are the arguments of a call that is given out while it is written.
    pub(super) fn give_out(&mut self) {
        self.given_out += 1;
    }

    /// They are over.
    pub(super) fn end_arguments(&mut self) -> Progress {
        let progress = self.push('}');
        self.rest = self.body.len();
        progress
    }

    pub(super) fn push(&mut self, c: char) -> Progress {
        let begins_value = self.depth.is_none() && self.opens_value(c);
        self.body.push(c);
        self.json = self.json.after(c);
        self.follow_brackets(c);
        match self.end {
            BlockEnd::Tag(close) => self.push_to_tag(c, close),
            BlockEnd::Value(_) => self.push_to_value(c, begins_value),
        }
    }

    fn follow_brackets(&mut self, c: char) {
        match c {
            _ if self.json != JsonPlace::Outside => {}
            '{' => self.closers.push('}'),
            '[' => self.closers.push(']'),
            '}' | ']' => drop(self.closers.pop()),
            _ => {}
        }
    }

    fn push_to_tag(&mut self, c: char, close: &str) -> Progress {
        let in_string = matches!(self.json, JsonPlace::String | JsonPlace::Escape);
        self.tag = match c {
            _ if in_string => 0,
            _ if close[self.tag..].starts_with(c) => self.tag + c.len_utf8(),
            _ if close.starts_with(c) => c.len_utf8(),
            _ => 0,
        };
        if self.tag == close.len() { Progress::Ended } else { Progress::Open }
    }

    fn push_to_value(&mut self, c: char, begins: bool) -> Progress {
        let outside = self.json == JsonPlace::Outside;
        let depth = match (self.depth, c) {
            (None, _) if begins => 1,
            (Some(depth), '{' | '[' | '(') if outside => depth + 1,
            (Some(depth), '}' | ']' | ')') if outside => depth - 1,
            _ => return Progress::Open,
        };
        self.depth = Some(depth);
        if depth == 0 { Progress::Ended } else { Progress::Open }
    }

    fn opens_value(&self, c: char) -> bool {
        match self.end {
            BlockEnd::Tag(_) => false,
            BlockEnd::Value(ValueStart::AnyBracket) => matches!(c, '{' | '[' | '('),
            BlockEnd::Value(ValueStart::BraceOrLeadingList) => {
                c == '{' || (c == '[' && self.body.trim_start().is_empty())
            }
        }
    }

    fn closing_len(&self) -> usize {
        match self.end {
            BlockEnd::Tag(close) if self.tag == close.len() => self.tag,
            BlockEnd::Tag(_) | BlockEnd::Value(_) => 0,
        }
    }
}

impl JsonPlace {
    pub(super) fn after(self, c: char) -> Self {
        match (self, c) {
            (Self::Outside, '"') | (Self::Escape, _) => Self::String,
            (Self::String, '"') => Self::Outside,
            (Self::String, '\\') => Self::Escape,
            (Self::String, c) if c.is_ascii_control() => Self::Broken,
            (place, _) => place,
        }
    }
}
