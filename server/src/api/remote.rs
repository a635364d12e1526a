//! Admission of a request for a model that only upstreams serve: the counterpart of [`super::generate`] where no engine
//! knows the model, and maybe not even its tokenizer.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::errors::ApiError;
use super::fields::{invalid, unsupported};
use super::generate::{Admitted, RequestContext, ServedAs, charge_to};
use super::launch::{Launch, LivePrompt, UpstreamJob};
use super::prepare::{AskedLength, EncodedPrompt, answer_overflow, context_overflow, encode_text};
use super::relayed::{PromptCount, Sent};
use super::reserve::{Patience, reserve_with, withdraw_all};
use super::routes::require;
use super::state::{AppState, Serving};
use super::wire::answer::{AnswerKind, Billing};
use super::wire::choices::Choices;
use super::wire::forward::Outgoing;
use super::wire::request::{CompletionPrompt, GenerateRequest, Output, Prompt, ReadRequest};
use crate::gateway::account::ServiceClass;
use crate::gateway::{Ask, Caller, PrefixHint, Reservation, Scope};
use crate::text::TextModel;
use crate::units::saturating_u32;

/// Bytes of a token, about, where nobody here can count them.
const BYTES_PER_TOKEN: usize = 4;
/// What a template adds to a conversation at most, beside the words that it is sent in: marks of its turns, and what some say of
/// themselves where nobody says anything else.
const TEMPLATE_TOKENS: u32 = 128;
/// The same for a text: a token that begins it, or marks between its words.
const TOKENIZER_TOKENS: u32 = 8;

/// A model that other servers run.
#[derive(Debug, Clone)]
pub struct RemoteModel {
    pub name: String,
    /// Counts prompts exactly, and answers that broke off.
    pub text: Option<Arc<TextModel>>,
    /// Prompt and answer together, in tokens, if it is known here.
    pub max_model_len: Option<usize>,
    /// What is asked for, and reserved, where a request does not say how long its answer may be.
    pub default_max_tokens: u32,
}

/// One prompt of a request, measured.
struct Measured {
    /// What the caller calls it.
    field: String,
    /// `None` for a conversation, which is in the body as it is.
    prompt: Option<CompletionPrompt>,
    count: PromptCount,
    /// What is reserved for it: the count, or as many tokens as there can be at most.
    at_most: u32,
    hint: PrefixHint,
}

/// A prompt with the room it was granted.
struct Ticket {
    job: UpstreamJob,
    hint: PrefixHint,
    reservation: Reservation,
}

struct Admission<'a> {
    state: &'a AppState,
    caller: &'a Arc<Caller>,
    request: &'a GenerateRequest,
    model: &'a RemoteModel,
    outgoing: &'a Outgoing,
    kind: AnswerKind,
    class: ServiceClass,
}

/// Measures, reserves and starts every prompt, or none. On any error, what was taken is given back.
pub(crate) async fn admit_remote(
    state: &AppState,
    context: RequestContext,
    (serving, model): (Arc<Serving>, Arc<RemoteModel>),
    read: ReadRequest,
    outgoing: Outgoing,
) -> Result<Admitted, ApiError> {
    let ReadRequest { prompt, generate: request, .. } = read;
    let (ends_at, class) = (context.ends_at(state), context.class(request.class));
    let RequestContext { caller, place, arrived, scope, origin, shadow: _ } = context;
    state.readiness().admit()?;
    require(&caller, scope)?;
    check_output(&request.output)?;
    if request.choices != Choices::ONE {
        let field = request.choices.field();
        return Err(unsupported(field, "another server runs this model and is asked for one answer"));
    }
    let kind = match &prompt {
        Prompt::Chat(_) => AnswerKind::Chat,
        Prompt::Completions { .. } => AnswerKind::Completion,
    };
    let admission =
        Admission { state, caller: &caller, request: &request, model: &model, outgoing: &outgoing, kind, class };
    let prompts = admission.measure_all(prompt).await?;
    let mut tickets = admission.reserve_all(prompts, scope).await?;
    charge_to(origin.as_ref(), tickets.iter_mut().map(|ticket| &mut ticket.reservation));
    let told = tickets.iter().map(|ticket| ticket.reservation.told_so_far());
    let billing = Billing::of(state, (&model.name, None), (origin, NonZeroU32::MIN), told);
    let prompts = admission.start_all(&serving, tickets, arrived).await?;
    let served_as = ServedAs { model: model.name.clone(), fingerprint: None, tier: None, billing };
    Ok(Admitted::new(prompts, Choices::ONE, served_as, ends_at, place))
}

