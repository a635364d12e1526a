//! From what the configuration names to models in memory.

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use passerelle::config::{ActivationDtype, Config, DEMO, EngineConfig, HubConfig, KvDtype, ModelConfig, WeightDtype};
use passerelle::hub::{self, HubOptions, Network, ProgressOutput, Source, Wanted};
use passerelle::text::TextModel;
use passerelle_models::ops::Compute;
use passerelle_models::{
    Activations, CausalLm, CheckpointFiles, CheckpointKind, Encoder, EncoderDescription, LoadOptions, LoadProgress,
    LoadWatch, LoadedModel, Manifest, ModelDescription, ModelDigest, StoredDtype, checkpoint_kind, describe_encoder,
};

use super::folder::{self, Found};
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
    pub(crate) activations: Activations,
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

/// A model in memory, of whichever kind.
pub(crate) enum AnyLoaded {
    Generator(Box<Loaded>),
    Encoder(Box<LoadedEncoder>),
}

/// What a checkpoint is, of whichever kind, without its weights.
pub(super) enum AnyDescription {
    Generator(ModelDescription),
    Encoder(EncoderDescription),
}

impl AnyDescription {
    pub(super) fn model(&self) -> &ModelDescription {
        match self {
            Self::Generator(description) => description,
            Self::Encoder(description) => &description.model,
        }
    }
}

/// What every model is loaded with.
#[derive(Clone, Copy)]
pub(crate) struct LoadContext<'a> {
    pub(crate) hub: &'a HubConfig,
    pub(crate) compute: &'a Compute,
    pub(crate) hashes: &'a KeptHashes,
}

/// The models that the configuration names and that lie on no partition, in its order.
pub(crate) fn load_all(config: &Config, context: LoadContext<'_>) -> Result<Vec<AnyLoaded>> {
    // All of them first: where one is not what was signed, nothing is loaded.
    let inspector = Inspector::new(config)?;
    let here = || config.models.iter().filter(|model| model.partition.is_none());
    here().try_for_each(|model| of_source(config, model, inspector.inspect(model, context.hashes)))?;
    here().map(|model| of_source(config, model, load_any(model, context))).collect()
}

/// What was read of a model of the configuration; what is wrong with it is told with the line that names it.
pub(super) fn of_source<T>(config: &Config, model: &ModelConfig, read: Result<T>) -> Result<T> {
    match config.place_of_source(model) {
        Some(place) => read.context(place),
        None => read,
    }
}

pub(super) fn load_any(model: &ModelConfig, context: LoadContext<'_>) -> Result<AnyLoaded> {
    let named = || format!("model `{}`", model.name);
    let files = find_files(&model.source, wanted_of(model), context.hub).with_context(named)?;
    // Before its tokenizer is missed.
    Manifest::require_parts(&files).with_context(named)?;
    match checkpoint_kind(&files).with_context(named)? {
        CheckpointKind::Generator => Ok(AnyLoaded::Generator(Box::new(load(model, context)?))),
        CheckpointKind::Encoder => {
            Ok(AnyLoaded::Encoder(Box::new(load_encoder(model, files, context).with_context(named)?)))
        }
    }
}

