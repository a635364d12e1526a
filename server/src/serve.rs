//! From a checked configuration to a server that answers, and back down.
//!
//! The order is deliberate: keys before models (a server that may not open its door loads nothing), models before the
//! listener (nothing listens that cannot answer), and on the way down the listener before the engines.

// What a configuration comes to.
mod bounds;
mod defaults;
mod door;
mod logging;
#[cfg_attr(not(feature = "upstream"), path = "serve/no_upstreams.rs")]
mod upstreams;

// Models, from their files to their engines.
mod devices;
mod engines;
mod folder;
mod gguf;
mod hashes;
mod kept_costs;
mod kept_file;
mod memory;
mod memory_order;
mod models;
mod report;
mod shelf;
mod text;
mod trusted;

// Models in processes of their own.
mod caps;
mod gateway_address;
mod placed;
mod worker_process;
mod workers;

// What is written down, and what it costs.
mod ledger;
mod tariff;

// While it runs.
mod admin_socket;
mod listener;
mod reload;
mod signals;

use std::collections::BTreeMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use passerelle::api::{
    self, AppParts, AppState, BrowserGuard, Listener, OperatorBackend, Readiness, Reloader, ServeConfig, ServedModel,
    Tls,
};
use passerelle::batches::BatchStore;
use passerelle::config::{Config, TlsFiles};
use passerelle::evaluation::PairStore;
use passerelle::gateway::health::LOOK_EVERY;
use passerelle::gateway::ledger::ModelFacts;
use passerelle::gateway::quota::UnixSeconds;
use passerelle::gateway::{Authenticator, Ledger, Replica, Router, Tariff};
use passerelle::metrics;
use passerelle_engine::clock::{Clock, SystemClock};
use passerelle_engine::{ComparisonLane, EngineHandle};
use tokio::runtime::Runtime;
use tokio::signal::unix::Signal;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::cli::output;
use bounds::{api_config, batch_bounds, serve_config};
use engines::{EngineFactory, Fleet, Running, RunningHandle};
use ledger::{LedgerBasis, LedgerKeeper, LedgerLock};
use placed::Placed;
use reload::{Directions, ReadAgain, Reloading};
use shelf::{NewShelf, ShelfKeeper};
use signals::Signals;
use tariff::StartPrices;
use upstreams::Upstreams;
use workers::{Arrivals, WorkersKeeper};

pub(crate) use admin_socket::ADMIN_SOCKET;
pub(crate) use caps::shared_devices;
pub(crate) use devices::{Sight, compute, listed_devices, sized_for, warning_of_threads};
pub(crate) use door::{Door, default_limits};
pub(crate) use engines::EngineBounds;
#[cfg(test)]
pub(crate) use engines::kv_demand;
pub(crate) use gateway_address::GatewayAddress;
pub(crate) use hashes::KeptHashes;
use kept_costs::KeptCosts;
pub(crate) use ledger::{calendar, on_the_shelf};
pub(crate) use memory::{FREE_MEMORY_PART, KV_CACHE_MEMORY, free_memory, kv_budget, share_kv_memory, step_bytes};
pub(crate) use models::{
    LoadContext, Loaded, find_files, find_sources, held_as, is_quantised, load, load_options, wanted_of,
};
pub(crate) use reload::owners;
pub(crate) use report::device_name;
pub(crate) use text::load as load_text;
pub(crate) use trusted::Inspector;
pub(crate) use worker_process::{Lifeline, Until, WorkerAssignment, run_worker};
pub(crate) use workers::{WorkerCommand, last_day};

