//! The threads of the shelf: one thread looks at the folder, one brings models into memory and lets them go.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use passerelle::api::AppState;
use passerelle::config::{
    ByteSize, Config, EngineConfig, HubConfig, MODELS_DIR, ModelConfig, WeightDtype, fits_as_checkpoint,
};
use passerelle::gateway::Shelf;
use passerelle::gateway::replica::ReplicaId;
use passerelle::gateway::shelf::{DiskDigest, Order, Size};
use passerelle::gateway::tariff::Tariff;
use passerelle::trust::stated_digest;
use passerelle_models::{ModelDescription, WeightLayout, footprint};

use super::engines::{self, EngineFactory, Running, RunningHandle, Started};
use super::folder::{self, Found, Look, Stamp};
use super::hashes::KeptHashes;
use super::ledger::facts_of;
use super::memory::free_memory;
use super::models::{self, LoadContext};
use super::tariff::Pricing;
use super::trusted::Inspector;

/// Where the KV cache of each is bounded, for errors.
const KV_CACHE: &str = "shelf.kv_cache";
/// Without a stated size, models that come and go get this part of the memory that is free beside those that stay.
const FREE_MEMORY_PART: u64 = 2;
/// The ids of what comes and goes begin here; what stays, and upstreams, have smaller ones.
const FIRST_REPLICA: u32 = 1 << 24;
/// Packing makes weights larger than they are stored, by at most this part...
const PACKING_PART: u64 = 16;
/// ...and this much in a small model.
const PACKING_BYTES: u64 = 64 << 10;

/// Dropped: no model comes any more, and those in memory go.
pub(super) struct ShelfKeeper {
    shelf: Shelf,
    resident: Arc<Mutex<Residents>>,
    _stop_looking: SyncSender<()>,
}

type Residents = BTreeMap<String, (Running, ReplicaId)>;

/// What was found of each model, for whoever loads it.
type Catalogue = Arc<Mutex<BTreeMap<String, ModelConfig>>>;

/// A shelf whose folder was looked at, before anything is loaded.
pub(super) struct NewShelf {
    pub(super) shelf: Shelf,
    watcher: FolderWatcher,
    look_interval: Duration,
    loader: LoaderParts,
}

/// What loading takes, beside the server that is told of it.
struct LoaderParts {
    factory: EngineFactory,
    hub: HubConfig,
    inspector: Inspector,
    hashes: Arc<KeptHashes>,
    kv_cache: ByteSize,
    pricing: Arc<Pricing>,
    catalogue: Catalogue,
}

impl NewShelf {
    /// `None` without a folder. `staying`: names of models that stay. Errors when a key that is trusted cannot be read.
    pub(super) fn open(
        config: &Config,
        factory: EngineFactory,
        pricing: Pricing,
        tariff: &Arc<Tariff>,
        staying: &[String],
    ) -> Result<Option<Self>> {
        let Some(folder) = config.server.models_dir.clone() else {
            if config.shelf.memory.is_some() {
                tracing::warn!("--model-memory is for the models of --models-dir, and there is none");
            }
            return Ok(None);
        };
        let inspector = Inspector::new(config)?;
        let memory = config.shelf.memory.unwrap_or_else(|| ByteSize(free_memory().0 / FREE_MEMORY_PART));
        let shelf = Shelf::new(memory.0, factory.clock());
        let (pricing, catalogue) = (Arc::new(pricing), Catalogue::default());
        let hashes = Arc::new(KeptHashes::open(&config.server.data_dir));
        let mut watcher = FolderWatcher {
            folder,
            engine: config.engine.clone(),
            hub: config.hub.clone(),
            inspector: inspector.clone(),
            hashes: Arc::clone(&hashes),
            kv_cache: config.shelf.kv_cache,
            memory,
            max_models: config.shelf.max_models,
            staying: staying.iter().cloned().collect(),
            factory: factory.clone(),
            pricing: Arc::clone(&pricing),
            tariff: Arc::clone(tariff),
            catalogue: Arc::clone(&catalogue),
            shelf: shelf.clone(),
            seen: BTreeMap::new(),
            told: BTreeSet::new(),
        };
        let upstreams = config.upstreams.iter().map(|upstream| upstream.model.as_str());
        watcher.look(&config.aliases.keys().map(String::as_str).chain(upstreams).collect());
        tracing::info!(models = shelf.rows().len(), %memory, "models of the folder come when they are asked for");
        let (hub, kv_cache) = (config.hub.clone(), config.shelf.kv_cache);
        let loader = LoaderParts { factory, hub, inspector, hashes, kv_cache, pricing, catalogue };
        Ok(Some(Self { shelf, watcher, look_interval: config.shelf.look_interval, loader }))
    }

