//! One engine for each model: they share the threads, take turns by step, and those that generate divide the KV memory.

use std::sync::Arc;

use anyhow::{Context, Result};
use passerelle::api::{GenerationDefaults, ServedEncoder, ServedModel};
use passerelle::config::EngineConfig;
use passerelle::gateway::replica::{Replica, ReplicaId};
use passerelle::gateway::tariff::{Hours, Price, price_by_weights};
use passerelle::metrics::{BuildInfo, Metrics};
use passerelle::text::GrammarCompiler;
use passerelle_engine::clock::Clock;
use passerelle_engine::{
    ComparisonConfig, ComparisonLane, ComparisonParts, EncoderEngine, EncoderParts, Engine, EngineParts, StepObserver,
    StepTurns,
};
use passerelle_models::ops::Compute;
use passerelle_models::{ModelDescription, ModelDigest};
use sha2::{Digest, Sha256};

use super::defaults;
use super::memory::{KvDemand, share_kv_memory};
use super::models::{AllLoaded, Loaded, LoadedEncoder};
use super::report;

/// Every model, ready to be asked.
pub(crate) struct Fleet {
    pub(crate) engines: Vec<Engine>,
    pub(crate) encoders: Vec<EncoderEngine>,
    /// Where two of the models read one text.
    pub(crate) comparisons: ComparisonLane,
    pub(crate) served: Vec<ServedModel>,
    pub(crate) replicas: Vec<Arc<Replica>>,
    pub(crate) metrics: Arc<Metrics>,
    /// By model, as derived from its weights.
    pub(crate) prices: Vec<(String, Price)>,
    /// Where the models run.
    pub(crate) partition: &'static str,
}

/// The bounds of one model's engine that do not come from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineBounds {
    pub(crate) num_kv_blocks: usize,
    pub(crate) max_model_len: usize,
}

