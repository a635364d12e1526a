//! What a model writes for itself before it answers, between markers of its family:
//!
//! ```text
//! <think>\nThe user wants a sum.\n</think>\n\n19
//!          ^ reasoning                       ^ content
//! ```
//!
//! White space beside the markers belongs to neither. A template may write the opening marker itself, at the end of the
//! prompt: then the answer begins inside. Reasoning whose closing marker never comes is all reasoning.

use super::answer::AnswerDelta;

/// Which markers stand around reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// `<think>` and `</think>`, only where the answer begins: Qwen3, SmolLM3 and most others.
    Think,
    /// `[THINK]` and `[/THINK]`: Magistral, Ministral 3.
    Mistral,
    /// `<|inner_prefix|>` and `<|inner_suffix|>`.
    Apertus,
}

/// Where an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningStart {
    Outside,
    /// The prompt has opened the reasoning.
    Inside,
}

/// Parts reasoning from content while an answer is written.
#[derive(Debug)]
pub(super) struct ReasoningSplitter {
    format: ReasoningFormat,
    place: Place,
    /// White space, then what may be the start of a marker.
    held: String,
    /// How much of the marker `held` ends with.
    tag: usize,
    deltas: Vec<AnswerDelta>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Nothing but white space so far.
    Start,
    /// Behind the opening marker, or behind the closing one: white space here belongs to the marker.
    Opened,
    Closed,
    Reasoning,
    Content,
}

impl ReasoningFormat {
    pub const ALL: [Self; 3] = [Self::Think, Self::Mistral, Self::Apertus];

    /// What configurations call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Think => "think",
            Self::Mistral => "mistral",
            Self::Apertus => "apertus",
        }
    }

    /// The format whose markers something has. One with special tokens of its own comes first: `<think>` may be a word.
    pub(super) fn find(has: impl Fn(&str) -> bool) -> Option<Self> {
        [Self::Apertus, Self::Mistral, Self::Think].into_iter().find(|format| format.markers().into_iter().any(&has))
    }

    /// The opening and the closing marker.
    pub fn markers(self) -> [&'static str; 2] {
        match self {
            Self::Think => ["<think>", "</think>"],
            Self::Mistral => ["[THINK]", "[/THINK]"],
            Self::Apertus => ["<|inner_prefix|>", "<|inner_suffix|>"],
        }
    }

    /// Where an answer begins after a prompt with this end.
    pub fn start_after(self, prompt_end: &str) -> ReasoningStart {
        let [open, _] = self.markers();
        if prompt_end.trim_end().ends_with(open) { ReasoningStart::Inside } else { ReasoningStart::Outside }
    }

    /// Where an answer begins that goes on from this text of the same answer.
    pub fn start_within(self, answer_so_far: &str) -> ReasoningStart {
        let [open, close] = self.markers();
        let opened = answer_so_far.rfind(open);
        if opened.is_some() && opened > answer_so_far.rfind(close) {
            ReasoningStart::Inside
        } else {
            ReasoningStart::Outside
        }
    }

    /// Special tokens stand where the model meant them; text like `<think>` may be what the answer is about.
    fn opens_anywhere(self) -> bool {
        self != Self::Think
    }
}

impl ReasoningSplitter {
    pub(super) fn new(format: ReasoningFormat, start: ReasoningStart) -> Self {
        let place = match start {
            ReasoningStart::Outside => Place::Start,
            ReasoningStart::Inside => Place::Opened,
        };
        Self { format, place, held: String::new(), tag: 0, deltas: Vec::new() }
    }

    pub(super) fn format(&self) -> ReasoningFormat {
        self.format
    }

    /// `Reasoning` and `Content` alone.
    pub(super) fn push(&mut self, text: &str) -> Vec<AnswerDelta> {
        text.chars().for_each(|c| self.step(c));
        std::mem::take(&mut self.deltas)
    }

    pub(super) fn finish(&mut self) -> Vec<AnswerDelta> {
        // White space at the end of reasoning would have been its marker's.
        if self.place != Place::Reasoning || !self.held.trim().is_empty() {
            self.flush();
        }
        self.held.clear();
        std::mem::take(&mut self.deltas)
    }

    fn step(&mut self, c: char) {
        let marker = self.marker();
        if marker[self.tag..].starts_with(c) {
            self.held.push(c);
            self.tag += c.len_utf8();
            if self.tag == marker.len() {
                self.cross();
            }
        } else if self.tag > 0 {
            // Not a marker after all. Its first character occurs in it only once, so another can begin only here.
            self.flush();
            self.step(c);
        } else if c.is_whitespace() && self.holds_space() {
            self.held.push(c);
        } else {
            self.held.push(c);
            self.flush();
        }
    }

    /// The marker that would end this place; empty where none is looked for.
    fn marker(&self) -> &'static str {
        let [open, close] = self.format.markers();
        match self.place {
            Place::Opened | Place::Reasoning => close,
            Place::Start => open,
            Place::Closed | Place::Content if self.format.opens_anywhere() => open,
            Place::Closed | Place::Content => "",
        }
    }

    /// White space before an opening marker that is not at the start is the content's.
    fn holds_space(&self) -> bool {
        self.place != Place::Content
    }

    fn cross(&mut self) {
        self.tag = 0;
        self.place = match self.place {
            Place::Opened | Place::Reasoning => Place::Closed,
            Place::Start | Place::Closed | Place::Content => Place::Opened,
        };
        self.held.clear();
    }

    /// What is held turned out to be text.
    fn flush(&mut self) {
        self.tag = 0;
        let held = std::mem::take(&mut self.held);
        let text = match self.place {
            Place::Opened | Place::Closed => held.trim_start(),
            Place::Start | Place::Reasoning | Place::Content => held.as_str(),
        };
        if text.is_empty() {
            return;
        }
        self.place = match self.place {
            Place::Opened | Place::Reasoning => Place::Reasoning,
            Place::Start | Place::Closed | Place::Content => Place::Content,
        };
        match (self.place, self.deltas.last_mut()) {
            (Place::Reasoning, Some(AnswerDelta::Reasoning(last))) => last.push_str(text),
            (Place::Content, Some(AnswerDelta::Content(last))) => last.push_str(text),
            (Place::Reasoning, _) => self.deltas.push(AnswerDelta::Reasoning(text.to_owned())),
            (_, _) => self.deltas.push(AnswerDelta::Content(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests;
