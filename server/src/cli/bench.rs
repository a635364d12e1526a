use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use passerelle::config::{ByteSize, Config, EngineConfig, Environment, ModelConfig, Period, WrittenModel};
use passerelle::gateway::tariff::WrittenTariff;
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{Engine, EngineParts, StepTurns};
use passerelle_models::StoredDtype;
use passerelle_models::ops::{Compute, OpTimes};
use serde::Serialize;

use super::model_args::ModelArgs;
use super::numbers::count;
use super::output::{self, OutputArgs};
use crate::serve::{self, EngineBounds, Loaded};
use limits::{Limits, ModelCost, Steps};
use measure::{Measured, Recorder, Runner, Workload};
use over_http::OverHttpArgs;
use profile::Profile;
use suite::SuiteArgs;
use tariff::{Reference, TariffArgs};

pub(crate) mod limits;
mod measure;
mod over_http;
mod profile;
mod saturation;
mod shape;
mod suite;
mod tariff;

/// No step takes as long.
const ANY_LATENCY: Period = Period(Duration::from_secs(600));

const EXAMPLES: &str = "\
Examples:
  passerelle bench                                     the bundled demo model
  passerelle bench --model ./checkpoint --batch 1,8,32
  passerelle bench --model ./checkpoint --dtype f32 --json
  passerelle bench --model ./checkpoint --prompt 8192 --generate 32 --batch 1   a long context, which takes its time
  passerelle bench --model ./checkpoint --profile      which ops the steps spend their time in
  passerelle bench --model ./checkpoint --over-http 20 what one stream loses on its way over HTTP
  passerelle bench --suite gpu --device cuda:0         random weights of real shapes, and what a card is judged by
  passerelle bench --model ./checkpoint --batch 32 --tariff 2026-12-01 --card a100 >tariff.toml

A step reads every weight once, and multiplies every weight with every token. How fast this machine reads memory and how
fast it multiplies in registers, f32 or bf16 numbers or, for quantised weights, integers of 16 or 8 bits, is measured before each batch,
by the same threads (on a GPU at the start, by copies and products of large matrices). LIMIT is what the slower of the two would allow,
with the keys and values that generating reads, and without the products of attention. A model that fits the caches can pass
100 % of it.";

/// Measure the engine: tokens per second and the share of this machine's limit, or what is left of them over HTTP.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct BenchArgs {
    /// A directory, a .gguf file, a hub id[@revision].
    #[arg(long, value_name = "SOURCE", default_value = "demo")]
    model: String,
    /// Prompt tokens of each sequence.
    #[arg(long, value_name = "TOKENS", default_value = "128", value_parser = count::<NonZeroUsize>)]
    prompt: NonZeroUsize,
    /// Tokens each sequence generates.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = count::<NonZeroUsize>)]
    generate: NonZeroUsize,
    /// How many sequences run at once; several sizes are measured one after the other.
    #[arg(
        long, value_name = "N,N,..", value_delimiter = ',', default_value = "1,4,16",
        value_parser = count::<NonZeroUsize>
    )]
    batch: Vec<NonZeroUsize>,
    /// Also say which share of the steps' time each op takes.
    #[arg(long)]
    profile: bool,
    #[command(flatten)]
    over_http: OverHttpArgs,
    #[command(flatten)]
    tariff: TariffArgs,
    #[command(flatten)]
    suite: SuiteArgs,
    #[command(flatten)]
    model_args: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// A row of the table.
#[derive(Debug, Serialize)]
struct Row {
    batch: usize,
    /// What this machine could do just before; a GPU, at the start.
    memory_bandwidth_bytes_per_s: f64,
    multiply_add_flops_per_s: f64,
    prefill_tokens_per_s: f64,
    prefill_limit_tokens_per_s: f64,
    /// The least time that this machine could take, over the time taken.
    prefill_share_of_limit: f64,
    /// Sequences that generated at once, at most; the figures of decoding are of steps in which so many did.
    decoding: usize,
    decode_tokens_per_s: f64,
    decode_limit_tokens_per_s: f64,
    decode_share_of_limit: f64,
    /// Of the memory bandwidth, by the weights that each decoding step reads once.
    share_of_bandwidth: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<Profile>,
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    dtype: String,
    weight_bytes: u64,
    threads: usize,
    kernels: String,
    prompt_tokens: usize,
    generate_tokens: usize,
    rows: Vec<Row>,
}

