//! A configuration as somebody wrote it. Every key is optional; one layer is laid over another with `over`.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use serde::Deserialize;

use super::{
    ActivationDtype, Aliases, ByteSize, Candidates, KvDtype, Listen, LogFormat, LogLevel, Numa, Period, Reasoning,
    ToolCalls, UpstreamKind, WeightDtype, WrittenFile, WrittenLedger,
};
use crate::placement::DeviceChoice;

/// Makes `over` for a section: what stands above wins, key by key.
macro_rules! lay_over {
    ($section:ty { $($key:ident),+ $(,)? }) => {
        impl $section {
            pub(super) fn over(self, below: Self) -> Self {
                Self { $($key: self.$key.or(below.$key)),+ }
            }
        }
    };
}
pub(super) use lay_over;

mod api;
mod workers;

pub use api::WrittenApi;
pub use workers::{WrittenPartition, WrittenWorkers};

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Written {
    pub server: WrittenServer,
    pub models: Option<Vec<WrittenModel>>,
    /// Devices, or parts of one, whose models run in a process of their own.
    pub partitions: Option<Vec<WrittenPartition>>,
    pub workers: WrittenWorkers,
    /// Other servers that run models.
    pub upstreams: Option<Vec<WrittenUpstream>>,
    pub routing: WrittenRouting,
    /// Names that stand for models: by alias, the weight of each model.
    pub aliases: Option<Aliases>,
    pub shadow: WrittenShadow,
    pub shelf: WrittenShelf,
    pub engine: WrittenEngine,
    pub api: WrittenApi,
    pub batches: WrittenBatches,
    pub grammar: WrittenGrammar,
    pub limits: WrittenLimits,
    pub ledger: WrittenLedger,
    pub log: WrittenLog,
    /// Where it was read, if anywhere.
    #[serde(skip)]
    pub file: Option<Box<WrittenFile>>,
}

impl Written {
    /// Lays `self` over `below`. A list of models replaces the one below as a whole.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            server: self.server.over(below.server),
            models: self.models.or(below.models),
            partitions: self.partitions.or(below.partitions),
            workers: self.workers.over(below.workers),
            upstreams: self.upstreams.or(below.upstreams),
            routing: self.routing.over(below.routing),
            aliases: self.aliases.or(below.aliases),
            shadow: self.shadow.over(below.shadow),
            shelf: self.shelf.over(below.shelf),
            engine: self.engine.over(below.engine),
            api: self.api.over(below.api),
            batches: self.batches.over(below.batches),
            grammar: self.grammar.over(below.grammar),
            limits: self.limits.over(below.limits),
            ledger: self.ledger.over(below.ledger),
            log: self.log.over(below.log),
            file: self.file.or(below.file),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenServer {
    pub listen: Option<Listen>,
    /// Further keys, one a line as `name: key`, beside those of `data_dir`. Their limits are those of `[limits]`.
    pub api_key_file: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    /// Every checkpoint inside is served under its folder's name; those in its sub-folders as `name@revision`.
    pub models_dir: Option<PathBuf>,
    /// PEM files of public keys: models that none of them has signed are not served.
    pub trust: Option<Vec<PathBuf>>,
    /// Never touch the network for a checkpoint.
    pub offline: Option<bool>,
    /// How long running requests may take to finish after SIGTERM.
    pub drain_timeout: Option<Period>,
    pub max_connections: Option<NonZeroUsize>,
    /// Requests that run at the same time on one HTTP/2 connection.
    pub max_streams_per_connection: Option<NonZeroUsize>,
    /// PEM: the server's certificate, then those that vouch for it.
    pub tls_certificate: Option<PathBuf>,
    /// PEM.
    pub tls_key: Option<PathBuf>,
    /// How this server calls itself to gateways that ask it.
    pub site: Option<String>,
}
lay_over!(WrittenServer {
    listen,
    api_key_file,
    data_dir,
    models_dir,
    trust,
    offline,
    drain_timeout,
    max_connections,
    max_streams_per_connection,
    tls_certificate,
    tls_key,
    site,
});

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenModel {
    /// What requests call it. Default: the last part of the source.
    pub name: Option<String>,
    /// A directory, a .gguf file, or a hub id with an optional `@revision`; `demo` is the bundled model.
    pub source: String,
    pub dtype: Option<WeightDtype>,
    pub kv_dtype: Option<KvDtype>,
    pub activation_dtype: Option<ActivationDtype>,
    pub max_model_len: Option<NonZeroUsize>,
    /// Whose tokenizer it uses instead of its own: a directory or a hub id.
    pub tokenizer: Option<String>,
    /// A Jinja template instead of its own.
    pub chat_template: Option<PathBuf>,
    pub tool_calls: Option<ToolCalls>,
    pub reasoning: Option<Reasoning>,
    /// The account that it belongs to. To keys outside of that account the model is not there.
    pub account: Option<String>,
    /// Where it runs. Default: in the server's own process.
    pub partition: Option<String>,
}

impl WrittenModel {
    pub fn of(source: &str) -> Self {
        Self {
            name: None,
            source: source.into(),
            dtype: None,
            kv_dtype: None,
            activation_dtype: None,
            max_model_len: None,
            tokenizer: None,
            chat_template: None,
            tool_calls: None,
            reasoning: None,
            account: None,
            partition: None,
        }
    }
}

/// Another server that runs a model. Several of one model share its requests.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenUpstream {
    /// What requests call the model. A model of `[[models]]` may have upstreams too.
    pub model: String,
    /// `http://HOST:PORT` or `https://HOST`, with or without `/v1`.
    pub url: String,
    /// What that server calls the model. Default: the same.
    pub upstream_model: Option<String>,
    /// A file that holds the key for that server, alone.
    pub key_file: Option<PathBuf>,
    /// The folder of a checkpoint whose tokenizer counts prompts exactly; its weights are not read. `demo` is the bundled
    /// model.
    pub tokenizer: Option<PathBuf>,
    /// Prompt and answer together.
    pub max_model_len: Option<NonZeroUsize>,
    /// Asked for, and reserved, where a request does not say how long its answer may be.
    pub default_max_tokens: Option<NonZeroU32>,
    pub connect_timeout: Option<Period>,
    /// From the sending of a request to the first event of its answer.
    pub first_byte_timeout: Option<Period>,
    /// Between two signs of life in an answer.
    pub idle_timeout: Option<Period>,
    /// Answered with a success by that server when it is well.
    pub health_path: Option<String>,
    pub health_interval: Option<Period>,
    /// The account that the model belongs to. To keys outside of that account the model is not there.
    pub account: Option<String>,
    /// What that server understands beside OpenAI's API.
    pub kind: Option<UpstreamKind>,
}

