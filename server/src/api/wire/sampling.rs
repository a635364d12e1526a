//! The fields that the generating routes share.

use std::collections::BTreeMap;

use passerelle_engine::SamplingParams;
use passerelle_models::TokenId;
use serde_json::Value;

use super::request::{Output, PrefixCaching, RequestBounds, StreamOptions, StreamUsage};
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, integer, invalid, neutral, number, too_many, wrong_type};
use crate::gateway::Attribution;

/// Fields that every generating route reads, in one place: how tokens are drawn, and for whom.
pub(crate) const SAMPLING_FIELDS: &[Field] = &[
    honoured("min_tokens"),
    honoured("temperature"),
    honoured("top_p"),
    honoured("top_k"),
    honoured("min_p"),
    honoured("typical_p"),
    honoured("frequency_penalty"),
    honoured("presence_penalty"),
    honoured("repetition_penalty"),
    honoured("logit_bias"),
    honoured("bad_words"),
    honoured("seed"),
    honoured("stop"),
    honoured("stop_token_ids"),
    honoured("priority"),
    honoured("service_tier"),
    honoured("ignore_eos"),
    honoured("stream"),
    honoured("cache_salt"),
    honoured("user"),
    honoured("safety_identifier"),
    honoured("prompt_cache_key"),
    honoured("metadata"),
    neutral("use_beam_search", "[false]"),
    neutral("length_penalty", "[1]"),
    neutral("include_stop_str_in_output", "[false]"),
    neutral("spaces_between_special_tokens", "[true]"),
    neutral("truncate_prompt_tokens", "[]"),
    neutral("allowed_token_ids", "[]"),
    neutral("logits_processors", "[[]]"),
    // Prefixes are kept in memory, as long as there is room.
    neutral("prompt_cache_retention", r#"["in_memory", "in-memory"]"#),
    neutral("prompt_cache_options", "[]"),
];

/// What chat and completions say of their answers.
pub(crate) const ANSWER_FIELDS: &[Field] = &[
    honoured("model"),
    honoured("max_tokens"),
    honoured("n"),
    honoured("skip_special_tokens"),
    honoured("stream_options"),
    honoured("return_token_ids"),
];

pub(crate) const STREAM_OPTIONS: &[Field] =
    &[honoured("include_usage"), honoured("continuous_usage_stats"), neutral("include_obfuscation", "[false]")];

/// Most of the most likely tokens that a position reports.
pub(crate) const MAX_LOGPROBS: i64 = 20;
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY_CHARS: usize = 64;
const MAX_METADATA_VALUE_CHARS: usize = 512;
const MAX_CACHE_SALT_BYTES: usize = 256;

/// How to sample, as far as the caller said; the rest is the model's own default.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sampling {
    pub(crate) max_tokens: Option<u32>,
    pub(crate) length_field: LengthField,
    pub(crate) min_tokens: u32,
    pub(crate) temperature: Option<f32>,
    pub(crate) top_p: Option<f32>,
    pub(crate) top_k: Option<u32>,
    pub(crate) min_p: Option<f32>,
    pub(crate) typical_p: Option<f32>,
    pub(crate) frequency_penalty: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) repetition_penalty: Option<f32>,
    pub(crate) logit_bias: Vec<(TokenId, f32)>,
    /// As written; the model's tokenizer says which tokens spell them.
    pub(crate) bad_words: Vec<String>,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
    pub(crate) stop_token_ids: Vec<TokenId>,
    pub(crate) ignore_eos: bool,
}

/// What the bound on an answer's length is called, as far as its caller knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum LengthField {
    /// On every route but one.
    #[default]
    Common,
    /// The newer one of chats.
    Chat,
    Responses,
}

impl LengthField {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Common => "max_tokens",
            Self::Chat => "max_completion_tokens",
            Self::Responses => "max_output_tokens",
        }
    }
}

/// What a model samples with where the caller says nothing (its `generation_config.json`).
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationDefaults {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

impl Sampling {
    /// Where an answer must have a token, its bound was taken before ([`read_length`]).
    pub(crate) fn read(fields: &mut Fields, bounds: &RequestBounds) -> Result<Self, ApiError> {
        Ok(Self {
            max_tokens: fields.count("max_tokens", u32::MAX)?,
            length_field: LengthField::default(),
            min_tokens: fields.count("min_tokens", u32::MAX)?.unwrap_or(0),
            temperature: fields.number("temperature", 0.0..=2.0)?,
            top_p: read_top_p(fields)?,
            top_k: read_top_k(fields)?,
            min_p: fields.number("min_p", 0.0..=1.0)?,
            typical_p: fields.number("typical_p", 0.001..=1.0)?,
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01..=10.0)?,
            logit_bias: read_logit_bias(fields, bounds)?,
            seed: fields.integer("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
            bad_words: read_bad_words(fields, bounds)?,
            stop: read_stop(fields, bounds)?,
            stop_token_ids: read_stop_token_ids(fields, bounds)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
        })
    }

    /// The engine's parameters for a prompt that leaves room for `room` tokens.
    pub(crate) fn to_engine(&self, defaults: &GenerationDefaults, eos: &[TokenId], max_tokens: u32) -> SamplingParams {
        let mut stop_token_ids = self.stop_token_ids.clone();
        if !self.ignore_eos {
            stop_token_ids.extend(eos.iter().filter(|id| !self.stop_token_ids.contains(id)));
        }
        SamplingParams {
            max_tokens,
            min_tokens: self.min_tokens.min(max_tokens),
            temperature: self.temperature.or(defaults.temperature).unwrap_or(1.0),
            top_k: self.top_k.or(defaults.top_k).filter(|top_k| *top_k > 0),
            top_p: self.top_p.or(defaults.top_p).unwrap_or(1.0),
            min_p: self.min_p.or(defaults.min_p).unwrap_or(0.0),
            typical_p: self.typical_p.unwrap_or(1.0),
            frequency_penalty: self.frequency_penalty,
            presence_penalty: self.presence_penalty,
            repetition_penalty: self.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0),
            logit_bias: self.logit_bias.clone(),
            seed: self.seed,
            stop_token_ids,
            ..SamplingParams::default()
        }
    }
}

