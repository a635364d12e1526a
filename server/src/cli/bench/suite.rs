//! What a card is judged by.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use passerelle::config::{ByteSize, Config, EngineConfig, Environment, KvDtype, Listen, WrittenModel};
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_models::ops::Compute;
use passerelle_models::{KvCacheSpec, KvFormat};
use serde::Serialize;
use tempfile::TempDir;

use super::limits::{Limits, ModelCost};
use super::measure::Workload;
use super::saturation::{Saturation, saturate};
use super::shape::Shape;
use super::{Bench, Room, Row};
use crate::cli::model_args::ModelArgs;
use crate::cli::numbers::count;
use crate::cli::output::{self, OutputArgs};
use crate::serve;

mod print;

/// Of the sweep.
const BATCHES: [usize; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const PROMPTS: [usize; 5] = [512, 1024, 2048, 4096, 8192];
const CONTEXT: usize = 1024;
const GENERATE: usize = 128;
const STREAMS: usize = 64;
/// Tokens of a step, without --max-num-batched-tokens: a GPU has room for more than the default.
const STEP_TOKENS: usize = 8192;

/// Which figures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Suite {
    /// One stream, batches at a context, long prompts, and a server that is kept full over HTTP.
    Gpu,
}

/// Several benches in a row, on random weights of published shapes that are made for it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Suite")]
pub(super) struct SuiteArgs {
    /// Measure what a card is judged by, on random weights of real shapes, written to the data directory for as long as
    /// it takes (1.2 and 16 GB).
    #[arg(long, value_enum, conflicts_with_all = ["model", "prompt", "generate", "batch", "profile", "tariff"])]
    pub(super) suite: Option<Suite>,
    /// Which shapes [default: qwen3-0.6b,llama-3.1-8b].
    #[arg(long, value_enum, value_name = "SHAPE,..", value_delimiter = ',', requires = "suite")]
    shape: Vec<Shape>,
    /// Batches of the sweep [default: 1 to 256].
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', requires = "suite", value_parser = count::<NonZeroUsize>)]
    sweep: Vec<NonZeroUsize>,
    /// Prompts that are read alone [default: 512 to 8192].
    #[arg(
        long, value_name = "TOKENS,..", value_delimiter = ',', requires = "suite",
        value_parser = count::<NonZeroUsize>
    )]
    prompts: Vec<NonZeroUsize>,
    /// Prompt of every sequence of the sweep [default: 1024].
    #[arg(long, value_name = "TOKENS", requires = "suite", value_parser = count::<NonZeroUsize>)]
    context: Option<NonZeroUsize>,
    /// Tokens that a sequence of the sweep generates [default: 128].
    #[arg(long, value_name = "TOKENS", requires = "suite", value_parser = count::<NonZeroUsize>)]
    answer: Option<NonZeroUsize>,
    /// Clients that keep the server full [default: 64].
    #[arg(long, value_name = "N", requires = "suite", value_parser = count::<NonZeroUsize>)]
    streams: Option<NonZeroUsize>,
}

/// What is measured, with everything that was left off filled in.
struct Sizes {
    sweep: Vec<usize>,
    prompts: Vec<usize>,
    context: usize,
    generate: usize,
    streams: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    device: String,
    threads: usize,
    kernels: String,
    memory_bandwidth_bytes_per_s: f64,
    multiply_add_flops_per_s: f64,
    shapes: Vec<ShapeReport>,
}

#[derive(Debug, Serialize)]
struct ShapeReport {
    shape: String,
    dtype: String,
    weight_bytes: u64,
    context: usize,
    generate_tokens: usize,
    /// The first is one stream alone.
    sweep: Vec<Row>,
    prefill: Vec<Prefill>,
    /// What the memory for keys and values does not hold.
    left_out: Vec<String>,
    saturation: Saturation,
}

/// One prompt alone.
#[derive(Debug, Serialize)]
struct Prefill {
    prompt_tokens: usize,
    tokens_per_s: f64,
    share_of_limit: f64,
}

impl SuiteArgs {
    /// Errors when something is asked of a suite that none is asked for: clap lets that pass beside what no suite goes with.
    pub(super) fn is_complete(&self) -> Result<()> {
        if self.suite.is_some() {
            return Ok(());
        }
        let lists = [
            ("--shape", self.shape.is_empty()),
            ("--sweep", self.sweep.is_empty()),
            ("--prompts", self.prompts.is_empty()),
        ];
        let numbers = [("--context", self.context), ("--answer", self.answer), ("--streams", self.streams)];
        let given = lists.iter().filter(|(_, is_empty)| !is_empty).map(|(name, _)| *name);
        let mut given = given.chain(numbers.iter().filter(|(_, number)| number.is_some()).map(|(name, _)| *name));
        match given.next() {
            Some(option) => bail!("{option} says something of a suite; write --suite gpu, or leave it out"),
            None => Ok(()),
        }
    }

