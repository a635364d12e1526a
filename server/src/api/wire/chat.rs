//! `POST /v1/chat/completions`: its fields, and how they become a [`GenerateRequest`].

use serde_json::{Map, Value};

use super::choices::read_choices;
use super::messages::{Role, read_messages};
use super::request::{
    ChatPrompt, GenerateRequest, MESSAGES, Output, Prompt, PromptEnding, ReadRequest, ReasoningEffort, RequestBounds,
};
use super::sampling::{
    ANSWER_FIELDS, LengthField, SAMPLING_FIELDS, Sampling, check_min_tokens, read_attribution, read_caching,
    read_length, read_logprob_count, read_output,
};
use super::structure::{STRUCTURE_FIELDS, read_structure};
use super::tier::read_class;
use super::tools::read_tools;
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required, wrong_type};
use crate::text::grammar::CallCount;
use crate::text::template;

pub(crate) const CHAT_FIELDS: &[Field] = &[
    honoured("messages"),
    honoured("max_completion_tokens"),
    honoured("logprobs"),
    honoured("top_logprobs"),
    honoured("tools"),
    honoured("tool_choice"),
    honoured("parallel_tool_calls"),
    neutral("best_of", "[1]"),
    honoured("chat_template_kwargs"),
    honoured("add_generation_prompt"),
    honoured("continue_final_message"),
    neutral("store", "[false]"),
    neutral("modalities", r#"[["text"]]"#),
    neutral("functions", "[[]]"),
    neutral("function_call", r#"["none", "auto"]"#),
    neutral("echo", "[false]"),
    neutral("add_special_tokens", "[false]"),
    neutral("prompt_logprobs", "[]"),
    neutral("chat_template", "[]"),
    neutral("documents", "[]"),
    neutral("audio", "[]"),
    neutral("prediction", "[]"),
    honoured("reasoning_effort"),
    neutral("verbosity", r#"["medium"]"#),
    neutral("web_search_options", "[]"),
    neutral("moderation", "[]"),
    // What is done anyway, under the names of vLLM and SGLang.
    neutral("include_reasoning", "[true]"),
    neutral("separate_reasoning", "[true]"),
    neutral("stream_reasoning", "[true]"),
];

const EFFORT: &str = "reasoning_effort";

pub(crate) fn read_chat(body: Value, mut reader: Reader, bounds: &RequestBounds) -> Result<ReadRequest, ApiError> {
    let mut fields = reader.open(body, "", &[SAMPLING_FIELDS, ANSWER_FIELDS, STRUCTURE_FIELDS, CHAT_FIELDS])?;
    let model = required(fields.string("model")?, "model")?;
    let prompt = read_chat_prompt(&mut fields, &mut reader, bounds)?;
    let sampling = read_sampling(&mut fields, bounds)?;
    let output = Output { offers_tools: !prompt.tools.is_empty(), ..read_chat_output(&mut fields, &mut reader)? };
    let choices = read_choices(&mut fields, bounds)?;
    let structure = read_structure(&mut fields, &mut reader)?;
    let attribution = read_attribution(&mut fields)?;
    let class = read_class(&mut fields)?;
    let caching = read_caching(&mut fields)?;
    reader.finish(fields)?;
    let generate = GenerateRequest { model, sampling, output, structure, choices, class, caching, attribution };
    Ok(ReadRequest { prompt: Prompt::Chat(prompt), generate, ignored: reader.into_ignored() })
}

/// The fields that make a prompt of messages; `/tokenize` reads the same.
pub(crate) fn read_chat_prompt(
    fields: &mut Fields,
    reader: &mut Reader,
    bounds: &RequestBounds,
) -> Result<ChatPrompt, ApiError> {
    let messages = required(fields.array(MESSAGES)?, MESSAGES)?;
    let messages = read_messages(messages, reader, bounds)?;
    let ending = read_ending(fields)?;
    let last_role = messages.last().map(|message| message.role);
    if ending == PromptEnding::ContinueFinalMessage && last_role != Some(Role::Assistant) {
        return Err(invalid("continue_final_message", "the last message must be the assistant's"));
    }
    let (tools, tool_choice) = read_tools(fields, reader, bounds)?;
    let several = fields.boolean("parallel_tool_calls")?.unwrap_or(true);
    let call_count = if several { CallCount::Several } else { CallCount::One };
    let (template_kwargs, reasoning_effort) = (read_kwargs(fields)?, read_effort(fields)?);
    Ok(ChatPrompt {
        field: MESSAGES,
        messages,
        tools,
        tool_choice,
        call_count,
        template_kwargs,
        reasoning_effort,
        effort_field: EFFORT,
        ending,
    })
}

fn read_ending(fields: &mut Fields) -> Result<PromptEnding, ApiError> {
    let open = fields.boolean("add_generation_prompt")?;
    let resume = fields.boolean("continue_final_message")?.unwrap_or(false);
    match (open, resume) {
        (Some(true), true) => Err(invalid("continue_final_message", "cannot be combined with `add_generation_prompt`")),
        (_, true) => Ok(PromptEnding::ContinueFinalMessage),
        (Some(false), false) => Ok(PromptEnding::Closed),
        (None | Some(true), false) => Ok(PromptEnding::GenerationPrompt),
    }
}

fn read_kwargs(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let map = match fields.value("chat_template_kwargs") {
        None => return Ok(Map::new()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(wrong_type("chat_template_kwargs", "an object", &other)),
    };
    match map.keys().find(|name| template::RESERVED.contains(&name.as_str())) {
        None => Ok(map),
        Some(name) => Err(invalid(
            &format!("chat_template_kwargs.{name}"),
            "the request has a field of its own for it, or sets it",
        )),
    }
}

fn read_effort(fields: &mut Fields) -> Result<Option<ReasoningEffort>, ApiError> {
    let Some(written) = fields.string(EFFORT)? else { return Ok(None) };
    let known = ReasoningEffort::ALL.into_iter().find(|effort| effort.as_str() == written);
    known.map(Some).ok_or_else(|| {
        let known = ReasoningEffort::ALL.map(|effort| format!("`{}`", effort.as_str()));
        invalid(EFFORT, format!("must be one of {}", known.join(", ")))
    })
}

/// Chat has two names for the same bound; given together they must agree.
fn read_sampling(fields: &mut Fields, bounds: &RequestBounds) -> Result<Sampling, ApiError> {
    let newer = read_length(fields, "max_completion_tokens")?;
    let older = read_length(fields, "max_tokens")?;
    let mut sampling = Sampling::read(fields, bounds)?;
    if older.is_some() && newer.is_some() && older != newer {
        return Err(invalid("max_tokens", "differs from `max_completion_tokens`; give one of them"));
    }
    sampling.max_tokens = newer.or(older);
    if newer.is_some() {
        sampling.length_field = LengthField::Chat;
    }
    check_min_tokens(&sampling)?;
    Ok(sampling)
}

fn read_chat_output(fields: &mut Fields, reader: &mut Reader) -> Result<Output, ApiError> {
    let wanted = fields.boolean("logprobs")?.unwrap_or(false);
    let top = read_logprob_count(fields, "top_logprobs")?;
    if top.is_some() && !wanted {
        return Err(invalid("top_logprobs", "only allowed when `logprobs` is true"));
    }
    let output = read_output(fields, reader)?;
    Ok(Output { logprobs: wanted.then(|| top.unwrap_or(0)), ..output })
}
