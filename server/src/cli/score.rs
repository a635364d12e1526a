use std::fs;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use passerelle::config::{ActivationDtype, Config, Environment, ModelConfig};
use passerelle::evaluation::score_file::{RanOn, Readers, Settings};
use passerelle::evaluation::{DataSet, Header, ScoreReader, ScoreWriter, Totals};
use passerelle::text::Tokenizer;
use passerelle_engine::SharedModel;
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_models::ops::Compute;
use passerelle_models::{CheckpointFiles, ModelDescription, ModelDigest};
use serde::Serialize;

use super::model_args::ModelArgs;
use super::numbers::count;
use super::output::{self, OutputArgs};
use crate::serve::{self, Inspector, KeptHashes, LoadContext};
use progress::Progress;
use resident::Resident;

mod plan;
mod progress;
mod resident;

const EXAMPLES: &str = "\
Examples:
  passerelle score --data heldout.jsonl ./checkpoint
  passerelle score --data heldout.jsonl ./runs/a --out ./scores   every checkpoint inside a folder
  passerelle score --data heldout.jsonl org/name@step1000 org/name@step2000
  passerelle score --data heldout.jsonl ./run --against ./run/final   also how far each token's distribution is from it
  passerelle compare ./scores --html report.html                  what came out

Each line of FILE is one of:
  {\"text\": ...}                                  how likely is each token?
  {\"prompt\": ..., \"reference\": ...}              how likely is the reference, and is it the greedy answer?
  {\"prompt\": ..., \"choices\": [...], \"answer\": 0}  which choice is the likeliest?
and may have an \"id\". Checkpoints are run one after the other, in the memory of one. What each made of each item is kept
in DIR/DIGEST.jsonl; started again, the command goes on where it was.";

/// Without `--max-num-seqs`: enough for steps that are full, and no cache that nobody needs.
const SEQUENCES: NonZeroUsize = const { NonZeroUsize::new(16).unwrap() };

/// Run documents, prompts and multiple-choice items through checkpoints, and keep what each made of every token.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ScoreArgs {
    /// Directories, folders of checkpoints, .gguf files, hub ids[@revision], or `demo`.
    #[arg(value_name = "SOURCE", required = true)]
    sources: Vec<String>,
    /// The items, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    data: PathBuf,
    /// Where the scores are kept, one file a checkpoint.
    #[arg(long, value_name = "DIR", default_value = "scores")]
    out: PathBuf,
    /// Most tokens of a greedy answer.
    #[arg(long, value_name = "TOKENS", default_value = "64", value_parser = count::<NonZeroU32>)]
    max_tokens: NonZeroU32,
    /// A second checkpoint, which stays in memory: keep the KL divergence to its distribution at each token, in nats.
    #[arg(long, value_name = "SOURCE")]
    against: Option<String>,
    /// Score nothing but what this public key has signed; more than once for several keys.
    #[arg(long, value_name = "FILE")]
    trust: Vec<PathBuf>,
    #[command(flatten)]
    model_args: ModelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What `--against` names.
struct Reference {
    model: SharedModel,
    tokenizer: Tokenizer,
    digest: ModelDigest,
}

/// A finished checkpoint, in short: DIR/DIGEST.json, and what is printed.
#[derive(Debug, Serialize)]
struct Summary {
    name: String,
    digest: ModelDigest,
    num_items: usize,
    #[serde(flatten)]
    totals: Totals,
}

impl ScoreArgs {
    pub(crate) fn run(self) -> Result<()> {
        let mut config = self.config(&Environment::read())?;
        let data = fs::read_to_string(&self.data).with_context(|| self.data.display().to_string())?;
        let data = DataSet::parse(&data).with_context(|| self.data.display().to_string())?;
        let models = serve::find_sources(&self.sources, &config.engine)?;
        let (compute, hashes) = (serve::compute(&config.engine)?, KeptHashes::open(&config.server.data_dir));
        config.engine = serve::sized_for(&config.engine, &compute);
        let inspector = Inspector::new(&config)?;
        let mut run = Run { args: &self, config, data, compute, hashes, inspector, against: None };
        run.against = self.against.as_ref().map(|source| run.reference(source)).transpose()?;
        let mut summaries = Vec::with_capacity(models.len());
        let mut failed = Vec::new();
        for (index, model) in models.iter().enumerate() {
            match run.checkpoint(model, Progress::new(index + 1, models.len())) {
                Ok(summary) => summaries.push(summary),
                Err(error) => {
                    // At once, because the others may take hours; and again at the end.
                    tell!("[{}/{}] {}: not scored: {error:#}", index + 1, models.len(), model.name);
                    failed.push(format!("checkpoint `{}`: {error:#}", model.name));
                }
            }
        }
        match summaries.is_empty() {
            true => {}
            false if self.output.json => output::json(&summaries)?,
            false => print(&summaries)?,
        }
        // One that cannot be read must not keep the others from being scored.
        ensure!(failed.is_empty(), "{} of {} could not be scored: {}", failed.len(), models.len(), failed.join("; "));
        Ok(())
    }

    fn config(&self, environment: &Environment) -> Result<Config> {
        let mut written = self.model_args.clone().written();
        written.engine.max_num_seqs = written.engine.max_num_seqs.or(Some(SEQUENCES));
        let mut config = Config::check(written, environment)?;
        config.server.trust.extend(self.trust.iter().cloned());
        Ok(config)
    }
}

/// What all checkpoints have in common.
struct Run<'a> {
    args: &'a ScoreArgs,
    config: Config,
    data: DataSet,
    compute: Compute,
    hashes: KeptHashes,
    inspector: Inspector,
    against: Option<Reference>,
}

impl Run<'_> {
    /// Loads it only if something is left to do, and drops it before returning.
    fn checkpoint(&self, model: &ModelConfig, progress: Progress) -> Result<Summary> {
        self.inspector.inspect(model, &self.hashes)?;
        let files = serve::find_files(&model.source, serve::wanted_of(model), &self.config.hub)?;
        let header = self.header(model, &files)?;
        let mut writer = ScoreWriter::open(&self.args.out, &header, Readers::AsUsual)?;
        let left = self.data.items.iter().filter(|item| !writer.is_done(&item.id));
        let left: Vec<_> = left.collect();
        let bar = progress.start(&model.name, writer.num_done(), self.data.items.len());
        if !left.is_empty() {
            let loaded = serve::load(model, self.context())?;
            let is_like = |reference: &Reference| loaded.text.tokenizer.has_vocabulary_of(&reference.tokenizer);
            ensure!(self.against.as_ref().is_none_or(is_like), "it has another vocabulary than what --against names");
            let items = plan::all(&loaded, &left, self.args.max_tokens.get())?;
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
            let against = self.against.as_ref().map(|reference| reference.model.clone());
            let resident = Resident::start(loaded, &items, &self.config.engine, clock, against)?;
            resident.run(items, |scored| {
                bar.one_more();
                Ok(writer.append(&scored)?)
            })?;
        }
        bar.finish();
        summary(&header, writer.path(), &self.args.out)
    }

    fn reference(&self, source: &String) -> Result<Reference> {
        let found = serve::find_sources(std::slice::from_ref(source), &self.config.engine)?;
        let [model] = &found[..] else { bail!("--against {source}: holds {} checkpoints; name one", found.len()) };
        self.inspector.inspect(model, &self.hashes)?;
        let loaded = serve::load(model, self.context())?;
        Ok(Reference { digest: loaded.digest, tokenizer: loaded.text.tokenizer.clone(), model: loaded.model.into() })
    }

    fn context(&self) -> LoadContext<'_> {
        LoadContext { hub: &self.config.hub, compute: &self.compute, hashes: &self.hashes }
    }

    /// What they are held as. What activations of the other model are rounded to is part of what is kept of both.
    fn weights_of(&self, model: &ModelConfig, description: &ModelDescription) -> String {
        let held = serve::held_as(model, description);
        let is_told = self.against.is_none() || held.ends_with("int8");
        match self.config.engine.activation_dtype {
            ActivationDtype::Int8 if !is_told => format!("{held}, activations int8"),
            ActivationDtype::Int8 | ActivationDtype::Int16 => held,
        }
    }

    fn header(&self, model: &ModelConfig, files: &CheckpointFiles) -> Result<Header> {
        let settings = Settings {
            data: self.data.digest.clone(),
            num_items: Some(self.data.items.len()),
            weights: self.weights_of(model, &passerelle_models::describe(files)?),
            keys_and_values: format!("{:?}", model.kv_dtype).to_lowercase(),
            max_tokens: self.args.max_tokens.get(),
            against: self.against.as_ref().map(|reference| reference.digest),
            ran_on: Some(ran_on(&self.compute)),
        };
        let digest = self.hashes.digest_of(files, &|_| ControlFlow::Continue(()))?;
        Ok(Header::new(digest, model.name.clone(), env!("CARGO_PKG_VERSION"), settings))
    }
}

