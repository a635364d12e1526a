//! Messages to token ids, token ids to text. Everything here is synchronous and bounded; callers run it off the async
//! threads. Nothing here knows a request, an account or HTTP, and no content is ever logged.

pub mod answer;
pub mod detokenizer;
pub mod frame;
pub mod grammar;
pub mod prompt;
pub mod reasoning;
pub mod special;
pub mod stop;
pub mod template;
pub mod tokenizer;
pub mod tools;

mod model;
mod pieces;
mod vocabulary;

pub use answer::{AnswerDelta, AnswerFormat, AnswerParser};
pub use detokenizer::Detokenizer;
pub use frame::{FramedText, TextFrame};
pub use grammar::{Grammar, GrammarBounds, GrammarCompiler, GrammarError};
pub use model::TextModel;
pub use prompt::PromptEncoder;
pub use reasoning::{ReasoningFormat, ReasoningStart};
pub use stop::{StopMatcher, StopOutput};
pub use template::{ChatTemplate, PromptEnd, TemplateInput};
pub use tokenizer::{AddSpecialTokens, SkipSpecialTokens, SpecialTokens, Tokenizer};
pub use tools::{CallForm, CallIds, CallLayout, ToolCallParser, ToolFormat};
pub use vocabulary::Vocabulary;

/// What can go wrong between text and tokens.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A checkpoint file that cannot be used. The text says what to do.
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error("the text has {bytes} bytes; at most {limit} are encoded at once")]
    TooLong { bytes: usize, limit: usize },
    #[error("the tokenizer cannot encode this text: {0}")]
    Encode(String),
    #[error("this model has no tokenizer and takes token ids alone; serve it with `--tokenizer SOURCE` for text")]
    NoTokenizer,
    #[error("this model has no chat template; use the completions route, or serve it with `--chat-template FILE`")]
    NoTemplate,
    /// The template called `raise_exception`; its words are meant for whoever wrote the messages.
    #[error("the chat template refuses these messages: {0}")]
    TemplateRefused(String),
    #[error("the chat template needs more than {fuel} steps for these messages")]
    TemplateOutOfFuel { fuel: u64 },
    #[error("the chat template writes more than {limit} bytes for these messages")]
    PromptTooLong { limit: usize },
    /// The template itself is at fault, whatever the messages are.
    #[error("the model's chat template fails: {0}")]
    TemplateBroken(String),
    #[error("the last message cannot be continued: {0}")]
    CannotContinue(&'static str),
}

impl TextError {
    /// Whether another request could succeed: true when what the client sent is at fault, false when the model's files are.
    pub fn is_request_fault(&self) -> bool {
        !matches!(self, Self::File { .. } | Self::TemplateBroken(_))
    }

    /// A short label for metrics and error codes.
    pub fn label(&self) -> &'static str {
        match self {
            Self::File { .. } => "checkpoint_file",
            Self::TooLong { .. } | Self::PromptTooLong { .. } => "text_too_long",
            Self::Encode(_) => "encode",
            Self::NoTokenizer => "no_tokenizer",
            Self::NoTemplate => "no_chat_template",
            Self::TemplateRefused(_) => "template_refused",
            Self::TemplateOutOfFuel { .. } => "template_out_of_fuel",
            Self::TemplateBroken(_) => "template_broken",
            Self::CannotContinue(_) => "cannot_continue",
        }
    }
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod goldens;
#[cfg(test)]
mod hostile;
