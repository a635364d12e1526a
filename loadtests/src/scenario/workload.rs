//! What one kind of user asks.

use std::path::PathBuf;

use serde::Deserialize;

use crate::generate::Route;
use crate::lengths::{Lengths, MAX_TOKENS};

/// Prompt lengths count the tokens of the texts; the chat template adds its own, which the server's usage tells.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Workload {
    /// One message of random words.
    Chat { prompt_tokens: Lengths, output_tokens: Lengths },
    /// `/v1/completions`; with `token_ids` the prompt is sent as ids, behind `shared_tokens` more that all of them begin with.
    Completions {
        prompt_tokens: Lengths,
        output_tokens: Lengths,
        #[serde(default)]
        token_ids: bool,
        #[serde(default)]
        shared_tokens: u32,
    },
    /// A system message out of `prefixes`, then a message of its own.
    SharedPrefix { prefixes: usize, prefix_tokens: u32, prompt_tokens: Lengths, output_tokens: Lengths },
    /// Conversations: each message waits for the answer before, then `think_s`.
    MultiTurn { turns: usize, think_s: f64, prompt_tokens: Lengths, output_tokens: Lengths },
    /// `response_format` with this JSON schema, which the answer must keep (`crate::schema` says how much of it is checked).
    Structured { prompt: String, schema: toml::Table, output_tokens: Lengths },
    /// Requests that must be refused with a 4xx: malformed JSON, wrong types, absurd sizes.
    Poison,
    /// Prompts of a file (`crate::dataset`), drawn by the seed. Answers are as long as this says, or else the file.
    Dataset {
        file: PathBuf,
        output_tokens: Option<Lengths>,
        /// Longer ones are passed over.
        max_prompt_tokens: Option<u32>,
    },
    /// Lines of JSON: when, how long, or the messages themselves.
    Trace { file: PathBuf },
}

/// Fields of the request's body.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestFields {
    pub temperature: Option<f64>,
    /// Generate exactly `output_tokens`, each of which is seen: sends `ignore_eos` and `skip_special_tokens`, which vLLM,
    /// SGLang and Passerelle know.
    #[serde(default)]
    pub ignore_eos: bool,
    pub service_tier: Option<String>,
    /// Anything else, as it is.
    #[serde(default)]
    pub extra: toml::Table,
}

/// `share` of the users close their connection after `after_events` events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    pub share: f64,
    pub after_events: u32,
}

impl Workload {
    pub fn route(&self) -> Route {
        match self {
            Self::Completions { .. } => Route::Completions,
            _ => Route::Chat,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        match self {
            Self::Completions { token_ids: false, shared_tokens: 1.., .. } => {
                Err("`shared_tokens` are ids: they need `token_ids = true`".to_owned())
            }
            Self::Completions { shared_tokens, .. } if *shared_tokens > MAX_TOKENS => {
                Err(format!("`shared_tokens` must be at most {MAX_TOKENS}"))
            }
            Self::Chat { prompt_tokens, output_tokens } | Self::Completions { prompt_tokens, output_tokens, .. } => {
                prompt_tokens.check().and_then(|()| output_tokens.check())
            }
            Self::SharedPrefix { prefixes, prefix_tokens, prompt_tokens, output_tokens } => {
                if *prefixes == 0 || *prefix_tokens == 0 {
                    return Err("`prefixes` and `prefix_tokens` must be above 0".to_owned());
                }
                prompt_tokens.check().and_then(|()| output_tokens.check())
            }
            Self::MultiTurn { turns, think_s, prompt_tokens, output_tokens } => {
                if *turns == 0 || !(0.0..=3600.0).contains(think_s) {
                    return Err("`turns` must be above 0 and `think_s` between 0 and 3600".to_owned());
                }
                prompt_tokens.check().and_then(|()| output_tokens.check())
            }
            Self::Structured { output_tokens, .. } => output_tokens.check(),
            Self::Dataset { max_prompt_tokens: Some(0), .. } => Err("`max_prompt_tokens` must be above 0".to_owned()),
            Self::Dataset { output_tokens, .. } => output_tokens.as_ref().map_or(Ok(()), Lengths::check),
            Self::Poison | Self::Trace { .. } => Ok(()),
        }
    }
}

impl Leave {
    pub(super) fn check(&self) -> Result<(), String> {
        let is_share = (0.0..=1.0).contains(&self.share);
        if is_share && self.after_events > 0 {
            Ok(())
        } else {
            Err("`leave` needs a `share` between 0 and 1 and `after_events` above 0".to_owned())
        }
    }
}
