//! A whole server in this process, on a port of its own, over a small model that says what a test tells it to say.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses a part of the harness")]

pub(crate) mod both_ways;
pub(crate) mod chance;
pub(crate) mod client;
pub(crate) mod encoders;
pub(crate) mod model;
pub(crate) mod responses;
pub(crate) mod schemas;
pub(crate) mod text;

use std::io::Write;
use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use passerelle::api::{
    ApiConfig, AppParts, AppState, BrowserGuard, Drained, GenerationDefaults, Listener, Readiness, ServeConfig,
    ServedModel, Serving, Tls, router, serve,
};
use passerelle::batches::{BatchBounds, BatchStore, Disk, SystemDisk};
use passerelle::evaluation::PairStore;
use passerelle::gateway::keys::{KeyRing, read_key_file};
use passerelle::gateway::quota::Percent;
use passerelle::gateway::replica::ReplicaId;
use passerelle::gateway::tariff::{Hours, Tariff};
use passerelle::gateway::{
    Account, AccountPath, Administration, Alias, Authenticator, DataDir, Directory, Ledger, LedgerParts, Limit, Load,
    Quota, Replica, ReplicaDoor, ReplicaRefusal, Router, Shadow,
};
use passerelle::metrics::{BuildInfo, Metrics};
use passerelle::text::{AnswerFormat, GrammarCompiler, TextModel};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{
    Class, ComparisonConfig, ComparisonLane, ComparisonParts, Engine, EngineConfig, EngineHandle, EngineParts,
    EventStream, Request, ShareKey, SharedModel, StepTurns,
};
use passerelle_models::ModelDigest;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use client::Client;
use model::{Gate, TestModel};

pub(crate) const MODEL: &str = "test/parrot";
pub(crate) const KEY: &str = "sk-test-0123456789abcdef";
/// Tokens of a text that two models are compared on, at most.
pub(crate) const LONGEST_COMPARED: usize = 300;
/// Nothing in these tests takes this long, unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a test wants to be different.
pub(crate) struct Options {
    pub(crate) api: ApiConfig,
    pub(crate) serve: ServeConfig,
    pub(crate) engine: EngineConfig,
    /// The server's time.
    pub(crate) clock: Arc<dyn Clock>,
    /// `Some`: the door has one key, with these limits.
    pub(crate) key_limits: Option<Vec<Limit>>,
    /// `Some`: accounts and keys of this data directory, and no other.
    pub(crate) administered: Option<TempDir>,
    /// The account that the model belongs to.
    pub(crate) owner: Option<AccountPath>,
    /// Further models, each with an engine of its own.
    pub(crate) rivals: Vec<Rival>,
    /// Holds their steps back, and not the model's. `None`: they pass the model's gate.
    pub(crate) rival_gate: Option<Gate>,
    pub(crate) shadowed: Option<Shadowed>,
    pub(crate) gate: Gate,
    pub(crate) tls: Option<Tls>,
    /// `Some`: files and batches are kept there.
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) batches: BatchBounds,
    /// Where they are written.
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) seen: Seen,
    pub(crate) tariff: Arc<Tariff>,
    /// Of grants.
    pub(crate) overrun: Percent,
    /// `None`: the formats that the template shows.
    pub(crate) answers: Option<AnswerFormat>,
}

/// A model that answers as the other does, with other numbers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rival {
    pub(crate) name: &'static str,
    pub(crate) vocabulary: Vocabulary,
}

/// An alias for the model, with a candidate that gets a share of its requests.
#[derive(Debug, Clone)]
pub(crate) struct Shadowed {
    pub(crate) alias: &'static str,
    pub(crate) candidate: &'static str,
    pub(crate) share: f64,
    pub(crate) account: &'static str,
    /// `Some`: answers are kept there.
    pub(crate) folder: Option<PathBuf>,
}

impl Shadowed {
    fn alias(&self) -> (String, Alias) {
        (self.alias.to_owned(), Alias::new([(MODEL.to_owned(), NonZeroU32::MIN)]))
    }

    fn shadow(&self) -> Shadow {
        let account = self.account.parse().unwrap();
        Shadow::new(self.alias.to_owned(), self.candidate.to_owned(), self.share, account, 7)
    }