/// What happens when a replica does not answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenRouting {
    /// Replicas that one request is tried on at most.
    pub max_tries: Option<NonZeroUsize>,
    /// A request that so many replicas broke on is not tried on a further one.
    pub max_broken: Option<NonZeroUsize>,
    /// Failures in a row after which an upstream rests.
    pub failures_to_rest: Option<NonZeroU32>,
    /// Doubles with each rest, up to the longest.
    pub first_rest: Option<Period>,
    pub longest_rest: Option<Period>,
}
lay_over!(WrittenRouting { max_tries, max_broken, failures_to_rest, first_rest, longest_rest });

/// Requests that a candidate is asked too, when they are answered.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenShadow {
    /// By alias: the candidate, and its share of the alias's requests.
    pub aliases: Option<Candidates>,
    /// Requests that are looked at at the same time.
    pub max_running: Option<NonZeroUsize>,
    /// Those that wait for it; further ones are dropped.
    pub max_waiting: Option<NonZeroUsize>,
    /// Of each greedy answer.
    pub max_tokens: Option<NonZeroU32>,
    /// Keeps answers, with what both models make of them, for `passerelle compare`.
    pub folder: Option<PathBuf>,
    /// Of all that is kept.
    pub max_stored: Option<ByteSize>,
}
lay_over!(WrittenShadow { aliases, max_running, max_waiting, max_tokens, folder, max_stored });

