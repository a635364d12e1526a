//! From a checked request to exact token ids that fit a model: templating, tokenising, and the checks that need to
//! know the model.

use std::sync::Arc;
use std::time::Duration;

use passerelle_models::TokenId;
use serde_json::{Map, Value};

use super::causes::{model_not_found, not_a_generator, text_failed};
use super::errors::{ApiError, ErrorKind};
use super::fields::{invalid, unsupported};
use super::form::WantedForm;
use super::lease::{Lease, lease};
use super::state::{AppState, ServedModel};
use super::wire::messages::{DeveloperRole, Role};
use super::wire::request::{ChatPrompt, CompletionPrompt, GenerateRequest, Prompt, PromptEnding, ReasoningEffort};
use super::wire::sampling::{LengthField, Sampling};
use crate::gateway::{AccountPath, Caller};
use crate::text::grammar::{AnswerForm, CompiledGrammar};
use crate::text::{AddSpecialTokens, PromptEncoder, PromptEnd, SpecialTokens, TextError, TextModel, Tokenizer};

/// Everything of a request that its model's tokenizer has a say in.
#[derive(Debug)]
pub(crate) struct Prepared {
    /// One per choice.
    pub(crate) prompts: Vec<EncodedPrompt>,
    pub(crate) bad_words: Vec<Vec<TokenId>>,
    pub(crate) constraint: Option<CompiledGrammar>,
}

/// A prompt as the engine gets it.
#[derive(Debug, Clone)]
pub(crate) struct EncodedPrompt {
    pub(crate) tokens: Vec<TokenId>,
    /// What the caller wrote, if it was one text.
    pub(crate) written: Option<String>,
    /// What the caller calls it.
    pub(crate) field: String,
}

/// How long an answer may be, and what its caller calls that and the prompt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AskedLength<'a> {
    pub(crate) tokens: Option<u32>,
    pub(crate) field: LengthField,
    pub(crate) prompt: &'a str,
}

impl<'a> AskedLength<'a> {
    pub(crate) fn of(sampling: &Sampling, prompt: &'a str) -> Self {
        Self { tokens: sampling.max_tokens, field: sampling.length_field, prompt }
    }
}

/// A model that runs here, loaded if it must be. One that the caller may not see is not told from one that nobody serves.
pub(crate) async fn find_model(state: &AppState, caller: &Caller, name: &str) -> Result<Lease, ApiError> {
    if !state.sees(caller, name) {
        return Err(model_not_found(name));
    }
    match lease(state, name).await? {
        Some(lease) => Ok(lease),
        None if state.serving().remote(name).is_some() => {
            Err(unsupported("model", "another server runs this model, and this route needs it here"))
        }
        // Of a partition whose first worker has not come yet.
        None if state.serving().router.model(name).is_some() => {
            let message = "No worker has come for this model yet; try again later.";
            Err(ApiError::new(ErrorKind::NoReplica, message))
        }
        None => Err(model_not_found(name)),
    }
}

/// As [`find_model`], for whoever wants text from it.
pub(crate) async fn find_generator(state: &AppState, caller: &Caller, name: &str) -> Result<Lease, ApiError> {
    let model = find_model(state, caller, name).await?;
    if model.encoder.is_some() { Err(not_a_generator(name)) } else { Ok(model) }
}

/// Off the async threads.
pub(crate) async fn prepare(
    state: &AppState,
    caller: &Caller,
    model: &Lease,
    prompt: Prompt,
    request: &GenerateRequest,
) -> Result<Prepared, ApiError> {
    let now = state.clock().wall();
    let (bad_words, wanted) = (request.sampling.bad_words.clone(), WantedForm::of(&prompt, request.structure.clone()));
    let model = model.clone();
    let read = move || {
        let prompts = encode_all(&model.name, &model.text, prompt, now);
        let prompts = prompts.map_err(|error| beside_context(error, &model))?;
        let bad_words = spell_bad_words(&model.text.tokenizer, &bad_words)?;
        let first = prompts.first().map_or(&[][..], |prompt| &prompt.tokens);
        let form = wanted.after(&model, first).map(|form| (form, wanted, model.text_side()));
        Ok((prompts, bad_words, form))
    };
    let (prompts, bad_words, form) = state.text_work().run(read).await?;
    let constraint = match form {
        Some((form, wanted, model)) => Some(compile(state, &caller.account.path, form, wanted, model).await?),
        None => None,
    };
    Ok(Prepared { prompts, bad_words, constraint })
}

