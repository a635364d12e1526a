//! Tool calls in the text of an answer, in the ways that model families write them ([`ToolFormat`]).
//!
//! A call is given out from the brace on that opens its arguments, and these while they are written, as in OpenAI's streams: an
//! answer that is cut holds a part of them. Calls that begin otherwise (their name at the end, their arguments in a string)
//! are given out when their block ends, or at the end of the text. What turns out not to be a call (no JSON, no name,
//! arguments that are no object) stays content, tags included. The parser walks character by character, so how the text is
//! cut into pushes cannot change the result.

mod arguments;
mod block;
mod calls;
mod format;

pub use format::{CallForm, CallIds, CallLayout, ToolFormat};

use super::answer::AnswerDelta;
use arguments::{Arguments, Step};
use block::{Block, Opened, Progress};
use calls::Call;
use format::Syntax;

/// A block of calls that grows past this is content.
pub const MAX_CALL_BYTES: usize = 1 << 20;

/// Stands for arguments where it is asked whether they have just been opened: nothing else that a call holds looks so.
const PROBE: &str = r##""#":0"##;
const PROBE_OBJECT: &str = r##"{"#":0}"##;

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
    /// Inside the arguments of the last call.
    Arguments {
        block: Block,
        arguments: Arguments,
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
            State::Arguments { arguments, .. } => self.fragment(arguments.rest()),
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
            State::Arguments { block, arguments, after_call } => self.arguments_step(c, block, arguments, after_call),
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
        let progress = block.push(c);
        self.go_on(progress, block, after_call);
    }

    fn go_on(&mut self, progress: Progress, mut block: Block, after_call: bool) {
        match progress {
            Progress::Ended => self.close(&block, after_call),
            Progress::Open if block.len() > MAX_CALL_BYTES => self.reject(&block, after_call),
            Progress::Open => match self.begun_call(&block) {
                None => self.state = State::Block { block, after_call },
                Some(name) => {
                    block.give_out();
                    self.start(name);
                    self.fragment("{");
                    let arguments = Arguments::opened(block.end());
                    self.state = State::Arguments { block, arguments, after_call };
                }
            },
        }
    }

    fn arguments_step(&mut self, c: char, mut block: Block, mut arguments: Arguments, after_call: bool) {
        let mut written = String::new();
        let step = arguments.push(c, &mut written);
        self.fragment(&written);
        match step {
            Step::Open => self.state = State::Arguments { block, arguments, after_call },
            Step::Whole => {
                let progress = block.end_arguments();
                self.go_on(progress, block, after_call);
            }
            Step::Cut => self.state = State::Content { held: String::new(), tag: 0, after_call: true },
        }
    }

    /// The name of the call whose arguments have just been opened.
    fn begun_call(&self, block: &Block) -> Option<String> {
        let mut calls = calls::read(self.format, &block.closed_with(PROBE)?)?;
        let last = calls.pop()?;
        let is_next = calls.len() == block.given_out() && last.arguments == PROBE_OBJECT;
        let is_call = block.opened == Opened::ByTag || self.offered.contains(&last.name);
        (is_next && is_call).then_some(last.name)
    }

    fn close(&mut self, block: &Block, after_call: bool) {
        let read = calls::read(self.format, block.body()).filter(|calls| calls.len() >= block.given_out());
        match read.filter(|calls| block.opened == Opened::ByTag || self.offers_all(calls)) {
            None if !block.ends_with_brackets() => return self.reject(block, after_call),
            None => {}
            Some(calls) => calls.into_iter().skip(block.given_out()).for_each(|call| self.give_out(call)),
        }
        self.state = State::Content { held: String::new(), tag: 0, after_call: true };
    }

    fn give_out(&mut self, call: Call) {
        self.start(call.name);
        self.fragment(&call.arguments);
    }

    fn start(&mut self, name: String) {
        self.deltas.push(AnswerDelta::CallStart { index: self.calls, name });
        self.calls += 1;
    }

    /// More of the last call's arguments.
    fn fragment(&mut self, text: &str) {
        let last = self.calls.saturating_sub(1);
        match self.deltas.last_mut() {
            _ if text.is_empty() => {}
            Some(AnswerDelta::Arguments { index, fragment }) if *index == last => fragment.push_str(text),
            _ => self.deltas.push(AnswerDelta::Arguments { index: last, fragment: text.to_owned() }),
        }
    }

    fn offers_all(&self, calls: &[Call]) -> bool {
        calls.iter().all(|call| self.offered.contains(&call.name))
    }

    fn parts_calls(&self, c: char) -> bool {
        c.is_whitespace() || self.syntax.separator == Some(c)
    }

    fn reject(&mut self, block: &Block, after_call: bool) {
        self.content_after(&block.as_written(), after_call || block.given_out() > 0);
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
