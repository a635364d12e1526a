//! What must be so before models are compared. All of it is known before anything is reserved, so that nobody pays for
//! answers that cannot be compared then.

use passerelle_models::TokenId;

use super::errors::ApiError;
use super::fields::invalid;
use super::lease::Lease;
use super::prepare::{AskedLength, Prepared, overflow};
use super::state::{AppState, Serving};
use crate::gateway::comparison;
use crate::gateway::{Caller, ReplicaRefusal};
use crate::units::saturating_u32;

/// Of each model, where the request does not say.
const DEFAULT_ANSWER_TOKENS: u32 = 64;

/// Whoever waits for one model holds those that it has already, so models that have no room together are not waited for.
pub(crate) fn check_room<'a>(
    state: &AppState,
    caller: &Caller,
    models: impl IntoIterator<Item = &'a str>,
) -> Result<(), ApiError> {
    let Some(shelf) = state.shelf() else { return Ok(()) };
    // Of those that the caller may not see, nothing is told.
    let seen = models.into_iter().filter(|model| state.sees(caller, model)).collect();
    Ok(shelf.check_together(&seen)?)
}

/// Distributions compare token by token only where a token is the same for both. Errors name `field`.
pub(crate) async fn check_same_vocabulary(
    state: &AppState,
    [first, second]: [&Lease; 2],
    field: &str,
) -> Result<(), ApiError> {
    let tokenizers = [first, second].map(|model| model.text.tokenizer.clone());
    let compare = move || Ok::<_, ApiError>(tokenizers[0].has_vocabulary_of(&tokenizers[1]));
    if state.text_work().run(compare).await? {
        return Ok(());
    }
    Err(invalid(field, format!("`{}` and `{}` have different vocabularies", first.name, second.name)))
}

/// Of models of one vocabulary, each with a way of its own to cut and to frame a text. Returns the prompt.
pub(crate) fn check_one_prompt(models: &[Lease], prepared: &[Prepared]) -> Result<Vec<TokenId>, ApiError> {
    let tokens = |of: usize| prepared[of].prompts.first().map(|prompt| prompt.tokens.as_slice()).unwrap_or_default();
    for other in 1..models.len() {
        if models[other].input_vocab_size != models[0].input_vocab_size || tokens(other) != tokens(0) {
            let why = "this model and the first one do not read the prompt as the same tokens";
            return Err(invalid(&format!("models[{other}]"), why));
        }
    }
    Ok(tokens(0).to_vec())
}

/// Tokens of the longest text that each model can write and the lane will compare. Errors name a model for which there
/// is none.
pub(crate) fn longest_text(state: &AppState, serving: &Serving, models: &[Lease]) -> Result<usize, ApiError> {
    let engine_of = |model: &Lease| serving.router.engine_of(&model.name);
    let of_model = |index: usize| {
        move |error| match error {
            ReplicaRefusal::Refused { .. } => of_named(&models[index].name, error).param(format!("models[{index}]")),
            error => error.into(),
        }
    };
    for (index, model) in models.iter().enumerate() {
        comparison::check_lent(&engine_of(model)?).map_err(of_model(index))?;
    }
    let first = engine_of(&models[0])?;
    let mut longest = models[0].max_model_len;
    for (other, model) in models.iter().enumerate().skip(1) {
        let of_both = comparison::longest_text(state.comparisons(), [&first, &engine_of(model)?]);
        longest = longest.min(model.max_model_len).min(of_both.map_err(of_model(other))?);
    }
    Ok(longest)
}

/// A refusal for what a model is, with its name.
pub(crate) fn of_named(model: &str, error: ReplicaRefusal) -> ApiError {
    match error {
        ReplicaRefusal::Refused { parameter, why } => {
            ReplicaRefusal::Refused { parameter, why: format!("`{model}`: {why}") }.into()
        }
        error => error.into(),
    }
}

/// How many tokens each model may answer, so that prompt and answer can be compared: what was asked for if that fits,
/// else an error with both numbers. Without an ask, the default or what fits.
pub(crate) fn room_beside(longest: usize, prompt_tokens: usize, asked: AskedLength<'_>) -> Result<u32, ApiError> {
    let room = longest.checked_sub(prompt_tokens).map(saturating_u32);
    match (room, asked.tokens) {
        (Some(room), Some(tokens)) if tokens <= room => Ok(tokens),
        (Some(room @ 1..), None) => Ok(room.min(DEFAULT_ANSWER_TOKENS)),
        _ => {
            let bound = format!("These models can be compared on a text of {longest} tokens");
            Err(overflow(&bound, longest, prompt_tokens, asked))
        }
    }
}