/// HTTP and text need little beside the threads that compute.
const MOST_ASYNC_THREADS: usize = 2;
/// What connections get, after the drain timeout, to send how their requests ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Loaded, listening, not yet answering.
pub(crate) struct Server {
    /// `http://ADDR:PORT` or `unix:PATH`.
    pub(crate) url: String,
    listener: Listener,
    router: axum::Router,
    readiness: Readiness,
    config: ServeConfig,
    /// Before the engines whose models it borrows.
    comparisons: ComparisonLane,
    /// Dropped late: every answer needs its engine to the end.
    engines: Vec<Running>,
    /// `None`: no models come and go.
    shelf: Option<ShelfKeeper>,
    /// The models of partitions, and what their workers have in common with engines here.
    placed: (Arc<Placed>, EngineFactory),
    /// `None`: nobody works for this server.
    workers: Option<WorkersKeeper>,
    state: AppState,
    /// Ends once the server drains and the requests that run are over.
    batches: JoinHandle<()>,
    /// Until somebody follows the configuration.
    reloading: Option<Reloading>,
    /// Dropped last: every request is settled. `None` for a server without a data directory.
    _ledger: Option<LedgerKeeper>,
}

/// Serves until a signal, then drains. Returns when everything has ended well.
pub(crate) fn run(config: &Config, workers: WorkerCommand, again: ReadAgain) -> Result<()> {
    logging::start(&config.log);
    let runtime = runtime()?;
    // From here on SIGHUP ends nothing, also while models are loaded.
    let hangups = runtime.block_on(async { signals::hangups() })?;
    let mut server = start(config, Door::AsConfigured, &runtime)?;
    let mut signals = runtime.block_on(async { Signals::new() })?;
    if server.start_workers(config, workers, &runtime, signals.next())? == Partitions::WithoutWorkers {
        tracing::info!("ended before it was ready");
        return Ok(());
    }
    runtime.block_on(async { server.follow_configuration(again, hangups) })?;
    output::line(format_args!("ready: {}", server.url))?;
    runtime.block_on(server.serve(async {
        signals.next().await;
        tokio::spawn(signals.end_at_once());
    }));
    tracing::info!("ended");
    Ok(())
}

pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(async_threads(std::thread::available_parallelism().map_or(1, NonZero::get)))
        .enable_all()
        .build()
        .context("cannot start the async threads")
}

/// Every token wakes a thread, and where there are two, that one wakes the other in case there is more to do. On a machine of two
/// processors both take the time from those that compute.
fn async_threads(processors: usize) -> usize {
    (processors / 2).clamp(1, MOST_ASYNC_THREADS)
}