    /// From now on models come when they are asked for, and the folder is looked at.
    pub(super) fn keep(self, state: AppState) -> Result<ShelfKeeper> {
        let Self { shelf, mut watcher, look_interval, loader } = self;
        let resident = Arc::new(Mutex::new(Residents::new()));
        let mut loader = ModelLoader {
            shelf: shelf.clone(),
            state: state.clone(),
            resident: Arc::clone(&resident),
            next_id: FIRST_REPLICA,
            parts: loader,
        };
        let (stop, stopped) = sync_channel(0);
        spawn("models", move || loader.obey())?;
        spawn("models folder", move || watcher.look_every(look_interval, &stopped, &state))?;
        Ok(ShelfKeeper { shelf, resident, _stop_looking: stop })
    }
}

impl ShelfKeeper {
    /// Of everything in memory at this moment.
    pub(super) fn handles(&self) -> impl Fn() -> Vec<RunningHandle> + Send + use<> {
        let resident = Arc::clone(&self.resident);
        move || lock(&resident).values().map(|(running, _)| running.handle()).collect()
    }
}

impl Drop for ShelfKeeper {
    /// A load that is under way ends by itself, and with the process.
    fn drop(&mut self) {
        self.shelf.close();
        lock(&self.resident).clear();
    }
}

/// Carries out what the shelf decides, one order after the other.
struct ModelLoader {
    shelf: Shelf,
    state: AppState,
    resident: Arc<Mutex<Residents>>,
    next_id: u32,
    parts: LoaderParts,
}

impl ModelLoader {
    fn obey(&mut self) {
        while let Some(order) = self.shelf.next_order() {
            match order {
                Order::Load(model) => self.load(&model),
                Order::Unload(model) => self.unload(&model),
            }
        }
    }

    fn load(&mut self, model: &str) {
        // One checkpoint must not end the loading of all others.
        let loaded = catch_unwind(AssertUnwindSafe(|| self.bring(model)));
        match loaded.unwrap_or_else(|_| Err(anyhow!("loading it panicked"))) {
            Ok(()) => self.shelf.loaded(model),
            Err(error) => {
                let why = format!("{error:#}");
                tracing::error!(model, why, "a model cannot be loaded");
                self.shelf.failed(model, &why);
            }
        }
    }

    fn bring(&mut self, name: &str) -> Result<()> {
        let LoaderParts { factory, hub, inspector, hashes, kv_cache, pricing, catalogue } = &self.parts;
        let model = lock(catalogue).get(name).cloned().context("it is gone from the folder")?;
        let identify = || self.shelf.identify(name, disk_digest(&model, hub, hashes, inspector));
        // Again: it may have changed since it was found. Also one that is refused for it is shown as what it is now.
        let inspected = inspector.inspect(&model, &**hashes);
        identify();
        inspected?;
        let loaded = models::load_any(&model, LoadContext { hub, compute: &factory.compute, hashes })?;
        identify();
        let is = loaded.description();
        let price = pricing.price(name, factory.partition(), engines::price(is))?;
        let weights_bytes = is.resident_bytes.unwrap_or(is.stored_bytes);
        let (num_kv_blocks, kv_bytes) = factory.kv_blocks(&loaded, *kv_cache, KV_CACHE)?;
        self.shelf.weighed(name, weights_bytes.saturating_add(kv_bytes))?;
        let id = ReplicaId(self.next_id);
        self.next_id = self.next_id.checked_add(1).unwrap_or(FIRST_REPLICA);
        let Started { running, served, replica } = factory.start(loaded, num_kv_blocks, id)?;
        // Before anybody can ask for it: what is admitted is priced and named.
        let ledger = self.state.ledger();
        ledger.tariff().set(name, price);
        ledger.know(name, facts_of(&served, &factory.partition().into()));
        lock(&self.resident).insert(name.to_owned(), (running, id));
        self.state.change_serving(|former| former.with_model(served, replica));
        Ok(())
    }

