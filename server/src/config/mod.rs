//! What was written, and what was checked.
//!
//! [`Written`] is a configuration as somebody wrote it: a TOML file, the command line, or one laid over the other. Every
//! key is optional, and a key that does not exist is refused with its line and its nearest neighbour.
//! [`Config`] is what the rooms may rely on: defaults filled in, ranges and contradictions checked. What of a file is refused
//! there is told with its line as well ([`WrittenFile`]).
//!
//! This is the only room that reads the environment, and it reads it once ([`Environment`]).

mod aliases;
mod checked;
mod choices;
mod environment;
mod error;
mod file;
mod grammar;
mod ledger;
mod listen;
mod model_flag;
mod models;
mod origin;
mod partitions;
mod sections;
mod shadow;
mod shelf;
mod steps;
mod tls;
mod upstreams;
mod written;
mod written_file;

pub use aliases::{Aliases, check_targets};
pub use checked::{
    ApiConfig, BatchesConfig, Config, DEMO, EngineConfig, HubConfig, LogConfig, MODELS_DIR, ServerConfig,
};
pub use choices::{
    ActivationDtype, KvDtype, LogFormat, LogLevel, Numa, Reasoning, ToolCalls, UnknownFields, UpstreamKind,
    WeightDtype, WorkerPlace,
};
pub use environment::{Environment, SLURM_JOB_END, Secret};
pub use error::ConfigError;
pub use file::{parse, read};
pub use grammar::GrammarConfig;
pub use ledger::{LedgerConfig, WrittenLedger};
pub use listen::Listen;
pub use model_flag::ModelFlag;
pub use models::{ModelConfig, fits_as_checkpoint};
pub use origin::Origin;
pub use partitions::{PartitionConfig, WorkersConfig, check_partition_name};
pub use shadow::{Candidate, Candidates, ShadowConfig, check_candidates};
pub use shelf::ShelfConfig;
pub use steps::{StatedSteps, StepSizes};
pub use tls::TlsFiles;
pub use upstreams::{RemoteModelConfig, RoutingConfig, UpstreamConfig};
pub use written::{
    Written, WrittenApi, WrittenBatches, WrittenEngine, WrittenGrammar, WrittenLimits, WrittenLog, WrittenModel,
    WrittenPartition, WrittenRouting, WrittenServer, WrittenShadow, WrittenShelf, WrittenUpstream, WrittenWorkers,
};
pub use written_file::WrittenFile;

pub use crate::units::{ByteSize, Period};

#[cfg(test)]
mod tests;
