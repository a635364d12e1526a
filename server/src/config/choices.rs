//! Values that are one of a few words, the same in TOML and on the command line.

use clap::ValueEnum;
use serde::Deserialize;

/// What weights are held as. Lower precision is smaller and, where memory bandwidth is the limit, faster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum WeightDtype {
    /// As the checkpoint stores them.
    #[default]
    Auto,
    F32,
    Bf16,
    F16,
    /// Quantised while loading, 8.5 bits a weight.
    #[value(name = "q8_0")]
    Q8_0,
    /// Quantised while loading, 4.5 bits a weight.
    #[value(name = "q4_0")]
    Q4_0,
}

/// What keys and values are cached as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// f32 beside f32 weights, else bf16.
    #[default]
    Auto,
    F32,
    Bf16,
    /// 8 bits, with a scale for each token and head; on CPUs.
    Int8,
}

/// What activations are rounded to where they meet quantised weights on a CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ActivationDtype {
    /// As good as exact.
    #[default]
    Int16,
    /// 8 bits, with a scale for every 32: faster, and less exact.
    Int8,
}

/// Where weights and KV caches lie on a machine with several memories (NUMA nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Numa {
    /// Where the system puts them: beside the thread that writes a page first.
    #[default]
    Off,
    /// Page by page in turn on all of them.
    Interleave,
}

/// How a model writes the tools that it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToolCalls {
    /// As its chat template shows.
    #[default]
    Auto,
    Hermes,
    Llama3,
    Mistral,
    MistralNamed,
    Apertus,
    Nemotron,
    Json,
}

/// How a model marks what it writes for itself before it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reasoning {
    /// As its chat template shows.
    #[default]
    Auto,
    /// Not at all: everything is the answer.
    Off,
    Think,
    Mistral,
    Apertus,
}

/// Who starts the worker of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerPlace {
    /// The server.
    #[default]
    Local,
    /// Somebody else, on a machine that dials `workers.listen`.
    Remote,
}

/// What another server understands beside OpenAI's API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamKind {
    #[default]
    OpenAi,
    /// It keeps books itself, and is told for whom it is asked.
    Passerelle,
}

/// What happens to a request field that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// 400, naming the field.
    #[default]
    Refuse,
    /// Accepted, and listed in a response header.
    Warn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}