fn ran_on(compute: &Compute) -> RanOn {
    let kernels = compute.kernels();
    let (kernels, bits_of) = (kernels.to_string(), kernels.bits_of().to_string());
    RanOn { device: serve::device_name(compute), kernels, bits_of, numerics: passerelle_models::NUMERICS }
}

/// From the whole file, so that it also covers what earlier runs did.
fn summary(header: &Header, scores: &Path, out: &Path) -> Result<Summary> {
    let mut reader = ScoreReader::open(scores)?;
    let (mut totals, mut num_items) = (Totals::default(), 0);
    while let Some(scored) = reader.next_scored()? {
        totals.add(&scored.outcome);
        num_items += 1;
    }
    let Header { name, digest, .. } = header.clone();
    let summary = Summary { name, digest, num_items, totals };
    let path = header.path_in(out).with_extension("json");
    fs::write(&path, serde_json::to_vec_pretty(&summary)?).with_context(|| path.display().to_string())?;
    Ok(summary)
}

fn print(summaries: &[Summary]) -> Result<()> {
    let metrics = summaries.first().map(|summary| summary.totals.metrics()).unwrap_or_default();
    let width = summaries.iter().map(|summary| summary.name.chars().count()).max().unwrap_or(0).max(10);
    let titles: Vec<_> = metrics.iter().map(|metric| format!("{:>25}", metric.name())).collect();
    output::line(format_args!("{:<width$}  {:<12}{}", "CHECKPOINT", "DIGEST", titles.concat()))?;
    for summary in summaries {
        let value = |metric| summary.totals.value(metric).map_or_else(String::new, |value| metric.shown(value));
        let values: Vec<_> = metrics.iter().map(|metric| format!("{:>25}", value(*metric))).collect();
        let (name, digest) = (&summary.name, summary.digest.short());
        output::line(format_args!("{name:<width$}  {digest:<12}{}", values.concat()))?;
    }
    Ok(())
}
