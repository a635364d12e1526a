//! One engine for each model: they share the threads and take turns by step. Those that stay divide the KV memory.

use std::sync::Arc;

use anyhow::{Context, Result};
use passerelle::api::{GenerationDefaults, ServedEncoder, ServedModel};
use passerelle::config::{ByteSize, EngineConfig};
use passerelle::gateway::replica::{Replica, ReplicaId};
use passerelle::gateway::tariff::{Hours, Price, price_by_weights};
use passerelle::metrics::{BuildInfo, Metrics};
use passerelle::placement::KvDemand;
use passerelle::text::GrammarCompiler;
use passerelle_engine::clock::Clock;
use passerelle_engine::{
    ComparisonConfig, ComparisonLane, ComparisonParts, CostModel, EncoderEngine, EncoderHandle, EncoderParts, Engine,
    EngineHandle, EngineParts, StepObserver, StepTurns,
};
use passerelle_models::ops::Compute;
use passerelle_models::{Footprint, KvCacheSpec, ModelDescription, ModelDigest, NUMERICS};
use sha2::{Digest, Sha256};

use super::defaults;
use super::kept_costs::{KeptCosts, RanOn};
use super::memory::{KV_CACHE_MEMORY, free_memory, share_kv_memory, stated_or_of_device};
use super::models::{AnyLoaded, Loaded, LoadedEncoder};
use super::report;

/// The models that stay, ready to be asked.
pub(crate) struct Fleet {
    pub(crate) factory: EngineFactory,
    pub(crate) running: Vec<Running>,
    /// Where two of the models read one text.
    pub(crate) comparisons: ComparisonLane,
    pub(crate) served: Vec<ServedModel>,
    pub(crate) replicas: Vec<Arc<Replica>>,
    /// By model, as derived from its weights.
    pub(crate) prices: Vec<(String, Price)>,
}

/// What every engine of this process is made with.
#[derive(Clone)]
pub(crate) struct EngineFactory {
    pub(crate) compute: Compute,
    pub(crate) metrics: Arc<Metrics>,
    config: EngineConfig,
    /// What bounds the KV memory of those that stay, for errors.
    memory_key: String,
    clock: Arc<dyn Clock>,
    turns: StepTurns,
    kernels: String,
    observers: Observers,
    /// `None`: nothing is remembered.
    costs: Option<KeptCosts>,
}

/// Who hears the steps of a model, beside or instead of the metrics. `None`: the metrics.
pub(crate) type Observers = Arc<dyn Fn(&str) -> Option<Arc<dyn StepObserver>> + Send + Sync>;

/// Dropping it ends its thread, and whatever runs there.
#[derive(Debug)]
pub(crate) enum Running {
    Generator(Engine),
    Encoder(EncoderEngine),
}

/// One model whose engine has started.
pub(crate) struct Started {
    pub(crate) running: Running,
    pub(crate) served: ServedModel,
    pub(crate) replica: Arc<Replica>,
}

/// The bounds of one model's engine that do not come from the configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EngineBounds {
    pub(crate) num_kv_blocks: usize,
    pub(crate) max_model_len: usize,
}