/// Keys, models, engines, listener, in this order.
pub(crate) fn start(config: &Config, door: Door, runtime: &Runtime) -> Result<Server> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (authenticator, administration) = door::authenticator(config, door, &clock, runtime)?;
    let lock = match door {
        Door::AsConfigured => Some(LedgerLock::take(config)?),
        Door::Open => None,
    };
    let tls = config.server.tls.as_ref().map(load_tls).transpose()?;
    let reserved = listener::reserve(&config.server.listen)?;
    check_before_loading(config)?;
    let started = started_models(config, &clock)?;
    let StartedModels { running, comparisons, served, replicas, staying, tariff, prices, new_shelf, placed, factory } =
        started;
    let (partition, metrics) = (factory.partition(), Arc::clone(&factory.metrics));
    let shelf = new_shelf.as_ref().map(|new| new.shelf.clone());
    let here = reload::models_here(&staying, shelf.as_ref());
    let (settings, remote) = upstreams::prepare(config, &here)?.split();
    let basis = LedgerBasis { clock: Arc::clone(&clock), tariff, hours: Arc::clone(metrics.hours()) };
    let mut upstreams =
        Upstreams::new(Arc::clone(&clock), runtime.handle().clone(), (replicas.len() + placed.len()) as u32);
    let planned = upstreams.plan(settings)?;
    let replicas = replicas.into_iter().chain(placed.replicas()).chain(planned.replicas());
    let router = Router::new(replicas, Arc::clone(&clock), engines::random_seed()?);
    let serving = Directions::of(config, administration.as_ref(), &here, remote)?.serve(router);
    upstreams.adopt(planned);
    let (reloader, orders) = Reloader::new();
    let (ledger, ledger_keeper) = open_ledger(&authenticator, lock, basis, config, ledger::facts(&served, partition))?;
    let batches = (door == Door::AsConfigured).then(|| open_batches(config)).transpose()?;
    let (readiness, api_config) = (Readiness::default(), api_config(config, guard(&authenticator))?);
    let state = AppState::new(AppParts {
        models: served,
        shelf: shelf.clone(),
        authenticator,
        administration,
        reloader: Some(reloader.clone()),
        ledger,
        serving,
        clock,
        metrics,
        comparisons: comparisons.handle(),
        batches,
        shadow_store: open_shadow_store(config)?,
        config: api_config,
        readiness: readiness.clone(),
    });
    run_beside_requests(&state, config, runtime);
    let keeper = new_shelf.map(|new| new.keep(state.clone())).transpose()?;
    let (in_force, proof, seen) = (config.clone(), tls.clone(), state.clone());
    let reloading =
        Reloading { config: in_force, proof, orders, reloader, staying, shelf, upstreams, prices, state: seen };
    let (listener, url) = runtime.block_on(async { reserved.listen(tls) })?;
    Ok(Server {
        url,
        listener,
        router: api::router(state.clone()),
        readiness,
        config: serve_config(config),
        comparisons,
        engines: running,
        shelf: keeper,
        placed: (Arc::new(placed), factory),
        workers: None,
        batches: runtime.spawn(api::run_batches(state.clone())),
        state,
        reloading: Some(reloading),
        _ledger: ledger_keeper,
    })
}

/// The administration's socket, and a look at the replicas now and then.
fn run_beside_requests(state: &AppState, config: &Config, runtime: &Runtime) {
    if let Some(backend) = OperatorBackend::of_server(state.clone()) {
        admin_socket::open(&config.server.data_dir, backend, serve_config(config), runtime);
    }
    runtime.spawn(look_after_replicas(state.clone()));
}

/// What is wrong whatever the models hold is said before they are loaded, which may take minutes.
fn check_before_loading(config: &Config) -> Result<()> {
    ledger::calendar(&config.ledger).map_err(|error| config.located(error))?;
    devices::check_partitions(config)?;
    if config.server.models_dir.is_some() {
        // What its models are called is known once it was looked at.
        return Ok(());
    }
    let here: Vec<String> = config.models.iter().map(|model| model.name.clone()).collect();
    let served: Vec<&str> = here.iter().map(String::as_str).chain(elsewhere_only(config, &here)).collect();
    reload::check_names(config, &served, &here)
}

/// Whether a server's partitions have their workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Partitions {
    WithWorkers,
    /// Somebody ended the server before.
    WithoutWorkers,
}

/// What is served, priced, and not yet answering.
struct StartedModels {
    running: Vec<Running>,
    comparisons: ComparisonLane,
    served: Vec<ServedModel>,
    replicas: Vec<Arc<Replica>>,
    /// Names of the models that stay in memory.
    staying: Vec<String>,
    tariff: Arc<Tariff>,
    prices: StartPrices,
    new_shelf: Option<NewShelf>,
    placed: Placed,
    factory: EngineFactory,
}

