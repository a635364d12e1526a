//! From what was written to what the rooms may rely on.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::aliases::{Aliases, check_aliases};
use super::grammar::{GrammarConfig, check_grammar};
use super::ledger::{LedgerConfig, check_ledger};
use super::models::{ModelConfig, check_models, fits_as_name};
use super::partitions::{MOST_THREADS, check_partitions, check_workers};
use super::shadow::{ShadowConfig, check_shadow};
use super::shelf::{ShelfConfig, check_shelf};
use super::steps::{StatedSteps, StepSizes};
use super::tls::{TlsFiles, check_tls};
use super::upstreams::{check_routing, check_upstreams};
use super::{
    ActivationDtype, ByteSize, ConfigError, Environment, KvDtype, Listen, LogFormat, LogLevel, Numa, Origin,
    PartitionConfig, Period, RoutingConfig, Secret, UnknownFields, UpstreamConfig, WeightDtype, WorkersConfig, Written,
    WrittenApi, WrittenBatches, WrittenEngine, WrittenFile, WrittenLimits, WrittenModel, WrittenServer,
};
use passerelle_engine::AddedLatency;
use passerelle_models::ops::ProcessorSet;

use crate::placement::{Backend, DeviceChoice};

/// Every value is within its range, and no two contradict each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub server: ServerConfig,
    /// Never empty, unless `server.models_dir` or an upstream is set. Names are unique.
    pub models: Vec<ModelConfig>,
    /// Those with models; names are unique.
    pub partitions: Vec<PartitionConfig>,
    pub workers: WorkersConfig,
    pub upstreams: Vec<UpstreamConfig>,
    pub routing: RoutingConfig,
    /// Names that stand for models, each with the models' weights.
    pub aliases: Aliases,
    pub shadow: ShadowConfig,
    pub hub: HubConfig,
    pub shelf: ShelfConfig,
    pub engine: EngineConfig,
    pub api: ApiConfig,
    pub batches: BatchesConfig,
    pub grammar: GrammarConfig,
    /// For callers without limits of their own. What is not stated is not limited.
    pub limits: WrittenLimits,
    pub ledger: LedgerConfig,
    pub log: LogConfig,
    /// Where it was read, if anywhere: what is found wrong later is told with its line as well.
    pub file: Option<Box<WrittenFile>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    pub listen: Listen,
    pub api_key_file: Option<PathBuf>,
    pub data_dir: PathBuf,
    pub models_dir: Option<PathBuf>,
    pub trust: Vec<PathBuf>,
    pub drain_timeout: Duration,
    pub max_connections: usize,
    pub max_streams_per_connection: usize,
    pub tls: Option<TlsFiles>,
    pub site: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct HubConfig {
    /// `None`: the environment names no folder for it. See [`HubConfig::cache_dir`].
    pub cache_dir: Option<PathBuf>,
    pub offline: bool,
    pub token: Option<Secret>,
    /// Another hub than the public one.
    pub endpoint: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct EngineConfig {
    pub device: DeviceChoice,
    /// Read instead of asking the driver which devices there are.
    pub device_list: Option<PathBuf>,
    /// `CUDA_VISIBLE_DEVICES`, where it is set.
    pub visible_devices: Option<String>,
    /// `None`: one per physical core.
    pub threads: Option<usize>,
    /// Of the CPU that models run on. `None`: all that this process may use.
    pub processors: Option<ProcessorSet>,
    pub numa: Numa,
    /// On the device, once it is known ([`EngineConfig::on`]).
    pub steps: StepSizes,
    pub stated_steps: StatedSteps,
    pub max_added_latency: AddedLatency,
    pub class_patience: Duration,
    pub max_queued_requests: usize,
    pub max_queued_tokens: usize,
    /// For all models together. `None`: a share of the free memory.
    pub kv_cache_memory: Option<ByteSize>,
    /// Prompt tokens of one sequence a step runs if their log-probabilities are wanted.
    pub prompt_logprobs_chunk_tokens: usize,
    /// The longest text that two models are compared on; while it runs, both keep K/V of it beside `kv_cache_memory`.
    pub comparison_tokens: usize,
    /// What models that do not say their own get; also those found in `server.models_dir`.
    pub dtype: WeightDtype,
    pub kv_dtype: KvDtype,
    pub activation_dtype: ActivationDtype,
    pub max_model_len: Option<usize>,
    pub tokenizer: Option<String>,
    pub chat_template: Option<PathBuf>,
}

impl EngineConfig {
    /// With steps for a kind of device; `None`: a CPU.
    #[must_use]
    pub fn on(&self, backend: Option<Backend>) -> Self {
        Self { steps: self.stated_steps.on(backend), ..self.clone() }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    pub unknown_fields: UnknownFields,
    pub max_body: ByteSize,
    pub read_timeout: Duration,
    pub request_timeout: Duration,
    /// Before a client that writes no more is asked whether it is still there.
    pub half_closed_timeout: Duration,
    pub stalled_reader_timeout: Duration,
    pub max_stop_strings: usize,
    pub max_stop_bytes: usize,
    pub max_stop_token_ids: usize,
    pub max_logit_bias: usize,
    pub max_bad_words: usize,
    pub max_messages: usize,
    pub max_tools: usize,
    pub max_prompts: usize,
    /// Answers to one prompt.
    pub max_choices: NonZeroU32,
    pub max_inputs: usize,
    /// Models of one comparison.
    pub max_compared_models: usize,
    pub max_concurrent_requests: usize,
    pub max_concurrent_encodes: usize,
    pub keep_alive: Duration,
    pub max_pending_frames: usize,
    pub compress_above: ByteSize,
    pub cors_origins: Vec<Origin>,
    /// Accounts below which cached prefixes of prompts are shared.
    pub shared_prefixes: Vec<String>,
    pub tokenizer_info: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchesConfig {
    pub max_file: ByteSize,
    pub max_stored: ByteSize,
    pub max_files: usize,
    pub max_batches: usize,
    pub max_ended: usize,
    pub max_requests: usize,
    pub max_running_requests: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    pub format: LogFormat,
    pub level: LogLevel,
    pub color: bool,
}

/// The key of the folder whose models come and go, for errors and warnings.
pub const MODELS_DIR: &str = "server.models_dir (--models-dir)";

/// The source, and the name, of the model compiled into the binary.
pub const DEMO: &str = "demo";

impl Config {
    pub fn check(mut written: Written, environment: &Environment) -> Result<Self, ConfigError> {
        let file = written.file.take();
        match (Self::check_settings(written, environment), file) {
            (Ok(config), file) => Ok(Self { file, ..config }),
            (Err(error), Some(file)) => Err(file.blamed(error, |alone| Self::check_settings(alone, environment).err())),
            (Err(error), None) => Err(error),
        }
    }

    /// `error`, of a setting that no command line states, with its line.
    #[must_use]
    pub fn located(&self, error: ConfigError) -> ConfigError {
        match &self.file {
            Some(file) => file.located(error),
            None => error,
        }
    }

    /// Where the file names the source of one of `models`, as `FILE:LINE:COLUMN`.
    pub fn place_of_source(&self, model: &ModelConfig) -> Option<String> {
        self.file.as_ref()?.place_of_source(model)
    }

    fn check_settings(written: Written, environment: &Environment) -> Result<Self, ConfigError> {
        // Whoever forbids the network is obeyed: a file cannot take back what the environment says.
        let offline = written.server.offline == Some(true) || environment.hf_hub_offline;
        let engine = check_engine(&written.engine, environment)?;
        let server = check_server(written.server, environment)?;
        let upstreams = check_upstreams(written.upstreams.unwrap_or_default(), offline)?;
        let models = match (written.models, &server.models_dir) {
            (Some(models), _) if !models.is_empty() => check_models(models, &engine)?,
            (_, Some(_)) => Vec::new(),
            _ if !upstreams.is_empty() => Vec::new(),
            _ => check_models(vec![WrittenModel::of(DEMO)], &engine)?,
        };
        let log = LogConfig {
            format: written.log.format.unwrap_or_default(),
            level: written.log.level.unwrap_or_default(),
            color: !environment.no_color,
        };
        let workers = check_workers(&written.workers)?;
        let partitions = check_partitions(written.partitions.unwrap_or_default(), &models, &workers)?;
        let ledger = check_ledger(written.ledger)?;
        let (hub, api) = (hub(offline, environment), check_api(&written.api)?);
        let (batches, grammar) = (check_batches(&written.batches), check_grammar(&written.grammar)?);
        let routing = check_routing(&written.routing)?;
        let aliases = check_aliases(written.aliases.unwrap_or_default())?;
        let shadow = check_shadow(written.shadow, &aliases)?;
        let (limits, shelf) = (written.limits, check_shelf(&written.shelf)?);
        Ok(Self {
            server,
            models,
            partitions,
            workers,
            upstreams,
            routing,
            aliases,
            shadow,
            hub,
            shelf,
            engine,
            api,
            batches,
            grammar,
            limits,
            ledger,
            log,
            file: None,
        })
    }

    /// An open door is only for this machine. Called when the keys are known, before anything is loaded.
    pub fn check_door(&self, has_keys: bool) -> Result<(), ConfigError> {
        if has_keys || self.server.listen.is_local() {
            return Ok(());
        }
        let problem = format!(
            "{} can be reached from other machines, and no API key exists; create one with `passerelle key create`, \
             name a file with --api-key-file, or listen on 127.0.0.1",
            self.server.listen
        );
        Err(ConfigError::value("server.listen", problem))
    }
}

impl HubConfig {
    /// Only a model of the hub needs it.
    pub fn cache_dir(&self) -> Result<&Path, ConfigError> {
        self.cache_dir.as_deref().ok_or_else(|| {
            ConfigError::value("HF_HOME", "neither HF_HOME nor HOME is set; set HF_HOME to the folder for checkpoints")
        })
    }
}

fn check_server(written: WrittenServer, environment: &Environment) -> Result<ServerConfig, ConfigError> {
    let data_dir = written.data_dir.or_else(|| environment.default_data_dir()).ok_or_else(|| {
        ConfigError::value("server.data_dir", "neither XDG_DATA_HOME nor HOME is set; name a folder with --data-dir")
    })?;
    if let Some(file) = &written.api_key_file {
        check_exists("server.api_key_file", file, Path::is_file)?;
    }
    if let Some(folder) = &written.models_dir {
        check_exists(MODELS_DIR, folder, Path::is_dir)?;
    }
    if written.trust.as_ref().is_some_and(Vec::is_empty) {
        let problem = "names no key, and every model would be served; name one, or leave it out";
        return Err(ConfigError::value("server.trust", problem));
    }
    let listen = written.listen.unwrap_or(Listen::DEFAULT);
    Ok(ServerConfig {
        api_key_file: written.api_key_file,
        data_dir,
        models_dir: written.models_dir,
        trust: written.trust.unwrap_or_default(),
        site: check_site(written.site)?,
        drain_timeout: period(written.drain_timeout, Duration::from_secs(30)),
        max_connections: count(written.max_connections, 1024),
        max_streams_per_connection: count(written.max_streams_per_connection, 128),
        tls: check_tls(written.tls_certificate, written.tls_key, &listen)?,
        listen,
    })
}

fn check_site(site: Option<String>) -> Result<Option<String>, ConfigError> {
    match site {
        Some(odd) if !fits_as_name(&odd) => Err(ConfigError::value("server.site", format!("`{odd}` is not a name"))),
        site => Ok(site),
    }
}

pub(super) fn check_exists(key: &str, path: &Path, exists: fn(&Path) -> bool) -> Result<(), ConfigError> {
    if exists(path) { Ok(()) } else { Err(ConfigError::value(key, format!("{} does not exist", path.display()))) }
}

fn hub(offline: bool, environment: &Environment) -> HubConfig {
    let Environment { hf_token: token, hf_endpoint: endpoint, .. } = environment.clone();
    HubConfig { cache_dir: environment.hub_cache_dir(), offline, token, endpoint }
}

fn check_engine(written: &WrittenEngine, environment: &Environment) -> Result<EngineConfig, ConfigError> {
    if let Some(template) = &written.chat_template {
        check_exists("engine.chat_template (--chat-template)", template, Path::is_file)?;
    }
    if let Some(list) = &written.device_list {
        check_exists("engine.device_list", list, Path::is_file)?;
    }
    if let Some(threads) = written.threads.filter(|threads| threads.get() > MOST_THREADS) {
        return Err(ConfigError::value(
            "engine.threads (--threads)",
            format!("{threads} are more than {MOST_THREADS}"),
        ));
    }
    let processors = processors(written.cpu_affinity.as_deref(), || "engine.cpu_affinity (--cpu-affinity)".to_owned())?;
    let device = written.device.clone().unwrap_or_default();
    let stated_steps = StatedSteps::check(written)?;
    Ok(EngineConfig {
        stated_steps,
        steps: stated_steps.on(device.backend()),
        device,
        device_list: written.device_list.clone(),
        visible_devices: environment.cuda_visible_devices.clone(),
        threads: written.threads.map(usize::from),
        processors,
        numa: written.numa.unwrap_or_default(),
        max_added_latency: written
            .max_added_latency
            .map_or_else(AddedLatency::default, |most| AddedLatency::AtMost(most.0)),
        class_patience: period(written.class_patience, Duration::from_secs(30)),
        max_queued_requests: count(written.max_queued_requests, 256),
        max_queued_tokens: count(written.max_queued_tokens, 1 << 20),
        kv_cache_memory: written.kv_cache_memory,
        prompt_logprobs_chunk_tokens: count(written.prompt_logprobs_chunk_tokens, 64),
        comparison_tokens: count(written.comparison_tokens, 4096),
        dtype: written.dtype.unwrap_or_default(),
        kv_dtype: written.kv_dtype.unwrap_or_default(),
        activation_dtype: written.activation_dtype.unwrap_or_default(),
        max_model_len: written.max_model_len.map(usize::from),
        tokenizer: written.tokenizer.clone(),
        chat_template: written.chat_template.clone(),
    })
}

fn check_api(written: &WrittenApi) -> Result<ApiConfig, ConfigError> {
    let max_body = written.max_body.unwrap_or(ByteSize(8 << 20));
    if max_body.0 < 1024 {
        return Err(ConfigError::value("api.max_body", "a body limit below 1KiB refuses every request"));
    }
    Ok(ApiConfig {
        unknown_fields: written.unknown_fields.unwrap_or_default(),
        max_body,
        read_timeout: some_period(
            written.read_timeout,
            Duration::from_secs(30),
            ("api.read_timeout", "is over before any request has come"),
        )?,
        request_timeout: some_period(
            written.request_timeout,
            Duration::from_secs(1800),
            ("api.request_timeout", "is over before any answer; it refuses every request"),
        )?,
        half_closed_timeout: period(written.half_closed_timeout, Duration::from_millis(5)),
        stalled_reader_timeout: some_period(
            written.stalled_reader_timeout,
            Duration::from_secs(60),
            ("api.stalled_reader_timeout", "would cut every reader that is not ahead of its answer"),
        )?,
        max_stop_strings: count(written.max_stop_strings, 16),
        max_stop_bytes: count(written.max_stop_bytes, 1024),
        max_stop_token_ids: count(written.max_stop_token_ids, 64),
        max_logit_bias: count(written.max_logit_bias, 1024),
        max_bad_words: count(written.max_bad_words, 64),
        max_messages: count(written.max_messages, 4096),
        max_tools: count(written.max_tools, 128),
        max_prompts: count(written.max_prompts, 64),
        max_choices: written.max_choices.unwrap_or(const { NonZeroU32::new(16).unwrap() }),
        max_inputs: count(written.max_inputs, 2048),
        max_compared_models: count(written.max_compared_models, 4),
        max_concurrent_requests: count(written.max_concurrent_requests, 512),
        max_concurrent_encodes: count(written.max_concurrent_encodes, 4),
        keep_alive: some_period(
            written.keep_alive,
            Duration::from_secs(10),
            ("api.keep_alive", "would stream comments without a pause"),
        )?,
        max_pending_frames: count(written.max_pending_frames, 64),
        compress_above: written.compress_above.unwrap_or(ByteSize(16 << 10)),
        cors_origins: written.cors_origins.clone().unwrap_or_default(),
        shared_prefixes: written.shared_prefixes.clone().unwrap_or_default(),
        tokenizer_info: written.tokenizer_info.unwrap_or(true),
    })
}

fn check_batches(written: &WrittenBatches) -> BatchesConfig {
    BatchesConfig {
        max_file: written.max_file.unwrap_or(ByteSize(64 << 20)),
        max_stored: written.max_stored.unwrap_or(ByteSize(4 << 30)),
        max_files: count(written.max_files, 256),
        max_batches: count(written.max_batches, 16),
        max_ended: count(written.max_ended, 1000),
        max_requests: count(written.max_requests, 10_000),
        max_running_requests: count(written.max_running_requests, 8),
    }
}

/// A list of processors that stands at `key`.
pub(super) fn processors(
    written: Option<&str>,
    key: impl FnOnce() -> String,
) -> Result<Option<ProcessorSet>, ConfigError> {
    let processors = written.map(str::parse::<ProcessorSet>).transpose();
    processors.map_err(|error| ConfigError::value(key(), error.to_string()))
}

/// Whoever writes more means no bound. Queues of so many can be made, and sums of them reckoned with.
pub(super) fn count(written: Option<NonZeroUsize>, default: usize) -> usize {
    const MOST: usize = u32::MAX as usize;
    written.map_or(default, |count| count.get().min(MOST))
}

pub(super) fn period(written: Option<Period>, default: Duration) -> Duration {
    written.map_or(default, |period| period.0)
}

/// The same of what stands at `key`, where none at all would be too short: `why` says for what.
pub(super) fn some_period(
    written: Option<Period>,
    default: Duration,
    (key, why): (&str, &str),
) -> Result<Duration, ConfigError> {
    match period(written, default) {
        Duration::ZERO => Err(ConfigError::value(key, format!("0s {why}"))),
        period => Ok(period),
    }
}