/// `elsewhere`: the models that other servers run.
pub(crate) fn start(
    loaded: AllLoaded,
    (config, gpu_factor): (&EngineConfig, f64),
    compute: &Compute,
    (clock, elsewhere): (&Arc<dyn Clock>, &[&str]),
) -> Result<Fleet> {
    let kernels = format!("{} {}", report::device(compute), compute.kernels());
    let info = BuildInfo { version: env!("CARGO_PKG_VERSION").to_owned(), kernels: kernels.clone() };
    let hours = Hours::new(Arc::clone(clock), report::device(compute), gpu_factor);
    let names = loaded.names().chain(elsewhere.iter().copied());
    let metrics = Arc::new(Metrics::new(&info, names, hours)?);
    let AllLoaded { generators, encoders: loaded_encoders } = loaded;
    let demands: Vec<KvDemand> = generators.iter().map(|model| demand(model, config)).collect();
    let blocks = share_kv_memory(config.kv_cache_memory, &demands)?;
    let encoder_prices = loaded_encoders.iter().map(|model| (model.name.clone(), price(&model.description.model)));
    let prices = generators.iter().map(|model| (model.name.clone(), price(&model.description)));
    let prices = prices.chain(encoder_prices).collect();
    let turns = StepTurns::new();
    let (mut engines, mut served, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
    for (model, num_kv_blocks) in generators.into_iter().zip(blocks) {
        let bounds = EngineBounds::of(&model, num_kv_blocks, config);
        report::model(&model, bounds, compute);
        served.push(serve_as(&model, bounds, &kernels)?);
        let name = model.name.clone();
        let engine = Engine::spawn(EngineParts {
            name: name.clone(),
            model: model.model,
            config: bounds.with(config)?,
            turns: turns.clone(),
            clock: Arc::clone(clock),
            observer: Arc::new(metrics.engine(&name)),
        });
        let engine = engine.with_context(|| format!("model `{name}`"))?;
        let id = ReplicaId(replicas.len() as u32);
        replicas.push(Arc::new(Replica::new(id, name, Box::new(engine.handle()))));
        engines.push(engine);
    }
    let mut encoders = Vec::with_capacity(loaded_encoders.len());
    for model in loaded_encoders {
        report::encoder(&model, compute);
        served.push(serve_encoder(&model, &kernels));
        let name = model.name.clone();
        let engine = EncoderEngine::spawn(EncoderParts {
            name: name.clone(),
            config: encoder_bounds(&model, config),
            model: model.model,
            turns: turns.clone(),
            clock: Arc::clone(clock),
            observer: Arc::new(metrics.engine(&name)),
        });
        let engine = engine.with_context(|| format!("model `{name}`"))?;
        let id = ReplicaId(replicas.len() as u32);
        replicas.push(Arc::new(Replica::new(id, name, Box::new(engine.handle()))));
        encoders.push(engine);
    }
    let comparisons = comparison_lane(config, turns, (clock, &metrics))?;
    let partition = report::device(compute);
    Ok(Fleet { engines, encoders, comparisons, served, replicas, metrics, prices, partition })
}

impl EngineBounds {
    /// A client may use what the checkpoint allows and the KV cache holds.
    fn of(model: &Loaded, num_kv_blocks: usize, config: &EngineConfig) -> Self {
        let (spec, longest) = (model.model.kv_cache_spec(), model.description.max_position);
        let max_model_len = spec.longest_sequence(num_kv_blocks, config.max_num_batched_tokens, longest);
        Self { num_kv_blocks, max_model_len }
    }

    pub(crate) fn with(self, config: &EngineConfig) -> Result<passerelle_engine::EngineConfig> {
        Ok(passerelle_engine::EngineConfig {
            num_kv_blocks: self.num_kv_blocks,
            max_num_seqs: config.max_num_seqs,
            max_num_batched_tokens: config.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            max_waiting_requests: config.max_queued_requests,
            max_waiting_tokens: config.max_queued_tokens,
            prefill_chunk_tokens: config.max_prefill_chunk_tokens,
            prompt_logprobs_chunk_tokens: config.prompt_logprobs_chunk_tokens,
            max_added_latency: config.max_added_latency,
            class_patience: config.class_patience,
            costs: None,
            seed: random_seed()?,
        })
    }
}

/// A chunk of each model is bounded as the prompts of its own engine that want log-probabilities.
fn comparison_lane(
    config: &EngineConfig,
    turns: StepTurns,
    (clock, metrics): (&Arc<dyn Clock>, &Metrics),
) -> Result<ComparisonLane> {
    let config = ComparisonConfig {
        max_text_tokens: config.comparison_tokens,
        max_chunk_tokens: config.prompt_logprobs_chunk_tokens,
        max_added_latency: config.max_added_latency,
        max_waiting_texts: config.max_queued_requests,
        max_waiting_tokens: config.max_queued_tokens,
    };
    let (clock, observer) = (Arc::clone(clock), Arc::clone(metrics.hours()) as Arc<dyn StepObserver>);
    Ok(ComparisonLane::spawn(ComparisonParts { config, turns, clock, observer })?)
}

/// By weights in half precision, whatever they are held as here: what a token costs must not depend on the server.
fn price(model: &ModelDescription) -> Price {
    const HALF_PRECISION_BYTES: u64 = 2;
    let parameters = model.num_parameters;
    price_by_weights(parameters.saturating_mul(HALF_PRECISION_BYTES), parameters)
}

fn demand(model: &Loaded, config: &EngineConfig) -> KvDemand {
    let spec = model.model.kv_cache_spec();
    let of_longest = spec.most_blocks(model.description.max_position, config.max_num_batched_tokens);
    KvDemand { spec, most_blocks: config.max_num_seqs.saturating_mul(of_longest) }
}

fn serve_as(model: &Loaded, bounds: EngineBounds, kernels: &str) -> Result<ServedModel> {
    let eos_token_ids = model.description.eos_token_ids.clone();
    Ok(ServedModel {
        name: model.name.clone(),
        text: Arc::clone(&model.text),
        max_model_len: bounds.max_model_len,
        input_vocab_size: model.model.input_vocab_size(),
        encoder: None,
        grammars: Arc::new(GrammarCompiler::new(model.text.tokenizer.clone(), eos_token_ids.clone())),
        eos_token_ids,
        defaults: defaults::read(&model.files)?,
        fingerprint: fingerprint(model.digest, (&model.description, &model.dtype), kernels),
        digest: model.digest,
    })
}

fn serve_encoder(model: &LoadedEncoder, kernels: &str) -> ServedModel {
    ServedModel {
        name: model.name.clone(),
        text: Arc::clone(&model.text),
        max_model_len: model.description.model.max_position,
        input_vocab_size: model.model.vocab_size(),
        grammars: Arc::new(GrammarCompiler::new(model.text.tokenizer.clone(), Vec::new())),
        eos_token_ids: Vec::new(),
        encoder: Some(Arc::new(ServedEncoder { output: model.description.output.clone() })),
        defaults: GenerationDefaults::default(),
        fingerprint: fingerprint(model.digest, (&model.description, &model.dtype), kernels),
        digest: model.digest,
    }
}

/// An encoder's batch is an engine's step, and its texts are requests.
fn encoder_bounds(model: &LoadedEncoder, config: &EngineConfig) -> passerelle_engine::EncoderConfig {
    passerelle_engine::EncoderConfig {
        max_batch_tokens: config.max_num_batched_tokens,
        max_batch_texts: config.max_num_seqs,
        max_text_tokens: model.description.model.max_position,
        max_waiting_texts: config.max_queued_requests,
        max_waiting_tokens: config.max_queued_tokens,
    }
}

/// Two servers with the same fingerprint give the same answers to the same requests: after the beginning of the checkpoint's
/// digest it covers this version, the kernels, and how the weights are held.
fn fingerprint(digest: ModelDigest, is: (&impl std::fmt::Debug, &str), kernels: &str) -> String {
    let hash: [u8; 32] = Sha256::digest(format!("{} {kernels} {is:?}", env!("CARGO_PKG_VERSION"))).into();
    hash[..4].iter().fold(format!("fp_{}_", digest.short()), |text, byte| format!("{text}{byte:02x}"))
}

pub(crate) fn random_seed() -> Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("the system gave no random numbers: {error}"))
}
