//! Asks one of the two models, as a batch would.

use std::sync::Arc;

use passerelle_engine::{FinishReason, Heard, Request as EngineRequest, SamplingParams, ShareWeight, TokenLogprobs};
use passerelle_models::TokenId;

use super::Fate;
use super::item::Item;
use crate::api::lease::Lease;
use crate::api::meter::PromptMeter;
use crate::api::state::AppState;
use crate::gateway::account::ServiceClass;
use crate::gateway::{Ask, Caller, Generation};
use crate::units::saturating_u32;

pub(super) struct Asking<'a> {
    pub(super) state: &'a AppState,
    /// Who pays.
    pub(super) caller: &'a Arc<Caller>,
    pub(super) model: &'a Lease,
}

/// What one model made of an item.
#[derive(Debug)]
pub(super) struct Said {
    /// By itself, greedily.
    pub(super) greedy: Heard,
    /// Of every token of the prompt and of the answer that was given.
    pub(super) scores: Vec<Option<TokenLogprobs>>,
}

impl Asking<'_> {
    pub(super) async fn about(&self, item: &Item) -> Result<Said, Fate> {
        let greedy = SamplingParams::greedy(item.max_tokens, self.model.eos_token_ids.clone());
        let mut greedy = self.ask(item.prompt.clone(), greedy).await?;
        if greedy.end == Some(FinishReason::Stop) {
            // What ended it is no part of it.
            greedy.tokens.pop();
            greedy.logprobs.pop();
        }
        let scored = self.ask(item.text(), SamplingParams::scores()).await?;
        Ok(Said { greedy, scores: scored.prompt })
    }

    async fn ask(&self, prompt: Vec<TokenId>, sampling: SamplingParams) -> Result<Heard, Fate> {
        let ask = Ask::new(&self.model.name, saturating_u32(prompt.len()), sampling.max_tokens);
        let ask = Ask { class: ServiceClass::Batch, ..ask };
        self.state.ledger().available_to(self.caller).map_err(|_| Fate::Refused)?;
        let reservation = self.state.ledger().reserve(self.caller, &ask).map_err(|_| Fate::Refused)?;
        let Ok(replica) = self.state.serving().router.engine_of(&self.model.name) else {
            reservation.withdraw();
            return Err(Fate::Refused);
        };
        let account = &self.caller.account;
        let request = EngineRequest {
            class: reservation.class().into(),
            share_key: account.share_key,
            share_weight: ShareWeight(account.weight),
            cache_salt: self.state.config().prefix_sharing.salt(&account.path, None),
            ..EngineRequest::new(self.state.next_request_id(), prompt, sampling)
        };
        let meter = PromptMeter::new(self.state.clone(), &self.model.name, self.state.clock().now());
        let mut generation = Generation::start(&replica, request, reservation).map_err(|refused| {
            refused.reservation.withdraw();
            Fate::Refused
        })?;
        let heard = hear(&mut generation).await;
        meter.ended(generation.close());
        heard
    }
}

/// All of it. What ends before its end has failed.
async fn hear(generation: &mut Generation) -> Result<Heard, Fate> {
    let mut heard = Heard::default();
    while let Some(event) = generation.next().await {
        heard.take(event).map_err(|_| Fate::Failed)?;
    }
    match heard.end {
        Some(FinishReason::Stop | FinishReason::Length) => Ok(heard),
        Some(FinishReason::Aborted) | None => Err(Fate::Failed),
    }
}
