//! From what the configuration names to models in memory.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use passerelle::config::{Config, DEMO, EngineConfig, HubConfig, KvDtype, ModelConfig, WeightDtype, check_names};
use passerelle::hub::{self, HubOptions, Network, ProgressOutput, Source, Wanted};
use passerelle::text::TextModel;
use passerelle_models::ops::Compute;
use passerelle_models::{
    CausalLm, CheckpointFiles, CheckpointKind, Encoder, EncoderDescription, LoadOptions, LoadProgress,
    ModelDescription, ModelDigest, ModelError, checkpoint_kind,
};

use super::hashes::KeptHashes;
use super::text;
use super::trusted::Inspector;

/// Before a file of the hub is tried again; later attempts wait longer.
const HUB_RETRY_PAUSE: Duration = Duration::from_secs(1);

/// A model in memory, with its text side.
pub(crate) struct Loaded {
    pub(crate) name: String,
    pub(crate) files: CheckpointFiles,
    pub(crate) model: Box<dyn CausalLm>,
    pub(crate) description: ModelDescription,
    pub(crate) digest: ModelDigest,
    /// What the weights are held as.
    pub(crate) dtype: String,
    pub(crate) text: Arc<TextModel>,
}

/// An encoder in memory, with its text side.
pub(crate) struct LoadedEncoder {
    pub(crate) name: String,
    pub(crate) files: CheckpointFiles,
    pub(crate) model: Box<dyn Encoder>,
    pub(crate) description: EncoderDescription,
    pub(crate) digest: ModelDigest,
    /// What the weights are held as.
    pub(crate) dtype: String,
    pub(crate) text: Arc<TextModel>,
}

/// Every model that is to be served.
#[derive(Default)]
pub(crate) struct AllLoaded {
    pub(crate) generators: Vec<Loaded>,
    pub(crate) encoders: Vec<LoadedEncoder>,
}

impl AllLoaded {
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        let generators = self.generators.iter().map(|model| model.name.as_str());
        generators.chain(self.encoders.iter().map(|model| model.name.as_str()))
    }
}

/// What every model is loaded with.
#[derive(Clone, Copy)]
pub(crate) struct Means<'a> {
    pub(crate) hub: &'a HubConfig,
    pub(crate) compute: &'a Compute,
    pub(crate) hashes: &'a KeptHashes,
}

/// The models of the configuration, in its order, then those of `server.models_dir`.
pub(crate) fn load_all(config: &Config, compute: &Compute) -> Result<AllLoaded> {
    let mut wanted = config.models.clone();
    if let Some(folder) = &config.server.models_dir {
        wanted.extend(find_models(folder, &config.engine)?);
        check_names(&wanted)?;
    }
    // All of them first: where one is not what was signed, nothing is loaded.
    let inspector = Inspector::new(config)?;
    wanted.iter().try_for_each(|model| inspector.inspect(model))?;
    let hashes = KeptHashes::open(&config.server.data_dir);
    let means = Means { hub: &config.hub, compute, hashes: &hashes };
    let mut loaded = AllLoaded::default();
    for model in &wanted {
        let files = find_files(&model.source, wanted_of(model), &config.hub);
        let files = files.with_context(|| format!("model `{}`", model.name))?;
        match checkpoint_kind(&files).with_context(|| format!("model `{}`", model.name))? {
            CheckpointKind::Generator => loaded.generators.push(load(model, means)?),
            CheckpointKind::Encoder => loaded
                .encoders
                .push(load_encoder(model, files, means).with_context(|| format!("model `{}`", model.name))?),
        }
    }
    Ok(loaded)
}

/// The files of a source, fetched if they must be.
pub(crate) fn find_files(source: &str, wanted: Wanted, config: &HubConfig) -> Result<CheckpointFiles> {
    if source == DEMO {
        return Ok(passerelle_models::demo_checkpoint());
    }
    let source = Source::parse(source)?;
    let cache_dir = match &source {
        Source::Hub(_) => config.cache_dir()?.to_owned(),
        Source::Directory(_) | Source::Gguf(_) => PathBuf::new(),
    };
    let options = HubOptions {
        network: if config.offline { Network::Offline } else { Network::Allowed },
        wanted,
        cache_dir,
        token: config.token.as_ref().map(|token| token.expose().to_owned()),
        endpoint: config.endpoint.clone(),
        progress: ProgressOutput::for_stderr(),
        retry_pause: HUB_RETRY_PAUSE,
    };
    let local = hub::resolve(&source, &options)?;
    Ok(match source {
        Source::Gguf(_) => CheckpointFiles::gguf(local.path)?,
        Source::Directory(_) | Source::Hub(_) => CheckpointFiles::directory(local.path)?,
    })
}