    pub(super) fn run(&self, model_args: &ModelArgs, output: OutputArgs) -> Result<()> {
        let sizes = self.sizes();
        let shapes = if self.shape.is_empty() { &Shape::REAL[..] } else { &self.shape };
        let environment = Environment::read();
        let device = Config::check(model_args.clone().written(), &environment)?;
        let compute = serve::compute(&device.engine)?;
        if cfg!(debug_assertions) {
            tell!("warning: built without --release; these figures are not the machine's");
        }
        tell!("measuring this machine");
        let limits = Limits::measure(&compute.for_kv_of(kv_format(&device.engine)), false, &SystemClock::new())?;
        std::fs::create_dir_all(&device.server.data_dir)?;
        let measured = shapes.iter().map(|shape| {
            tell!("making weights of {}", shape.name());
            let folder = TempDir::new_in(&device.server.data_dir).context("data_dir")?;
            shape.write(folder.path()).with_context(|| folder.path().display().to_string())?;
            let config = sizes.config(model_args, shape.name(), folder.path(), &environment)?;
            ShapeReport::of(shape.name(), &sizes, &limits, &config, &compute)
        });
        let report = Report {
            version: env!("CARGO_PKG_VERSION"),
            device: serve::device_name(&compute),
            threads: compute.num_threads(),
            kernels: compute.kernels().to_string(),
            memory_bandwidth_bytes_per_s: limits.bytes_per_s,
            multiply_add_flops_per_s: limits.operations_per_s,
            shapes: measured.collect::<Result<_>>()?,
        };
        if output.json { output::json(&report) } else { print::print(&report) }
    }

    fn sizes(&self) -> Sizes {
        let list = |stated: &[NonZeroUsize], usual: &[usize]| match stated {
            [] => usual.to_vec(),
            stated => stated.iter().map(|size| size.get()).collect(),
        };
        let one = |stated: Option<NonZeroUsize>, usual: usize| stated.map_or(usual, NonZeroUsize::get);
        Sizes {
            sweep: list(&self.sweep, &BATCHES),
            prompts: list(&self.prompts, &PROMPTS),
            context: one(self.context, CONTEXT),
            generate: one(self.answer, GENERATE),
            streams: one(self.streams, STREAMS),
        }
    }
}

/// Beside weights in bf16.
fn kv_format(engine: &EngineConfig) -> KvFormat {
    match engine.kv_dtype {
        KvDtype::F32 => KvFormat::F32,
        KvDtype::Auto | KvDtype::Bf16 => KvFormat::Bf16,
        KvDtype::Int8 => KvFormat::Int8,
    }
}

impl Sizes {
    /// Of a server of the one model in `folder`, on a loopback port that nobody else is told.
    fn config(&self, model_args: &ModelArgs, name: String, folder: &Path, environment: &Environment) -> Result<Config> {
        let mut written = model_args.clone().written();
        let source = folder.to_str().context("data_dir: rename it")?;
        written.server.listen = Some(Listen::ANY_LOOPBACK_PORT);
        written.models = Some(vec![WrittenModel { name: Some(name), ..WrittenModel::of(source) }]);
        let most = self.sweep.iter().copied().max().unwrap_or(1).max(self.streams);
        written.engine.max_num_seqs = NonZeroUsize::new(most);
        written.engine.max_queued_requests = NonZeroUsize::new(most);
        let tokens = &mut written.engine.max_num_batched_tokens;
        *tokens = tokens.or(NonZeroUsize::new(STEP_TOKENS));
        // The whole batch is to generate at once: its prompts are read before the first of its answers ends.
        written.engine.max_prefill_chunk_tokens = *tokens;
        written.engine.max_added_latency = Some(super::ANY_LATENCY);
        Ok(Config::check(written, environment)?)
    }

    fn sequence(&self) -> usize {
        self.context + self.generate
    }

