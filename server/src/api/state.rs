//! What every handler is given.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use passerelle_engine::clock::Clock;
use passerelle_engine::{ComparisonHandle, RequestId};
use passerelle_models::{ModelDigest, TokenId};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, watch};

use super::cross_origin::AllowedOrigins;
use super::encode::ServedEncoder;
use super::errors::{ApiError, ErrorKind};
use super::fields::{Reader, UnknownFields};
use super::grammar_work::{CompileBounds, GrammarWork};
use super::reload::Reloader;
use super::remote::RemoteModel;
use super::shadow::{ShadowBounds, Shadows};
use super::spread::Spread;
use super::sse::SseConfig;
use super::text_work::TextWork;
use super::wire::request::RequestBounds;
use super::wire::sampling::GenerationDefaults;
use crate::batches::BatchStore;
use crate::evaluation::PairStore;
use crate::gateway::{
    AccountPath, Administration, Alias, Authenticator, Caller, Ledger, PrefixSharing, Replica, ReplicaId, RetryBounds,
    Router, Shadow, Shelf,
};
use crate::metrics::Metrics;
use crate::text::{GrammarBounds, GrammarCompiler, TextModel};

/// A model as clients see it: its text side, and the bounds of its engine.
#[derive(Debug)]
pub struct ServedModel {
    pub name: String,
    pub text: Arc<TextModel>,
    pub grammars: Arc<GrammarCompiler>,
    /// Prompt and answer together, in tokens: what the engine's context and its KV cache both allow.
    pub max_model_len: usize,
    /// Ids below this may be fed.
    pub input_vocab_size: usize,
    /// Ids that end an answer.
    pub eos_token_ids: Vec<TokenId>,
    pub defaults: GenerationDefaults,
    /// `Some` for a model that gives vectors; `None` for one that generates.
    pub encoder: Option<Arc<ServedEncoder>>,
    /// Of the checkpoint's files.
    pub digest: ModelDigest,
    /// `system_fingerprint` of answers: changes when the weights or the kernels change.
    pub fingerprint: String,
}

/// The bounds and choices of the HTTP side.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    pub unknown_fields: UnknownFields,
    /// Largest request body.
    pub max_body_bytes: usize,
    /// A body must be there this long after its head.
    pub body_timeout: Duration,
    /// From the request's head to the last token.
    pub request_timeout: Duration,
    /// A request waits so long for its model to be loaded. One that is expected to wait longer is told when to come back.
    pub longest_load: Duration,
    /// Requests with a body at the same time, from its first byte to the last of the answer; further ones are refused.
    pub max_concurrent_requests: usize,
    /// Bodies and prompts that are parsed, templated and tokenised at the same time; further ones wait.
    pub max_concurrent_encodes: usize,
    pub bounds: RequestBounds,
    pub prefix_sharing: PrefixSharing,
    pub grammar: GrammarBounds,
    pub compiling: CompileBounds,
    pub sse: SseConfig,
    pub shadow: ShadowBounds,
    pub guard: BrowserGuard,
    /// Web pages that may call this server from a browser.
    pub allowed_origins: AllowedOrigins,
    /// Whole answers larger than this are compressed for clients that take it.
    pub compress_above_bytes: usize,
    pub tokenizer_info: RouteSwitch,
    /// How this server calls itself to gateways that ask it.
    pub site: Option<String>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            unknown_fields: UnknownFields::default(),
            max_body_bytes: 8 << 20,
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(1800),
            longest_load: Duration::from_secs(10),
            max_concurrent_requests: 512,
            max_concurrent_encodes: 4,
            bounds: RequestBounds::default(),
            prefix_sharing: PrefixSharing::default(),
            grammar: GrammarBounds::default(),
            compiling: CompileBounds::default(),
            sse: SseConfig::default(),
            shadow: ShadowBounds::default(),
            guard: BrowserGuard::default(),
            allowed_origins: AllowedOrigins::default(),
            compress_above_bytes: 16 << 10,
            tokenizer_info: RouteSwitch::default(),
            site: None,
        }
    }
}

/// Whether requests are checked to come from this machine, and not from a web page that its browser shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BrowserGuard {
    /// For listeners without keys: local `Host` only, no foreign `Origin`.
    #[default]
    LocalOnly,
    /// For listeners with keys: a page does not know the key.
    Off,
}

