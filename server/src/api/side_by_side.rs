//! One prompt for several models: answered side by side, then read by the first model and by each of the others at once, so
//! that their distributions can be compared.
//!
//! Every model's part is reserved before anything starts, or nothing is: its prompt, its answer, and how often it reads both
//! again. Each part is settled under its own model, once, when the comparison is over.

use std::sync::{Arc, Mutex};

use passerelle_engine::{
    ComparedPosition, ComparisonHandle, ComparisonReply, ComparisonRequest, ShareKey, SharedModel, Usage,
};
use passerelle_models::TokenId;
use serde_json::{Value, json};

use super::compare_checks::{check_one_prompt, check_room, check_same_vocabulary, longest_text, room_beside};
use super::delta::{ChoiceDelta, Delta};
use super::errors::{ApiError, ErrorKind};
use super::generate::{Admission, Admitted, RequestContext, ServedAs, Shape, Ticket, charge_to};
use super::launch::LivePrompt;
use super::lease::{Lease, together};
use super::prepare::{AskedLength, Prepared, check_token_ids, find_generator, prepare};
use super::reserve::withdraw_all;
use super::routes::require;
use super::running::SettleAt;
use super::sse::StreamEnd;
use super::state::AppState;
use super::wire::answer::{AnswerWriter, Conclusion, Part};
use super::wire::choices::Choices;
use super::wire::compare::{
    ComparedModel, ComparedText, Difference, ReadCompare, SaidText, compared_text_json, difference_json, model_json,
    parting,
};
use super::wire::request::{GenerateRequest, Prompt};
use super::wire::sampling::check_min_tokens;
use super::wire::tier::tier_name;
use super::wire::usage::{ReasoningTokens, logprob_json, usage_json};
use crate::gateway::Caller;
use crate::gateway::replica::ReplicaRefusal;
use crate::text::{Detokenizer, SkipSpecialTokens};
use crate::units::saturating_u32;

/// What the answers of several models become.
#[derive(Debug)]
pub(crate) struct SideBySide {
    id: String,
    created: u64,
    state: AppState,
    lane: ComparisonHandle,
    models: Vec<Lease>,
    /// The same for all models.
    prompt: Vec<TokenId>,
    /// Of all answers.
    seed: u64,
    said: Vec<SaidText>,
    differences: Vec<Difference>,
    text: ComparedText,
    /// By model, once settled.
    usages: Vec<Usage>,
    share_key: ShareKey,
}

/// Reserves all parts, then starts all. On any error, what was taken is given back.
pub(crate) async fn admit(
    state: &AppState,
    context: RequestContext,
    read: ReadCompare,
    id: String,
) -> Result<(Admitted, SideBySide), ApiError> {
    let lane = state.comparisons().clone();
    let ReadCompare { models, prompt, mut generate, .. } = read;
    context.sign(&mut generate.attribution);
    let (ends_at, class) = (context.ends_at(state), context.class(generate.class));
    let RequestContext { caller, place, arrived, scope, origin, shadow: _ } = context;
    state.readiness().admit()?;
    require(&caller, scope)?;
    let seed = *generate.sampling.seed.get_or_insert(random_seed()?);
    let models = lease_all(state, &caller, &models).await?;
    for other in 1..models.len() {
        check_same_vocabulary(state, [&models[0], &models[other]], &format!("models[{other}]")).await?;
    }
    // Their replicas may have come just now.
    let serving = state.serving();
    let (shape, field) = (Shape::of(&prompt, &generate), prompt.field());
    let prepared = prepare_all(state, &caller, &models, prompt, &generate).await?;
    let prompt = check_one_prompt(&models, &prepared)?;
    let longest = longest_text(state, &serving, &models)?;
    let asked = AskedLength::of(&generate.sampling, field);
    generate.sampling.max_tokens = Some(room_beside(longest, prompt.len(), asked)?);
    check_min_tokens(&generate.sampling)?;
    let read_again = |index| if index == 0 { saturating_u32(models.len() - 1) } else { 1 };
    let (mut admissions, mut prompts) = (Vec::new(), Vec::new());
    for (Prepared { prompts: encoded, bad_words, constraint }, model) in prepared.into_iter().zip(&models) {
        prompts.extend(encoded);
        admissions.push(Admission {
            state,
            serving: &serving,
            caller: &caller,
            request: &generate,
            model,
            outgoing: None,
            shape: shape.clone(),
            bad_words,
            constraint: Mutex::new(constraint),
            arrived,
            class,
            // The first reads the text beside each of the others.
            read_again: read_again(admissions.len()),
            settle_at: SettleAt::Told,
            shadow: None,
        });
    }
    // Never in line: what a comparison had already would hold up others that wait.
    let mut tickets = Admission::reserve_together(&admissions, prompts)?;
    charge_to(origin.as_ref(), tickets.iter_mut().map(|ticket| &mut ticket.reservation));
    let started = start_each(&admissions, tickets).await?;
    let (model, fingerprint) = (models[0].name.clone(), Some(models[0].fingerprint.clone()));
    let served_as = ServedAs { model, fingerprint, tier: Some(tier_name(class)), billing: None };
    let admitted = Admitted::new(started, Choices::ONE, served_as, ends_at, place);
    Ok((admitted, SideBySide::new((id, state.clone(), lane), (models, prompt), (seed, caller.account.share_key))))
}