/// The models that the configuration names, in memory, and a look at those that come and go.
fn started_models(config: &Config, clock: &Arc<dyn Clock>) -> Result<StartedModels> {
    metrics::set_clock_beside();
    let compute = devices::compute_of_gateway(config)?;
    if compute.device().is_cpu() {
        memory::check_stated(config, memory::machine_memory())?;
    }
    let config = &Config { engine: sized_for(&config.engine, &compute), ..config.clone() };
    let hashes = KeptHashes::open(&config.server.data_dir);
    let loaded = models::load_all(config, LoadContext { hub: &config.hub, compute: &compute, hashes: &hashes })?;
    let staying: Vec<String> = config.models.iter().map(|model| model.name.clone()).collect();
    let elsewhere = elsewhere_only(config, &staying);
    let names = staying.iter().map(String::as_str).chain(elsewhere.iter().copied());
    let factory = EngineFactory::new(&config.engine, config.ledger.gpu_factor, compute, clock, names)?
        .remembering(KeptCosts::open(&config.server.data_dir));
    let Fleet { factory, running, comparisons, served, replicas, prices } = engines::start(loaded, factory)?;
    let placed = Placed::read(config, &factory, &hashes, replicas.len() as u32)?;
    let partition = factory.partition();
    let here = prices.into_iter().map(|(name, price)| (name, partition, price)).chain(placed.prices()).collect();
    let priced = tariff::Served { here, elsewhere: &elsewhere };
    let (written, calendar) = (config.ledger.tariff.as_deref(), ledger::calendar(&config.ledger)?);
    let (tariff, pricing) = tariff::in_force(written, &calendar, priced, UnixSeconds::of(clock.wall()))?;
    let prices = StartPrices { published: pricing.published().cloned(), device: partition };
    let tariff = Arc::new(tariff);
    let new_shelf = NewShelf::open(config, factory.clone(), pricing, &tariff, &staying)?;
    Ok(StartedModels { running, comparisons, served, replicas, staying, tariff, prices, new_shelf, placed, factory })
}

impl Server {
    /// From now on, on SIGHUP and whenever somebody administers it. Inside the runtime.
    fn follow_configuration(&mut self, again: ReadAgain, hangups: Signal) -> Result<()> {
        self.reloading.take().map_or(Ok(()), |reloading| reloading.start(again, hangups))
    }

    /// Starts the worker of each partition, and serves its models once it has loaded them, unless it is interrupted.
    fn start_workers(
        &mut self,
        config: &Config,
        command: WorkerCommand,
        runtime: &Runtime,
        interrupted: impl Future<Output = ()>,
    ) -> Result<Partitions> {
        let (placed, factory) = &self.placed;
        if placed.slots.is_empty() {
            return Ok(Partitions::WithWorkers);
        }
        let served = Arrivals { placed: Arc::clone(placed), state: self.state.clone(), factory: factory.clone() };
        self.workers = workers::open(config, command, served, runtime, interrupted)?;
        Ok(if self.workers.is_some() { Partitions::WithWorkers } else { Partitions::WithoutWorkers })
    }

    /// That of the first model, if it generates.
    pub(crate) fn first_generator(&self) -> Option<EngineHandle> {
        match self.engines.first()?.handle() {
            RunningHandle::Generator(engine) => Some(engine),
            RunningHandle::Encoder(_) => None,
        }
    }

    /// Answers while `clients`, who are told its URL, talk to it from this process.
    pub(crate) fn serve_while<T>(self, runtime: &Runtime, clients: impl FnOnce(&str) -> Result<T>) -> Result<T> {
        let url = self.url.clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = runtime.spawn(self.serve(async { stopped.await.unwrap_or_default() }));
        let said = clients(&url);
        // Either way the server ends: told to, or because `stop` is gone.
        let _ = stop.send(());
        runtime.block_on(serving).context("the server in this process failed")?;
        said
    }