/// The models of `server.models_dir`, which come into memory when somebody asks for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenShelf {
    /// Weights and KV caches of all that are in memory.
    pub memory: Option<ByteSize>,
    /// The KV cache of each, at most.
    pub kv_cache: Option<ByteSize>,
    /// How long a request waits for its model.
    pub longest_load: Option<Period>,
    /// How often the folder is looked at.
    pub look_interval: Option<Period>,
    /// Checkpoints beyond are left out.
    pub max_models: Option<NonZeroUsize>,
}
lay_over!(WrittenShelf { memory, kv_cache, longest_load, look_interval, max_models });

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenEngine {
    pub device: Option<DeviceChoice>,
    /// A file that holds what `nvidia-smi -L` prints, instead of asking the driver.
    pub device_list: Option<PathBuf>,
    /// For models that do not say their own.
    pub dtype: Option<WeightDtype>,
    pub kv_dtype: Option<KvDtype>,
    pub activation_dtype: Option<ActivationDtype>,
    pub max_model_len: Option<NonZeroUsize>,
    pub tokenizer: Option<String>,
    pub chat_template: Option<PathBuf>,
    pub threads: Option<NonZeroUsize>,
    /// That models run on, of a CPU, like `0-7,16-23`.
    pub cpu_affinity: Option<String>,
    pub numa: Option<Numa>,
    /// Sequences that run at once, per model.
    pub max_num_seqs: Option<NonZeroUsize>,
    /// Tokens one step computes, over all sequences.
    pub max_num_batched_tokens: Option<NonZeroUsize>,
    /// Prompt tokens a step may carry while other sequences generate.
    pub max_prefill_chunk_tokens: Option<NonZeroUsize>,
    /// What prompts may add to the time between two tokens of a running stream.
    pub max_added_latency: Option<Period>,
    /// How long a class of requests waits for a turn, at most, while better ones take them all.
    pub class_patience: Option<Period>,
    /// Requests that may wait, per model; one more is answered 503.
    pub max_queued_requests: Option<NonZeroUsize>,
    /// Prompt tokens that may wait, per model.
    pub max_queued_tokens: Option<NonZeroUsize>,
    /// For all models together.
    pub kv_cache_memory: Option<ByteSize>,
    /// Prompt tokens of one sequence a step runs if their log-probabilities are wanted: each costs a row of logits.
    pub prompt_logprobs_chunk_tokens: Option<NonZeroUsize>,
    /// The longest text that two models are compared on.
    pub comparison_tokens: Option<NonZeroUsize>,
}
lay_over!(WrittenEngine {
    device,
    device_list,
    dtype,
    kv_dtype,
    activation_dtype,
    max_model_len,
    tokenizer,
    chat_template,
    threads,
    cpu_affinity,
    numa,
    max_num_seqs,
    max_num_batched_tokens,
    max_prefill_chunk_tokens,
    max_added_latency,
    class_patience,
    max_queued_requests,
    max_queued_tokens,
    kv_cache_memory,
    prompt_logprobs_chunk_tokens,
    comparison_tokens,
});

/// Files that callers upload, and batches that run from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenBatches {
    pub max_file: Option<ByteSize>,
    /// Of all files together.
    pub max_stored: Option<ByteSize>,
    /// Files of one account.
    pub max_files: Option<NonZeroUsize>,
    /// Batches of one account that are not over.
    pub max_batches: Option<NonZeroUsize>,
    /// Batches of one account that are over, and still told of.
    pub max_ended: Option<NonZeroUsize>,
    /// Requests of one batch.
    pub max_requests: Option<NonZeroUsize>,
    /// Of one batch, at the same time.
    pub max_running_requests: Option<NonZeroUsize>,
}
lay_over!(WrittenBatches {
    max_file,
    max_stored,
    max_files,
    max_batches,
    max_ended,
    max_requests,
    max_running_requests
});

/// How much the grammar of one answer may ask for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenGrammar {
    /// Of a schema, expression or grammar as written.
    pub max_bytes: Option<ByteSize>,
    /// Brackets within brackets.
    pub max_depth: Option<NonZeroUsize>,
    /// Symbols after compiling.
    pub max_size: Option<NonZeroUsize>,
    /// States of the lexer that one answer may visit.
    pub max_states: Option<NonZeroUsize>,
    /// Steps to compile the lexer.
    pub compile_fuel: Option<NonZeroUsize>,
    /// Steps of the lexer for one token.
    pub token_fuel: Option<NonZeroUsize>,
    pub max_concurrent_compiles: Option<NonZeroUsize>,
    /// A request waits so long for a place to compile, and then for its grammar.
    pub compile_timeout: Option<Period>,
}
lay_over!(WrittenGrammar {
    max_bytes,
    max_depth,
    max_size,
    max_states,
    compile_fuel,
    token_fuel,
    max_concurrent_compiles,
    compile_timeout,
});

/// What an account directly below the root does not limit itself: those of `server.api_key_file` state nothing, nor does
/// an open listener.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenLimits {
    pub requests_per_minute: Option<NonZeroU32>,
    /// Prompt and generated tokens together.
    pub tokens_per_minute: Option<NonZeroU32>,
    pub concurrent_requests: Option<NonZeroU32>,
}
lay_over!(WrittenLimits { requests_per_minute, tokens_per_minute, concurrent_requests });

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenLog {
    pub format: Option<LogFormat>,
    pub level: Option<LogLevel>,
}
lay_over!(WrittenLog { format, level });