/// Each its own ticket, or none: those that run already end as the one that cannot.
async fn start_each(admissions: &[Admission<'_>], tickets: Vec<Ticket>) -> Result<Vec<LivePrompt>, ApiError> {
    let mut started: Vec<LivePrompt> = Vec::with_capacity(tickets.len());
    let mut waiting = admissions.iter().zip(tickets);
    while let Some((admission, ticket)) = waiting.next() {
        match admission.start_all(vec![ticket]).await {
            Ok(prompts) => started.extend(prompts),
            Err(error) => {
                withdraw_all(waiting.map(|(_, ticket)| ticket.reservation));
                started.iter_mut().for_each(|prompt| prompt.fail(&error));
                return Err(error);
            }
        }
    }
    Ok(started)
}

async fn lease_all(state: &AppState, caller: &Caller, names: &[String]) -> Result<Vec<Lease>, ApiError> {
    check_room(state, caller, names.iter().map(String::as_str)).map_err(|error| error.param("models"))?;
    let _turn = together(state, names.iter().map(String::as_str)).await?;
    let mut models = Vec::with_capacity(names.len());
    for (index, name) in names.iter().enumerate() {
        let found = find_generator(state, caller, name).await;
        models.push(found.map_err(|error| error.at_fault_is(format!("models[{index}]")))?);
    }
    Ok(models)
}

async fn prepare_all(
    state: &AppState,
    caller: &Caller,
    models: &[Lease],
    prompt: Prompt,
    generate: &GenerateRequest,
) -> Result<Vec<Prepared>, ApiError> {
    let mut all = Vec::with_capacity(models.len());
    for (index, model) in models.iter().enumerate() {
        let prepared = prepare(state, caller, model, prompt.clone(), generate).await;
        let prepared = prepared.map_err(|error| name_of_template(error, index))?;
        check_token_ids(generate, &prepared.prompts, model)?;
        all.push(prepared);
    }
    Ok(all)
}

/// A chat template is a model's own, so that it is to be known whose it is that refuses; other errors are the prompt's.
fn name_of_template(error: ApiError, index: usize) -> ApiError {
    if error.kind() != ErrorKind::TemplateRefused {
        return error;
    }
    let other_way = ("use the completions route", "write `prompt` instead of `messages`");
    error.renamed(&[other_way]).param(format!("models[{index}]"))
}

/// Small enough for every client's numbers.
fn random_seed() -> Result<u64, ApiError> {
    let seed = getrandom::u32().map_err(|_| ApiError::no_randomness())?;
    Ok(u64::from(seed))
}

impl SideBySide {
    fn new(
        (id, state, lane): (String, AppState, ComparisonHandle),
        (models, prompt): (Vec<Lease>, Vec<TokenId>),
        (seed, share_key): (u64, ShareKey),
    ) -> Self {
        let created = state.clock().wall().as_secs();
        let said = vec![SaidText::default(); models.len()];
        let (differences, text, usages) = (Vec::new(), ComparedText::default(), Vec::new());
        Self { id, created, state, lane, models, prompt, seed, said, differences, text, usages, share_key }
    }

    fn head(&self, object: &str) -> Value {
        json!({"id": self.id, "object": object, "created": self.created})
    }

    fn take(&mut self, ChoiceDelta { index, delta }: ChoiceDelta) -> Option<Value> {
        let model = &self.models[index].name;
        let mut chunk = json!({"index": index, "model": model});
        let said = &mut self.said[index];
        match delta {
            Delta::Text(part) => {
                let logprobs: Vec<_> = part.logprobs.iter().map(|token| logprob_json(token.logprob)).collect();
                said.text.push_str(&part.text);
                said.token_ids.extend(&part.token_ids);
                chunk["text"] = json!(part.text);
                chunk["token_ids"] = json!(part.token_ids);
                chunk["logprobs"] = json!(logprobs);
            }
            Delta::Reasoning(text) => {
                said.reasoning.push_str(&text);
                chunk["reasoning"] = json!(text);
            }
            Delta::Finished(end) => {
                said.finish_reason = Some(end.as_str());
                chunk["finish_reason"] = json!(end.as_str());
            }
            // Nothing of the prompt is asked for, and no tool is offered.
            Delta::Prompt(_) | Delta::ToolCall(_) => return None,
        }
        Some(chunk)
    }

    async fn compare(&mut self, prompts: &mut [LivePrompt]) -> Result<(), ApiError> {
        let tokens = [&self.prompt[..], &self.said[0].token_ids].concat();
        self.text = self.spelt(tokens.clone()).await?;
        let lent: Option<Vec<SharedModel>> = prompts.iter().map(LivePrompt::shared_model).collect();
        let lent = lent.ok_or_else(|| ApiError::new(ErrorKind::EngineFailed, "An engine has stopped."))?;
        for other in 1..lent.len() {
            let (id, first, second) = (self.state.next_request_id(), lent[0].clone(), lent[other].clone());
            let request = ComparisonRequest { id, tokens: tokens.clone(), first, second, share_key: self.share_key };
            let submitted = self.lane.submit(request).map_err(ReplicaRefusal::from);
            let mut reading = Reading { reply: submitted.map_err(ApiError::from)?, prompts, other, is_free: false };
            let positions = reading.wait().await?;
            self.differences.push(Difference { model: other, positions });
        }
        prompts.iter_mut().for_each(LivePrompt::settle);
        self.usages = prompts.iter().map(LivePrompt::usage).collect();
        Ok(())
    }

    async fn spelt(&self, token_ids: Vec<TokenId>) -> Result<ComparedText, ApiError> {
        let (text, num_prompt_tokens) = (Arc::clone(&self.models[0].text), self.prompt.len());
        let spell = move || {
            let tokens = Detokenizer::new(&text.tokenizer, SkipSpecialTokens::No).spell(&token_ids);
            Ok(ComparedText { token_ids, tokens, num_prompt_tokens })
        };
        self.state.text_work().run(spell).await
    }

    fn json(&self, usage: Usage) -> Value {
        let mut whole = self.head("comparison");
        whole["seed"] = json!(self.seed.cast_signed());
        let models = self.models.iter().zip(&self.said).enumerate().map(|(index, (model, said))| {
            let (name, fingerprint) = (model.name.clone(), Some(model.fingerprint.clone()));
            let compared = ComparedModel { name, fingerprint, digest: model.digest };
            model_json(index, &compared, said, self.usages.get(index).copied().unwrap_or_default())
        });
        whole["models"] = models.collect();
        whole["text"] = Value::Object(compared_text_json(&self.text));
        let part = |difference: &Difference| parting(&self.said[0].token_ids, &self.said[difference.model].token_ids);
        whole["differences"] = self.differences.iter().map(|is| difference_json(is, part(is))).collect();
        whole["usage"] = usage_json(usage, &ReasoningTokens::default());
        whole
    }
}

/// Two models in front of the text. However it ends, what was read is on the bill of both; unless the server failed.
struct Reading<'a> {
    reply: ComparisonReply,
    prompts: &'a mut [LivePrompt],
    other: usize,
    is_free: bool,
}

