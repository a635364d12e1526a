//! A server of real, tiny encoders beside the parrot. What they must say stands in the folders of their checkpoints,
//! which `models/tests/fixtures/make_encoders.py` made.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use passerelle::api::{
    AppParts, AppState, GenerationDefaults, Listener, Readiness, ServedEncoder, ServedModel, Serving, router, serve,
};
use passerelle::gateway::replica::ReplicaId;
use passerelle::gateway::tariff::Hours;
use passerelle::gateway::{Ledger, Replica, Router};
use passerelle::metrics::Metrics;
use passerelle::text::{GrammarCompiler, TextModel};
use passerelle_engine::{
    ComparisonConfig, ComparisonLane, ComparisonParts, EncoderConfig, EncoderEngine, EncoderHandle, EncoderParts,
    Engine, EngineParts, NullObserver, StepTurns,
};
use passerelle_models::ops::Compute;
use passerelle_models::{
    CheckpointFiles, Encoder, EncoderInput, LoadOptions, ModelError, Vectors, load_encoder, unwatched,
};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::client::Client;
use super::model::{Gate, TestModel};
use super::{MODEL, Options, PATIENCE, build_info, digest, door, served_model};

pub(crate) const BERT: &str = "bert";
pub(crate) const RERANKER: &str = "bert_reranker";
pub(crate) const CLASSIFIER: &str = "camembert_classifier";
pub(crate) const QWEN3: &str = "qwen3_embedding";
const ALL: [&str; 4] = [BERT, RERANKER, CLASSIFIER, QWEN3];

pub(crate) struct EncoderServer {
    pub(crate) state: AppState,
    /// In the order of their names above.
    pub(crate) encoders: Vec<EncoderHandle>,
    address: SocketAddr,
    gate: Gate,
    _data: Option<TempDir>,
    _owners: (Engine, Vec<EncoderEngine>, ComparisonLane),
}

/// Waits at the gate of the test before each batch.
struct Gated {
    inner: Box<dyn Encoder>,
    gate: Gate,
}

impl EncoderServer {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default(), EncoderConfig::default()).await
    }

    /// `lane` bounds every encoder's texts, queue and batches.
    pub(crate) async fn with(options: Options, lane: EncoderConfig) -> Self {
        let clock = Arc::clone(&options.clock);
        let names = ALL.iter().copied().chain([MODEL]);
        let metrics =
            Arc::new(Metrics::new(&build_info(), names, Hours::new(Arc::clone(&clock), "test", 1.0)).unwrap());
        let mut models = vec![served_model(&options)];
        let engine = Engine::spawn(EngineParts {
            name: MODEL.to_owned(),
            model: Box::new(TestModel::new(options.gate.clone())),
            config: options.engine.clone(),
            turns: StepTurns::new(),
            clock: Arc::clone(&clock),
            observer: Arc::new(metrics.engine(MODEL)),
        });
        let engine = engine.unwrap();
        let mut replicas = vec![Replica::new(ReplicaId(0), MODEL, Box::new(engine.handle()))];
        let mut owners = Vec::new();
        for (index, name) in ALL.into_iter().enumerate() {
            let (model, served) = load(name);
            let owner = EncoderEngine::spawn(EncoderParts {
                name: name.to_owned(),
                config: EncoderConfig {
                    max_text_tokens: served.max_model_len.min(lane.max_text_tokens),
                    ..lane.clone()
                },
                model: Box::new(Gated { inner: model, gate: options.gate.clone() }),
                turns: StepTurns::new(),
                clock: Arc::clone(&clock),
                observer: Arc::new(metrics.engine(name)),
            });
            let owner = owner.unwrap();
            replicas.push(Replica::new(ReplicaId(index as u32 + 1), name, Box::new(owner.handle())));
            models.push(served);
            owners.push(owner);
        }
        let (turns, observer) = (StepTurns::new(), Arc::new(NullObserver));
        let parts = ComparisonParts { config: ComparisonConfig::default(), turns, clock: Arc::clone(&clock), observer };
        let comparisons = ComparisonLane::spawn(parts).unwrap();
        let mut config = options.api.clone();
        let (authenticator, administration) = door(&options, &clock, &mut config);
        let state = AppState::new(AppParts {
            models,
            shelf: None,
            authenticator,
            administration,
            reloader: None,
            ledger: Ledger::without_past(Arc::clone(&clock)),
            comparisons: comparisons.handle(),
            serving: Serving::new(Router::new(replicas.into_iter().map(Arc::new), Arc::clone(&clock), 7), []),
            clock,
            metrics,
            batches: options.batch_store(),
            shadow_store: None,
            config,
            readiness: Readiness::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(Listener::Tcp(listener), router(state.clone()), options.serve, std::future::pending()));
        let encoders = owners.iter().map(EncoderEngine::handle).collect();
        Self {
            state,
            encoders,
            address,
            gate: options.gate,
            _data: options.administered,
            _owners: (engine, owners, comparisons),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// What must hold when nobody asks for anything: nothing is reserved, and the ledger has billed what the lanes read.
    pub(crate) async fn assert_at_rest(&self) {
        let quiet = async {
            while self.state.ledger().totals().open > 0 || !self.encoders.iter().all(EncoderHandle::is_idle) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, quiet).await.expect("everything ends and gives back what it took");
        let totals = self.state.ledger().totals();
        let read: u64 = self.encoders.iter().map(|lane| lane.stats().prompt_tokens_total).sum();
        assert_eq!((totals.open, totals.settled), (0, totals.reservations_taken));
        assert_eq!((totals.prompt_tokens, totals.generated_tokens), (read, 0));
    }
}

impl Drop for EncoderServer {
    /// A test that fails while its gate is closed would wait for ever for the threads that stand there.
    fn drop(&mut self) {
        self.gate.release();
    }
}

/// The folder of an encoder's checkpoint.
pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/tests/fixtures/encoders").join(name)
}

/// Texts, and what the reference implementation makes of them.
pub(crate) fn texts(name: &str) -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(folder(name).join("texts.json")).unwrap()).unwrap()
}

fn load(name: &str) -> (Box<dyn Encoder>, ServedModel) {
    let files = CheckpointFiles::directory(folder(name)).unwrap();
    let loaded = load_encoder(&files, &Compute::cpu(1), &LoadOptions::default(), &mut unwatched).unwrap();
    let text = TextModel::load(|file| Ok(std::fs::read(folder(name).join(file)).ok())).unwrap();
    let served = ServedModel {
        name: name.to_owned(),
        grammars: Arc::new(GrammarCompiler::new(text.tokenizer.clone(), Vec::new())),
        text: Arc::new(text),
        max_model_len: loaded.description.model.max_position,
        input_vocab_size: loaded.model.vocab_size(),
        eos_token_ids: Vec::new(),
        encoder: Some(Arc::new(ServedEncoder { output: loaded.description.output })),
        defaults: GenerationDefaults::default(),
        digest: digest(),
        fingerprint: "fp_test".to_owned(),
    };
    (loaded.model, served)
}

impl Encoder for Gated {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn max_tokens(&self) -> usize {
        self.inner.max_tokens()
    }

    fn width(&self) -> usize {
        self.inner.width()
    }

    fn forward(&mut self, input: &EncoderInput) -> Result<Vectors, ModelError> {
        self.gate.pass();
        self.inner.forward(input)
    }
}
