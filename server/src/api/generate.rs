//! The shared path of chat and completions. One request, in order:
//!
//! 1. authenticate the key ([`super::routes`]), before the body is read;
//! 2. read and check the JSON ([`super::wire`]);
//! 3. template and tokenise, off the async threads ([`super::prepare`]);
//! 4. check the context: prompt and answer fit, or the error has both numbers;
//! 5. reserve: all limits or none;
//! 6. pick a replica;
//! 7. submit, which never waits;
//! 8. deliver the pieces ([`super::deliver`]), made from events by [`super::choice`];
//! 9. settle what the engine counted, by dropping the [`Generation`], on every way out.

use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::{CacheSalt, Request as EngineRequest};
use tokio::sync::OwnedSemaphorePermit;

use super::choice::{AnswerStart, ChoiceSpec, RunningChoice, ToolCalls, Writer, engine_prompt_logprobs};
use super::errors::{ApiError, ErrorKind};
use super::prepare::{EncodedPrompt, check_token_ids, encode, find_model, room_for_answer};
use super::state::{AppState, ServedModel};
use super::wire::request::{GenerateRequest, Prompt, PromptEnding};
use crate::gateway::{Account, Ask, Generation, LimitName, PrefixHint, Reservation};

/// An admitted request: every choice has its reservation and its place in an engine's queue.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) choices: Vec<RunningChoice>,
    pub(crate) model: Arc<ServedModel>,
    /// Given back when the answer is over.
    _place: OwnedSemaphorePermit,
    /// When the request arrived, on the server's clock.
    pub(crate) arrived: Duration,
}

/// Steps 3 to 7. On any error, what was taken is given back.
pub(crate) async fn admit(
    state: &AppState,
    account: &Arc<Account>,
    prompt: Prompt,
    request: GenerateRequest,
) -> Result<Admitted, ApiError> {
    let arrived = state.clock().now();
    state.readiness().admit()?;
    let model = find_model(state, &request.model)?;
    let place = state.take_place()?;
    let shape = Shape::of(&prompt);
    let prompts = encode(state, &model, prompt).await?;
    check_token_ids(&request, &prompts, &model)?;
    check_choices(account, prompts.len())?;
    let admission = Admission { state, account, request: &request, model: &model, shape };
    let tickets = admission.reserve_all(prompts)?;
    let choices = admission.start_all(tickets)?;
    Ok(Admitted { choices, model, _place: place, arrived })
}

/// What of the prompt's kind outlives the prompt.
#[derive(Debug, Clone, Copy)]
struct Shape {
    tools: ToolCalls,
    start: AnswerStart,
}

impl Shape {
    fn of(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Completions { .. } => Self { tools: ToolCalls::PlainText, start: AnswerStart::GoesOnFromPrompt },
            Prompt::Chat(chat) => Self {
                tools: if chat.tools.is_empty() { ToolCalls::PlainText } else { ToolCalls::Parsed },
                start: match chat.ending {
                    PromptEnding::ContinueFinalMessage => AnswerStart::GoesOnFromPrompt,
                    PromptEnding::GenerationPrompt | PromptEnding::Closed => AnswerStart::OwnText,
                },
            },
        }
    }
}

struct Admission<'a> {
    state: &'a AppState,
    account: &'a Arc<Account>,
    request: &'a GenerateRequest,
    model: &'a Arc<ServedModel>,
    shape: Shape,
}

/// A prompt with the room it was granted.
struct Ticket {
    prompt: EncodedPrompt,
    max_tokens: u32,
    reservation: Reservation,
}