/// Threads that compute: what was asked for, else one for each physical core that this process may use.
pub(crate) fn compute(config: &EngineConfig) -> Compute {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    Compute::cpu(config.threads.unwrap_or_else(|| num_cpus::get_physical().min(allowed)))
}

pub(crate) fn load(model: &ModelConfig, means: Means<'_>) -> Result<Loaded> {
    load_named(model, means).with_context(|| format!("model `{}`", model.name))
}

fn load_named(model: &ModelConfig, means: Means<'_>) -> Result<Loaded> {
    let files = find_files(&model.source, wanted_of(model), means.hub)?;
    // The text side first: it is quick to read and often what is wrong.
    let text = text::load(model, &files, means.hub)?;
    let (loaded, digest) = beside_hashing((&model.name, &files), means.hashes, |progress| {
        passerelle_models::load(&files, means.compute, &options(model), progress)
    })?;
    let dtype = held_as(model, &loaded.description);
    let (name, text, description) = (model.name.clone(), Arc::new(text), loaded.description);
    Ok(Loaded { name, files, model: loaded.model, description, digest, dtype, text })
}

/// What of a source this model needs.
pub(crate) fn wanted_of(model: &ModelConfig) -> Wanted {
    if model.tokenizer.is_some() { Wanted::CheckpointWithoutTokenizer } else { Wanted::Checkpoint }
}

fn load_encoder(model: &ModelConfig, files: CheckpointFiles, means: Means<'_>) -> Result<LoadedEncoder> {
    let text = text::load(model, &files, means.hub)?;
    let (loaded, digest) = beside_hashing((&model.name, &files), means.hashes, |progress| {
        passerelle_models::load_encoder(&files, means.compute, &options(model), progress)
    })?;
    let dtype = held_as(model, &loaded.description.model);
    let (name, text, description) = (model.name.clone(), Arc::new(text), loaded.description);
    Ok(LoadedEncoder { name, files, model: loaded.model, description, digest, dtype, text })
}