impl BenchArgs {
    pub(crate) fn run(self) -> Result<()> {
        self.suite.is_complete()?;
        if self.suite.suite.is_some() {
            return self.suite.run(&self.model_args, self.output);
        }
        if let Some(rounds) = self.over_http.rounds() {
            return over_http::run(rounds, self.workload(1), &self.model, &self.model_args, self.output);
        }
        self.run_batches()
    }

    fn run_batches(&self) -> Result<()> {
        let config = self.config(&Environment::read())?;
        let factor = self.tariff.tariff.as_ref().map(|_| self.tariff.factor()).transpose()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let times = self.profile.then(|| {
            let clock = Arc::clone(&clock);
            Arc::new(OpTimes::new(move || clock.now()))
        });
        let compute = serve::compute(&config.engine)?;
        let compute = match &times {
            Some(times) => compute.timed(Arc::clone(times)),
            None => compute,
        };
        warn_of_figures(&config.engine);
        let hashes = serve::KeptHashes::open(&config.server.data_dir);
        let context = serve::LoadContext { hub: &config.hub, compute: &compute, hashes: &hashes };
        let loaded = serve::load(&config.models[0], context)?;
        let engine = serve::sized_for(&config.engine, &compute);
        let (products, is_quantised) =
            (compute_of(&loaded, &config.models[0], &compute)?, serve::is_quantised(&loaded.dtype));
        let cost = ModelCost::of(&loaded.description, loaded.model.kv_cache_spec());
        let mut report = Report {
            model: loaded.name.clone(),
            dtype: loaded.dtype.clone(),
            weight_bytes: cost.weight_bytes,
            threads: compute.num_threads(),
            kernels: compute.kernels().to_string(),
            prompt_tokens: self.prompt.get(),
            generate_tokens: self.generate.get(),
            rows: Vec::new(),
        };
        // Every kind of step is run once, which a longer prompt would only repeat.
        let warm_up = self.workload(1).no_longer_than(engine.steps.max_num_batched_tokens);
        let needs = (&[self.room(loaded.description.max_position)?][..], warm_up);
        let measure = || Limits::measure(&products, is_quantised, clock.as_ref());
        // Beside the KV cache of the largest batch a GPU may have no room for it.
        let at_start = (!compute.device().is_cpu()).then(measure).transpose()?;
        let bench = Bench::start(loaded, needs, (&engine, times), Arc::clone(&clock))?;
        let as_table = !self.output.json && factor.is_none();
        if as_table {
            print_head(&report)?;
        }
        for (round, batch) in self.batch.iter().enumerate() {
            tell!("batch of {batch}");
            let limits = at_start.map_or_else(measure, Ok)?;
            let load = self.workload(batch.get());
            let measured = bench.run(load, round as u64)?;
            let row = Row::new(load, &measured, &limits, &cost, self.profile);
            if as_table {
                print_row(&row)?;
            }
            report.rows.push(row);
        }
        if let Some(factor) = factor {
            let load = self.workload(self.largest_batch()?);
            let taken = self.tariff.band_starts(bench.longest).into_iter().map(|start| bench.reference(start, load));
            let taken = taken.collect::<Result<Vec<_>>>()?;
            return print_tariff(&self.tariff.written(&report, &taken, factor)?, self.output);
        }
        if self.output.json { output::json(&report) } else { print_profiles(&report) }
    }

    fn config(&self, environment: &Environment) -> Result<Config> {
        let mut written = self.model_args.clone().written();
        ensure!(
            written.engine.kv_cache_memory.is_none(),
            "--kv-cache-memory: the cache is made for the largest --batch; it bounds what --suite measures"
        );
        written.models = Some(vec![WrittenModel::of(&self.model)]);
        let largest = self.batch.iter().copied().max().unwrap_or(NonZeroUsize::MIN);
        written.engine.max_num_seqs = written.engine.max_num_seqs.or(Some(largest));
        written.engine.max_queued_requests = Some(largest);
        // The whole batch is to generate at once: its prompts are read before the first of its answers ends.
        written.engine.max_added_latency = Some(ANY_LATENCY);
        Ok(Config::check(written, environment)?)
    }

