//! The options that say how a model is loaded, shared by every command that loads one.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use passerelle::config::{
    ActivationDtype, ByteSize, KvDtype, Numa, WeightDtype, Written, WrittenEngine, WrittenServer,
};
use passerelle::placement::DeviceChoice;

use super::numbers::count;

/// How models are loaded and how much room they get.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Loading and memory")]
pub(crate) struct ModelArgs {
    /// Where models run: auto, cpu, or a GPU or slice of one as cuda:N or MIG-UUID [default: auto].
    #[arg(long, value_name = "DEVICE")]
    device: Option<DeviceChoice>,
    /// What weights are held as [default: as stored].
    #[arg(long)]
    dtype: Option<WeightDtype>,
    /// What keys and values are cached as [default: f32 beside f32 weights, else bf16].
    #[arg(long)]
    kv_dtype: Option<KvDtype>,
    /// What activations are rounded to where they meet quantised weights on a CPU [default: int16].
    #[arg(long)]
    activation_dtype: Option<ActivationDtype>,
    /// Longest prompt and answer together [default: what the checkpoint allows].
    #[arg(long, value_name = "TOKENS", value_parser = count::<NonZeroUsize>, allow_negative_numbers = true)]
    max_model_len: Option<NonZeroUsize>,
    /// A directory or hub id whose tokenizer is used [default: the checkpoint's own].
    #[arg(long, value_name = "SOURCE")]
    tokenizer: Option<String>,
    /// A Jinja file that makes prompts of messages [default: the checkpoint's own].
    #[arg(long, value_name = "FILE")]
    chat_template: Option<PathBuf>,
    /// Sequences that run at once, per model [default: 64 on a CPU, 256 on a GPU].
    #[arg(long, value_name = "N", value_parser = count::<NonZeroUsize>, allow_negative_numbers = true)]
    max_num_seqs: Option<NonZeroUsize>,
    /// Tokens one step computes, over all sequences [default: 512 on a CPU, 8192 on a GPU].
    #[arg(long, value_name = "TOKENS", value_parser = count::<NonZeroUsize>, allow_negative_numbers = true)]
    max_num_batched_tokens: Option<NonZeroUsize>,
    /// KV cache of all models together, like 2GiB [default: a share of the free memory].
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    kv_cache_memory: Option<ByteSize>,
    /// Threads that compute [default: one per physical core].
    #[arg(long, value_name = "N", value_parser = count::<NonZeroUsize>, allow_negative_numbers = true)]
    threads: Option<NonZeroUsize>,
    /// Processors that they stay on, like 0-7,16-23 [default: all that this process may use].
    #[arg(long, value_name = "LIST")]
    cpu_affinity: Option<String>,
    /// Where weights and KV caches lie on a machine with several memories [default: off].
    #[arg(long)]
    numa: Option<Numa>,
    /// Never touch the network; say what is missing instead.
    #[arg(long)]
    offline: bool,
    /// Where keys and state live [default: the user's data directory].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl ModelArgs {
    /// All as it comes, but for where models run.
    pub(crate) fn on(device: Option<DeviceChoice>, threads: Option<NonZeroUsize>) -> Self {
        Self { device, threads, ..Self::default() }
    }

    pub(crate) fn written(self) -> Written {
        Written {
            engine: WrittenEngine {
                device: self.device,
                dtype: self.dtype,
                kv_dtype: self.kv_dtype,
                activation_dtype: self.activation_dtype,
                max_model_len: self.max_model_len,
                tokenizer: self.tokenizer,
                chat_template: self.chat_template,
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
                kv_cache_memory: self.kv_cache_memory,
                threads: self.threads,
                cpu_affinity: self.cpu_affinity,
                numa: self.numa,
                ..WrittenEngine::default()
            },
            server: WrittenServer {
                data_dir: self.data_dir,
                offline: self.offline.then_some(true),
                ..WrittenServer::default()
            },
            ..Written::default()
        }
    }
}