/// Hashes a checkpoint while it is loaded, so that whichever takes longer is all that takes time. A model answers when both
/// are done: every answer, and its entry in the ledger, names the digest.
fn beside_hashing<T>(
    (name, files): (&str, &CheckpointFiles),
    hashes: &KeptHashes,
    load: impl FnOnce(&mut dyn FnMut(LoadProgress)) -> Result<T, ModelError>,
) -> Result<(T, ModelDigest)> {
    let bars = MultiProgress::with_draw_target(draw_target());
    let [loading, hashing] = ["loading", "hashing"].map(|what| bars.add(progress_bar(what, name)));
    let is_in_vain = AtomicBool::new(false);
    let hash = || {
        hashes.digest_of(files, &|progress| {
            show(&hashing, progress);
            if is_in_vain.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
    };
    let (loaded, digest) = thread::scope(|scope| {
        let hashed = scope.spawn(hash);
        let loaded = load(&mut |progress| show(&loading, progress));
        is_in_vain.store(loaded.is_err(), Ordering::Relaxed);
        (loaded, hashed.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    [loading, hashing].iter().for_each(ProgressBar::finish_and_clear);
    Ok((loaded?, digest?))
}

/// What its weights are held as.
pub(crate) fn held_as(model: &ModelConfig, description: &ModelDescription) -> String {
    match model.dtype {
        WeightDtype::Auto => description.stored_dtype.to_string(),
        stated => format!("{stated:?}").to_lowercase(),
    }
}

fn options(model: &ModelConfig) -> LoadOptions {
    use passerelle_models::{KvDtype as Kv, WeightDtype as Weights};
    let dtype = match model.dtype {
        WeightDtype::Auto => Weights::Auto,
        WeightDtype::F32 => Weights::F32,
        WeightDtype::Bf16 => Weights::Bf16,
        WeightDtype::F16 => Weights::F16,
        WeightDtype::Q8_0 => Weights::Q8_0,
        WeightDtype::Q4_0 => Weights::Q4_0,
    };
    let kv_dtype = match model.kv_dtype {
        KvDtype::Auto => Kv::Auto,
        KvDtype::F32 => Kv::F32,
        KvDtype::Bf16 => Kv::Bf16,
    };
    LoadOptions { dtype, kv_dtype, max_model_len: model.max_model_len, ..LoadOptions::default() }
}

/// The checkpoints that `sources` name, in this order: a folder of checkpoints stands for all that are directly inside.
pub(crate) fn find_sources(sources: &[String], engine: &EngineConfig) -> Result<Vec<ModelConfig>> {
    let mut found = Vec::new();
    for source in sources {
        let path = Path::new(source);
        if path.is_dir() && !path.join("config.json").is_file() {
            found.extend(find_models(path, engine)?);
            continue;
        }
        let name = if path.exists() { path.file_stem().filter(|_| path.is_file()).or(path.file_name()) } else { None };
        let name = name.and_then(|name| name.to_str()).unwrap_or(source);
        found.push(ModelConfig::found(name.to_owned(), source.clone(), engine));
    }
    Ok(found)
}

/// Folders directly inside `folder` that hold a `config.json`, and GGUF files, in the order of their names.
fn find_models(folder: &Path, engine: &EngineConfig) -> Result<Vec<ModelConfig>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("server.models_dir: {}", folder.display()))? {
        let path = entry?.path();
        let is_gguf = path.extension().is_some_and(|extension| extension == "gguf") && path.is_file();
        if !is_gguf && !path.join("config.json").is_file() {
            continue;
        }
        let name = if is_gguf { path.file_stem() } else { path.file_name() };
        let (Some(name), Some(source)) = (name.and_then(|name| name.to_str()), path.to_str()) else {
            bail!("server.models_dir: {} is not a name that requests could use; rename it", path.display());
        };
        found.push(ModelConfig::found(name.to_owned(), source.to_owned(), engine));
    }
    ensure!(
        !found.is_empty(),
        "server.models_dir: no folder with a config.json and no .gguf file in {}",
        folder.display()
    );
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Redraws itself on a terminal and is silent elsewhere.
fn draw_target() -> ProgressDrawTarget {
    if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() }
}

fn progress_bar(what: &str, name: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {msg} [{bar:30}] {bytes} of {total_bytes}")
        .expect("the template is a constant that a test draws");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        .with_style(style)
        .with_prefix(what.to_owned())
        .with_message(name.to_owned())
}

fn show(bar: &ProgressBar, progress: LoadProgress) {
    bar.set_length(progress.bytes_total);
    bar.set_position(progress.bytes_done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_bar_can_be_drawn() {
        progress_bar("loading", "demo").finish();
    }

    #[test]
    fn only_checkpoints_are_found() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, is_checkpoint) in [("b", true), ("a", true), ("notes", false)] {
            std::fs::create_dir(folder.path().join(name)).expect("the folder is writable");
            if is_checkpoint {
                std::fs::write(folder.path().join(name).join("config.json"), "{}").expect("the folder is writable");
            }
        }
        std::fs::write(folder.path().join("c.Q8_0.gguf"), "GGUF").expect("the folder is writable");
        let config = Config::check(Default::default(), &environment()).expect("the defaults are valid");
        let found = find_models(folder.path(), &config.engine).expect("three checkpoints");
        assert_eq!(found.iter().map(|model| model.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c.Q8_0"]);
    }

    #[test]
    fn a_folder_s_model_cannot_take_the_name_of_another_nor_one_that_requests_cannot_use() {
        for (name, wanted) in [("demo", "two models are named `demo`"), ("a b", "`a b` is not a name")] {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let model = folder.path().join(name);
            std::fs::create_dir(&model).expect("the folder is writable");
            std::fs::write(model.join("config.json"), "{}").expect("the folder is writable");
            let mut config = Config::check(Default::default(), &environment()).expect("the defaults are valid");
            config.server.models_dir = Some(folder.path().to_owned());
            let error = load_all(&config, &Compute::cpu(1)).err().expect("it is refused before anything is loaded");
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_folder_without_checkpoints_is_refused() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let config = Config::check(Default::default(), &environment()).expect("the defaults are valid");
        let error = find_models(folder.path(), &config.engine).expect_err("it is empty");
        assert!(error.to_string().contains("no folder with a config.json"), "{error}");
    }

    fn environment() -> passerelle::config::Environment {
        let home = Some("/home/ada".into());
        passerelle::config::Environment { hf_home: home.clone(), home, ..Default::default() }
    }
}