/// Those that generate divide the KV memory.
pub(crate) fn start(loaded: Vec<AnyLoaded>, factory: EngineFactory) -> Result<Fleet> {
    let config = &factory.config;
    let generators = loaded.iter().filter_map(AnyLoaded::generator);
    let demands: Vec<KvDemand> = generators.map(|model| kv_demand(model, config)).collect();
    let memory = stated_or_of_device(config.kv_cache_memory, &factory.compute);
    let blocks = share_kv_memory(memory, factory.memory_key.as_str(), &demands)?;
    if factory.compute.device().is_cpu() {
        warn_of_more_than_free(demands.as_slice(), blocks.as_slice(), &factory.memory_key);
    }
    let mut blocks = blocks.into_iter();
    let prices = loaded.iter().map(|model| (model.name().to_owned(), price(model.description()))).collect();
    let (mut running_all, mut served_all, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
    for (model, id) in loaded.into_iter().zip(0..) {
        let num_kv_blocks = model.generator().and_then(|_| blocks.next()).unwrap_or(0);
        let Started { running, served, replica } = factory.start(model, num_kv_blocks, ReplicaId(id))?;
        running_all.push(running);
        served_all.push(served);
        replicas.push(replica);
    }
    let comparisons = factory.comparison_lane()?;
    Ok(Fleet { factory, running: running_all, comparisons, served: served_all, replicas, prices })
}

/// A cache takes its memory behind the start, so that one for which there is none ends the process then, and says nothing now.
fn warn_of_more_than_free(demands: &[KvDemand], blocks: &[usize], key: &str) {
    let bytes = demands.iter().zip(blocks).map(|(demand, blocks)| demand.spec.block_bytes() as u64 * *blocks as u64);
    let (taken, free) = (ByteSize(bytes.sum()), free_memory());
    if taken > free {
        tracing::warn!(
            "the KV cache takes {taken} soon after the start, and {free} of memory is free: the system may then end this \
             process; lower {key}"
        );
    }
}

impl EngineFactory {
    /// `models`: the names of all that are served from the start.
    pub(crate) fn new<'a>(
        config: &EngineConfig,
        gpu_factor: f64,
        compute: Compute,
        clock: &Arc<dyn Clock>,
        models: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self> {
        let kernels = format!("{} {}", report::device_name(&compute), compute.kernels());
        let info = BuildInfo { version: env!("CARGO_PKG_VERSION").to_owned(), kernels: kernels.clone() };
        let hours = Hours::new(Arc::clone(clock), report::device(&compute), gpu_factor);
        let metrics = Arc::new(Metrics::new(&info, models, hours)?);
        let (config, clock, turns) = (config.clone(), Arc::clone(clock), StepTurns::new());
        let observers: Observers = Arc::new(|_| None);
        let memory_key = KV_CACHE_MEMORY.to_owned();
        Ok(Self { compute, metrics, config, memory_key, clock, turns, kernels, observers, costs: None })
    }

    /// The same, where something else than `engine.kv_cache_memory` bounds the memory.
    pub(crate) fn bounded_by(self, memory_key: String) -> Self {
        Self { memory_key, ..self }
    }

    /// The same, whose engines need not find out again what work costs.
    pub(crate) fn remembering(self, costs: KeptCosts) -> Self {
        Self { costs: Some(costs), ..self }
    }

    /// The same, whose engines are heard by others.
    pub(crate) fn observed_by(self, observers: Observers) -> Self {
        Self { observers, ..self }
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    fn observer(&self, model: &str) -> Arc<dyn StepObserver> {
        (self.observers)(model).unwrap_or_else(|| Arc::new(self.metrics.engine(model)))
    }

    /// Where the models run.
    pub(crate) fn partition(&self) -> &'static str {
        report::device(&self.compute)
    }

    /// `num_kv_blocks`: of one that generates.
    pub(super) fn start(&self, model: AnyLoaded, num_kv_blocks: usize, id: ReplicaId) -> Result<Started> {
        let name = model.name().to_owned();
        let started = match model {
            AnyLoaded::Generator(model) => self.start_generator(*model, num_kv_blocks, id),
            AnyLoaded::Encoder(model) => self.start_encoder(*model, id),
        };
        started.with_context(|| format!("model `{name}`"))
    }

    /// Blocks of a KV cache of at most so many bytes, which stand at a key, and what they take.
    pub(super) fn kv_blocks(&self, model: &AnyLoaded, most: ByteSize, key: &str) -> Result<(usize, u64)> {
        model.generator().map_or(Ok((0, 0)), |model| blocks_within(&kv_demand(model, &self.config), most, key))
    }

    /// What they would take, before the model is loaded.
    pub(super) fn kv_bytes(&self, is: &Footprint, most: ByteSize, key: &str) -> Result<u64> {
        let Some(spec) = is.kv.clone() else { return Ok(0) };
        Ok(blocks_within(&demand_of(spec, is.max_position, &self.config), most, key)?.1)
    }

    /// A chunk of each model is bounded as the prompts of its own engine that want log-probabilities.
    fn comparison_lane(&self) -> Result<ComparisonLane> {
        let config = ComparisonConfig {
            max_text_tokens: self.config.comparison_tokens,
            max_chunk_tokens: self.config.prompt_logprobs_chunk_tokens,
            max_added_latency: self.config.max_added_latency.at_most(),
            max_waiting_texts: self.config.max_queued_requests,
            max_waiting_tokens: self.config.max_queued_tokens,
        };
        let observer = Arc::clone(self.metrics.hours().own()) as Arc<dyn StepObserver>;
        let (turns, clock) = (self.turns.clone(), Arc::clone(&self.clock));
        Ok(ComparisonLane::spawn(ComparisonParts { config, turns, clock, observer })?)
    }

    fn start_generator(&self, model: Loaded, num_kv_blocks: usize, id: ReplicaId) -> Result<Started> {
        let bounds = EngineBounds::of(&model, num_kv_blocks, &self.config);
        report::model(&model, bounds, &self.config, &self.compute);
        let served = serve_as(&model, bounds, &self.kernels)?;
        let (former_costs, observer) = self.remembered(&model);
        let engine = Engine::spawn(EngineParts {
            name: model.name.clone(),
            model: model.model,
            config: passerelle_engine::EngineConfig { former_costs, ..bounds.with(&self.config)? },
            turns: self.turns.clone(),
            clock: Arc::clone(&self.clock),
            observer,
        })?;
        let replica = Arc::new(Replica::new(id, model.name, Box::new(engine.handle())));
        Ok(Started { running: Running::Generator(engine), served, replica })
    }

    /// What it cost before, and who hears its steps.
    fn remembered(&self, model: &Loaded) -> (Option<CostModel>, Arc<dyn StepObserver>) {
        let observer = self.observer(&model.name);
        let Some(costs) = &self.costs else { return (None, observer) };
        let on = RanOn {
            model: model.digest,
            dtype: &model.dtype,
            block_bytes: model.model.kv_cache_spec().block_bytes(),
            kernels: &self.kernels,
            threads: self.compute.num_threads(),
        };
        (costs.find(&on), costs.kept_by(observer, &on))
    }

    fn start_encoder(&self, model: LoadedEncoder, id: ReplicaId) -> Result<Started> {
        report::encoder(&model, &self.compute);
        let served = serve_encoder(&model, &self.kernels);
        let engine = EncoderEngine::spawn(EncoderParts {
            name: model.name.clone(),
            config: encoder_bounds(&model, &self.config),
            model: model.model,
            turns: self.turns.clone(),
            clock: Arc::clone(&self.clock),
            observer: self.observer(&model.name),
        })?;
        let replica = Arc::new(Replica::new(id, model.name, Box::new(engine.handle())));
        Ok(Started { running: Running::Encoder(engine), served, replica })
    }
}

/// What a worker's gateway must know of an engine.
pub(super) struct DoorBounds {
    pub(super) kv_cache_bytes: u64,
    pub(super) max_waiting_requests: usize,
    pub(super) max_waiting_tokens: usize,
    pub(super) max_running: usize,
    /// `None` for one that makes vectors.
    pub(super) vocab_size: Option<usize>,
}

/// The door to it, which may outlive it.
pub(crate) enum RunningHandle {
    Generator(EngineHandle),
    Encoder(EncoderHandle),
}

impl Running {
    pub(crate) fn handle(&self) -> RunningHandle {
        match self {
            Self::Generator(engine) => RunningHandle::Generator(engine.handle()),
            Self::Encoder(engine) => RunningHandle::Encoder(engine.handle()),
        }
    }
}

impl RunningHandle {
    pub(super) fn bounds(&self) -> DoorBounds {
        match self {
            Self::Generator(engine) => DoorBounds {
                kv_cache_bytes: engine.kv_cache_bytes(),
                max_waiting_requests: engine.config().max_waiting_requests,
                max_waiting_tokens: engine.config().max_waiting_tokens,
                max_running: engine.config().max_num_seqs,
                vocab_size: Some(engine.rules().vocab_size),
            },
            Self::Encoder(encoder) => DoorBounds {
                kv_cache_bytes: 0,
                max_waiting_requests: encoder.config().max_waiting_texts,
                max_waiting_tokens: encoder.config().max_waiting_tokens,
                max_running: encoder.config().max_batch_texts,
                vocab_size: None,
            },
        }
    }

    /// Ends what runs, so that each client is told.
    pub(crate) fn shutdown(&self) {
        match self {
            Self::Generator(engine) => engine.shutdown(),
            Self::Encoder(engine) => engine.shutdown(),
        }
    }
}

impl AnyLoaded {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Generator(model) => &model.name,
            Self::Encoder(model) => &model.name,
        }
    }

    pub(super) fn description(&self) -> &ModelDescription {
        match self {
            Self::Generator(model) => &model.description,
            Self::Encoder(model) => &model.description.model,
        }
    }

    /// What it takes of memory.
    pub(super) fn weights_bytes(&self) -> u64 {
        self.description().resident_bytes.unwrap_or(self.description().stored_bytes)
    }

    fn generator(&self) -> Option<&Loaded> {
        match self {
            Self::Generator(model) => Some(model),
            Self::Encoder(_) => None,
        }
    }
}

