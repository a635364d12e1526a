//! Tool calls in the text of an answer, in the ways that model families write them ([`ToolFormat`]).
//!
//! A call is given out when its block ends, or at the end of the text: only then is it known to be one. What turns out not
//! to be a call (no JSON, no name, arguments that are no object) stays content, tags included. The parser walks character
//! by character, so how the text is cut into pushes cannot change the result.

mod block;
mod calls;
mod format;

pub use format::{CallForm, CallIds, CallLayout, ToolFormat};

use super::answer::AnswerDelta;
use block::{Block, Opened, Progress};
use calls::Call;
use format::Syntax;

/// A block of calls that grows past this is content.
pub const MAX_CALL_BYTES: usize = 1 << 20;

/// Splits an answer into content and tool calls while it is written.
#[derive(Debug)]
pub struct ToolCallParser {
    format: ToolFormat,
    syntax: Syntax,
    /// Names of the tools that may be called. An answer that merely is JSON is a call only of one of these.
    offered: Vec<String>,
    state: State,
    calls: usize,
    wrote_content: bool,
    deltas: Vec<AnswerDelta>,
}

#[derive(Debug)]
enum State {
    /// `held` is white space that belongs to a block if one follows, then what may be the start of an opening tag.
    Content {
        held: String,
        tag: usize,
        after_call: bool,
    },
    Block {
        block: Block,
        after_call: bool,
    },
}

impl Default for State {
    fn default() -> Self {
        Self::Content { held: String::new(), tag: 0, after_call: false }
    }
}

impl ToolCallParser {
    pub fn new(format: ToolFormat, offered: impl IntoIterator<Item = String>) -> Self {
        Self {
            format,
            syntax: format.syntax(),
            offered: offered.into_iter().collect(),
            state: State::default(),
            calls: 0,
            wrote_content: false,
            deltas: Vec::new(),
        }
    }

    /// What this piece of text makes certain.
    pub fn push(&mut self, text: &str) -> Vec<AnswerDelta> {
        text.chars().for_each(|c| self.step(c));
        std::mem::take(&mut self.deltas)
    }

    /// The text ends here. A block whose closing tag is missing counts if it is complete.
    pub fn finish(&mut self) -> Vec<AnswerDelta> {
        match std::mem::take(&mut self.state) {
            State::Content { held, after_call: true, .. } if held.chars().all(|c| self.parts_calls(c)) => {}
            State::Content { held, after_call, .. } => self.content_after(&held, after_call),
            State::Block { block, after_call } => self.close(&block, after_call),
        }
        std::mem::take(&mut self.deltas)
    }

    pub(super) fn format(&self) -> ToolFormat {
        self.format
    }

    /// How many calls were given out.
    pub fn calls(&self) -> usize {
        self.calls
    }

    fn step(&mut self, c: char) {
        match std::mem::take(&mut self.state) {
            State::Content { held, tag, after_call } => self.content_step(c, held, tag, after_call),
            State::Block { block, after_call } => self.block_step(c, block, after_call),
        }
    }

    fn content_step(&mut self, c: char, mut held: String, tag: usize, after_call: bool) {
        let Syntax { opener, bare, end, .. } = self.syntax;
        if opener[tag..].starts_with(c) {
            held.push(c);
            let tag = tag + c.len_utf8();
            self.state = if tag == opener.len() {
                State::Block { block: Block::after_tag(held, end), after_call }
            } else {
                State::Content { held, tag, after_call }
            };
        } else if tag > 0 {
            // Not a tag after all. An opener begins with a character that it holds only once, so a new tag can begin only
            // at this character.
            self.content_after(&held, after_call);
            self.content_step(c, String::new(), 0, false);
        } else if bare.contains(&c) && !self.wrote_content {
            self.block_step(c, Block::bare(held), after_call);
        } else if c.is_whitespace() || (after_call && self.parts_calls(c)) {
            held.push(c);
            self.state = State::Content { held, tag, after_call };
        } else {
            held.push(c);
            self.content_after(&held, after_call);
        }
    }

    fn block_step(&mut self, c: char, mut block: Block, after_call: bool) {
        match block.push(c) {
            Progress::Ended => self.close(&block, after_call),
            Progress::Open if block.len() > MAX_CALL_BYTES => self.reject(&block, after_call),
            Progress::Open => self.state = State::Block { block, after_call },
        }
    }

    fn close(&mut self, block: &Block, after_call: bool) {
        let read = calls::read(self.format, block.body());
        match read.filter(|calls| block.opened == Opened::ByTag || self.offers_all(calls)) {
            None => self.reject(block, after_call),
            Some(calls) => {
                calls.into_iter().for_each(|call| self.give_out(call));
                self.state = State::Content { held: String::new(), tag: 0, after_call: true };
            }
        }
    }

    fn give_out(&mut self, call: Call) {
        let index = self.calls;
        self.calls += 1;
        self.deltas.push(AnswerDelta::CallStart { index, name: call.name });
        self.deltas.push(AnswerDelta::Arguments { index, fragment: call.arguments });
    }

    fn offers_all(&self, calls: &[Call]) -> bool {
        calls.iter().all(|call| self.offered.contains(&call.name))
    }

    fn parts_calls(&self, c: char) -> bool {
        c.is_whitespace() || self.syntax.separator == Some(c)
    }

    fn reject(&mut self, block: &Block, after_call: bool) {
        self.content_after(&block.as_written(), after_call);
    }

    /// Content that may follow a call: the white space between them is the tag's, unless it parts two contents.
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
            Some(AnswerDelta::Content(last)) => last.push_str(text),
            _ => self.deltas.push(AnswerDelta::Content(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