    fn unload(&mut self, model: &str) {
        let resident = lock(&self.resident).remove(model);
        if let Some((running, id)) = resident {
            self.state.change_serving(|former| former.without_model(model, id));
            // Its thread ends, and gives its memory back.
            drop(running);
        }
        tracing::info!(model, "unloaded");
        self.shelf.left(model);
    }
}

/// Tells the shelf what lies in the folder.
struct FolderWatcher {
    folder: PathBuf,
    engine: EngineConfig,
    hub: HubConfig,
    inspector: Inspector,
    hashes: Arc<KeptHashes>,
    kv_cache: ByteSize,
    memory: ByteSize,
    max_models: usize,
    /// Names of models that stay.
    staying: BTreeSet<String>,
    factory: EngineFactory,
    pricing: Arc<Pricing>,
    tariff: Arc<Tariff>,
    catalogue: Catalogue,
    shelf: Shelf,
    seen: BTreeMap<String, Stamp>,
    /// Warnings that were given already.
    told: BTreeSet<String>,
}

impl FolderWatcher {
    /// Until the other end of `stopped` is dropped.
    fn look_every(&mut self, interval: Duration, stopped: &Receiver<()>, state: &AppState) {
        while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(interval) {
            // Another configuration may be in force.
            self.look(&state.serving().names_elsewhere().collect());
        }
    }

    /// `elsewhere`: names of upstreams' models and of aliases.
    fn look(&mut self, elsewhere: &BTreeSet<&str>) {
        match folder::look(&self.folder) {
            Ok(Look { found, passed_over }) => {
                passed_over.iter().for_each(|problem| self.warn_once(format!("{MODELS_DIR}: {problem}")));
                if found.is_empty() {
                    self.warn_once(format!(
                        "{MODELS_DIR}: no checkpoint in {}: each is a folder with config.json and .safetensors files, \
                         or a .gguf file",
                        self.folder.display()
                    ));
                }
                self.compare(found, elsewhere);
            }
            Err(error) => self.complain(&error),
        }
    }

    /// A disk that is away for a moment takes no model away.
    fn complain(&mut self, error: &io::Error) {
        self.warn_once(format!("{MODELS_DIR}: cannot read {}: {error}", self.folder.display()));
    }

    fn compare(&mut self, mut found: Vec<Found>, elsewhere: &BTreeSet<&str>) {
        found.retain(|found| self.is_wanted(&found.name, elsewhere));
        if found.len() > self.max_models {
            let (most, there, folder) = (self.max_models, found.len(), self.folder.display());
            let told = format!("{MODELS_DIR}: of {there} checkpoints in {folder} {most} are served (shelf.max_models)");
            self.warn_once(told);
            found.truncate(most);
        }
        let gone: Vec<String> =
            self.seen.keys().filter(|name| !found.iter().any(|found| found.name == **name)).cloned().collect();
        for name in gone {
            self.seen.remove(&name);
            self.shelf.withdraw(&name);
        }
        for Found { name, path, stamp } in found {
            if self.seen.get(&name) == Some(&stamp) {
                continue;
            }
            let source = path.to_string_lossy().into_owned();
            let model = ModelConfig::found(name.clone(), source, &self.engine);
            lock(&self.catalogue).insert(name.clone(), model.clone());
            let offer = self.size_up(&model).map_err(|error| format!("{error:#}"));
            if let Err(why) = &offer {
                tracing::warn!(model = name, why, "a checkpoint of the folder cannot be served");
            }
            self.shelf.offer(&name, offer);
            self.shelf.identify(&name, disk_digest(&model, &self.hub, &self.hashes, &self.inspector));
            self.seen.insert(name, stamp);
        }
    }

