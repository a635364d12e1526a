//! The one validated request behind every generating route: a bound that holds here holds on all of them.

use std::num::NonZeroU32;

use passerelle_models::TokenId;
use serde_json::{Map, Value};

use super::choices::Choices;
use super::messages::{Message, ToolCall};
use super::sampling::Sampling;
use super::structure::Structure;
use super::tools::{Tool, ToolChoice};
use crate::gateway::Attribution;
use crate::gateway::account::ServiceClass;
use crate::text::grammar::CallCount;

/// Bounds on what one request may carry, whatever the body limit.
#[derive(Debug, Clone, Copy)]
pub struct RequestBounds {
    pub max_messages: usize,
    pub max_tools: usize,
    pub max_stop_strings: usize,
    pub max_stop_bytes: usize,
    pub max_stop_token_ids: usize,
    pub max_logit_bias: usize,
    pub max_bad_words: usize,
    pub max_prompts: usize,
    /// Answers to one prompt.
    pub max_choices: NonZeroU32,
    /// Texts of one request to an encoder.
    pub max_inputs: usize,
    /// Models of one comparison.
    pub max_compared_models: usize,
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self {
            max_messages: 4096,
            max_tools: 128,
            max_stop_strings: 16,
            max_stop_bytes: 1024,
            max_stop_token_ids: 64,
            max_logit_bias: 1024,
            max_bad_words: 64,
            max_prompts: 64,
            max_choices: const { NonZeroU32::new(16).unwrap() },
            max_inputs: 2048,
            max_compared_models: 4,
        }
    }
}

/// A checked request, as a route reads it from a body.
#[derive(Debug)]
pub(crate) struct ReadRequest {
    pub(crate) prompt: Prompt,
    pub(crate) generate: GenerateRequest,
    /// Fields that were accepted without being read.
    pub(crate) ignored: Vec<String>,
}

/// Everything but the prompt; nothing about it depends on the model yet.
#[derive(Debug, Clone)]
pub(crate) struct GenerateRequest {
    pub(crate) model: String,
    pub(crate) sampling: Sampling,
    pub(crate) output: Output,
    pub(crate) structure: Option<Structure>,
    pub(crate) choices: Choices,
    /// What it asks for; `None`: what its key has.
    pub(crate) class: Option<ServiceClass>,
    pub(crate) caching: PrefixCaching,
    /// Whom and what it is for; written down with what it uses.
    pub(crate) attribution: Attribution,
}

/// What is said of the cache of prompts' beginnings.
#[derive(Debug, Clone, Default)]
pub(crate) struct PrefixCaching {
    /// Mixed into the account's own salt: prefixes are shared only between requests that give the same one.
    pub(crate) salt: Option<String>,
    /// `prompt_cache_key`: prompts that begin alike meet on one replica where they give the same one. It shares nothing
    /// that would not be shared without it.
    pub(crate) key: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    Chat(ChatPrompt),
    /// Each has its choices, by index one after the other.
    Completions {
        prompts: Vec<CompletionPrompt>,
        add_special_tokens: bool,
    },
}

/// What a conversation is called, but on one route.
pub(crate) const MESSAGES: &str = "messages";

#[derive(Debug, Clone)]
pub(crate) struct ChatPrompt {
    /// What the caller calls the conversation.
    pub(crate) field: &'static str,
    pub(crate) messages: Vec<Message>,
    /// Offered tools; empty under `tool_choice: "none"`.
    pub(crate) tools: Vec<Tool>,
    pub(crate) tool_choice: ToolChoice,
    /// One under `parallel_tool_calls: false`.
    pub(crate) call_count: CallCount,
    pub(crate) template_kwargs: Map<String, Value>,
    pub(crate) reasoning_effort: Option<ReasoningEffort>,
    /// What the caller calls that.
    pub(crate) effort_field: &'static str,
    pub(crate) ending: PromptEnding,
}

/// How long the model is to think, as far as its chat template can tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReasoningEffort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    ExtraHigh,
    Max,
}