/// The fields about the answer's form that chat and completions share.
pub(crate) fn read_output(fields: &mut Fields, reader: &mut Reader) -> Result<Output, ApiError> {
    let stream = fields.boolean("stream")?.unwrap_or(false);
    let options = match fields.value("stream_options") {
        None => None,
        Some(_) if !stream => return Err(invalid("stream_options", "only allowed when `stream` is true")),
        Some(value) => {
            let mut options = reader.open(value, "stream_options", &[STREAM_OPTIONS])?;
            let usage = read_stream_usage(&mut options)?;
            reader.finish(options)?;
            Some(StreamOptions { usage })
        }
    };
    Ok(Output {
        stream: stream.then(|| options.unwrap_or_default()),
        return_token_ids: fields.boolean("return_token_ids")?.unwrap_or(false),
        keep_special_tokens: !fields.boolean("skip_special_tokens")?.unwrap_or(true),
        ..Output::default()
    })
}

fn read_stream_usage(options: &mut Fields) -> Result<StreamUsage, ApiError> {
    let at_end = options.boolean("include_usage")?.unwrap_or(false);
    let continuous = options.boolean("continuous_usage_stats")?.unwrap_or(false);
    match (at_end, continuous) {
        (true, true) => Ok(StreamUsage::Continuous),
        (true, false) => Ok(StreamUsage::AtEnd),
        (false, false) => Ok(StreamUsage::Never),
        (false, true) => {
            Err(invalid("stream_options.continuous_usage_stats", "only allowed when `include_usage` is true"))
        }
    }
}

/// Only accounted: nothing here changes the answer. OpenAI replaces `user` by `safety_identifier`; who still sends both means the
/// newer one.
pub(crate) fn read_attribution(fields: &mut Fields) -> Result<Attribution, ApiError> {
    let (user, newer) = (fields.string("user")?, fields.string("safety_identifier")?);
    Ok(Attribution::new(newer.or(user).as_deref(), &read_metadata(fields)?))
}

pub(crate) fn read_metadata(fields: &mut Fields) -> Result<BTreeMap<String, String>, ApiError> {
    let mut metadata = BTreeMap::new();
    let Some(value) = fields.value("metadata") else { return Ok(metadata) };
    let Value::Object(map) = value else { return Err(wrong_type("metadata", "an object", &value)) };
    if map.len() > MAX_METADATA {
        return Err(too_many("metadata", MAX_METADATA, map.len()));
    }
    for (key, value) in map {
        let Value::String(text) = value else {
            return Err(wrong_type(&format!("metadata.{key}"), "a string", &value));
        };
        if key.chars().count() > MAX_METADATA_KEY_CHARS || text.chars().count() > MAX_METADATA_VALUE_CHARS {
            let why =
                format!("keys hold at most {MAX_METADATA_KEY_CHARS} characters and values {MAX_METADATA_VALUE_CHARS}");
            return Err(invalid(&format!("metadata.{key}"), why));
        }
        metadata.insert(key, text);
    }
    Ok(metadata)
}

pub(crate) fn read_caching(fields: &mut Fields) -> Result<PrefixCaching, ApiError> {
    Ok(PrefixCaching { salt: read_cache_salt(fields)?, key: fields.string("prompt_cache_key")? })
}

fn read_cache_salt(fields: &mut Fields) -> Result<Option<String>, ApiError> {
    let salt = fields.string("cache_salt")?;
    match salt {
        Some(salt) if salt.is_empty() || salt.len() > MAX_CACHE_SALT_BYTES => {
            Err(invalid("cache_salt", format!("must hold between 1 and {MAX_CACHE_SALT_BYTES} bytes")))
        }
        salt => Ok(salt),
    }
}

fn read_top_p(fields: &mut Fields) -> Result<Option<f32>, ApiError> {
    let top_p = fields.number("top_p", 0.0..=1.0)?;
    // OpenAI accepts 0, which keeps only the most likely token; the engine wants a positive mass, which does the same.
    Ok(top_p.map(|top_p| top_p.max(f32::MIN_POSITIVE)))
}