async fn compile(
    state: &AppState,
    account: &AccountPath,
    form: AnswerForm,
    wanted: WantedForm,
    model: Arc<ServedModel>,
) -> Result<CompiledGrammar, ApiError> {
    let (bounds, param) = (state.config().grammar, wanted.param().to_owned());
    state.grammar_work().run(account, &param, move || wanted.compile(&form, &model, &bounds)).await
}

/// One encoded prompt per choice.
pub(crate) async fn encode(
    state: &AppState,
    model: &ServedModel,
    prompt: Prompt,
) -> Result<Vec<EncodedPrompt>, ApiError> {
    encode_text(state, &model.name, &model.text, prompt).await.map_err(|error| beside_context(error, model))
}

/// The same, for a model of which only the text side is here.
pub(crate) async fn encode_text(
    state: &AppState,
    model: &str,
    text: &Arc<TextModel>,
    prompt: Prompt,
) -> Result<Vec<EncodedPrompt>, ApiError> {
    let (model, text) = (model.to_owned(), Arc::clone(text));
    let now = state.clock().wall();
    state.text_work().run(move || encode_all(&model, &text, prompt, now)).await
}

/// A text that is too long to be counted in tokens is refused with both numbers too: its bytes, and the model's tokens.
fn beside_context(error: ApiError, model: &ServedModel) -> ApiError {
    if error.kind() != ErrorKind::ContextLengthExceeded {
        return error;
    }
    error.also(&format!("This model's context length is {} tokens.", model.max_model_len))
}

fn encode_all(model: &str, text: &TextModel, prompt: Prompt, now: Duration) -> Result<Vec<EncodedPrompt>, ApiError> {
    let names = prompt.names();
    match prompt {
        Prompt::Chat(chat) => Ok(vec![encode_chat(model, text, &chat, now)?]),
        Prompt::Completions { prompts, add_special_tokens } => {
            let add = if add_special_tokens { AddSpecialTokens::Yes } else { AddSpecialTokens::No };
            let named = prompts.into_iter().zip(names);
            named.map(|(prompt, field)| encode_completion(model, text, prompt, field, add)).collect()
        }
    }
}

/// With the field at fault, where another one would do. `prompt`: what the caller calls the text.
fn named(model: &str, prompt: &str, error: TextError) -> ApiError {
    let at_fault = match &error {
        TextError::CannotContinue(_) => Some("continue_final_message"),
        TextError::TooLong { .. }
        | TextError::PromptTooLong { .. }
        | TextError::TemplateOutOfFuel { .. }
        | TextError::Encode(_)
        | TextError::NoTokenizer => Some(prompt),
        // The model has no template for chats, or its template says in its own words what is wrong.
        TextError::NoTemplate | TextError::TemplateRefused(_) => None,
        TextError::File { .. } | TextError::TemplateBroken(_) => None,
    };
    let told = text_failed(model, error);
    match at_fault {
        Some(field) => told.param(field),
        None => told,
    }
}

fn spell_bad_words(tokenizer: &Tokenizer, words: &[String]) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let written = words.iter().flat_map(|word| written_bad_word(word));
    let spelt = written.map(|word| tokenizer.encode(&word, AddSpecialTokens::No, SpecialTokens::AsText));
    let spelt = spelt.collect::<Result<Vec<Vec<TokenId>>, TextError>>();
    let spelt = spelt.map_err(|error| ApiError::from(error).param("bad_words"))?;
    Ok(spelt.into_iter().filter(|tokens| !tokens.is_empty()).collect())
}

/// A word as it is written at the start of a text and after a space, as vLLM has it: white space before it says nothing.
/// White space alone is meant as it is.
fn written_bad_word(word: &str) -> Vec<String> {
    match word.trim_start() {
        "" => vec![word.to_owned()],
        bare => vec![bare.to_owned(), format!(" {bare}")],
    }
}

fn encode_chat(model: &str, text: &TextModel, chat: &ChatPrompt, now: Duration) -> Result<EncodedPrompt, ApiError> {
    let tokens = tokens_of_chat(text, chat, now)?.map_err(|error| not_encoded(model, text, chat, now, error))?;
    Ok(EncodedPrompt { tokens, written: None, field: chat.field.to_owned() })
}