    fn largest_batch(&self) -> Result<usize> {
        self.batch.iter().map(|batch| batch.get()).max().context("--batch needs at least one size")
    }

    /// For the largest batch, behind the longest context of a tariff's bands. `longest`: tokens that the model takes.
    fn room(&self, longest: usize) -> Result<Room> {
        let bands = self.tariff.tariff.as_ref().map(|_| self.tariff.band_starts(longest)).unwrap_or_default();
        let behind = bands.last().copied().unwrap_or(0);
        let length = behind.saturating_add(self.prompt.get()).saturating_add(self.generate.get());
        ensure!(
            length <= longest,
            "--prompt and --generate{} make {length} tokens; this model takes {longest}",
            if behind > 0 { ", behind the longest of --bands," } else { "" }
        );
        Ok(Room { length, batch: self.largest_batch()? })
    }

    fn workload(&self, batch: usize) -> Workload {
        Workload { batch, prompt_tokens: self.prompt.get(), generate_tokens: self.generate.get() }
    }
}

/// Whose products are the model's.
fn compute_of(loaded: &Loaded, config: &ModelConfig, compute: &Compute) -> Result<Compute> {
    if loaded.dtype.starts_with(&StoredDtype::Bf16.to_string()) {
        return Ok(compute.for_kv_of(loaded.model.kv_cache_spec().format));
    }
    Ok(compute.with_activations_in(serve::load_options(config).activation_dtype)?)
}

impl Row {
    fn new(load: Workload, measured: &Measured, limits: &Limits, cost: &ModelCost, profile: bool) -> Self {
        let prefill = Steps {
            count: measured.prefill_steps,
            tokens: measured.prefill_tokens,
            sampled: load.batch,
            // Read in pieces that many tokens look at together.
            kv_bytes: 0,
        };
        let middle = load.prompt_tokens + load.generate_tokens / 2;
        let decode = Steps {
            count: measured.decode_steps,
            tokens: measured.decode_tokens,
            sampled: measured.decode_tokens,
            kv_bytes: (measured.decode_tokens * cost.kv_cache.bytes_seen(middle)) as u64,
        };
        let [prefill_limit, decode_limit] =
            [prefill, decode].map(|steps| steps.tokens as f64 / limits.seconds(cost, steps).max(f64::EPSILON));
        let [prefill_rate, decode_rate] = [measured.prefill_tokens_per_s(), measured.decode_tokens_per_s()];
        Self {
            batch: load.batch,
            memory_bandwidth_bytes_per_s: limits.bytes_per_s,
            multiply_add_flops_per_s: limits.operations_per_s,
            prefill_tokens_per_s: prefill_rate,
            prefill_limit_tokens_per_s: prefill_limit,
            prefill_share_of_limit: share(prefill_rate, prefill_limit),
            decoding: measured.decoding,
            decode_tokens_per_s: decode_rate,
            decode_limit_tokens_per_s: decode_limit,
            decode_share_of_limit: share(decode_rate, decode_limit),
            share_of_bandwidth: measured.decode_steps_per_s() * cost.weight_bytes as f64 / limits.bytes_per_s,
            profile: profile.then(|| Profile::of(measured)),
        }
    }
}

/// 0 of nothing.
fn share(rate: f64, limit: f64) -> f64 {
    if limit > 0.0 { rate / limit } else { 0.0 }
}

/// Sequences that a KV cache must hold at once.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Tokens of each.
    length: usize,
    batch: usize,
}

/// One engine, with a KV cache that holds the largest batch.
struct Bench {
    runner: Runner,
    /// Tokens that the model takes.
    longest: usize,
}