    /// Without what `budget` does not hold; what was left out, in words. Some batch must be left.
    fn within(&self, budget: ByteSize, spec: &KvCacheSpec, step_tokens: usize) -> Result<(Sizes, Vec<String>)> {
        let bytes = |length: usize, batch: usize| spec.most_blocks(length, step_tokens) * batch * spec.block_bytes();
        let fits = |length: usize, batch: usize| bytes(length, batch) as u64 <= budget.0;
        let (sweep, too_many): (Vec<_>, Vec<_>) =
            self.sweep.iter().copied().partition(|&batch| fits(self.sequence(), batch));
        let (prompts, too_long): (Vec<_>, Vec<_>) =
            self.prompts.iter().copied().partition(|&prompt| fits(prompt + 1, 1));
        if sweep.is_empty() {
            let (tokens, one) = (self.sequence(), ByteSize(bytes(self.sequence(), 1) as u64));
            ensure!(one <= budget, "--context: {tokens} tokens take {one} of K/V, and there is room for {budget}");
            bail!("--sweep: no batch of it fits {budget} of K/V");
        }
        let why = |what: String, bytes: usize| {
            format!("{what}: {} of K/V, and there is room for {budget}", ByteSize(bytes as u64))
        };
        let many =
            too_many.into_iter().map(|batch: usize| why(format!("batch of {batch}"), bytes(self.sequence(), batch)));
        let long = too_long.into_iter().map(|prompt: usize| why(format!("prompt of {prompt}"), bytes(prompt + 1, 1)));
        Ok((Sizes { sweep, prompts, ..*self }, many.chain(long).collect()))
    }
}

impl ShapeReport {
    fn of(shape: String, sizes: &Sizes, limits: &Limits, config: &Config, compute: &Compute) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let hashes = serve::KeptHashes::open(&config.server.data_dir);
        let loaded = serve::load(&config.models[0], serve::LoadContext { hub: &config.hub, compute, hashes: &hashes })?;
        let cost = ModelCost::of(&loaded.description, loaded.model.kv_cache_spec());
        let (dtype, vocab) = (loaded.dtype.clone(), loaded.model.input_vocab_size());
        let budget = serve::kv_budget(config.engine.kv_cache_memory, compute);
        let step_tokens = config.engine.steps.max_num_batched_tokens;
        let longest = loaded.description.max_position;
        let fits = sizes.sequence() <= longest;
        ensure!(fits, "--context: with the answer {} tokens, and {shape} takes {longest}", sizes.sequence());
        let (sizes, left_out) = sizes.within(budget, &loaded.model.kv_cache_spec(), step_tokens)?;
        let batch = sizes.sweep.iter().copied().max().unwrap_or(1);
        let prompt = sizes.prompts.iter().copied().max().unwrap_or(0);
        ensure!(prompt < longest, "--prompts: {prompt} tokens, and {shape} takes {longest} with what it generates");
        let rooms = [Room { length: sizes.sequence(), batch }, Room { length: prompt + 1, batch: 1 }];
        let load = |batch| Workload { batch, prompt_tokens: sizes.context, generate_tokens: sizes.generate };
        let bench = Bench::start(loaded, (&rooms, load(1)), (&config.engine, None), Arc::clone(&clock))?;
        let mut rounds = 0..;
        let mut measure = |what: String, load: Workload| {
            // The first round loads kernels and records steps of its shape.
            bench.run(load, rounds.next().unwrap_or_default())?;
            let measured = bench.run(load, rounds.next().unwrap_or_default())?;
            let row = Row::new(load, &measured, limits, &cost, false);
            let [read, generated] = [row.prefill_tokens_per_s, row.decode_tokens_per_s];
            tell!("{shape}: {what}: {read:.0} tok/s of prompts, {generated:.0} generated");
            anyhow::Ok(row)
        };
        let sweep = sizes.sweep.iter().map(|&batch| measure(format!("batch of {batch}"), load(batch)));
        let sweep = sweep.collect::<Result<Vec<_>>>()?;
        let prefill = sizes.prompts.iter().map(|&prompt_tokens| {
            let load = Workload { batch: 1, prompt_tokens, generate_tokens: 1 };
            let row = measure(format!("prompt of {prompt_tokens}"), load)?;
            let (tokens_per_s, share_of_limit) = (row.prefill_tokens_per_s, row.prefill_share_of_limit);
            anyhow::Ok(Prefill { prompt_tokens, tokens_per_s, share_of_limit })
        });
        let prefill = prefill.collect::<Result<Vec<_>>>()?;
        drop(bench);
        tell!("{shape}: {} clients over HTTP", sizes.streams);
        let saturation = saturate(config, load(sizes.streams), vocab, clock.as_ref())?;
        Ok(Self {
            shape,
            dtype,
            weight_bytes: cost.weight_bytes,
            context: sizes.context,
            generate_tokens: sizes.generate,
            sweep,
            prefill,
            left_out,
            saturation,
        })
    }
}