impl ReasoningEffort {
    pub(crate) const ALL: [Self; 7] =
        [Self::None, Self::Minimal, Self::Low, Self::Medium, Self::High, Self::ExtraHigh, Self::Max];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Minimal => "minimal",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::ExtraHigh => "xhigh",
            Self::Max => "max",
        }
    }
}

impl Prompt {
    /// What the caller calls it.
    pub(crate) fn field(&self) -> &'static str {
        match self {
            Self::Chat(chat) => chat.field,
            Self::Completions { .. } => "prompt",
        }
    }

    /// The name of each prompt; one of several is told by its place.
    pub(crate) fn names(&self) -> Vec<String> {
        match self {
            Self::Completions { prompts, .. } if prompts.len() > 1 => {
                (0..prompts.len()).map(|index| format!("{}[{index}]", self.field())).collect()
            }
            Self::Completions { .. } | Self::Chat(_) => vec![self.field().to_owned()],
        }
    }
}

impl ChatPrompt {
    /// What a chat template may break on, though it is written for others, by the field that brought it, and the conversation
    /// without it: a template gets whatever is in `chat_template_kwargs`, and the arguments of a call also where they are no
    /// object.
    pub(crate) fn plainer(&self) -> Vec<(String, Self)> {
        let mut plainer = Vec::new();
        let mut chat = Self { template_kwargs: Map::new(), ..self.clone() };
        if !self.template_kwargs.is_empty() {
            plainer.push(("chat_template_kwargs".to_owned(), chat.clone()));
        }
        if let Some(field) = self.odd_call() {
            let calls = chat.messages.iter_mut().flat_map(|message| &mut message.tool_calls);
            calls.filter(|call| !call.has_object()).for_each(|call| "{}".clone_into(&mut call.arguments));
            plainer.push((field, chat));
        }
        plainer
    }

    /// The field of the first call whose arguments are no object.
    fn odd_call(&self) -> Option<String> {
        let odd_call = |calls: &[ToolCall]| calls.iter().position(|call| !call.has_object());
        let mut messages = self.messages.iter().enumerate();
        let (index, call) = messages.find_map(|(index, message)| Some((index, odd_call(&message.tool_calls)?)))?;
        match self.field {
            MESSAGES => Some(format!("{MESSAGES}[{index}].tool_calls[{call}].function.arguments")),
            // What it is made of is not numbered like the messages.
            field => Some(field.to_owned()),
        }
    }

    /// The beginning of the answer, if it stands in the prompt.
    pub(crate) fn begun(&self) -> Option<&str> {
        match self.ending {
            PromptEnding::ContinueFinalMessage => self.messages.last()?.content.as_deref(),
            PromptEnding::GenerationPrompt | PromptEnding::Closed => None,
        }
    }
}

/// How a rendered conversation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PromptEnding {
    /// With the opening of an assistant's turn.
    GenerationPrompt,
    /// After the last message, closed.
    Closed,
    /// Inside the last message, which the model continues.
    ContinueFinalMessage,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum CompletionPrompt {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// What the answer shows, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Output {
    pub(crate) stream: Option<StreamOptions>,
    /// Show log-probabilities, with this many of the most likely tokens.
    pub(crate) logprobs: Option<u8>,
    /// Show the prompt before the answer (completions).
    pub(crate) echo: bool,
    pub(crate) prompt_logprobs: Option<u8>,
    /// Show a few numbers for each prompt position: how likely its token was, and how sure the model.
    pub(crate) prompt_scores: bool,
    /// The same, by this model too, and how far apart the two are.
    pub(crate) prompt_scores_against: Option<String>,
    pub(crate) return_token_ids: bool,
    pub(crate) keep_special_tokens: bool,
    /// The answer may call tools, so that it need not hold a text.
    pub(crate) offers_tools: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StreamOptions {
    pub(crate) usage: StreamUsage,
}

/// When a stream says how many tokens were used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StreamUsage {
    #[default]
    Never,
    /// In a last chunk without choices.
    AtEnd,
    /// There, and in every chunk before it as far as it has come.
    Continuous,
}