    fn is_wanted(&mut self, name: &str, elsewhere: &BTreeSet<&str>) -> bool {
        let problem = if !fits_as_checkpoint(name) {
            "is not a name that requests could use: letters, digits and - _ . : / alone"
        } else if self.staying.contains(name) || elsewhere.contains(name) {
            "is the name of another model or of an alias"
        } else {
            return true;
        };
        self.warn_once(format!("{MODELS_DIR}: `{name}` in {} {problem}; rename it", self.folder.display()));
        false
    }

    fn warn_once(&mut self, warning: String) {
        if !self.told.contains(&warning) {
            tracing::warn!("{warning}");
            self.told.insert(warning);
        }
    }

    /// Of what is written in its headers. What nobody could pay for is refused before it is loaded.
    fn size_up(&self, model: &ModelConfig) -> Result<Size> {
        self.inspector.inspect(model, &*self.hashes)?;
        let description = models::describe(model, &self.hub)?;
        let is = description.model();
        let price = self.pricing.price(&model.name, self.factory.partition(), engines::price(is))?;
        // Before it is loaded: a process that died may have left requests of it to be settled, and limits say what is left.
        if self.tariff.price(&model.name).is_none() {
            self.tariff.set(&model.name, price);
        }
        let files = models::find_files(&model.source, models::wanted_of(model), &self.hub)?;
        let taken = footprint(&files, &models::load_options(model), WeightLayout::Panels)?;
        let kv_cache_bytes = self.factory.kv_bytes(&taken, self.kv_cache, KV_CACHE)?;
        let size = Size { weights_bytes: weights_bytes(model.dtype, is), kv_cache_bytes };
        self.require_room(size)?;
        Ok(size)
    }

    fn require_room(&self, size: Size) -> Result<()> {
        let [weights, cache] = [size.weights_bytes, size.kv_cache_bytes].map(ByteSize);
        let (needed, memory) = (ByteSize(weights.0.saturating_add(cache.0)), self.memory);
        ensure!(
            needed.0 <= memory.0,
            "it takes {needed}, {cache} of them for its KV cache (shelf.kv_cache), and all models of the folder have {memory} \
             (--model-memory)"
        );
        Ok(())
    }
}

/// Of its files as they lie there, if they were hashed before, or come with a manifest that may be theirs. Where keys are
/// trusted, a manifest says nothing by itself: what one of them signed has been hashed.
fn disk_digest(model: &ModelConfig, hub: &HubConfig, hashes: &KeptHashes, inspector: &Inspector) -> Option<DiskDigest> {
    let files = models::find_files(&model.source, models::wanted_of(model), hub).ok()?;
    let stated = || if inspector.has_keys() { None } else { stated_digest(&files).map(DiskDigest::Stated) };
    hashes.kept_digest_of(&files).map(DiskDigest::Hashed).or_else(stated)
}

/// At most. What is quantised as it is loaded counts as it is stored, until it is.
fn weights_bytes(dtype: WeightDtype, is: &ModelDescription) -> u64 {
    let bytes = match dtype {
        WeightDtype::Auto | WeightDtype::Q8_0 | WeightDtype::Q4_0 => is.stored_bytes,
        WeightDtype::F32 => is.num_parameters.saturating_mul(4),
        WeightDtype::Bf16 | WeightDtype::F16 => is.num_parameters.saturating_mul(2).max(is.stored_bytes / 2),
    };
    bytes.saturating_add(bytes / PACKING_PART).saturating_add(PACKING_BYTES)
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    thread::Builder::new().name(name.to_owned()).spawn(body).map(drop).context("cannot start a thread")
}

/// Each critical section is one call on the map.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
