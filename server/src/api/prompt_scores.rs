//! `prompt_scores_against`: prompts that two models score. One request, in order:
//!
//! 1. both models are served here, seen by the caller, and of one vocabulary;
//! 2. tokenise with the first one's tokenizer, off the async threads;
//! 3. reserve for every prompt with each of the two models, in one step of the ledger: all limits or none;
//! 4. hand the prompts to the comparison lane, which runs them one by one;
//! 5. settle what the lane counted, by dropping each [`ComparedPrompt`], on every way out.

use axum::Json;
use axum::response::{IntoResponse, Response};
use passerelle_engine::{ComparedPosition, Usage};
use tokio::time::timeout;

use super::compare_checks::{check_room, check_same_vocabulary, longest_text, of_named, room_beside};
use super::errors::{ApiError, ErrorKind};
use super::generate::{RequestContext, charge_to};
use super::lease::{Lease, together};
use super::meter::PromptMeter;
use super::prepare::{AskedLength, EncodedPrompt, check_token_ids, encode, find_generator, room_for_answer};
use super::reserve::{reserve_together, withdraw_all};
use super::routes::require;
use super::state::AppState;
use super::wire::answer::AnswerHead;
use super::wire::prompt_scores::{Scorer, comparison_answer};
use super::wire::request::ReadRequest;
use super::wire::tier::tier_name;
use super::wire::usage::sum_usage;
use crate::gateway::account::ServiceClass;
use crate::gateway::comparison::{self, ComparedText};
use crate::gateway::{Ask, Attribution, ComparedPrompt, ReplicaRefusal, Reservation};
use crate::units::saturating_u32;

const FIELD: &str = "prompt_scores_against";

/// Steps 1 to 5. `head`: what is known of the answer before.
pub(crate) async fn compare(
    state: &AppState,
    context: RequestContext,
    read: ReadRequest,
    against: &str,
    head: AnswerHead,
) -> Result<Response, ApiError> {
    let ReadRequest { prompt, generate: mut request, .. } = read;
    context.sign(&mut request.attribution);
    state.readiness().admit()?;
    require(&context.caller, context.scope)?;
    let models = find_pair(state, &context, &request.model, against).await?;
    let prompts = encode(state, &models[0], prompt).await?;
    check_token_ids(&request, &prompts, &models[0])?;
    let longest = longest_text(state, &state.serving(), &models).map_err(|error| error.at_fault_is(FIELD))?;
    for prompt in &prompts {
        let (tokens, nothing) = (prompt.tokens.len(), AskedLength::of(&request.sampling, &prompt.field));
        models.iter().try_for_each(|model| room_for_answer(model, tokens, nothing).map(drop))?;
        room_beside(longest, tokens, nothing)?;
    }
    let class = context.class(request.class);
    let comparison = Pairing { state, context: &context, models: &models, class, attribution: &request.attribution };
    let reservations = comparison.reserve_all(&prompts)?;
    let head = AnswerHead {
        model: models[0].name.clone(),
        fingerprint: Some(models[0].fingerprint.clone()),
        tier: Some(tier_name(class)),
        ..head
    };
    let mut running = comparison.start_all(prompts, reservations)?;
    let limit = context.time_allowed(state);
    let compared = timeout(limit, running.all()).await.map_err(|_| {
        let message = format!("The prompts were not compared within {} seconds.", limit.as_secs_f64());
        ApiError::new(ErrorKind::RequestTimeout, message)
    })??;
    let [first, second] = &models;
    let against = Scorer { name: &second.name, digest: second.digest };
    Ok(Json(comparison_answer(&head, first.digest, against, &compared, running.close())).into_response())
}

/// Step 1.
async fn find_pair(
    state: &AppState,
    context: &RequestContext,
    first: &str,
    second: &str,
) -> Result<[Lease; 2], ApiError> {
    check_room(state, &context.caller, [first, second]).map_err(|error| error.param(FIELD))?;
    let _turn = together(state, [first, second].into_iter()).await?;
    let first = find_generator(state, &context.caller, first).await?;
    let second = find_generator(state, &context.caller, second).await.map_err(|error| error.param(FIELD))?;
    check_same_vocabulary(state, [&first, &second], FIELD).await?;
    Ok([first, second])
}

struct Pairing<'a> {
    state: &'a AppState,
    context: &'a RequestContext,
    models: &'a [Lease; 2],
    class: ServiceClass,
    attribution: &'a Attribution,
}