/// Whether a route that some operators want to hide is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteSwitch {
    #[default]
    On,
    Off,
}

/// What [`AppState`] is made of.
#[derive(Debug)]
pub struct AppParts {
    /// Those in memory.
    pub models: Vec<ServedModel>,
    /// `None`: no models come and go.
    pub shelf: Option<Shelf>,
    pub authenticator: Authenticator,
    /// `None`: nothing outlives the process.
    pub administration: Option<Administration>,
    /// `None`: the configuration is read once.
    pub reloader: Option<Reloader>,
    pub ledger: Ledger,
    pub serving: Serving,
    /// Where two of the models meet.
    pub comparisons: ComparisonHandle,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<Metrics>,
    /// `None`: this server keeps no files and runs no batches.
    pub batches: Option<BatchStore>,
    /// Where answers are kept that candidates were asked about; `None`: nowhere.
    pub shadow_store: Option<PairStore>,
    pub config: ApiConfig,
    pub readiness: Readiness,
}

/// Who serves what. Replaced as a whole; a request sees one and the same from its admission to its start.
#[derive(Debug)]
pub struct Serving {
    pub router: Router,
    /// The text sides of the models whose engines run here.
    models: BTreeMap<String, Arc<ServedModel>>,
    remote: BTreeMap<String, Arc<RemoteModel>>,
    aliases: BTreeMap<String, Alias>,
    /// By alias.
    shadows: BTreeMap<String, Arc<Shadow>>,
    owners: BTreeMap<String, AccountPath>,
    pub(crate) retry: RetryBounds,
}

impl Serving {
    /// `remote`: the models that no engine here has.
    pub fn new(router: Router, remote: impl IntoIterator<Item = RemoteModel>) -> Self {
        let remote = remote.into_iter().map(|model| (model.name.clone(), Arc::new(model))).collect();
        let (models, aliases, shadows, owners) = Default::default();
        Self { router, models, remote, aliases, shadows, owners, retry: RetryBounds::default() }
    }

    /// The same, and a model whose engine is `replica`.
    #[must_use]
    pub fn with_model(&self, model: ServedModel, replica: Arc<Replica>) -> Self {
        let mut models = self.models.clone();
        models.insert(model.name.clone(), Arc::new(model));
        self.changed(self.router.with(replica), models)
    }

    /// The same, without what [`Serving::with_model`] added.
    #[must_use]
    pub fn without_model(&self, model: &str, replica: ReplicaId) -> Self {
        let mut models = self.models.clone();
        models.remove(model);
        self.changed(self.router.without(replica), models)
    }

    /// `serving`, with the models of this one.
    #[must_use]
    pub fn directed(&self, serving: Self) -> Self {
        Self { models: self.models.clone(), ..serving }
    }

    fn changed(&self, router: Router, models: BTreeMap<String, Arc<ServedModel>>) -> Self {
        let (remote, aliases, owners) = (self.remote.clone(), self.aliases.clone(), self.owners.clone());
        let (shadows, retry) = (self.shadows.clone(), self.retry);
        Self { router, models, remote, aliases, shadows, owners, retry }
    }

    /// Names that stand for models.
    #[must_use]
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = (String, Alias)>) -> Self {
        self.aliases = aliases.into_iter().collect();
        self
    }

    /// Candidates that are asked too.
    #[must_use]
    pub fn with_shadows(mut self, shadows: impl IntoIterator<Item = Shadow>) -> Self {
        self.shadows = shadows.into_iter().map(|shadow| (shadow.alias.clone(), Arc::new(shadow))).collect();
        self
    }

    /// The accounts that models belong to; a model without one is for everybody.
    #[must_use]
    pub fn with_owners(mut self, owners: impl IntoIterator<Item = (String, AccountPath)>) -> Self {
        self.owners = owners.into_iter().collect();
        self
    }

    #[must_use]
    pub fn with_retry(mut self, retry: RetryBounds) -> Self {
        self.retry = retry;
        self
    }

    /// Of models elsewhere, and of aliases: no checkpoint of a folder is served under them.
    pub fn names_elsewhere(&self) -> impl Iterator<Item = &str> {
        self.remote.keys().chain(self.aliases.keys()).map(String::as_str)
    }

    pub(crate) fn alias(&self, name: &str) -> Option<&Alias> {
        self.aliases.get(name)
    }

    /// By name, in the order of names.
    pub(crate) fn aliases(&self) -> impl Iterator<Item = (&str, &Alias)> {
        self.aliases.iter().map(|(name, alias)| (name.as_str(), alias))
    }

    pub(crate) fn shadow(&self, alias: &str) -> Option<&Arc<Shadow>> {
        self.shadows.get(alias)
    }

    pub(crate) fn remote(&self, name: &str) -> Option<&Arc<RemoteModel>> {
        self.remote.get(name)
    }
}