impl Admission<'_> {
    /// All prompts or none.
    fn reserve_all(&self, prompts: Vec<EncodedPrompt>) -> Result<Vec<Ticket>, ApiError> {
        let mut tickets = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            match self.reserve(prompt) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => {
                    withdraw_all(tickets);
                    return Err(error);
                }
            }
        }
        Ok(tickets)
    }

    fn reserve(&self, prompt: EncodedPrompt) -> Result<Ticket, ApiError> {
        let asked = self.request.sampling.max_tokens;
        let mut max_tokens = room_for_answer(self.model, prompt.tokens.len(), asked)?;
        let prompt_tokens = u32::try_from(prompt.tokens.len()).unwrap_or(u32::MAX);
        if asked.is_none() {
            // Who states no bound gets the largest answer that the account could ever have.
            let largest = self.state.ledger().largest_output(self.account, prompt_tokens);
            max_tokens = max_tokens.min(largest.unwrap_or(u32::MAX).max(1));
        }
        let ask = Ask { prompt_tokens, max_output_tokens: max_tokens };
        let reservation = self.state.ledger().reserve(self.account, ask).map_err(|refusal| {
            self.state.metrics().refused(refusal.limit);
            ApiError::from(refusal)
        })?;
        Ok(Ticket { prompt, max_tokens, reservation })
    }

    /// A choice that cannot start takes the others with it: they are dropped, which aborts and settles them.
    fn start_all(&self, tickets: Vec<Ticket>) -> Result<Vec<RunningChoice>, ApiError> {
        let mut choices = Vec::with_capacity(tickets.len());
        let mut tickets = tickets.into_iter();
        while let Some(ticket) = tickets.next() {
            match self.start(ticket) {
                Ok(choice) => choices.push(choice),
                Err(error) => {
                    withdraw_all(tickets);
                    return Err(error);
                }
            }
        }
        Ok(choices)
    }

    fn start(&self, ticket: Ticket) -> Result<RunningChoice, ApiError> {
        let Ticket { prompt, max_tokens, reservation } = ticket;
        let engine_request = self.engine_request(&prompt, max_tokens);
        let hint = PrefixHint::of(&engine_request.prompt, &engine_request.cache_salt);
        let replica = match self.state.router().pick(&self.model.name, hint) {
            Ok(replica) => replica,
            Err(error) => {
                reservation.withdraw();
                return Err(error.into());
            }
        };
        let writer = self.writer(prompt, &engine_request);
        let generation = Generation::start(&replica, engine_request, reservation).map_err(|refused| {
            refused.reservation.withdraw();
            ApiError::from(refused.error)
        })?;
        Ok(RunningChoice::new(generation, writer?))
    }

    fn engine_request(&self, prompt: &EncodedPrompt, max_tokens: u32) -> EngineRequest {
        let output = &self.request.output;
        let sampling = &self.request.sampling;
        let mut sampling = sampling.to_engine(&self.model.defaults, &self.model.eos_token_ids, max_tokens);
        sampling.logprobs = output.logprobs;
        sampling.prompt_logprobs = engine_prompt_logprobs(output);
        EngineRequest {
            id: self.state.next_request_id(),
            prompt: prompt.tokens.clone(),
            sampling,
            share_key: self.account.share_key,
            cache_salt: self.cache_salt(),
        }
    }

    fn cache_salt(&self) -> CacheSalt {
        let narrower = self.request.cache_salt.as_deref();
        narrower.map_or(self.account.cache_salt, |salt| self.account.cache_salt_with(salt))
    }

    fn writer(&self, prompt: EncodedPrompt, engine_request: &EngineRequest) -> Result<Writer, ApiError> {
        let spec = ChoiceSpec {
            model: Arc::clone(self.model),
            output: self.request.output.clone(),
            stop_strings: self.request.sampling.stop.clone(),
            stop_token_ids: engine_request.sampling.stop_token_ids.clone(),
            tools: self.shape.tools,
            prompt,
            start: self.shape.start,
        };
        Ok(Writer::new(spec)?)
    }
}

/// For what was never started.
fn withdraw_all(tickets: impl IntoIterator<Item = Ticket>) {
    tickets.into_iter().for_each(|ticket| ticket.reservation.withdraw());
}

/// Each choice counts as a request of its own; more than can ever run together would be refused forever.
fn check_choices(account: &Account, choices: usize) -> Result<(), ApiError> {
    let most = account.limits.get(LimitName::ConcurrentRequests);
    match most.filter(|most| (most.get() as usize) < choices) {
        None => Ok(()),
        Some(most) => {
            let message = format!("{choices} prompts in one request are more than the {most} that may run together.");
            Err(ApiError::new(ErrorKind::ExceedsLimit, message).param("prompt"))
        }
    }
}
