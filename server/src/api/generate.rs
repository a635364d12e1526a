//! The shared path of chat and completions. One request, in order:
//!
//! 1. authenticate the key and take a place ([`super::routes`]), before the body is read;
//! 2. read and check the JSON ([`super::wire`]);
//! 3. unless no replica has a place for it, template and tokenise, off the async threads ([`super::prepare`]);
//! 4. check the context: prompt and answer fit, or the error has both numbers;
//! 5. reserve: all limits or none;
//! 6. pick a replica and submit, which never waits for an engine ([`super::launch`]);
//! 7. try another if that one does not answer;
//! 8. deliver the pieces ([`super::deliver`]), made from events by [`super::running`];
//! 9. settle what the engine counted, by dropping the [`Generation`](crate::gateway::Generation), on every way out.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passerelle_engine::{CacheSalt, Request as EngineRequest, ShareWeight};
use passerelle_models::TokenId;
use tokio::sync::OwnedSemaphorePermit;

use super::choice::{AnswerStart, ChoiceContent, ChoiceSpec, Writer, engine_prompt_logprobs};
use super::errors::ApiError;
use super::launch::{EngineJob, Launch, LivePrompt, UpstreamJob};
use super::lease::Lease;
use super::prepare::{
    AskedLength, EncodedPrompt, Prepared, check_token_ids, check_unread, find_generator, prepare, room_for_answer,
};
use super::ranking::Ranking;
use super::relayed::{PromptCount, Sent};
use super::remote::{admit_remote, check_output};
use super::reserve::{Patience, reserve_together, reserve_with, withdraw_all};
use super::routes::require;
use super::running::{SettleAt, Writers};
use super::shadow::{self, AnswerRecorder};
use super::state::{AppState, Serving};
use super::wire::answer::{self, Billing};
use super::wire::choices::Choices;
use super::wire::forward::Outgoing;
use super::wire::request::{CompletionPrompt, GenerateRequest, Prompt, PromptEnding, ReadRequest};
use super::wire::tier::tier_name;
use crate::gateway::account::ServiceClass;
use crate::gateway::replica::ReplicaRefusal;
use crate::gateway::{Ask, Attribution, Caller, PeerReservation, PrefixHint, Reservation, Reserve, Scope, Shadow};
use crate::text::grammar::CompiledGrammar;
use crate::units::saturating_u32;

/// Who asks, since when, and the place that the request takes in this server until its answer is over.
#[derive(Debug)]
pub(crate) struct RequestContext {
    pub(crate) caller: Arc<Caller>,
    pub(crate) place: OwnedSemaphorePermit,
    /// On the server's clock.
    pub(crate) arrived: Duration,
    /// What the caller's key must be good for.
    pub(crate) scope: Scope,
    /// The other gateway's reservation that the request is made under.
    pub(crate) origin: Option<PeerReservation>,
    /// It is one of a candidate's share.
    pub(crate) shadow: Option<Arc<Shadow>>,
}

impl RequestContext {
    /// How long the answer may take, its admission included. A batch bounds its own, which may wait for hours while others come
    /// first.
    pub(super) fn time_allowed(&self, state: &AppState) -> Duration {
        if self.scope == Scope::Batch { Duration::MAX } else { state.config().request_timeout }
    }

    pub(super) fn ends_at(&self, state: &AppState) -> Duration {
        self.arrived.saturating_add(self.time_allowed(state))
    }

    /// How urgent a request is that asks to be `asked`. Those of batches are that, whatever they ask.
    pub(super) fn class(&self, asked: Option<ServiceClass>) -> ServiceClass {
        if self.scope == Scope::Batch { ServiceClass::Batch } else { self.caller.classes.grant(asked) }
    }

    /// Writes down who asks for somebody else.
    pub(super) fn sign(&self, attribution: &mut Attribution) {
        attribution.asker = self.origin.as_ref().map(PeerReservation::asker);
    }
}

