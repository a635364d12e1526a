//! How many tokens a text is: by the server's own tokenizer, or by a tokenizer.json on this machine.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::{Client, Connect, HttpError, Request};

#[derive(Debug, Clone)]
pub enum Tokenizer<C: Connect> {
    Server { client: Client<C>, model: String, api_key: Option<String>, dialect: Dialect, added: usize },
    Local(Box<tokenizers::Tokenizer>),
}

/// How servers spell the same question.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Dialect {
    /// vLLM, SGLang and Passerelle: `POST /tokenize` with `prompt`.
    Prompt,
    /// llama.cpp's server: `POST /tokenize` with `content`.
    Content,
    /// llama.cpp through its Python package: `POST /extras/tokenize` with `input`.
    Extras,
}

#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    #[error(
        "the server has no route that tokenizes, or none for this model; check --model, or give its tokenizer.json with --tokenizer"
    )]
    NoRoute,
    #[error("the server could not be asked to tokenize: {0}")]
    Unreachable(HttpError),
    #[error("{path} answered {status}: {}", remedy(*status))]
    Refused { path: &'static str, status: u16 },
    #[error("{path} answered {status} without a list of `tokens`; give the server's tokenizer.json with --tokenizer")]
    NoTokens { path: &'static str, status: u16 },
    #[error("tokenizer.json: {0}")]
    Local(String),
    #[error("none of the common words is one token for this tokenizer, so no prompt of an exact length can be made")]
    NoWords,
    #[error("no prompt of exactly {wanted} tokens could be made; the nearest has {nearest}")]
    NotExact { wanted: u32, nearest: usize },
}

#[derive(Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

impl<C: Connect> Tokenizer<C> {
    pub fn local(file: &Path) -> Result<Self, TokensError> {
        let tokenizer =
            tokenizers::Tokenizer::from_file(file).map_err(|error| TokensError::Local(error.to_string()))?;
        Ok(Self::Local(Box::new(tokenizer)))
    }

    /// Finds out how `client`'s server wants to be asked.
    pub async fn of_server(client: Client<C>, model: &str, api_key: Option<&str>) -> Result<Self, TokensError> {
        for dialect in [Dialect::Prompt, Dialect::Content, Dialect::Extras] {
            let tokenizer = Self::Server {
                client: client.clone(),
                model: model.to_owned(),
                api_key: api_key.map(str::to_owned),
                dialect,
                added: 0,
            };
            match tokenizer.encode("a word").await {
                Ok(_) => return Ok(tokenizer.with_added_counted().await),
                Err(error) if error.is_of_dialect() => {}
                Err(error) => return Err(error),
            }
        }
        Err(TokensError::NoRoute)
    }

    /// The tokens of `text` alone, without what a tokenizer puts around a whole prompt.
    pub async fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        match self {
            Self::Local(tokenizer) => {
                let encoding =
                    tokenizer.encode_fast(text, false).map_err(|error| TokensError::Local(error.to_string()))?;
                Ok(encoding.get_ids().to_vec())
            }
            Self::Server { client, model, api_key, dialect, added } => {
                let body = dialect.body(model, text).to_string();
                let request = Request {
                    method: "POST",
                    path: dialect.path(),
                    api_key: api_key.as_deref(),
                    body: body.as_bytes(),
                };
                let (status, answer) = client.fetch(&request).await.map_err(TokensError::Unreachable)?;
                if status != 200 {
                    return Err(TokensError::Refused { path: dialect.path(), status });
                }
                let tokens: Tokens = serde_json::from_slice(&answer)
                    .map_err(|_| TokensError::NoTokens { path: dialect.path(), status })?;
                Ok(tokens.tokens.into_iter().skip(*added).collect())
            }
        }
    }

    /// Some servers put a start token in front and cannot be asked not to.
    async fn with_added_counted(mut self) -> Self {
        let counted = self.encode("").await.map_or(0, |tokens| tokens.len());
        if let Self::Server { added, .. } = &mut self {
            *added = counted;
        }
        self
    }
}

impl TokensError {
    /// Another spelling of the question may be answered.
    fn is_of_dialect(&self) -> bool {
        matches!(self, Self::NoTokens { .. } | Self::Refused { status: 400 | 404 | 405 | 415 | 422 | 501, .. })
    }
}

fn remedy(status: u16) -> &'static str {
    match status {
        401 | 403 => "it needs a key, or another one: OPENAI_API_KEY or --keys",
        429 => "it limits how often it is asked; count with its tokenizer.json (--tokenizer)",
        404 | 405 | 501 => "it has no such route; count with its tokenizer.json (--tokenizer)",
        _ => "without a count no prompt is exact; count with its tokenizer.json (--tokenizer)",
    }
}

impl Dialect {
    fn path(self) -> &'static str {
        match self {
            Self::Prompt | Self::Content => "/tokenize",
            Self::Extras => "/extras/tokenize",
        }
    }

    fn body(self, model: &str, text: &str) -> Value {
        match self {
            Self::Prompt => json!({"model": model, "prompt": text, "add_special_tokens": false}),
            Self::Content => json!({"content": text, "add_special": false}),
            Self::Extras => json!({"model": model, "input": text}),
        }
    }
}