impl Reading<'_> {
    async fn wait(&mut self) -> Result<Vec<Option<ComparedPosition>>, ApiError> {
        let compared = self.reply.wait().await;
        self.is_free = compared.is_err();
        Ok(compared?)
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let read = self.reply.close();
        if !self.is_free {
            [0, self.other].iter().for_each(|side| self.prompts[*side].ran_beside(read));
        }
    }
}

fn event(data: &Value) -> Part {
    Part { event: None, data: data.to_string() }
}

impl AnswerWriter for SideBySide {
    fn opening(&mut self, _: Usage) -> Vec<Part> {
        Vec::new()
    }

    fn part(&mut self, piece: ChoiceDelta, _: Usage) -> Vec<Part> {
        let Some(said) = self.take(piece) else { return Vec::new() };
        let mut chunk = self.head("comparison.chunk");
        if let (Value::Object(chunk), Value::Object(said)) = (&mut chunk, said) {
            chunk.extend(said);
        }
        vec![event(&chunk)]
    }

    fn closing(&mut self, usage: Usage) -> Vec<Part> {
        vec![event(&self.json(usage))]
    }

    fn failure(&mut self, error: &ApiError) -> Vec<Part> {
        vec![event(&error.body())]
    }

    fn join(&mut self, piece: ChoiceDelta) {
        self.take(piece);
    }

    fn conclude<'a>(&'a mut self, prompts: &'a mut [LivePrompt]) -> Option<Conclusion<'a>> {
        Some(Box::pin(self.compare(prompts)))
    }

    fn whole(&mut self, usage: Usage) -> Value {
        self.json(usage)
    }

    fn stream_end(&self) -> StreamEnd {
        StreamEnd::DoneMark
    }
}