    fn store(&self) -> Option<PairStore> {
        self.folder.as_ref().map(|folder| PairStore::open(folder, 1 << 20, "test").unwrap())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vocabulary {
    Same,
    /// As large, with a token of another name.
    Other,
    /// The same, with longer rows of logits.
    Padded,
}

/// What the engine was asked, in its order. Clones see the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Asked>>>);

/// How a request shares the engine with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) class: Class,
    pub(crate) share_key: ShareKey,
    pub(crate) weight: u32,
}

impl Seen {
    pub(crate) fn count(&self, class: Class) -> usize {
        self.0.lock().unwrap().iter().filter(|asked| asked.class == class).count()
    }

    pub(crate) fn take(&self) -> Vec<Asked> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// The way to an engine, watched.
#[derive(Debug)]
struct WatchedDoor {
    handle: EngineHandle,
    seen: Seen,
}

impl ReplicaDoor for WatchedDoor {
    fn submit(&self, request: Request) -> Result<EventStream, ReplicaRefusal> {
        let Request { class, share_key, share_weight, .. } = &request;
        let asked = Asked { class: *class, share_key: *share_key, weight: share_weight.0.get() };
        self.seen.0.lock().unwrap().push(asked);
        ReplicaDoor::submit(&self.handle, request)
    }

    fn shared_model(&self) -> Option<SharedModel> {
        ReplicaDoor::shared_model(&self.handle)
    }

    fn is_full(&self) -> bool {
        ReplicaDoor::is_full(&self.handle)
    }