/// What only an engine of our own can show.
pub(super) fn check_output(output: &Output) -> Result<(), ApiError> {
    let shown = [
        (output.return_token_ids, "return_token_ids"),
        (output.prompt_logprobs.is_some(), "prompt_logprobs"),
        (output.prompt_scores, "prompt_scores"),
        (output.prompt_scores_against.is_some(), "prompt_scores_against"),
        (output.echo && output.logprobs.is_some(), "echo"),
    ];
    match shown.into_iter().find(|(is_asked, _)| *is_asked) {
        Some((_, name)) => Err(unsupported(name, "another server runs this model and does not tell")),
        None => Ok(()),
    }
}

impl Admission<'_> {
    async fn measure_all(&self, prompt: Prompt) -> Result<Vec<Measured>, ApiError> {
        let salt = &self.state.config().prefix_sharing.salt(&self.caller.account.path, None);
        let names = prompt.names();
        let prompts = match prompt {
            Prompt::Chat(_) => vec![None],
            Prompt::Completions { ref prompts, .. } => prompts.iter().cloned().map(Some).collect(),
        };
        if let Some(text) = &self.model.text {
            let encoded = encode_text(self.state, &self.model.name, text, prompt).await?;
            let measured = prompts.into_iter().zip(encoded).map(|(prompt, encoded)| {
                let EncodedPrompt { tokens, field, .. } = encoded;
                let at_most = saturating_u32(tokens.len());
                let hint = PrefixHint::of(&tokens, salt);
                Measured { field, prompt, count: PromptCount::Exact(at_most), at_most, hint }
            });
            return Ok(measured.collect());
        }
        let measure = |(prompt, field): (Option<CompletionPrompt>, String)| {
            let (count, at_most, hint) = match &prompt {
                Some(CompletionPrompt::Tokens(tokens)) => {
                    let tokens_here = saturating_u32(tokens.len());
                    (PromptCount::Exact(tokens_here), tokens_here, PrefixHint::of(tokens, salt))
                }
                Some(CompletionPrompt::Text(text)) => uncounted(text, TOKENIZER_TOKENS, salt),
                None => uncounted(&self.outgoing.conversation(), TEMPLATE_TOKENS, salt),
            };
            Measured { field, prompt, count, at_most, hint }
        };
        Ok(prompts.into_iter().zip(names).map(measure).collect())
    }

    async fn reserve_all(&self, prompts: Vec<Measured>, scope: Scope) -> Result<Vec<Ticket>, ApiError> {
        let patience = Patience::of(prompts.len(), scope);
        let plans = self.plan(prompts)?;
        self.check_together(&plans)?;
        let mut tickets = Vec::with_capacity(plans.len());
        for (measured, ask) in plans {
            match reserve_with(patience.after(tickets.len()), self.state, self.caller, &ask).await {
                Ok(reservation) => tickets.push(self.ticket(measured, ask.max_output_tokens, reservation)),
                Err(refusal) => {
                    withdraw_all(tickets.into_iter().map(|ticket| ticket.reservation));
                    return Err(measured.say_how_counted(refusal));
                }
            }
        }
        Ok(tickets)
    }

    /// What is asked of the ledger for each prompt.
    fn plan(&self, prompts: Vec<Measured>) -> Result<Vec<(Measured, Ask)>, ApiError> {
        let longest = self.longest_answers(&prompts);
        let plan = |(part, measured): (u32, Measured)| -> Result<(Measured, Ask), ApiError> {
            let max_tokens = self.bound(&measured, longest)?;
            let mut attribution = self.request.attribution.clone();
            attribution.set_part(part);
            let ask = Ask::new(&self.model.name, measured.at_most, max_tokens);
            Ok((measured, Ask { class: self.class, attribution, ..ask }))
        };
        (0..).zip(prompts).map(plan).collect()
    }

    /// As for a model that runs here: a list that could never fit would be refused forever.
    fn check_together(&self, plans: &[(Measured, Ask)]) -> Result<(), ApiError> {
        if plans.len() < 2 {
            return Ok(());
        }
        let asks: Vec<Ask> = plans.iter().map(|(_, ask)| ask.clone()).collect();
        let Some(refusal) = self.state.ledger().never_fit(self.caller, &asks) else { return Ok(()) };
        self.state.metrics().refused(refusal.limit);
        let told = ApiError::from(refusal).param("prompt");
        let uncounted = plans.iter().find(|(measured, _)| measured.count.exact().is_none());
        Err(match uncounted {
            Some((measured, _)) => measured.say_how_counted(told),
            None => told,
        })
    }

    /// Who states no bound gets no longer answers than the account could ever have.
    fn longest_answers(&self, prompts: &[Measured]) -> u32 {
        let asks = |most: u32| {
            let longest = most.min(self.model.default_max_tokens);
            let ask = |one: &Measured| Ask { class: self.class, ..Ask::new(&self.model.name, one.at_most, longest) };
            prompts.iter().map(ask).collect()
        };
        self.state.ledger().longest_answers(self.caller, asks).unwrap_or(u32::MAX).max(1)
    }

    /// An upstream cannot be told to go on: what it may generate at most is reserved before it begins.
    fn bound(&self, measured: &Measured, longest: u32) -> Result<u32, ApiError> {
        if measured.count == PromptCount::Exact(0) {
            return Err(invalid(&measured.field, "holds no token"));
        }
        match (self.room(measured), self.request.sampling.max_tokens) {
            (Some(room), Some(asked)) if asked <= room => Ok(asked),
            (Some(room @ 1..), None) => {
                Ok(self.model.default_max_tokens.min(self.room_unstated(measured)).min(room).min(longest))
            }
            _ => Err(self.overflow(measured)),
        }
    }

    /// What the prompt surely leaves of the context; `None`: it does not fit.
    fn room(&self, measured: &Measured) -> Option<u32> {
        let Some(longest) = self.model.max_model_len else { return Some(u32::MAX) };
        let counted = measured.count.exact().unwrap_or(0);
        longest.checked_sub(counted as usize).map(saturating_u32)
    }

    fn overflow(&self, measured: &Measured) -> ApiError {
        let longest = self.model.max_model_len.unwrap_or(usize::MAX);
        let asked = AskedLength::of(&self.request.sampling, &measured.field);
        match (measured.count, asked.tokens) {
            // How long the prompt is, nobody here knows.
            (PromptCount::Estimated { .. }, Some(tokens)) => answer_overflow(longest, tokens, asked.field),
            _ => context_overflow(longest, measured.at_most as usize, asked),
        }
    }

    /// What whoever states no bound may get of the context. Of a prompt that nobody counted what it surely leaves, yet no
    /// less than half: a byte is seldom a token.
    fn room_unstated(&self, measured: &Measured) -> u32 {
        let Some(longest) = self.model.max_model_len else { return u32::MAX };
        saturating_u32(longest.saturating_sub(measured.at_most as usize).max(longest.div_ceil(2)))
    }

    fn ticket(&self, measured: Measured, max_tokens: u32, reservation: Reservation) -> Ticket {
        let call = self.outgoing.call(measured.prompt.as_ref(), max_tokens);
        let text = self.model.text.clone();
        let sent = Sent::of(&self.request.output);
        let job = UpstreamJob { call, kind: self.kind, prompt: measured.count, max_tokens, sent, text };
        Ticket { job, hint: measured.hint.under(self.request.caching.key.as_deref()), reservation }
    }

    /// One after the other, so that a request never asks more of the upstreams than it can read. A prompt that cannot
    /// start takes the others with it.
    async fn start_all(
        &self,
        serving: &Serving,
        tickets: Vec<Ticket>,
        arrived: Duration,
    ) -> Result<Vec<LivePrompt>, ApiError> {
        let mut prompts: Vec<LivePrompt> = Vec::with_capacity(tickets.len());
        let mut tickets = tickets.into_iter();
        while let Some(Ticket { job, hint, reservation }) = tickets.next() {
            let launch = Launch {
                state: self.state,
                serving,
                model: &self.model.name,
                hint,
                arrived,
                for_engine: None,
                for_upstream: Some(job),
            };
            match launch.go(reservation).await {
                Ok(prompt) => prompts.push(prompt),
                Err(error) => {
                    withdraw_all(tickets.map(|ticket| ticket.reservation));
                    prompts.iter_mut().for_each(|prompt| prompt.fail(&error));
                    return Err(error);
                }
            }
        }
        Ok(prompts)
    }
}

impl Measured {
    /// Whoever reads what was asked of a limit may not find so many tokens in the prompt.
    fn say_how_counted(&self, refusal: ApiError) -> ApiError {
        match self.count {
            PromptCount::Exact(_) => refusal,
            PromptCount::Estimated { .. } => refusal.also_of_prompts(
                "The prompt is not counted here, so this is what it can be at most; with a `tokenizer` for the upstream it is \
                 counted.",
            ),
        }
    }
}

/// A byte is a token at most, and `more` are added to them over there.
fn uncounted(text: &str, more: u32, salt: &passerelle_engine::CacheSalt) -> (PromptCount, u32, PrefixHint) {
    let at_most = saturating_u32(text.len()).saturating_add(more);
    let about = saturating_u32(text.len().div_ceil(BYTES_PER_TOKEN));
    (PromptCount::Estimated { about, at_most }, at_most, PrefixHint::of_text(text, salt))
}
