//! What the HTTP server takes, and how long it waits.

use std::num::{NonZeroU32, NonZeroUsize};

use serde::Deserialize;

use crate::config::{ByteSize, Origin, Period, UnknownFields};

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenApi {
    pub unknown_fields: Option<UnknownFields>,
    pub max_body: Option<ByteSize>,
    /// How long a client may take to send its headers and body.
    pub read_timeout: Option<Period>,
    /// How long a whole request may take, queueing included.
    pub request_timeout: Option<Period>,
    /// A client that writes no more is asked after this whether it is still there.
    pub half_closed_timeout: Option<Period>,
    /// A reader that takes nothing for this long is cut.
    pub stalled_reader_timeout: Option<Period>,
    pub max_stop_strings: Option<NonZeroUsize>,
    pub max_stop_bytes: Option<NonZeroUsize>,
    pub max_stop_token_ids: Option<NonZeroUsize>,
    pub max_logit_bias: Option<NonZeroUsize>,
    pub max_bad_words: Option<NonZeroUsize>,
    pub max_messages: Option<NonZeroUsize>,
    pub max_tools: Option<NonZeroUsize>,
    pub max_prompts: Option<NonZeroUsize>,
    /// Answers to one prompt.
    pub max_choices: Option<NonZeroU32>,
    pub max_inputs: Option<NonZeroUsize>,
    pub max_compared_models: Option<NonZeroUsize>,
    pub max_concurrent_requests: Option<NonZeroUsize>,
    /// Prompts that are templated and tokenised at once.
    pub max_concurrent_encodes: Option<NonZeroUsize>,
    /// A comment is streamed when nothing else was for this long.
    pub keep_alive: Option<Period>,
    /// Stream events that wait for a reader.
    pub max_pending_frames: Option<NonZeroUsize>,
    /// Whole answers larger than this are compressed for clients that take gzip.
    pub compress_above: Option<ByteSize>,
    /// Web pages that may call this server.
    pub cors_origins: Option<Vec<Origin>>,
    /// Accounts below which cached prefixes of prompts are shared.
    pub shared_prefixes: Option<Vec<String>>,
    /// Whether `/tokenizer_info` is answered.
    pub tokenizer_info: Option<bool>,
}
lay_over!(WrittenApi {
    unknown_fields,
    max_body,
    read_timeout,
    request_timeout,
    half_closed_timeout,
    stalled_reader_timeout,
    max_stop_strings,
    max_stop_bytes,
    max_stop_token_ids,
    max_logit_bias,
    max_bad_words,
    max_messages,
    max_tools,
    max_prompts,
    max_choices,
    max_inputs,
    max_compared_models,
    max_concurrent_requests,
    max_concurrent_encodes,
    keep_alive,
    max_pending_frames,
    compress_above,
    cors_origins,
    shared_prefixes,
    tokenizer_info,
});