    /// Answers until `shutdown`, then admits nothing more and lets what runs finish, for a bounded time. What still runs
    /// then is ended by its engine, so that each client is told.
    pub(crate) async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (readiness, drain_timeout) = (&self.readiness, self.config.drain_timeout);
        let mut handles: Vec<_> = self.engines.iter().map(Running::handle).collect();
        let shelved = self.shelf.as_ref().map(ShelfKeeper::handles);
        let (comparisons, state) = (self.comparisons.handle(), self.state.clone());
        let end_workers = self.workers.as_ref().map(WorkersKeeper::shutdown);
        let start_no_more = self.workers.as_ref().map(WorkersKeeper::start_no_more);
        let shutdown = async {
            shutdown.await;
            readiness.start_draining();
            start_no_more.iter().for_each(|start_no_more| start_no_more());
            tracing::info!("admitting nothing more; what runs may finish");
            tokio::spawn(async move {
                sleep(drain_timeout).await;
                if state.runs_requests() {
                    tracing::warn!("the drain timeout has passed: what still runs is ended");
                }
                handles.extend(shelved.iter().flat_map(|shelved| shelved()));
                handles.iter().for_each(RunningHandle::shutdown);
                comparisons.shutdown();
                end_workers.iter().for_each(|end| end());
            });
        };
        let config = ServeConfig { drain_timeout: drain_timeout.saturating_add(LAST_WORDS), ..self.config };
        let clients = api::serve(self.listener, self.router, config, shutdown);
        let (drained, ()) = tokio::join!(clients, end_batches(self.batches, &self.readiness, config.drain_timeout));
        tracing::info!(?drained, "the listener is closed");
    }
}

/// Written down for those who need a key; an open door's one account is nobody's.
fn open_ledger(
    authenticator: &Authenticator,
    lock: Option<LedgerLock>,
    basis: LedgerBasis,
    config: &Config,
    models: BTreeMap<String, ModelFacts>,
) -> Result<(Ledger, Option<LedgerKeeper>)> {
    match (authenticator, lock) {
        (Authenticator::Keys(_), Some(lock)) => {
            let (ledger, keeper) = lock.open(basis, &config.ledger, models)?;
            Ok((ledger, Some(keeper)))
        }
        (_, lock) => Ok((ledger::without_keeping(basis, &config.ledger)?, lock.map(LedgerLock::leave_shut))),
    }
}

/// The models that only upstreams have.
fn elsewhere_only<'a>(config: &'a Config, here: &[String]) -> Vec<&'a str> {
    let mut names: Vec<&str> = config.upstreams.iter().map(|upstream| upstream.model.as_str()).collect();
    names.retain(|name| !here.iter().any(|other| other == name));
    names.sort_unstable();
    names.dedup();
    names
}

fn guard(authenticator: &Authenticator) -> BrowserGuard {
    match authenticator {
        Authenticator::Open { .. } => BrowserGuard::LocalOnly,
        Authenticator::Keys(_) => BrowserGuard::Off,
    }
}

/// Waits for the requests of batches as long as for others.
async fn end_batches(mut batches: JoinHandle<()>, readiness: &Readiness, patience: Duration) {
    readiness.drains().await;
    if timeout(patience, &mut batches).await.is_err() {
        // What they still wait for (an upstream, room on the disk) is asked for again by the next start.
        batches.abort();
        // Whether it was cut off or came to its end in this moment is one.
        let _ = batches.await;
    }
}

async fn look_after_replicas(state: AppState) {
    loop {
        sleep(LOOK_EVERY).await;
        state.serving().router.look();
    }
}

fn load_tls(files: &TlsFiles) -> Result<Tls> {
    Tls::load(&files.certificate, &files.key).context("server.tls_certificate and server.tls_key")
}

fn open_batches(config: &Config) -> Result<BatchStore> {
    let folder = &config.server.data_dir;
    BatchStore::open(folder, batch_bounds(&config.batches))
        .with_context(|| format!("cannot keep files and batches in {}", folder.display()))
}

fn open_shadow_store(config: &Config) -> Result<Option<PairStore>> {
    let open = |folder: &PathBuf| PairStore::open(folder, config.shadow.max_stored.0, env!("CARGO_PKG_VERSION"));
    config.shadow.folder.as_ref().map(open).transpose().context("shadow.folder")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_an_async_thread_on_every_machine_and_one_alone_where_processors_are_few() {
        assert_eq!([1, 2, 3, 4, 64].map(async_threads), [1, 1, 1, 2, 2]);
    }
}