impl EngineBounds {
    /// A client may use what the checkpoint allows and the KV cache holds.
    fn of(model: &Loaded, num_kv_blocks: usize, config: &EngineConfig) -> Self {
        let (spec, longest) = (model.model.kv_cache_spec(), model.description.max_position);
        let max_model_len = spec.longest_sequence(num_kv_blocks, config.steps.max_num_batched_tokens, longest);
        Self { num_kv_blocks, max_model_len }
    }

    pub(crate) fn with(self, config: &EngineConfig) -> Result<passerelle_engine::EngineConfig> {
        Ok(passerelle_engine::EngineConfig {
            num_kv_blocks: self.num_kv_blocks,
            max_num_seqs: config.steps.max_num_seqs,
            max_num_batched_tokens: config.steps.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            max_waiting_requests: config.max_queued_requests,
            max_waiting_tokens: config.max_queued_tokens,
            prefill_chunk_tokens: config.steps.max_prefill_chunk_tokens,
            prompt_logprobs_chunk_tokens: config.prompt_logprobs_chunk_tokens,
            max_added_latency: config.max_added_latency,
            class_patience: config.class_patience,
            costs: None,
            former_costs: None,
            seed: random_seed()?,
        })
    }
}

/// By weights in half precision, whatever they are held as here: what a token costs must not depend on the server.
pub(super) fn price(model: &ModelDescription) -> Price {
    const HALF_PRECISION_BYTES: u64 = 2;
    let parameters = model.num_parameters;
    price_by_weights(parameters.saturating_mul(HALF_PRECISION_BYTES), parameters)
}