/// An admitted request: every prompt has its reservation and its place in an engine's queue or on an upstream.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) prompts: Vec<LivePrompt>,
    /// Shown of each prompt.
    pub(crate) num_choices: usize,
    pub(crate) served_as: ServedAs,
    /// When it has taken as long as it may, on the server's clock.
    pub(crate) ends_at: Duration,
    /// Given back when the answer is over.
    _place: OwnedSemaphorePermit,
}

/// What an answer says of the model that ran it.
#[derive(Debug, Clone)]
pub(crate) struct ServedAs {
    pub(crate) model: String,
    pub(crate) fingerprint: Option<String>,
    /// `None`: another server ran it.
    pub(crate) tier: Option<&'static str>,
    /// For a gateway that asked under a reservation of its own.
    pub(crate) billing: Option<Billing>,
}

impl Admitted {
    pub(crate) fn new(
        prompts: Vec<LivePrompt>,
        choices: Choices,
        served_as: ServedAs,
        ends_at: Duration,
        place: OwnedSemaphorePermit,
    ) -> Self {
        Self { prompts, num_choices: choices.shown.get() as usize, served_as, ends_at, _place: place }
    }
}

/// Steps 3 to 7. On any error, what was taken is given back. `outgoing`: the request as an upstream would get it.
pub(crate) async fn admit(
    state: &AppState,
    context: RequestContext,
    mut read: ReadRequest,
    outgoing: Option<Outgoing>,
) -> Result<Admitted, ApiError> {
    context.sign(&mut read.generate.attribution);
    let serving = state.serving();
    let remote = serving.remote(&read.generate.model).filter(|model| state.sees(&context.caller, &model.name)).cloned();
    let outgoing = match (remote, outgoing) {
        (Some(model), Some(outgoing)) => {
            return admit_remote(state, context, (serving, model), read, outgoing).await;
        }
        (_, outgoing) => outgoing,
    };
    let ReadRequest { prompt, generate: request, .. } = read;
    let (ends_at, class) = (context.ends_at(state), context.class(request.class));
    let RequestContext { caller, place, arrived, scope, origin, shadow } = context;
    state.readiness().admit()?;
    require(&caller, scope)?;
    let model = find_generator(state, &caller, &request.model).await?;
    // Its replica may have come just now.
    let serving = state.serving();
    // Under load most are refused, and to read their prompts first would cost those who are served. What could never run
    // is told so all the same: who asked again later would not fare better.
    if serving.router.is_full(&model.name) {
        check_unread(&prompt, &request, &model)?;
        return Err(ReplicaRefusal::QueueFull.into());
    }
    let shape = Shape::of(&prompt, &request);
    let Prepared { prompts, bad_words, constraint } = prepare(state, &caller, &model, prompt, &request).await?;
    check_token_ids(&request, &prompts, &model)?;
    let admission = Admission {
        state,
        serving: &serving,
        caller: &caller,
        request: &request,
        model: &model,
        // An upstream is read as one answer, and cannot tell all that an engine can.
        outgoing: outgoing
            .as_ref()
            .filter(|_| request.choices == Choices::ONE && check_output(&request.output).is_ok()),
        shape,
        bad_words,
        constraint: Mutex::new(constraint),
        arrived,
        class,
        read_again: 0,
        settle_at: SettleAt::LastToken,
        shadow: shadow::suited(state, shadow, &request, &prompts),
    };
    let patience = Patience::of(prompts.len(), scope);
    let mut tickets = admission.reserve_all(prompts, patience).await?;
    charge_to(origin.as_ref(), tickets.iter_mut().map(|ticket| &mut ticket.reservation));
    // A request beyond a grant takes what the others leave.
    let class = tickets.first().map_or(class, |ticket| ticket.reservation.class());
    let told = tickets.iter().map(|ticket| ticket.reservation.told_so_far());
    let billing = Billing::of(state, (&model.name, Some(model.digest)), (origin, request.choices.drawn), told);
    let prompts = admission.start_all(tickets).await?;
    let ran_here = prompts.iter().all(|prompt| matches!(prompt, LivePrompt::Engine(_)));
    let fingerprint = ran_here.then(|| model.fingerprint.clone());
    let served_as =
        ServedAs { model: model.name.clone(), fingerprint, tier: ran_here.then(|| tier_name(class)), billing };
    Ok(Admitted::new(prompts, request.choices, served_as, ends_at, place))
}

