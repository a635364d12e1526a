//! The form of an answer in a chat: reasoning first where the model reasons, then calls of tools, or content.
//!
//! All parts become one grammar in the syntax of Lark. A marker that is a special token is named by its id, because such
//! tokens are no text; any other is text that ends what stands before it:
//!
//! ```text
//! start: (HEAD "\n" call "\n</tool_call>")* TAIL      tools may be called
//! head[suffix="<tool_call>"]: /(?s:.*)/
//! start: "<tool_call>\n" call "\n</tool_call>"        one must be called
//! ```

use llguidance::regex_to_lark;
use serde_json::{Value, json};

use super::compiler::{check_lark, check_text};
use super::schema::closed_schema;
use super::{Grammar, GrammarBounds, GrammarError};
use crate::text::Tokenizer;
use crate::text::reasoning::{ReasoningFormat, ReasoningStart};
use crate::text::tools::{CallForm, ToolFormat};

/// What an answer in a chat must look like.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerForm {
    /// The model may think first, in this format.
    pub reasoning: Option<(ReasoningFormat, ReasoningStart)>,
    pub calls: Option<ToolCalls>,
    /// What content must look like; `None` leaves it free.
    pub content: Option<Grammar>,
}

/// Calls that an answer may or must hold.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCalls {
    pub format: ToolFormat,
    /// Never empty.
    pub tools: Vec<CallableTool>,
    pub need: CallNeed,
    pub count: CallCount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallNeed {
    /// Content may stand instead of calls, and around them if it is free.
    Allowed,
    Required,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallCount {
    One,
    Several,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CallableTool {
    pub name: String,
    /// A schema of the arguments; `None` for a tool without any.
    pub parameters: Option<Value>,
    /// Arguments must be of the schema, or the request is refused.
    pub strict: bool,
}

/// How the arguments of tools that are not strict are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LooseArguments {
    OfSchema,
    /// Their schema cannot be enforced.
    AnyObject,
}

impl AnswerForm {
    pub(super) fn has_loose_tools(&self) -> bool {
        self.calls
            .as_ref()
            .is_some_and(|calls| calls.tools.iter().any(|tool| !tool.strict && tool.parameters.is_some()))
    }

    /// The whole grammar. Errors when a part of it exceeds a bound on what is written.
    pub(super) fn to_lark(
        &self,
        tokenizer: &Tokenizer,
        loose: LooseArguments,
        bounds: &GrammarBounds,
    ) -> Result<String, GrammarError> {
        let mut writer = Writer { tokenizer, bounds, rules: String::new() };
        let content = self.content.as_ref().map(|content| writer.content(content)).transpose()?;
        let start = match (&self.calls, content) {
            (None, None) => return Ok("start: TEXT\nTEXT: /(?s:.*)/\n".to_owned()),
            (None, Some(content)) => content,
            (Some(calls), content) => {
                writer.call(calls, loose)?;
                match (calls.need, content) {
                    (CallNeed::Required, _) => writer.calls(calls),
                    (CallNeed::Allowed, Some(content)) => format!("({} | {content})", writer.calls(calls)),
                    // What the model thinks is free text too.
                    (CallNeed::Allowed, None) => {
                        let free = writer.calls_in_text(calls);
                        return Ok(writer.finish(&free));
                    }
                }
            }
        };
        let thought = self.reasoning.map(|(format, start)| writer.thought(format, start));
        Ok(writer.finish(&format!("{}{start}", thought.unwrap_or_default())))
    }
}

struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    bounds: &'a GrammarBounds,
    rules: String,
}