/// A cloneable handle on everything a request may need.
#[derive(Debug, Clone)]
pub struct AppState {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    shelf: Option<Shelf>,
    administration: Option<Administration>,
    reloader: Option<Reloader>,
    serving: RwLock<Arc<Serving>>,
    comparisons: ComparisonHandle,
    authenticator: Authenticator,
    ledger: Ledger,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    config: ApiConfig,
    readiness: Readiness,
    text_work: TextWork,
    grammar_work: GrammarWork,
    batches: Option<Arc<BatchStore>>,
    shadows: Shadows,
    /// Told whenever a batch came or is to end.
    batch_changes: watch::Sender<()>,
    request_permits: Arc<Semaphore>,
    /// One: see [`super::lease::together`].
    several_models: Arc<Semaphore>,
    next_request: AtomicU64,
    spread: Spread,
}

impl AppState {
    pub fn new(parts: AppParts) -> Self {
        let AppParts { models, shelf, administration, reloader, mut serving, authenticator, .. } = parts;
        let AppParts { ledger, clock, metrics, batches, shadow_store, comparisons, config, readiness, .. } = parts;
        serving.models = models.into_iter().map(|model| (model.name.clone(), Arc::new(model))).collect();
        let shared = Shared {
            shelf,
            serving: RwLock::new(Arc::new(serving)),
            text_work: TextWork::new(config.max_concurrent_encodes),
            grammar_work: GrammarWork::new(config.compiling),
            batches: batches.map(Arc::new),
            shadows: Shadows::new(config.shadow, shadow_store),
            comparisons,
            batch_changes: watch::Sender::new(()),
            several_models: Arc::new(Semaphore::new(1)),
            request_permits: Arc::new(Semaphore::new(config.max_concurrent_requests)),
            next_request: AtomicU64::new(0),
            spread: Spread::default(),
            administration,
            reloader,
            authenticator,
            ledger,
            clock,
            metrics,
            config,
            readiness,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The text side of a model whose engine runs here at this moment.
    pub fn model(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.serving().models.get(name).cloned()
    }

    /// Keeps those who are refused together from coming back together.
    pub(crate) fn spread(&self) -> &Spread {
        &self.shared.spread
    }

    /// The models that come and go.
    pub(crate) fn shelf(&self) -> Option<&Shelf> {
        self.shared.shelf.as_ref()
    }

    /// Whether the caller may know that the model is served.
    pub(crate) fn sees(&self, caller: &Caller, name: &str) -> bool {
        caller.sees(name, self.serving().owners.get(name))
    }

    /// Whether there is a model of this name that the caller may know of: it sees it, or governs whose it is.
    pub(crate) fn tells_of(&self, caller: &Caller, name: &str) -> bool {
        let is_governed = self.serving().owners.get(name).is_some_and(|owner| caller.governs(owner));
        self.has_model(name) && (is_governed || self.sees(caller, name))
    }

    /// Whether a model of this name runs here or elsewhere, or could.
    fn has_model(&self, name: &str) -> bool {
        let serving = self.serving();
        let is_served = serving.models.contains_key(name) || serving.remote(name).is_some();
        let is_placed = serving.router.model(name).is_some();
        is_served || is_placed || self.shelf().is_some_and(|shelf| shelf.row(name).is_some())
    }

    /// The model of this server that the caller sees, if it is only one.
    pub(crate) fn only_model(&self, caller: &Caller) -> Option<String> {
        let mut names: BTreeSet<String> = self.serving().models.keys().cloned().collect();
        names.extend(self.shelf().into_iter().flat_map(Shelf::rows).map(|row| row.model));
        let mut seen = names.into_iter().filter(|name| self.sees(caller, name));
        seen.next().filter(|_| seen.next().is_none())
    }

    pub fn authenticator(&self) -> &Authenticator {
        &self.shared.authenticator
    }

    /// Who came in by this key of this account, if they still could today.
    pub(crate) fn caller(&self, account: &str, via: &str) -> Option<Arc<Caller>> {
        self.authenticator().caller((account, via), self.ledger().today())
    }

    /// `None` for a server that keeps no accounts.
    pub fn administration(&self) -> Option<&Administration> {
        self.shared.administration.as_ref()
    }

    pub(crate) fn reloader(&self) -> Option<&Reloader> {
        self.shared.reloader.as_ref()
    }

    pub fn ledger(&self) -> &Ledger {
        &self.shared.ledger
    }

    /// Who serves what at this moment.
    pub fn serving(&self) -> Arc<Serving> {
        Arc::clone(&self.shared.serving.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From the next request on, with the models whose engines run here. What runs goes on where it is.
    pub fn serve(&self, serving: Serving) {
        self.change_serving(|former| former.directed(serving));
    }

    /// As [`AppState::serve`], for a change that nobody else's may come between.
    pub fn change_serving(&self, change: impl FnOnce(&Serving) -> Serving) {
        let mut serving = self.shared.serving.write().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&serving);
        self.shared.metrics.serve(changed.router.models().map(|entry| entry.name.as_str()));
        *serving = Arc::new(changed);
    }

    pub(crate) fn comparisons(&self) -> &ComparisonHandle {
        &self.shared.comparisons
    }

    pub fn clock(&self) -> &dyn Clock {
        self.shared.clock.as_ref()
    }

    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    pub fn config(&self) -> &ApiConfig {
        &self.shared.config
    }

    pub fn readiness(&self) -> &Readiness {
        &self.shared.readiness
    }

    /// The files and batches that this server keeps, if it keeps any.
    pub(crate) fn batches(&self) -> Result<&Arc<BatchStore>, ApiError> {
        self.shared.batches.as_ref().ok_or_else(|| ApiError::new(ErrorKind::NotFound, "This server keeps no files."))
    }

    pub(crate) fn shadows(&self) -> &Shadows {
        &self.shared.shadows
    }

    pub(crate) fn batches_changed(&self) {
        self.shared.batch_changes.send_replace(());
    }

    pub(crate) fn watch_batches(&self) -> watch::Receiver<()> {
        self.shared.batch_changes.subscribe()
    }

    pub(crate) fn reader(&self) -> Reader {
        Reader::new(self.config().unknown_fields)
    }

    pub(crate) fn next_request_id(&self) -> RequestId {
        RequestId(self.shared.next_request.fetch_add(1, Ordering::Relaxed))
    }

    /// One of the server's places for requests with a body. Taken before the body is read.
    pub(crate) fn take_place(&self) -> Result<OwnedSemaphorePermit, ApiError> {
        let permits = Arc::clone(&self.shared.request_permits);
        permits.try_acquire_owned().map_err(|_| {
            ApiError::new(ErrorKind::QueueFull, "The server runs as many requests as it may; try again shortly.")
        })
    }

    pub fn runs_requests(&self) -> bool {
        self.shared.request_permits.available_permits() < self.config().max_concurrent_requests
    }

    pub(super) async fn turn_for_several_models(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.shared.several_models).acquire_owned().await
    }

    pub(crate) fn text_work(&self) -> &TextWork {
        &self.shared.text_work
    }

    pub(crate) fn grammar_work(&self) -> &GrammarWork {
        &self.shared.grammar_work
    }
}

/// Whether the server takes requests. Clones are one switch.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    draining: watch::Sender<bool>,
}

impl Readiness {
    /// From now on nothing is admitted; what runs goes on.
    pub fn start_draining(&self) {
        self.draining.send_replace(true);
    }

    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready once the server drains.
    pub async fn drains(&self) {
        // Its sender is `self`, so the wait ends in no other way.
        let _ = self.draining.subscribe().wait_for(|is_draining| *is_draining).await;
    }

    pub(crate) fn admit(&self) -> Result<(), ApiError> {
        if self.is_draining() { Err(draining()) } else { Ok(()) }
    }
}

fn draining() -> ApiError {
    ApiError::new(ErrorKind::Draining, "The server is shutting down.")
}