/// The inner error is the template's, or the tokenizer's.
fn tokens_of_chat(
    text: &TextModel,
    chat: &ChatPrompt,
    now: Duration,
) -> Result<Result<Vec<TokenId>, TextError>, ApiError> {
    let template = text.chat_template()?;
    let source = template.source().unwrap_or_default();
    let developer =
        if source.contains(Role::Developer.as_str()) { DeveloperRole::Known } else { DeveloperRole::Unknown };
    let messages: Vec<Value> = chat.messages.iter().map(|message| message.to_json(developer)).collect();
    let variables = template_variables(chat, &source)?;
    let tools: Vec<Value> = chat.tools.iter().map(super::wire::tools::Tool::to_json).collect();
    let prompt = crate::text::TemplateInput {
        messages: &messages,
        tools: (!tools.is_empty()).then_some(tools.as_slice()),
        documents: None,
        end: match chat.ending {
            PromptEnding::GenerationPrompt => PromptEnd::GenerationPrompt,
            PromptEnding::Closed => PromptEnd::AsIs,
            PromptEnding::ContinueFinalMessage => PromptEnd::ContinueFinalMessage,
        },
        variables: &variables,
        now,
    };
    Ok(PromptEncoder::new(&text.tokenizer, template).encode(&prompt))
}

/// A template may break on what one request alone brings along, which is no fault of the model: then it does not break
/// without that.
fn not_encoded(model: &str, text: &TextModel, chat: &ChatPrompt, now: Duration, error: TextError) -> ApiError {
    let is_broken = matches!(error, TextError::TemplateBroken(_));
    let plainer = if is_broken { chat.plainer() } else { Vec::new() };
    let is_well = |chat: &ChatPrompt| match tokens_of_chat(text, chat, now) {
        Ok(Err(TextError::TemplateBroken(_))) | Err(_) => false,
        Ok(_) => true,
    };
    let at_fault = plainer.into_iter().find(|(_, chat)| is_well(chat));
    match at_fault.map(|(field, _)| field) {
        Some(field) => invalid(&field, error),
        None => named(model, chat.field, error),
    }
}

/// What the caller wants the template to know, with the effort under the name that the template has for it.
fn template_variables(chat: &ChatPrompt, source: &str) -> Result<Map<String, Value>, ApiError> {
    const EFFORT: &str = "reasoning_effort";
    /// Some templates can only be told whether to think at all.
    const THINKING: &str = "enable_thinking";
    let mut variables = chat.template_kwargs.clone();
    let Some(effort) = chat.reasoning_effort else { return Ok(variables) };
    let (name, value) = match effort {
        effort if source.contains(EFFORT) => (EFFORT, Value::from(effort.as_str())),
        ReasoningEffort::None if source.contains(THINKING) => (THINKING, Value::Bool(false)),
        _ => return Err(unsupported(chat.effort_field, "this model's chat template has no name for it")),
    };
    if variables.insert(name.to_owned(), value).is_some() {
        return Err(invalid(chat.effort_field, format!("cannot be combined with `chat_template_kwargs.{name}`")));
    }
    Ok(variables)
}

fn encode_completion(
    model: &str,
    text: &TextModel,
    prompt: CompletionPrompt,
    field: String,
    add: AddSpecialTokens,
) -> Result<EncodedPrompt, ApiError> {
    match prompt {
        CompletionPrompt::Tokens(tokens) => Ok(EncodedPrompt { tokens, written: None, field }),
        CompletionPrompt::Text(written) => {
            let tokens = text.tokenizer.encode(&written, add, SpecialTokens::Parse);
            let tokens = tokens.map_err(|error| named(model, &field, error))?;
            Ok(EncodedPrompt { tokens, written: Some(written), field })
        }
    }
}

/// What makes a request impossible and is known before its prompt is read.
pub(crate) fn check_unread(prompt: &Prompt, request: &GenerateRequest, model: &ServedModel) -> Result<(), ApiError> {
    let names = prompt.names();
    let prompts = match prompt {
        Prompt::Completions { prompts, .. } => prompts.as_slice(),
        Prompt::Chat(_) => &[],
    };
    let counted = names.iter().zip(prompts).filter_map(|(name, prompt)| match prompt {
        CompletionPrompt::Tokens(tokens) => Some((name.as_str(), tokens.as_slice())),
        CompletionPrompt::Text(_) => None,
    });
    check_ids(request, counted.clone(), model)?;
    for (name, tokens) in counted {
        room_for_answer(model, tokens.len(), AskedLength::of(&request.sampling, name))?;
    }
    let (longest, field) = (model.max_model_len, request.sampling.length_field);
    match request.sampling.max_tokens {
        // A prompt is one token at least.
        Some(tokens) if tokens as usize >= longest => Err(answer_overflow(longest, tokens, field)),
        _ => Ok(()),
    }
}

/// Every token id that the caller wrote must be one that the model has.
pub(crate) fn check_token_ids(
    request: &GenerateRequest,
    prompts: &[EncodedPrompt],
    model: &ServedModel,
) -> Result<(), ApiError> {
    check_ids(request, prompts.iter().map(|prompt| (prompt.field.as_str(), prompt.tokens.as_slice())), model)
}