    fn load(&self) -> Load {
        ReplicaDoor::load(&self.handle)
    }
}

impl Options {
    fn batch_store(&self) -> Option<BatchStore> {
        let folder = self.data_dir.as_ref()?;
        Some(BatchStore::open_on(Arc::clone(&self.disk), folder, self.batches).expect("the folder can be written"))
    }
}

impl Default for Options {
    fn default() -> Self {
        let engine = EngineConfig {
            num_kv_blocks: 512,
            max_num_seqs: 48,
            max_num_batched_tokens: 512,
            max_model_len: 2048,
            ..EngineConfig::default()
        };
        let (api, serve) = (ApiConfig::default(), ServeConfig::default());
        Self {
            api,
            serve,
            engine,
            clock: Arc::new(SystemClock::new()),
            key_limits: None,
            administered: None,
            owner: None,
            rivals: Vec::new(),
            rival_gate: None,
            shadowed: None,
            gate: Gate::open(),
            tls: None,
            data_dir: None,
            batches: BatchBounds::default(),
            disk: Arc::new(SystemDisk),
            seen: Seen::default(),
            tariff: Arc::new(Tariff::free()),
            overrun: Percent::NONE,
            answers: None,
        }
    }
}

pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) state: AppState,
    pub(crate) engine: EngineHandle,
    owners: Option<Owners>,
    gates: Vec<Gate>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Drained>>,
    _data: Option<TempDir>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let (state, owners) = assemble(&options);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let listener = match options.tls {
            None => Listener::Tcp(listener),
            Some(tls) => Listener::Tls(listener, tls),
        };
        let serving = tokio::spawn(serve(listener, router(state.clone()), options.serve, shutdown));
        let engine = owners.engines[0].handle();
        Self {
            address,
            state,
            engine,
            owners: Some(owners),
            gates: options.rival_gate.into_iter().chain([options.gate]).collect(),
            stop: Some(stop),
            serving: Some(serving),
            _data: options.administered,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Stops taking connections, as SIGTERM does, and says how the drain ended.
    pub(crate) fn begin_drain(&mut self) -> JoinHandle<Drained> {
        self.state.readiness().start_draining();
        self.stop.take().expect("drained once").send(()).unwrap();
        self.serving.take().expect("drained once")
    }

    /// Returns when nothing runs and nothing is reserved any more.
    pub(crate) async fn settle(&self) {
        let quiet = async {
            while !self.engine.is_idle() || self.state.ledger().totals().open > 0 || !self.blocks_are_free() {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, quiet).await.expect("everything ends and gives back what it took");
    }

    /// What must hold when nobody asks for anything: no block is held, and the ledger has billed what the engine ran.
    pub(crate) async fn assert_at_rest(&self) {
        self.settle().await;
        let (stats, totals) = (self.engine.stats(), self.state.ledger().totals());
        assert_eq!(stats.free_blocks, stats.total_blocks);
        assert_eq!((totals.open, totals.settled), (0, totals.reservations_taken));
        assert_eq!(totals.prompt_tokens, stats.prompt_tokens_total);
        assert_eq!(totals.generated_tokens, stats.generated_tokens_total);
    }

    fn blocks_are_free(&self) -> bool {
        let stats = self.engine.stats();
        stats.free_blocks == stats.total_blocks || stats.total_blocks == 0
    }
}

impl Drop for Server {
    /// A test that fails while its gate is closed would wait for ever for the thread that stands there.
    fn drop(&mut self) {
        self.gates.iter().for_each(Gate::release);
        drop(self.owners.take());
    }
}

/// # Panics
/// If it does not become true.
pub(crate) async fn until(is_true: impl Fn() -> bool) {
    let waiting = async {
        while !is_true() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, waiting).await.expect("what the test waits for happens");
}

/// Those who compute, to be dropped after those who ask.
pub(crate) struct Owners {
    /// The model's, then those of its rivals.
    engines: Vec<Engine>,
    comparisons: ComparisonLane,
}

impl Owners {
    fn spawn(options: &Options, clock: &Arc<dyn Clock>, metrics: &Metrics) -> Self {
        let turns = StepTurns::new();
        let engine = |((name, vocabulary), salt): ((&str, Vocabulary), u64)| {
            let padding = usize::from(vocabulary == Vocabulary::Padded);
            // Whoever stands at a gate of its own takes turns with nobody.
            let (gate, turns) = match options.rival_gate.as_ref().filter(|_| salt > 0) {
                Some(gate) => (gate.clone(), StepTurns::new()),
                None => (options.gate.clone(), turns.clone()),
            };
            let parts = EngineParts {
                name: name.to_owned(),
                model: Box::new(TestModel::new(gate).with_salt(salt).with_width(text::VOCAB + padding)),
                config: options.engine.clone(),
                turns,
                clock: Arc::clone(clock),
                observer: Arc::new(metrics.engine(name)),
            };
            Engine::spawn(parts).unwrap()
        };
        let rivals = options.rivals.iter().map(|rival| (rival.name, rival.vocabulary));
        let models = [(MODEL, Vocabulary::Same)].into_iter().chain(rivals);
        let engines = models.zip(0..).map(engine).collect();
        let (turns, clock, observer) = (turns.clone(), Arc::clone(clock), Arc::clone(metrics.hours().own()) as _);
        let config = ComparisonConfig { max_text_tokens: LONGEST_COMPARED, ..ComparisonConfig::default() };
        let comparisons = ComparisonLane::spawn(ComparisonParts { config, turns, clock, observer }).unwrap();
        Self { engines, comparisons }
    }

    fn replicas(&self, options: &Options) -> Vec<Arc<Replica>> {
        let replica = |(engine, id): (&Engine, u32)| {
            let handle = engine.handle();
            let name = handle.name().to_owned();
            let door = WatchedDoor { handle, seen: options.seen.clone() };
            Arc::new(Replica::new(ReplicaId(id), name, Box::new(door)))
        };
        self.engines.iter().zip(0..).map(replica).collect()
    }
}

/// Everything but a listener.
pub(crate) fn assemble(options: &Options) -> (AppState, Owners) {
    let clock = Arc::clone(&options.clock);
    let names = [MODEL].into_iter().chain(options.rivals.iter().map(|rival| rival.name));
    let metrics = Arc::new(Metrics::new(&build_info(), names, Hours::new(Arc::clone(&clock), "test", 1.0)).unwrap());
    let owners = Owners::spawn(options, &clock, &metrics);
    let replicas = owners.replicas(options);
    let mut config = options.api.clone();
    let (authenticator, administration) = door(options, &clock, &mut config);
    let parts = AppParts {
        models: served_models(options),
        shelf: None,
        authenticator,
        administration,
        reloader: None,
        ledger: Ledger::new(LedgerParts {
            overrun: options.overrun,
            tariff: Arc::clone(&options.tariff),
            hours: Some(Arc::clone(metrics.hours())),
            ..LedgerParts::without_past(Arc::clone(&clock))
        }),
        serving: Serving::new(Router::new(replicas, Arc::clone(&clock), 7), [])
            .with_aliases(options.shadowed.iter().map(Shadowed::alias))
            .with_shadows(options.shadowed.iter().map(Shadowed::shadow))
            .with_owners(options.owner.clone().map(|owner| (MODEL.to_owned(), owner))),
        comparisons: owners.comparisons.handle(),
        clock,
        metrics,
        batches: options.batch_store(),
        shadow_store: options.shadowed.as_ref().and_then(Shadowed::store),
        config,
        readiness: Readiness::default(),
    };
    (AppState::new(parts), owners)
}

/// Who is let in, and who may change that.
fn door(options: &Options, clock: &Arc<dyn Clock>, config: &mut ApiConfig) -> (Authenticator, Option<Administration>) {
    let administered = options.administered.as_ref().map(|folder| administered(folder.path(), clock));
    let (ring, administration) = administered.unzip();
    let authenticator = match (&options.key_limits, ring) {
        (None, None) => return (Authenticator::open(Account::local(Quota::unlimited()), None), None),
        (None, Some(ring)) => Authenticator::Keys(ring),
        (Some(limits), _) => keys(limits, clock),
    };
    config.guard = BrowserGuard::Off;
    (authenticator, administration)
}

pub(crate) fn limit(limit: fn(NonZeroU64) -> Limit, value: u64) -> Limit {
    limit(NonZeroU64::new(value).unwrap())
}

fn keys(limits: &[Limit], clock: &Arc<dyn Clock>) -> Authenticator {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    writeln!(file, "lab: {KEY}").unwrap();
    let (keys, limits) = (read_key_file(file.path()).unwrap(), Quota::new(limits.to_vec()).unwrap());
    Authenticator::Keys(KeyRing::new(None, keys, limits, Arc::clone(clock)).unwrap())
}

/// The keys of a data directory, and what administers them.
fn administered(folder: &Path, clock: &Arc<dyn Clock>) -> (KeyRing, Administration) {
    let data = DataDir::open(folder).unwrap();
    let directory = Directory::open(&data, Arc::clone(clock), "test").unwrap();
    let ring = KeyRing::new(Some(directory.clone()), Vec::new(), Quota::unlimited(), Arc::clone(clock)).unwrap();
    (ring, Administration::open(&data, directory).unwrap())
}

fn served_models(options: &Options) -> Vec<ServedModel> {
    let rivals = options.rivals.iter().zip(0xac..).map(|(rival, byte)| {
        let text = match rival.vocabulary {
            Vocabulary::Same | Vocabulary::Padded => text::text_model(),
            Vocabulary::Other => text::text_model_with("<|other|>"),
        };
        ServedModel { digest: digest_of(byte), ..serve_as(rival.name, text, options) }
    });
    [served_model(options)].into_iter().chain(rivals).collect()
}

fn served_model(options: &Options) -> ServedModel {
    let mut text = text::text_model();
    text.answers = options.answers.unwrap_or(text.answers);
    serve_as(MODEL, text, options)
}

fn serve_as(name: &str, text: TextModel, options: &Options) -> ServedModel {
    ServedModel {
        name: name.to_owned(),
        grammars: Arc::new(GrammarCompiler::new(text.tokenizer.clone(), vec![text::END])),
        text: Arc::new(text),
        max_model_len: options.engine.max_model_len,
        input_vocab_size: text::VOCAB,
        eos_token_ids: vec![text::END],
        encoder: None,
        defaults: GenerationDefaults { temperature: Some(0.0), ..GenerationDefaults::default() },
        digest: digest(),
        fingerprint: "fp_test".to_owned(),
    }
}

/// Of a checkpoint that is none.
pub(crate) fn digest() -> ModelDigest {
    digest_of(0xab)
}

fn digest_of(byte: u8) -> ModelDigest {
    format!("sha256:{}", format!("{byte:02x}").repeat(32)).parse().unwrap()
}

fn build_info() -> BuildInfo {
    BuildInfo { version: "0".to_owned(), kernels: "test".to_owned() }
}