/// What of the prompt's kind outlives the prompt.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    kind: ChoiceContent,
    start: AnswerStart,
}

impl Shape {
    pub(super) fn of(prompt: &Prompt, request: &GenerateRequest) -> Self {
        let mut shape = Self::of_prompt(prompt);
        if request.structure.is_some() {
            // Every byte that was asked for is shown, also a space at the start.
            shape.start = AnswerStart::GoesOnFromPrompt;
        }
        shape
    }

    fn of_prompt(prompt: &Prompt) -> Self {
        match prompt {
            Prompt::Completions { .. } => Self { kind: ChoiceContent::PlainText, start: AnswerStart::GoesOnFromPrompt },
            Prompt::Chat(chat) => {
                let offered = chat.tools.iter().map(|tool| tool.name.clone()).collect();
                let start = match chat.ending {
                    PromptEnding::ContinueFinalMessage => AnswerStart::GoesOnFromPrompt,
                    PromptEnding::GenerationPrompt | PromptEnding::Closed => AnswerStart::OwnText,
                };
                Self { kind: ChoiceContent::Chat { offered, begun: chat.begun().map(str::to_owned) }, start }
            }
        }
    }
}

/// One model's part of a request, up to its start.
pub(super) struct Admission<'a> {
    pub(super) state: &'a AppState,
    pub(super) serving: &'a Serving,
    pub(super) caller: &'a Arc<Caller>,
    pub(super) request: &'a GenerateRequest,
    pub(super) model: &'a Lease,
    pub(super) outgoing: Option<&'a Outgoing>,
    pub(super) shape: Shape,
    pub(super) bad_words: Vec<Vec<TokenId>>,
    /// Behind a lock because a grammar may move between threads and not be shared by them, and an admission that waits for
    /// an upstream moves. Nobody ever waits for it.
    pub(super) constraint: Mutex<Option<CompiledGrammar>>,
    pub(super) arrived: Duration,
    pub(super) class: ServiceClass,
    /// How often the model reads prompt and answer once more, when the answer is over.
    pub(super) read_again: u32,
    pub(super) settle_at: SettleAt,
    pub(super) shadow: Option<Arc<Shadow>>,
}

/// What one prompt may generate at most, and what is reserved for it.
#[derive(Debug, Clone)]
struct Plan {
    max_tokens: u32,
    ask: Ask,
}

/// A prompt with the room it was granted.
pub(super) struct Ticket {
    prompt: EncodedPrompt,
    max_tokens: u32,
    pub(super) reservation: Reservation,
}