fn check_ids<'a>(
    request: &GenerateRequest,
    mut prompts: impl Iterator<Item = (&'a str, &'a [TokenId])>,
    model: &ServedModel,
) -> Result<(), ApiError> {
    let Sampling { logit_bias, stop_token_ids, .. } = &request.sampling;
    let known = |id: TokenId| (id as usize) < model.input_vocab_size;
    let outside = |name: &str, id: TokenId| {
        invalid(name, format!("token {id} is outside the model's vocabulary of {}", model.input_vocab_size))
    };
    if let Some((id, _)) = logit_bias.iter().find(|(id, _)| !known(*id)) {
        return Err(outside("logit_bias", *id));
    }
    if let Some(id) = stop_token_ids.iter().find(|id| !known(**id)) {
        return Err(outside("stop_token_ids", *id));
    }
    match prompts.find_map(|(name, tokens)| Some((name, tokens.iter().find(|id| !known(**id))?))) {
        Some((name, id)) => Err(outside(name, *id)),
        None => Ok(()),
    }
}

/// How many tokens may be generated after a prompt of this length: what the caller asked for if that fits, else an
/// error with both numbers. Without an ask, all the room there is.
pub(crate) fn room_for_answer(
    model: &ServedModel,
    prompt_tokens: usize,
    asked: AskedLength<'_>,
) -> Result<u32, ApiError> {
    if prompt_tokens == 0 {
        return Err(invalid(asked.prompt, "holds no token"));
    }
    // No room is enough for an answer of nothing, yet not for a prompt that is too long by itself.
    let room = model.max_model_len.checked_sub(prompt_tokens);
    match (room, asked.tokens) {
        (Some(room), Some(tokens)) if tokens as usize <= room => Ok(tokens),
        (Some(room @ 1..), None) => Ok(u32::try_from(room).unwrap_or(u32::MAX)),
        _ => Err(context_overflow(model.max_model_len, prompt_tokens, asked)),
    }
}

pub(crate) fn context_overflow(max_model_len: usize, prompt_tokens: usize, asked: AskedLength<'_>) -> ApiError {
    let bound = format!("This model's context length is {max_model_len} tokens");
    overflow(&bound, max_model_len, prompt_tokens, asked)
}

/// Prompt and answer are more than `most` tokens together, which is what `bound` says. At fault is the prompt where no answer
/// is short enough.
pub(crate) fn overflow(bound: &str, most: usize, prompt_tokens: usize, asked: AskedLength<'_>) -> ApiError {
    let (prompt, field) = (asked.prompt, asked.field.as_str());
    if prompt_tokens >= most {
        let no_room = if prompt_tokens == most { ", which leaves none for the answer" } else { "" };
        let message = format!("{bound}, and `{prompt}` has {prompt_tokens}{no_room}. Shorten it.");
        return ApiError::new(ErrorKind::ContextLengthExceeded, message).param(prompt);
    }
    let tokens = asked.tokens.unwrap_or(1) as usize;
    let message = format!(
        "{bound}, and you asked for {} tokens: {prompt_tokens} in the prompt and {tokens} for the answer. Shorten the \
         prompt or lower `{field}`.",
        prompt_tokens.saturating_add(tokens),
    );
    ApiError::new(ErrorKind::ContextLengthExceeded, message).param(field)
}

/// `refusal`: of an engine that holds less than the model's context, and that counts no field. At fault is what takes more of
/// the room; never the length of an answer that nobody stated.
pub(crate) fn engine_overflow(refusal: ApiError, prompt_tokens: usize, asked: AskedLength<'_>) -> ApiError {
    let (prompt, field) = (asked.prompt, asked.field.as_str());
    match asked.tokens {
        // The last token of an answer takes no room, so that the prompt alone is too long.
        Some(0 | 1) => refusal.also(&format!("Shorten `{prompt}`.")).param(prompt),
        Some(tokens) if tokens as usize > prompt_tokens => {
            refusal.also(&format!("Lower `{field}`, or shorten `{prompt}`.")).param(field)
        }
        Some(_) => refusal.also(&format!("Shorten `{prompt}`, or lower `{field}`.")).param(prompt),
        None => refusal.also(&format!("Shorten `{prompt}`, or bound the answer with `{field}`.")).param(prompt),
    }
}

/// Whatever the prompt is, this answer does not fit.
pub(crate) fn answer_overflow(max_model_len: usize, tokens: u32, field: LengthField) -> ApiError {
    let field = field.as_str();
    let message = format!(
        "This model's context length is {max_model_len} tokens, and you asked for {tokens} tokens for the answer alone. \
         Lower `{field}`."
    );
    ApiError::new(ErrorKind::ContextLengthExceeded, message).param(field)
}

#[cfg(test)]
mod tests;
