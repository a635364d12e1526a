//! Chat templates: messages to the text that a model was trained to read.
//!
//! Templates are programs that come with a checkpoint, so they run with limits: steps, bytes built and written, depth,
//! source size. They see what `transformers` gives them, and nothing of this machine; time is an argument.

mod budget;
mod engine;
mod instrument;
mod python;
mod strftime;
mod tojson;

use std::collections::BTreeMap;
use std::time::Duration;

use minijinja::Environment;
use serde_json::{Map, Value};

use super::TextError;

/// Steps of one rendering, about a tenth of a second of work. A thousand messages need some hundred thousand.
pub const TEMPLATE_FUEL: u64 = 2_000_000;
/// The longest prompt a template may write: as much as is encoded at once.
pub const MAX_PROMPT_BYTES: usize = super::tokenizer::MAX_TEXT_BYTES;
pub const MAX_TEMPLATE_SOURCE_BYTES: usize = 1 << 20;

/// Marks where the text of a continued message ends; a private character, removed from the result. The space behind it is
/// gone where the template trims its messages.
const CONTINUE_MARK: &str = "\u{10FFFD} ";
/// Names that a template reads and that a request's own variables cannot replace.
pub const RESERVED: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];

const DEFAULT: &str = "default";

/// How the prompt ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptEnd {
    /// With the header of the answer to come.
    GenerationPrompt,
    /// With the last message, closed.
    AsIs,
    /// Inside the last message, so that the model goes on writing it.
    ContinueFinalMessage,
}

/// Everything a template sees.
#[derive(Debug, Clone, Copy)]
pub struct TemplateInput<'a> {
    /// A list of messages in OpenAI's shape.
    pub messages: &'a [Value],
    pub tools: Option<&'a [Value]>,
    pub documents: Option<&'a [Value]>,
    pub end: PromptEnd,
    /// Extra variables (`chat_template_kwargs`).
    pub variables: &'a Map<String, Value>,
    /// Wall time since the Unix epoch, for templates that write the date.
    pub now: Duration,
}

/// A model's compiled chat templates.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: Option<String>,
    /// `bos_token` and the like, as templates name them.
    special_tokens: Map<String, Value>,
}

impl ChatTemplate {
    /// Compiles named templates: `default`, and `tool_use` if the model has another one for requests with tools.
    pub fn new(sources: BTreeMap<String, String>, special_tokens: Map<String, Value>) -> Result<Self, TextError> {
        let mut environment = engine::environment();
        let source = sources.get(DEFAULT).cloned();
        for (name, source) in sources {
            if source.len() > MAX_TEMPLATE_SOURCE_BYTES {
                let problem = format!("{} bytes long; at most {MAX_TEMPLATE_SOURCE_BYTES} are read", source.len());
                return Err(TextError::TemplateBroken(problem));
            }
            engine::compile(&mut environment, name, &source)?;
        }
        Ok(Self { environment, source, special_tokens })
    }

    /// The template for requests without tools, as its author wrote it.
    pub fn source(&self) -> Option<String> {
        self.source.clone()
    }

    /// The prompt's text. Takes bounded time; call it off the async threads.
    pub fn render(&self, prompt: &TemplateInput<'_>) -> Result<String, TextError> {
        if prompt.end != PromptEnd::ContinueFinalMessage {
            return self.render_messages(prompt, prompt.messages);
        }
        let mut messages = prompt.messages.to_vec();
        mark_end_of_last(&mut messages)?;
        let mut text = self.render_messages(prompt, &messages)?;
        let mark = CONTINUE_MARK.trim_end();
        let end = text.rfind(mark).ok_or(TextError::CannotContinue("the chat template leaves it out"))?;
        let is_trimmed = !text[end..].starts_with(CONTINUE_MARK);
        text.truncate(end);
        if is_trimmed {
            text.truncate(text.trim_end().len());
        }
        Ok(text)
    }

    fn render_messages(&self, prompt: &TemplateInput<'_>, messages: &[Value]) -> Result<String, TextError> {
        let mut context = self.special_tokens.clone();
        let extra = prompt.variables.iter().filter(|(name, _)| !RESERVED.contains(&name.as_str()));
        context.extend(extra.map(|(name, value)| (name.clone(), value.clone())));
        let list = |values: Option<&[Value]>| values.map_or(Value::Null, |values| Value::Array(values.to_vec()));
        let values = [
            list(Some(messages)),
            list(prompt.tools),
            list(prompt.documents),
            Value::Bool(prompt.end == PromptEnd::GenerationPrompt),
        ];
        context.extend(RESERVED.map(String::from).into_iter().zip(values));
        engine::render(&self.environment, self.template_name(prompt), &context, prompt.now)
    }

    fn template_name(&self, prompt: &TemplateInput<'_>) -> &'static str {
        const TOOL_USE: &str = "tool_use";
        let wants_tools = prompt.tools.is_some_and(|tools| !tools.is_empty());
        if wants_tools && self.environment.get_template(TOOL_USE).is_ok() { TOOL_USE } else { DEFAULT }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = self.environment.templates().map(|(name, _)| name).collect();
        f.debug_struct("ChatTemplate").field("templates", &names).finish_non_exhaustive()
    }
}

fn mark_end_of_last(messages: &mut [Value]) -> Result<(), TextError> {
    let last = messages.last_mut().ok_or(TextError::CannotContinue("there is none"))?;
    let content = match last.get_mut("content") {
        Some(Value::Array(parts)) => parts.iter_mut().rev().find_map(|part| part.get_mut("text")),
        content => content,
    };
    match content {
        Some(Value::String(text)) => {
            text.push_str(CONTINUE_MARK);
            Ok(())
        }
        _ => Err(TextError::CannotContinue("its content is not text")),
    }
}

#[cfg(test)]
mod tests;
