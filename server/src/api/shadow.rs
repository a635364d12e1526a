//! Requests that a candidate is asked too, where the configuration of their alias says so.
//!
//! While an answer is given, an [`AnswerRecorder`] notes its tokens. Once it has come to its end and is settled, the
//! model that gave it and the candidate are asked what `passerelle score` asks about a prompt with a reference: how
//! likely is this answer, and which would be the greedy one? Both in the class batch, and on the bill of whom the
//! configuration names. Whoever asked first waits for none of this, pays for none of it and hears of none of it: what
//! finds no room, or fails, is counted and forgotten.

mod asking;
mod item;

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle_models::TokenId;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::ids::random_id;
use super::lease::{Lease, lease_in_memory};
use super::prepare::EncodedPrompt;
use super::state::AppState;
use super::wire::choices::Choices;
use super::wire::request::GenerateRequest;
use crate::evaluation::{Kept, Pair, PairStore};
use crate::gateway::Shadow;
use asking::Asking;
use item::{Figures, Item};

/// How much of a server candidates may take.
#[derive(Debug, Clone, Copy)]
pub struct ShadowBounds {
    /// Requests that are looked at with a candidate at the same time.
    pub max_running: usize,
    /// Those that wait for it; further ones are dropped.
    pub max_waiting: usize,
    /// Of each greedy answer.
    pub max_tokens: NonZeroU32,
}

/// What a server has for its candidates.
#[derive(Debug)]
pub(crate) struct Shadows {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    max_tokens: u32,
    /// `None`: figures alone are kept, in the metrics.
    store: Option<Arc<PairStore>>,
}

/// What came of a request that was drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Compared,
    /// The same, and there was no room to keep what was found, or the disk failed.
    Unkept,
    /// More wait than may.
    Full,
    /// The candidate itself gave the answer, or several were given, or the two models cannot be compared.
    Unsuited,
    /// A model is not in memory, or the account is not there, or the server is ending.
    Absent,
    /// A limit or a queue had no room.
    Refused,
    /// An engine failed, or took too long.
    Failed,
}

/// Notes an answer while it is given. Dropped before its end, it was never there.
#[derive(Debug)]
pub(crate) struct AnswerRecorder {
    state: AppState,
    noted: Noted,
}

/// A prompt, its answer, and who is to be asked about them.
#[derive(Debug)]
struct Noted {
    shadow: Arc<Shadow>,
    served: String,
    prompt: Vec<TokenId>,
    answer: Vec<TokenId>,
}

impl Default for ShadowBounds {
    fn default() -> Self {
        Self { max_running: 1, max_waiting: 64, max_tokens: const { NonZeroU32::new(64).unwrap() } }
    }
}

impl Shadows {
    pub(crate) fn new(bounds: ShadowBounds, store: Option<PairStore>) -> Self {
        Self {
            running: Arc::new(Semaphore::new(bounds.max_running)),
            waiting: Arc::new(Semaphore::new(bounds.max_waiting)),
            max_tokens: bounds.max_tokens.get(),
            store: store.map(Arc::new),
        }
    }
}

/// Whether the request is one of a candidate's share. `body`: as it was written, before its alias became a model.
pub(crate) fn drawn(state: &AppState, body: &Value) -> Option<Arc<Shadow>> {
    state.serving().shadow(body["model"].as_str()?).filter(|shadow| shadow.draws()).cloned()
}

/// The same, if its answer is one that both models can be asked about.
pub(super) fn suited(
    state: &AppState,
    shadow: Option<Arc<Shadow>>,
    request: &GenerateRequest,
    prompts: &[EncodedPrompt],
) -> Option<Arc<Shadow>> {
    let shadow = shadow?;
    if prompts.len() == 1 && request.choices == Choices::ONE && request.model != shadow.candidate {
        return Some(shadow);
    }
    count(state, &shadow, Fate::Unsuited);
    None
}