impl Bench {
    fn start(
        loaded: Loaded,
        (rooms, warm_up): (&[Room], Workload),
        (config, times): (&EngineConfig, Option<Arc<OpTimes>>),
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let longest = loaded.description.max_position;
        let spec = loaded.model.kv_cache_spec();
        let blocks = |room: &Room| spec.most_blocks(room.length, config.steps.max_num_batched_tokens) * room.batch;
        let num_kv_blocks = rooms.iter().map(blocks).max().unwrap_or(0);
        let tokens = rooms.iter().map(|room| room.length * room.batch).max().unwrap_or(0);
        let recorder = Arc::new(Recorder::new(times));
        let vocab = loaded.model.input_vocab_size();
        let mut bounds = EngineBounds { num_kv_blocks, max_model_len: longest }.with(config)?;
        bounds.max_waiting_tokens = bounds.max_waiting_tokens.max(tokens);
        let turns = StepTurns::new();
        let engine = Engine::spawn(EngineParts {
            name: loaded.name,
            model: loaded.model,
            config: bounds,
            turns: turns.clone(),
            clock,
            observer: Arc::<Recorder>::clone(&recorder),
        })?;
        let bench = Self { runner: Runner { engine, turns, recorder, vocab }, longest };
        // Once unmeasured: memory is touched and threads are awake afterwards.
        bench.run(warm_up, u64::MAX / 2)?;
        Ok(bench)
    }

    /// The workload behind a context of `behind` tokens, which is in the prefix cache by then, and once more, when all
    /// of its prompts are.
    fn reference(&self, behind: usize, load: Workload) -> Result<Reference> {
        /// Beyond the rounds of every list of batches.
        const ROUND: u64 = 1 << 32;
        // Each band has sequences of its own.
        let round = ROUND + behind as u64;
        if behind > 0 {
            self.run(Workload { prompt_tokens: behind, generate_tokens: 1, ..load }, round)?;
        }
        let whole = Workload { prompt_tokens: behind + load.prompt_tokens, ..load };
        Ok(Reference { behind, first: self.run(whole, round)?, again: self.run(whole, round)?, load })
    }

    fn run(&self, load: Workload, round: u64) -> Result<Measured> {
        self.runner.run(load, round)
    }
}

/// What makes them say less of the machine than they seem to.
fn warn_of_figures(config: &EngineConfig) {
    if let Some(warning) = serve::warning_of_threads(config) {
        tell!("warning: {warning}");
    }
    if cfg!(debug_assertions) {
        tell!("warning: built without --release; these figures are not the machine's");
    }
}

fn in_threads(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

fn print_head(report: &Report) -> Result<()> {
    output::line(format_args!(
        "{}: {} of weights ({}), {}, {} kernels",
        report.model,
        ByteSize(report.weight_bytes),
        report.dtype,
        in_threads(report.threads),
        report.kernels,
    ))?;
    output::line(format_args!("{} prompt tokens, {} generated", report.prompt_tokens, report.generate_tokens))?;
    output::line(format_args!(
        "{:>6}{:>8}{:>10}{:>16}{:>9}{:>10}{:>16}{:>9}{:>10}",
        "BATCH", "GB/s", "GFLOP/s", "PREFILL tok/s", "LIMIT", "OF LIMIT", "DECODE tok/s", "LIMIT", "OF LIMIT"
    ))
}

/// As soon as it is measured: whoever ends a long measurement has what it came to so far.
fn print_row(row: &Row) -> Result<()> {
    output::line(format_args!(
        "{:>6}{:>8.1}{:>10.0}{:>16.1}{:>9.1}{:>9.0}%{:>16.1}{:>9.1}{:>9.0}%",
        row.batch,
        row.memory_bandwidth_bytes_per_s / 1e9,
        row.multiply_add_flops_per_s / 1e9,
        row.prefill_tokens_per_s,
        row.prefill_limit_tokens_per_s,
        row.prefill_share_of_limit * 100.0,
        row.decode_tokens_per_s,
        row.decode_limit_tokens_per_s,
        row.decode_share_of_limit * 100.0
    ))
}

/// As `ledger.tariff` reads it, or for scripts.
fn print_tariff(tariff: &WrittenTariff, output: OutputArgs) -> Result<()> {
    if output.json { output::json(tariff) } else { output::line(toml::to_string(tariff)?.trim_end()) }
}

fn print_profiles(report: &Report) -> Result<()> {
    let profiles = report.rows.iter().filter_map(|row| row.profile.as_ref().map(|profile| (row.batch, profile)));
    profiles.into_iter().try_for_each(|(batch, profile)| profile.print(batch))
}
