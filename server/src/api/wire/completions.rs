//! `POST /v1/completions`: its fields, and how they become a [`GenerateRequest`].

use serde_json::Value;

use super::choices::{Choices, read_ranked_choices};
use super::request::{CompletionPrompt, GenerateRequest, Output, Prompt, ReadRequest, RequestBounds};
use super::sampling::{
    ANSWER_FIELDS, SAMPLING_FIELDS, Sampling, check_min_tokens, read_attribution, read_caching, read_logprob_count,
    read_output, token_ids,
};
use super::structure::{STRUCTURE_FIELDS, Structure, read_structure};
use super::tier::read_class;
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, integer, invalid, neutral, required, too_many, wrong_type};

pub(crate) const COMPLETION_FIELDS: &[Field] = &[
    honoured("prompt"),
    honoured("best_of"),
    honoured("echo"),
    honoured("logprobs"),
    honoured("prompt_logprobs"),
    honoured("prompt_scores"),
    honoured("prompt_scores_against"),
    honoured("add_special_tokens"),
    neutral("suffix", r#"[""]"#),
];

/// OpenAI's default for completions.
const DEFAULT_MAX_TOKENS: u32 = 16;

pub(crate) fn read_completions(
    body: Value,
    mut reader: Reader,
    bounds: &RequestBounds,
) -> Result<ReadRequest, ApiError> {
    let mut fields = reader.open(body, "", &[SAMPLING_FIELDS, ANSWER_FIELDS, STRUCTURE_FIELDS, COMPLETION_FIELDS])?;
    let model = required(fields.string("model")?, "model")?;
    let prompts = read_prompts(required(fields.value("prompt"), "prompt")?, bounds)?;
    let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let output = Output {
        echo: fields.boolean("echo")?.unwrap_or(false),
        logprobs: read_logprob_count(&mut fields, "logprobs")?,
        prompt_logprobs: read_logprob_count(&mut fields, "prompt_logprobs")?,
        prompt_scores: fields.boolean("prompt_scores")?.unwrap_or(false),
        prompt_scores_against: fields.string("prompt_scores_against")?,
        ..read_output(&mut fields, &mut reader)?
    };
    let sampling = read_sampling(&mut fields, &output, bounds)?;
    let choices = read_ranked_choices(&mut fields, &output, bounds)?;
    let structure = read_structure(&mut fields, &mut reader)?;
    check_comparison(&output, &sampling, choices, structure.as_ref())?;
    let attribution = read_attribution(&mut fields)?;
    let class = read_class(&mut fields)?;
    let caching = read_caching(&mut fields)?;
    reader.finish(fields)?;
    let prompt = Prompt::Completions { prompts, add_special_tokens };
    let generate = GenerateRequest { model, sampling, output, structure, choices, class, caching, attribution };
    Ok(ReadRequest { prompt, generate, ignored: reader.into_ignored() })
}

fn read_sampling(fields: &mut Fields, output: &Output, bounds: &RequestBounds) -> Result<Sampling, ApiError> {
    let max_tokens = read_max_tokens(fields, output)?.or(Some(DEFAULT_MAX_TOKENS));
    let sampling = Sampling { max_tokens, ..Sampling::read(fields, bounds)? };
    check_min_tokens(&sampling)?;
    Ok(sampling)
}

/// Nothing to generate makes sense only where the prompt itself is asked about.
fn read_max_tokens(fields: &mut Fields, output: &Output) -> Result<Option<u32>, ApiError> {
    const NAME: &str = "max_tokens";
    let asks_about_prompt = output.echo
        || output.prompt_logprobs.is_some()
        || output.prompt_scores
        || output.prompt_scores_against.is_some();
    if asks_about_prompt {
        return fields.count(NAME, u32::MAX);
    }
    let Some(written) = fields.value(NAME) else { return Ok(None) };
    if integer(NAME, &written, 0..=0).is_ok() {
        let why = "0 is only allowed with `echo`, `prompt_logprobs`, `prompt_scores` or `prompt_scores_against`";
        return Err(invalid(NAME, why));
    }
    Ok(u32::try_from(integer(NAME, &written, 1..=i64::from(u32::MAX))?).ok())
}

/// A comparison scores prompts with two models, and nothing else.
fn check_comparison(
    output: &Output,
    sampling: &Sampling,
    choices: Choices,
    structure: Option<&Structure>,
) -> Result<(), ApiError> {
    if output.prompt_scores_against.is_none() {
        return Ok(());
    }
    let form = structure.map_or("response_format", |structure| structure.param.as_str());
    let others = [
        (sampling.max_tokens != Some(0), "max_tokens", "give 0"),
        (output.stream.is_some(), "stream", "leave it out"),
        (output.echo, "echo", "leave it out"),
        (output.logprobs.is_some(), "logprobs", "leave it out"),
        (output.prompt_logprobs.is_some(), "prompt_logprobs", "leave it out"),
        (output.return_token_ids, "return_token_ids", "leave it out"),
        (choices != Choices::ONE, choices.field(), "leave it out"),
        (structure.is_some(), form, "leave it out"),
    ];
    match others.into_iter().find(|(is_asked, ..)| *is_asked) {
        Some((_, name, what)) => Err(invalid(name, format!("beside `prompt_scores_against`, {what}"))),
        None => Ok(()),
    }
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
pub(super) fn read_prompts(value: Value, bounds: &RequestBounds) -> Result<Vec<CompletionPrompt>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![CompletionPrompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", "a string, token ids, or a list of these", &other)),
    };
    match items.first() {
        None => Err(invalid("prompt", "must not be empty")),
        Some(Value::Number(_)) => Ok(vec![read_token_prompt("prompt", &items)?]),
        Some(_) if items.len() > bounds.max_prompts => Err(too_many("prompt", bounds.max_prompts, items.len())),
        Some(_) => {
            let items = items.into_iter().enumerate();
            items.map(|(index, item)| read_listed_prompt(&format!("prompt[{index}]"), item)).collect()
        }
    }
}

fn read_listed_prompt(name: &str, item: Value) -> Result<CompletionPrompt, ApiError> {
    match item {
        Value::String(text) => Ok(CompletionPrompt::Text(text)),
        Value::Array(ids) => read_token_prompt(name, &ids),
        other => Err(wrong_type(name, "a string or an array of token ids", &other)),
    }
}

fn read_token_prompt(name: &str, items: &[Value]) -> Result<CompletionPrompt, ApiError> {
    if items.is_empty() {
        return Err(invalid(name, "must hold at least one token"));
    }
    Ok(CompletionPrompt::Tokens(token_ids(name, items)?))
}