/// -1 and 0 are how the field's servers write "the whole vocabulary"; both come out as 0.
fn read_top_k(fields: &mut Fields) -> Result<Option<u32>, ApiError> {
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    Ok(top_k.map(|top_k| u32::try_from(top_k).unwrap_or(0)))
}

fn read_logit_bias(fields: &mut Fields, bounds: &RequestBounds) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let Some(value) = fields.value("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(map) = value else { return Err(wrong_type("logit_bias", "an object", &value)) };
    if map.len() > bounds.max_logit_bias {
        return Err(too_many("logit_bias", bounds.max_logit_bias, map.len()));
    }
    let mut biases = map.iter().map(|(key, value)| {
        // `+7` and `07` would be a second entry for token 7.
        let token = key.parse::<TokenId>().ok().filter(|token| token.to_string() == *key);
        let token = token.ok_or_else(|| invalid("logit_bias", "every key must be a token id"))?;
        Ok((token, number(&format!("logit_bias.{token}"), value, -100.0..=100.0)?))
    });
    biases.by_ref().collect()
}

fn read_stop(fields: &mut Fields, bounds: &RequestBounds) -> Result<Vec<String>, ApiError> {
    let items = match fields.value("stop") {
        None => return Ok(Vec::new()),
        Some(text @ Value::String(_)) => vec![text],
        Some(Value::Array(items)) => items,
        Some(other) => return Err(wrong_type("stop", "a string or an array of strings", &other)),
    };
    if items.len() > bounds.max_stop_strings {
        return Err(too_many("stop", bounds.max_stop_strings, items.len()));
    }
    short_texts("stop", items, bounds)
}

fn read_bad_words(fields: &mut Fields, bounds: &RequestBounds) -> Result<Vec<String>, ApiError> {
    let items = fields.array("bad_words")?.unwrap_or_default();
    if items.len() > bounds.max_bad_words {
        return Err(too_many("bad_words", bounds.max_bad_words, items.len()));
    }
    short_texts("bad_words", items, bounds)
}

fn short_texts(name: &str, items: Vec<Value>, bounds: &RequestBounds) -> Result<Vec<String>, ApiError> {
    let strings = items.into_iter().enumerate().map(|(index, item)| match item {
        Value::String(text) if text.is_empty() => Err(invalid(&format!("{name}[{index}]"), "must not be empty")),
        Value::String(text) if text.len() > bounds.max_stop_bytes => {
            Err(invalid(&format!("{name}[{index}]"), format!("must hold at most {} bytes", bounds.max_stop_bytes)))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type(&format!("{name}[{index}]"), "a string", &other)),
    });
    strings.collect()
}

fn read_stop_token_ids(fields: &mut Fields, bounds: &RequestBounds) -> Result<Vec<TokenId>, ApiError> {
    let Some(items) = fields.array("stop_token_ids")? else { return Ok(Vec::new()) };
    if items.len() > bounds.max_stop_token_ids {
        return Err(too_many("stop_token_ids", bounds.max_stop_token_ids, items.len()));
    }
    token_ids("stop_token_ids", &items)
}

/// An array of token ids. Whether they exist in the model's vocabulary is checked once the model is known.
pub(crate) fn token_ids(name: &str, items: &[Value]) -> Result<Vec<TokenId>, ApiError> {
    let ids = items.iter().enumerate().map(|(index, item)| match item.as_u64().map(TokenId::try_from) {
        // There may be a million, and each would be given a name that nobody reads.
        Some(Ok(id)) => Ok(id),
        _ => {
            let id = integer(&format!("{name}[{index}]"), item, 0..=i64::from(TokenId::MAX))?;
            Ok(TokenId::try_from(id).expect("the range above ends at the largest token id"))
        }
    });
    ids.collect()
}

/// The bound on an answer that has one token at least.
pub(crate) fn read_length(fields: &mut Fields, name: &str) -> Result<Option<u32>, ApiError> {
    let length = fields.integer(name, 1..=i64::from(u32::MAX))?;
    Ok(length.and_then(|length| u32::try_from(length).ok()))
}

/// `min_tokens` can only be kept below `max_tokens`.
pub(crate) fn check_min_tokens(sampling: &Sampling) -> Result<(), ApiError> {
    match sampling.max_tokens {
        Some(max_tokens) if sampling.min_tokens > max_tokens => {
            let field = sampling.length_field.as_str();
            Err(invalid("min_tokens", format!("must not exceed `{field}` ({max_tokens})")))
        }
        _ => Ok(()),
    }
}

/// How many likely tokens to report, as chat's `top_logprobs` and completions' `logprobs` count them.
pub(crate) fn read_logprob_count(fields: &mut Fields, name: &str) -> Result<Option<u8>, ApiError> {
    let count = fields.integer(name, 0..=MAX_LOGPROBS)?;
    Ok(count.map(|count| u8::try_from(count).expect("MAX_LOGPROBS is below 256")))
}