/// What can be known of a model before it is loaded.
pub(super) fn describe(model: &ModelConfig, hub: &HubConfig) -> Result<AnyDescription> {
    let files = find_files(&model.source, wanted_of(model), hub)?;
    Ok(match checkpoint_kind(&files)? {
        CheckpointKind::Generator => AnyDescription::Generator(passerelle_models::describe(&files)?),
        CheckpointKind::Encoder => AnyDescription::Encoder(describe_encoder(&files)?),
    })
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

pub(crate) fn load(model: &ModelConfig, context: LoadContext<'_>) -> Result<Loaded> {
    load_named(model, context).with_context(|| format!("model `{}`", model.name))
}

fn load_named(model: &ModelConfig, context: LoadContext<'_>) -> Result<Loaded> {
    let files = find_files(&model.source, wanted_of(model), context.hub)?;
    let ((text, loaded), digest) = beside_hashing(&model.name, &files, context, |compute, show| {
        beside_text(model, &files, context.hub, show, |watch| {
            Ok(passerelle_models::load(&files, compute, &load_options(model), watch)?)
        })
    })?;
    let dtype = held_as(model, &loaded.description);
    warn_of_floats(model, &dtype);
    let LoadedModel { model: held, description, activations } = loaded;
    Ok(Loaded {
        name: model.name.clone(),
        files,
        model: held,
        description,
        activations,
        digest,
        dtype,
        text: Arc::new(text),
    })
}

/// What of a source this model needs.
pub(crate) fn wanted_of(model: &ModelConfig) -> Wanted {
    if model.tokenizer.is_some() { Wanted::CheckpointWithoutTokenizer } else { Wanted::Checkpoint }
}

fn load_encoder(model: &ModelConfig, files: CheckpointFiles, context: LoadContext<'_>) -> Result<LoadedEncoder> {
    let ((text, loaded), digest) = beside_hashing(&model.name, &files, context, |compute, show| {
        beside_text(model, &files, context.hub, show, |watch| {
            Ok(passerelle_models::load_encoder(&files, compute, &load_options(model), watch)?)
        })
    })?;
    let dtype = held_as(model, &loaded.description.model);
    warn_of_floats(model, &dtype);
    let (name, text, description) = (model.name.clone(), Arc::new(text), loaded.description);
    Ok(LoadedEncoder { name, files, model: loaded.model, description, digest, dtype, text })
}

/// Reads the text side while the weights are loaded: one thread takes about as long for a large vocabulary as all threads
/// for the weights of a small model. It is often what is wrong, which ends the load.
fn beside_text<T>(
    model: &ModelConfig,
    files: &CheckpointFiles,
    hub: &HubConfig,
    show: &mut dyn FnMut(LoadProgress),
    load: impl FnOnce(LoadWatch<'_>) -> Result<T>,
) -> Result<(TextModel, T)> {
    let is_in_vain = AtomicBool::new(false);
    let read = || text::load(model, files, hub).inspect_err(|_| is_in_vain.store(true, Ordering::Relaxed));
    thread::scope(|scope| {
        let text = scope.spawn(read);
        let loaded = load(&mut |progress| {
            show(progress);
            go_on_unless(&is_in_vain)
        });
        let text = text.join().unwrap_or_else(|panic| resume_unwind(panic));
        Ok((text?, loaded?))
    })
}

/// Hashes a checkpoint while it is loaded, so that whichever takes longer is all that takes time. A model answers when both
/// are done: every answer, and its entry in the ledger, names the digest.
///
/// A file is hashed by one thread, which takes longer than all others take to load it; so these leave it a processor.
fn beside_hashing<T>(
    name: &str,
    files: &CheckpointFiles,
    LoadContext { compute, hashes, .. }: LoadContext<'_>,
    load: impl FnOnce(&Compute, &mut dyn FnMut(LoadProgress)) -> Result<T>,
) -> Result<(T, ModelDigest)> {
    let bars = MultiProgress::with_draw_target(draw_target());
    let [loading, hashing] = ["loading", "hashing"].map(|what| bars.add(progress_bar(what, name)));
    let is_in_vain = AtomicBool::new(false);
    let is_hashing = Arc::new(AtomicBool::new(hashes.kept_digest_of(files).is_none()));
    let hash = || {
        let digest = hashes.digest_of(files, &|progress| {
            show(&hashing, progress);
            go_on_unless(&is_in_vain)
        });
        is_hashing.store(false, Ordering::Relaxed);
        digest
    };
    let compute = &compute.clone().beside(Arc::clone(&is_hashing));
    let (loaded, digest) = thread::scope(|scope| {
        let hashed = scope.spawn(hash);
        let loaded = load(compute, &mut |progress| show(&loading, progress));
        is_in_vain.store(loaded.is_err(), Ordering::Relaxed);
        (loaded, hashed.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    [loading, hashing].iter().for_each(ProgressBar::finish_and_clear);
    Ok((loaded?, digest?))
}

fn go_on_unless(is_in_vain: &AtomicBool) -> ControlFlow<()> {
    if is_in_vain.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// What its weights are held as, and meet if that is not as usual.
pub(crate) fn held_as(model: &ModelConfig, description: &ModelDescription) -> String {
    let dtype = match model.dtype {
        WeightDtype::Auto => description.stored_dtype.to_string(),
        stated => format!("{stated:?}").to_lowercase(),
    };
    // A GGUF file may hold some tensors as floats, most even.
    let may_be_quantised = model.dtype == WeightDtype::Auto && hub::is_gguf(Path::new(&model.source));
    match model.activation_dtype {
        ActivationDtype::Int8 if may_be_quantised || is_quantised(&dtype) => format!("{dtype}, activations int8"),
        ActivationDtype::Int8 | ActivationDtype::Int16 => dtype,
    }
}

/// Only products with quantised weights round what they meet.
fn warn_of_floats(model: &ModelConfig, held_as: &str) {
    if model.activation_dtype == ActivationDtype::Int8 && !held_as.contains("int8") {
        tracing::warn!(
            model = model.name,
            "activation_dtype (--activation-dtype) int8 changes nothing: its weights are {held_as}, and not quantised"
        );
    }
}

/// Of what [`held_as`] says.
pub(crate) fn is_quantised(held_as: &str) -> bool {
    StoredDtype::ALL.into_iter().any(|dtype| dtype.is_quantised() && held_as.starts_with(&dtype.to_string()))
}

/// How a model of the configuration is held.
pub(crate) fn load_options(model: &ModelConfig) -> LoadOptions {
    use passerelle_models::{ActivationDtype as ActivationsIn, KvDtype as Kv, WeightDtype as Weights};
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
        KvDtype::Int8 => Kv::Int8,
    };
    let activation_dtype = match model.activation_dtype {
        ActivationDtype::Int16 => ActivationsIn::Int16,
        ActivationDtype::Int8 => ActivationsIn::Int8,
    };
    LoadOptions { dtype, kv_dtype, activation_dtype, max_model_len: model.max_model_len, ..LoadOptions::default() }
}

/// The checkpoints that `sources` name, in this order: a folder of checkpoints stands for all that are inside.
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

/// Those of [`folder::look`].
fn find_models(folder: &Path, engine: &EngineConfig) -> Result<Vec<ModelConfig>> {
    let found = folder::look(folder).with_context(|| folder.display().to_string())?.found;
    ensure!(!found.is_empty(), "no folder with a config.json and no .gguf file in {}", folder.display());
    let model = |found: Found| {
        let source = found.path.to_str().with_context(|| format!("{}: rename it", found.path.display()))?.to_owned();
        Ok(ModelConfig::found(found.name, source, engine))
    };
    found.into_iter().map(model).collect()
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
    use anyhow::bail;
    use passerelle::config::{Environment, Written};
    use passerelle_models::demo_checkpoint;

    use super::*;

    /// The demo alone, with further keys.
    fn demo_with(keys: &str) -> Config {
        let written = format!("models = [{{ source = \"demo\", {keys} }}]");
        let written: Written = toml::from_str(&written).expect("it is well formed");
        let home = Some(std::env::temp_dir());
        let environment = Environment { hf_home: home.clone(), home, ..Environment::default() };
        Config::check(written, &environment).expect("valid")
    }

    #[test]
    fn what_activations_are_rounded_to_is_named_beside_quantised_weights() {
        let description = passerelle_models::describe(&demo_checkpoint()).expect("it is whole");
        let held = |keys: &str| held_as(&demo_with(keys).models[0], &description);
        let int8 = held("dtype = \"q8_0\", activation_dtype = \"int8\"");
        assert_eq!(int8, "q8_0, activations int8");
        assert!(is_quantised(&int8) && is_quantised("q4_k") && !is_quantised("bf16"));
        assert_eq!(held("dtype = \"q8_0\", activation_dtype = \"int16\""), "q8_0");
        assert_eq!(held("dtype = \"bf16\", activation_dtype = \"int8\""), "bf16", "they meet none");
    }

    #[test]
    fn a_tokenizer_that_is_none_ends_the_load_of_the_weights_and_is_what_is_told() {
        let empty = tempfile::tempdir().expect("a folder");
        let path = empty.path().display().to_string();
        let config = demo_with(&format!("tokenizer = \"{path}\""));
        let progress = LoadProgress { bytes_done: 0, bytes_total: 1 };
        let (model, files) = (&config.models[0], &demo_checkpoint());
        let failed = beside_text::<()>(model, files, &config.hub, &mut |_| (), |watch| {
            while watch(progress).is_continue() {
                thread::yield_now();
            }
            bail!("the weights")
        });
        let told = format!("{:#}", failed.expect_err("there is no tokenizer"));
        assert!(told.contains(&path) && !told.contains("the weights"), "{told}");
    }

    #[test]
    fn a_chat_template_that_is_none_is_told_as_the_file_that_it_stands_in() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("mine.jinja");
        std::fs::write(&path, "{% if %}").expect("the folder is writable");
        let config = demo_with(&format!("chat_template = \"{}\"", path.display()));
        let error = text::load(&config.models[0], &demo_checkpoint(), &config.hub).expect_err("it is no template");
        let told = format!("{error:#}");
        let begins = format!("chat_template (--chat-template): {}: ", path.display());
        assert!(told.starts_with(&begins) && !told.contains("chat_template.jinja"), "{told}");
    }

    #[test]
    fn the_progress_bar_can_be_drawn() {
        progress_bar("loading", "demo").finish();
    }
}