impl AnswerRecorder {
    pub(super) fn new(state: &AppState, shadow: &Arc<Shadow>, served: &str, prompt: &[TokenId]) -> Self {
        let (shadow, served) = (Arc::clone(shadow), served.to_owned());
        let noted = Noted { shadow, served, prompt: prompt.to_vec(), answer: Vec::new() };
        Self { state: state.clone(), noted }
    }

    pub(crate) fn token(&mut self, token: TokenId) {
        self.noted.answer.push(token);
    }

    /// The answer is over. Returns at once.
    pub(crate) fn finish(self) {
        let Self { state, noted } = self;
        let Ok(place) = Arc::clone(&state.shadows().waiting).try_acquire_owned() else {
            return count(&state, &noted.shadow, Fate::Full);
        };
        tokio::spawn(async move {
            let running = Arc::clone(&state.shadows().running);
            // Never closed.
            let Ok(_turn) = running.acquire().await else { return };
            drop(place);
            let shadow = Arc::clone(&noted.shadow);
            let fate = timeout(state.config().request_timeout, noted.follow(&state)).await;
            count(&state, &shadow, fate.unwrap_or(Err(Fate::Failed)).unwrap_or_else(|fate| fate));
        });
    }
}

fn count(state: &AppState, shadow: &Shadow, fate: Fate) {
    state.metrics().shadowed(&shadow.alias, fate.as_str());
}

impl Fate {
    fn as_str(self) -> &'static str {
        match self {
            Self::Compared => "compared",
            Self::Unkept => "unkept",
            Self::Full => "full",
            Self::Unsuited => "unsuited",
            Self::Absent => "absent",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Noted {
    /// Errors with why it was not compared.
    async fn follow(self, state: &AppState) -> Result<Fate, Fate> {
        if state.readiness().is_draining() {
            return Err(Fate::Absent);
        }
        let Self { shadow, served, prompt, answer } = self;
        let caller = shadow.caller(state.authenticator()).ok_or(Fate::Absent)?;
        let lease = |name: &str| lease_in_memory(state, name).ok_or(Fate::Absent);
        let models = [lease(&served)?, lease(&shadow.candidate)?];
        let (both, max_tokens) = (models.clone(), state.shadows().max_tokens);
        let item = off_the_async_threads(move || Item::of(prompt, answer, &both, max_tokens)).await?;
        let item = item.ok_or(Fate::Unsuited)?;
        let asking = |model| Asking { state, caller: &caller, model };
        let said = [asking(&models[0]).about(&item).await?, asking(&models[1]).about(&item).await?];
        let id = random_id("shadow-").ok_or(Fate::Failed)?;
        let store = state.shadows().store.clone();
        let write = move || {
            let spelt = [0, 1].map(|side| item.spelt(&models[side].text, &said[side]));
            let figures = Figures::of(&spelt);
            let kept =
                store.map(|store| store.keep(&pair_of(&models, max_tokens), &spelt.map(|spelt| spelt.scored(&id))));
            (figures, kept.transpose())
        };
        let (figures, kept) = off_the_async_threads(write).await?;
        figures.tell(state, &shadow.alias);
        match kept {
            Ok(None | Some(Kept::Whole)) => Ok(Fate::Compared),
            Ok(Some(Kept::Nothing)) => Ok(Fate::Unkept),
            Err(error) => {
                tracing::warn!(%error, "what was found out about an answer is not kept");
                Ok(Fate::Unkept)
            }
        }
    }
}

fn pair_of(models: &[Lease; 2], max_tokens: u32) -> Pair {
    let [served, candidate] = models;
    Pair {
        digests: [served.digest, candidate.digest],
        names: [served.name.clone(), candidate.name.clone()],
        max_tokens,
    }
}

/// As long as the copies that run allow: no request of a client waits behind it.
async fn off_the_async_threads<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fate> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Fate::Failed)
}