/// What a model asks of the KV cache: all its sequences at their longest.
pub(crate) fn kv_demand(model: &Loaded, config: &EngineConfig) -> KvDemand {
    demand_of(model.model.kv_cache_spec(), model.description.max_position, config)
}

/// `longest`: tokens of a sequence, at most.
fn demand_of(spec: KvCacheSpec, longest: usize, config: &EngineConfig) -> KvDemand {
    let of_longest = spec.most_blocks(longest, config.steps.max_num_batched_tokens);
    KvDemand { spec, most_blocks: config.steps.max_num_seqs.saturating_mul(of_longest) }
}

/// Blocks of a cache of at most so many bytes, and what they take.
fn blocks_within(demand: &KvDemand, most: ByteSize, key: &str) -> Result<(usize, u64)> {
    let blocks = share_kv_memory(Some(most), key, std::slice::from_ref(demand))?.first().copied().unwrap_or(0);
    Ok((blocks, blocks as u64 * demand.spec.block_bytes() as u64))
}

fn serve_as(model: &Loaded, bounds: EngineBounds, kernels: &str) -> Result<ServedModel> {
    let eos_token_ids = model.description.eos_token_ids.clone();
    let kv_format = model.model.kv_cache_spec().format;
    Ok(ServedModel {
        name: model.name.clone(),
        text: Arc::clone(&model.text),
        max_model_len: bounds.max_model_len,
        input_vocab_size: model.model.input_vocab_size(),
        encoder: None,
        grammars: Arc::new(GrammarCompiler::new(model.text.tokenizer.clone(), eos_token_ids.clone())),
        eos_token_ids,
        defaults: defaults::read(&model.files)?,
        fingerprint: fingerprint(model.digest, &(&model.description, &model.dtype, kv_format), kernels),
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
        fingerprint: fingerprint(model.digest, &(&model.description, &model.dtype), kernels),
        digest: model.digest,
    }
}

/// An encoder's batch is an engine's step, and its texts are requests.
fn encoder_bounds(model: &LoadedEncoder, config: &EngineConfig) -> passerelle_engine::EncoderConfig {
    passerelle_engine::EncoderConfig {
        max_batch_tokens: config.steps.max_num_batched_tokens,
        max_batch_texts: config.steps.max_num_seqs,
        max_text_tokens: model.description.model.max_position,
        max_waiting_texts: config.max_queued_requests,
        max_waiting_tokens: config.max_queued_tokens,
    }
}

/// Two servers with the same fingerprint give the same answers to the same requests: after the beginning of the checkpoint's
/// digest it covers this version, the numerics, the kernels, and how weights, keys and values are held.
fn fingerprint(digest: ModelDigest, is: &impl std::fmt::Debug, kernels: &str) -> String {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let hash: [u8; 32] = Sha256::digest(format!("{VERSION} {NUMERICS} {kernels} {is:?}")).into();
    hash[..4].iter().fold(format!("fp_{}_", digest.short()), |text, byte| format!("{text}{byte:02x}"))
}

pub(crate) fn random_seed() -> Result<u64> {
    getrandom::u64().map_err(|error| anyhow::anyhow!("the system gave no random numbers: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_changes_with_the_weights_the_kernels_and_how_numbers_are_held() {
        let [one, other] = ["1", "2"].map(|digit| format!("sha256:{}", digit.repeat(64)).parse().unwrap());
        let of = |digest, held: &str, kernels| fingerprint(digest, &held, kernels);
        let all = [of(one, "f32", "avx2"), of(other, "f32", "avx2"), of(one, "f32", "avx512"), of(one, "bf16", "avx2")];
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len(), "{all:?}");
        assert_eq!(all[0], of(one, "f32", "avx2"));
    }
}