impl Admission<'_> {
    /// All prompts or none.
    pub(super) async fn reserve_all(
        &self,
        prompts: Vec<EncodedPrompt>,
        patience: Patience,
    ) -> Result<Vec<Ticket>, ApiError> {
        let mut plans = self.plan(&prompts)?;
        number(&mut plans);
        self.check_together(&plans)?;
        let mut tickets = Vec::with_capacity(prompts.len());
        for (prompt, plan) in prompts.into_iter().zip(plans) {
            match reserve_with(patience.after(tickets.len()), self.state, self.caller, &plan.ask).await {
                Ok(reservation) => tickets.push(Ticket { prompt, max_tokens: plan.max_tokens, reservation }),
                Err(refusal) => {
                    withdraw_all(tickets.into_iter().map(|ticket| ticket.reservation));
                    return Err(refusal);
                }
            }
        }
        Ok(tickets)
    }

    /// One prompt for each of several models: room for all of them, in the order of the models, or for none.
    pub(super) fn reserve_together(parts: &[Self], prompts: Vec<EncodedPrompt>) -> Result<Vec<Ticket>, ApiError> {
        let Some(Self { state, caller, .. }) = parts.first() else { return Ok(Vec::new()) };
        let mut plans = Vec::with_capacity(parts.len());
        for (part, prompt) in parts.iter().zip(&prompts) {
            plans.extend(part.plan(std::slice::from_ref(prompt))?);
        }
        number(&mut plans);
        let asks: Vec<Ask> = plans.iter().map(|plan| plan.ask.clone()).collect();
        let reservations = reserve_together(state, caller, &asks)?;
        let granted = prompts.into_iter().zip(plans).zip(reservations);
        Ok(granted
            .map(|((prompt, plan), reservation)| Ticket { prompt, max_tokens: plan.max_tokens, reservation })
            .collect())
    }

    fn plan(&self, prompts: &[EncodedPrompt]) -> Result<Vec<Plan>, ApiError> {
        let room = |prompt: &EncodedPrompt| {
            let tokens = prompt.tokens.len();
            Ok((saturating_u32(tokens), room_for_answer(self.model, tokens, self.asked(prompt))?))
        };
        let rooms = prompts.iter().map(room).collect::<Result<Vec<(u32, u32)>, ApiError>>()?;
        let asks = |most: u32| rooms.iter().map(|(prompt, room)| self.ask(*prompt, most.min(*room))).collect();
        // Who states no bound gets the longest answers that the account could ever have.
        let longest = match self.request.sampling.max_tokens {
            Some(_) => u32::MAX,
            None => self.state.ledger().longest_answers(self.caller, asks).unwrap_or(u32::MAX).max(1),
        };
        let plan = |(prompt, room): &(u32, u32)| {
            let attribution = self.request.attribution.clone();
            let max_tokens = longest.min(*room);
            Plan { max_tokens, ask: Ask { attribution, ..self.ask(*prompt, max_tokens) } }
        };
        Ok(rooms.iter().map(plan).collect())
    }

    fn asked<'p>(&self, prompt: &'p EncodedPrompt) -> AskedLength<'p> {
        AskedLength::of(&self.request.sampling, &prompt.field)
    }

    /// For nobody in particular.
    fn ask(&self, prompt_tokens: u32, max_tokens: u32) -> Ask {
        let read_again_tokens = prompt_tokens.saturating_add(max_tokens).saturating_mul(self.read_again);
        let (num_answers, class) = (self.request.choices.drawn, self.class);
        let ask = Ask::new(&self.model.name, prompt_tokens, max_tokens);
        Ask { num_answers, reserve: self.reserve(), class, read_again_tokens, ..ask }
    }

    /// An upstream cannot be told to go on: where one may get the request, the longest answer is reserved.
    fn reserve(&self) -> Reserve {
        if self.outgoing.is_some() { Reserve::Whole } else { Reserve::InParts }
    }

    /// Each prompt of a list counts as a request of its own; a list that could never fit would be refused forever.
    fn check_together(&self, plans: &[Plan]) -> Result<(), ApiError> {
        if plans.len() < 2 {
            return Ok(());
        }
        let asks: Vec<Ask> = plans.iter().map(|plan| plan.ask.clone()).collect();
        let Some(refusal) = self.state.ledger().never_fit(self.caller, &asks) else { return Ok(()) };
        self.state.metrics().refused(refusal.limit);
        Err(ApiError::from(refusal).param("prompt"))
    }

    /// A prompt that cannot start takes the others with it: they are dropped, which aborts and settles them, and nobody
    /// pays for them unless it is the caller's own doing.
    pub(super) async fn start_all(&self, tickets: Vec<Ticket>) -> Result<Vec<LivePrompt>, ApiError> {
        let mut prompts: Vec<LivePrompt> = Vec::with_capacity(tickets.len());
        let mut tickets = tickets.into_iter();
        while let Some(ticket) = tickets.next() {
            match self.start(ticket).await {
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

    async fn start(&self, ticket: Ticket) -> Result<LivePrompt, ApiError> {
        let Ticket { prompt, max_tokens, reservation } = ticket;
        let class = reservation.class();
        let for_engine = || {
            let request = self.engine_request(&prompt, max_tokens, class);
            let writers = self.writers(prompt.clone(), &request);
            (request, writers)
        };
        let launch = Launch {
            state: self.state,
            serving: self.serving,
            model: &self.model.name,
            hint: PrefixHint::of(&prompt.tokens, &self.cache_salt()).under(self.request.caching.key.as_deref()),
            arrived: self.arrived,
            for_engine: Some(EngineJob {
                request: &for_engine,
                prompt_tokens: prompt.tokens.len(),
                asked: self.asked(&prompt),
                choices_field: self.request.choices.field(),
            }),
            for_upstream: self.outgoing.map(|outgoing| self.upstream_job(outgoing, &prompt, max_tokens)),
        };
        launch.go(reservation).await
    }

    /// For an upstream that serves the same model as an engine here: it gets the very tokens of a completion.
    fn upstream_job(&self, outgoing: &Outgoing, prompt: &EncodedPrompt, max_tokens: u32) -> UpstreamJob {
        let (kind, written) = match self.shape.kind {
            ChoiceContent::Chat { .. } => (answer::AnswerKind::Chat, None),
            ChoiceContent::PlainText => {
                let tokens = CompletionPrompt::Tokens(prompt.tokens.clone());
                (answer::AnswerKind::Completion, Some(tokens))
            }
        };
        let call = outgoing.call(written.as_ref(), max_tokens);
        let count = PromptCount::Exact(saturating_u32(prompt.tokens.len()));
        let (sent, text) = (Sent::of(&self.request.output), Some(Arc::clone(&self.model.text)));
        UpstreamJob { call, kind, prompt: count, max_tokens, sent, text }
    }

    fn engine_request(&self, prompt: &EncodedPrompt, max_tokens: u32, class: ServiceClass) -> EngineRequest {
        let output = &self.request.output;
        let sampling = &self.request.sampling;
        let mut sampling = sampling.to_engine(&self.model.defaults, &self.model.eos_token_ids, max_tokens);
        let Choices { drawn: num_choices, .. } = self.request.choices;
        // Whoever ranks choices needs to know how likely they are.
        sampling.logprobs = output.logprobs.or_else(|| self.request.choices.are_ranked().then_some(0));
        sampling.prompt_logprobs = engine_prompt_logprobs(output);
        sampling.bad_words.clone_from(&self.bad_words);
        EngineRequest {
            class: class.into(),
            share_key: self.caller.account.share_key,
            share_weight: ShareWeight(self.caller.account.weight),
            num_choices,
            cache_salt: self.cache_salt(),
            constraint: self.constraint.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            ..EngineRequest::new(self.state.next_request_id(), prompt.tokens.clone(), sampling)
        }
    }

    fn cache_salt(&self) -> CacheSalt {
        let sharing = &self.state.config().prefix_sharing;
        sharing.salt(&self.caller.account.path, self.request.caching.salt.as_deref())
    }

    fn writers(&self, prompt: EncodedPrompt, engine_request: &EngineRequest) -> Writers {
        let spec = ChoiceSpec {
            model: self.model.clone(),
            output: self.request.output.clone(),
            stop_strings: self.request.sampling.stop.clone(),
            min_tokens: engine_request.sampling.min_tokens,
            stop_token_ids: engine_request.sampling.stop_token_ids.clone(),
            kind: self.shape.kind.clone(),
            prompt: Arc::new(prompt),
            start: self.shape.start,
        };
        let Choices { shown, drawn } = self.request.choices;
        let recorder = self.shadow.as_ref();
        let recorder =
            recorder.map(|shadow| AnswerRecorder::new(self.state, shadow, &self.model.name, &spec.prompt.tokens));
        let of_choices = (0..drawn.get()).map(|_| Writer::new(spec.clone())).collect();
        let ranking = self.request.choices.are_ranked().then(|| Ranking::new(shown, drawn));
        Writers { of_choices, ranking, settle_at: self.settle_at, recorder }
    }
}

/// Each says which prompt of its request it is, as [`charge_to`] counts them.
fn number(plans: &mut [Plan]) {
    (0..).zip(plans).for_each(|(part, plan)| plan.ask.attribution.set_part(part));
}

/// Each prompt of a list is a reservation of its own.
pub(crate) fn charge_to<'a>(origin: Option<&PeerReservation>, reservations: impl Iterator<Item = &'a mut Reservation>) {
    let Some(origin) = origin else { return };
    reservations.zip(0..).for_each(|(reservation, part)| reservation.on_behalf_of(origin.part(part)));
}