impl Pairing<'_> {
    /// Every prompt with both models, in one step of the ledger, or none. Never in line: what a list had already would
    /// hold up others that wait.
    fn reserve_all(&self, prompts: &[EncodedPrompt]) -> Result<Vec<[Reservation; 2]>, ApiError> {
        let mut asks: Vec<Ask> = prompts.iter().flat_map(|prompt| self.asks(prompt)).collect();
        (0..).zip(&mut asks).for_each(|(part, ask)| ask.attribution.set_part(part));
        let mut reservations = reserve_together(self.state, &self.context.caller, &asks)?;
        charge_to(self.context.origin.as_ref(), reservations.iter_mut());
        let mut reservations = reservations.into_iter();
        Ok(std::iter::from_fn(|| Some([reservations.next()?, reservations.next()?])).collect())
    }

    fn asks(&self, prompt: &EncodedPrompt) -> [Ask; 2] {
        self.models.each_ref().map(|model| {
            let ask = Ask::new(&model.name, saturating_u32(prompt.tokens.len()), 0);
            Ask { class: self.class, attribution: self.attribution.clone(), ..ask }
        })
    }

    /// A prompt that cannot start takes the others with it: they are dropped, which ends and settles them.
    fn start_all(&self, prompts: Vec<EncodedPrompt>, reservations: Vec<[Reservation; 2]>) -> Result<Running, ApiError> {
        let meter = |model: &Lease| PromptMeter::new(self.state.clone(), &model.name, self.context.arrived);
        let mut running =
            Running { prompts: Vec::with_capacity(prompts.len()), meters: self.models.each_ref().map(meter) };
        let mut reservations = reservations.into_iter();
        for (prompt, pair) in prompts.into_iter().zip(reservations.by_ref()) {
            match self.start(prompt, pair) {
                Ok(comparing) => running.prompts.push(comparing),
                Err(error) => {
                    withdraw_all(reservations.flatten());
                    return Err(running.fail(error));
                }
            }
        }
        Ok(running)
    }

    fn start(&self, prompt: EncodedPrompt, reservations: [Reservation; 2]) -> Result<ComparedPrompt, ApiError> {
        let serving = self.state.serving();
        let engine_of = |model: &Lease| serving.router.engine_of(&model.name);
        let replicas = match (engine_of(&self.models[0]), engine_of(&self.models[1])) {
            (Ok(first), Ok(second)) => [first, second],
            (Err(error), _) | (_, Err(error)) => {
                withdraw_all(reservations);
                return Err(error.into());
            }
        };
        let text = ComparedText {
            id: self.state.next_request_id(),
            tokens: prompt.tokens,
            share_key: self.context.caller.account.share_key,
        };
        let started = ComparedPrompt::start(self.state.comparisons(), replicas.each_ref(), text, reservations);
        started.map_err(|refused| {
            withdraw_all(refused.reservations);
            match refused.error {
                // Of what the models themselves are, the caller chose the second.
                ReplicaRefusal::Refused { .. } => {
                    let at_fault = usize::from(comparison::check_lent(&replicas[0]).is_ok());
                    of_named(&self.models[at_fault].name, refused.error).param(FIELD)
                }
                ReplicaRefusal::ExceedsContext(_) => ApiError::from(refused.error).param(prompt.field.as_str()),
                error => error.into(),
            }
        })
    }
}

/// Prompts that are being compared. Dropping it ends what waits, settles and measures.
struct Running {
    prompts: Vec<ComparedPrompt>,
    /// Of the two models.
    meters: [PromptMeter; 2],
}

impl Running {
    /// Every prompt, or the first error, which ends them all.
    async fn all(&mut self) -> Result<Vec<Vec<Option<ComparedPosition>>>, ApiError> {
        let mut compared = Vec::with_capacity(self.prompts.len());
        for prompt in &mut self.prompts {
            match prompt.wait().await {
                Ok(positions) => compared.push(positions),
                Err(error) => return Err(self.fail(error.into())),
            }
        }
        Ok(compared)
    }

    /// Nobody pays for a list that the server fails, whichever of its prompts it failed at.
    fn fail(&mut self, error: ApiError) -> ApiError {
        if error.is_our_fault() {
            self.prompts.iter_mut().for_each(ComparedPrompt::make_free);
        }
        error
    }

    /// What both models used together, which from now on does not change.
    fn close(&self) -> Usage {
        sum_usage(self.prompts.iter().flat_map(|prompt| [prompt.close(); 2]))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for prompt in &self.prompts {
            let used = prompt.close();
            self.meters.iter().for_each(|meter| meter.ended(used));
        }
    }
}