impl Writer<'_> {
    fn finish(&self, start: &str) -> String {
        format!("start: {start}\n{}", self.rules)
    }

    fn rule(&mut self, rule: &str) {
        self.rules.push_str(rule);
        self.rules.push('\n');
    }

    /// Reasoning, and the white space that belongs to its marker.
    fn thought(&mut self, format: ReasoningFormat, start: ReasoningStart) -> String {
        let [open, close] = format.markers();
        match self.special(close) {
            Some(token) => self.rule(&format!("thought: /(?s:.+)/? {token}")),
            None => self.rule(&format!("thought[suffix={}]: /(?s:.*)/", quoted(close))),
        }
        self.rule(r"GAP: /[ \t\r\n]{1,8}/");
        match start {
            ReasoningStart::Inside => "thought GAP? ".to_owned(),
            ReasoningStart::Outside => format!("({} thought GAP?)? ", self.written(open)),
        }
    }

    fn content(&mut self, content: &Grammar) -> Result<String, GrammarError> {
        match content {
            Grammar::JsonObject => self.json("content", &json!({"type": "object"}))?,
            Grammar::JsonSchema(schema) => self.json("content", schema)?,
            Grammar::Regex(regex) => {
                check_text(regex, self.bounds)?;
                self.rule(&format!("content: /{}/", regex_to_lark(regex, "")));
            }
            Grammar::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
                self.rule(&format!("content: CHOICE\nCHOICE: {}", texts.join(" | ")));
            }
            Grammar::Lark(lark) => {
                check_lark(lark, self.bounds)?;
                self.rule(&format!("content: %lark {{\n{lark}\n}}"));
            }
        }
        Ok("content".to_owned())
    }

    fn json(&mut self, name: &str, schema: &Value) -> Result<(), GrammarError> {
        check_text(&schema.to_string(), self.bounds)?;
        self.rule(&format!("{name}: %json {}", closed_schema(schema)?));
        Ok(())
    }

    /// The rule of one call of any of the tools.
    fn call(&mut self, calls: &ToolCalls, loose: LooseArguments) -> Result<(), GrammarError> {
        let form = calls.format.layout().call;
        let mut alternatives = Vec::with_capacity(calls.tools.len());
        for (index, tool) in calls.tools.iter().enumerate() {
            let arguments = format!("arguments_{index}");
            self.json(&arguments, &arguments_schema(tool, loose))?;
            let (before, after) = around_arguments(form, &tool.name);
            alternatives.push(format!("{} {arguments} {}", self.written(&before), self.written(&after)));
        }
        self.rule(&format!("call: {}", alternatives.join("\n    | ")));
        Ok(())
    }

    /// The calls as the whole answer.
    fn calls(&self, calls: &ToolCalls) -> String {
        let layout = calls.format.layout();
        format!("{} {}", self.written(layout.begin), self.after_first_call(calls))
    }

    fn after_first_call(&self, calls: &ToolCalls) -> String {
        let layout = calls.format.layout();
        let more = match calls.count {
            CallCount::One => String::new(),
            CallCount::Several => format!("({} call)*", self.written(layout.between)),
        };
        format!("call {more} {}", self.written(layout.end))
    }

    /// Free text in which the calls that stand there are whole and of their tools.
    fn calls_in_text(&mut self, calls: &ToolCalls) -> String {
        let begin = calls.format.layout().begin;
        let opener = calls.format.markers().first().copied().filter(|opener| begin.starts_with(opener));
        let Some(opener) = opener else {
            // A call begins the answer or there is none.
            self.rule("PLAIN: /[^{\\[\\s](?s:.*)/ & ~(ANY \"```json\" ANY)\nANY: /(?s:.*)/");
            return format!("({} | PLAIN)", self.calls(calls));
        };
        let inside = format!("{} {}", self.written(&begin[opener.len()..]), self.after_first_call(calls));
        let (head, tail) = match self.special(opener) {
            Some(token) => {
                self.rule("TEXT: /(?s:.+)/");
                (format!("TEXT? {token}"), "TEXT?")
            }
            None => {
                self.rule(&format!("head[suffix={}]: /(?s:.*)/", quoted(opener)));
                self.rule(&format!("TEXT: /(?s:.+)/ & ~(ANY {} ANY)\nANY: /(?s:.*)/", quoted(opener)));
                ("head".to_owned(), "TEXT?")
            }
        };
        match calls.count {
            CallCount::One => format!("({head} {inside} | {tail})"),
            CallCount::Several => format!("({head} {inside})* {tail}"),
        }
    }

    /// Text with its special tokens by id.
    fn written(&self, text: &str) -> String {
        let specials = self.tokenizer.special_strings();
        let (mut parts, mut begin) = (Vec::new(), 0);
        while let Some(found) = specials.find_from(text, begin) {
            parts.extend((found.start > begin).then(|| quoted(&text[begin..found.start])));
            parts.extend(self.special(&text[found.clone()]));
            begin = found.end;
        }
        parts.extend((begin < text.len()).then(|| quoted(&text[begin..])));
        parts.join(" ")
    }

    fn special(&self, text: &str) -> Option<String> {
        let id = self.tokenizer.token_id(text).filter(|&id| self.tokenizer.is_special(id))?;
        Some(format!("<[{id}]>"))
    }
}

/// A call's arguments are an object, whatever its schema forgot to say.
fn arguments_schema(tool: &CallableTool, loose: LooseArguments) -> Value {
    match &tool.parameters {
        None => json!({"type": "object", "properties": {}, "additionalProperties": false}),
        Some(_) if !tool.strict && loose == LooseArguments::AnyObject => json!({"type": "object"}),
        Some(Value::Object(schema)) if !schema.contains_key("type") => {
            let mut schema = schema.clone();
            schema.insert("type".to_owned(), "object".into());
            Value::Object(schema)
        }
        Some(schema) => schema.clone(),
    }
}

fn around_arguments(form: CallForm, name: &str) -> (String, String) {
    match form {
        CallForm::Object { arguments } => (format!("{{\"name\": \"{name}\", \"{arguments}\": "), "}".to_owned()),
        CallForm::Keyed => (format!("{{\"{name}\": "), "}".to_owned()),
        CallForm::Named { separator } => (format!("{name}{separator}"), String::new()),
    }
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
