//! What `passerelle worker` runs: the models of one partition, for a gateway.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, process, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use passerelle::config::{ByteSize, Config, EngineConfig, ModelConfig, PartitionConfig};
use passerelle::gateway::ReplicaDoor;
use passerelle::placement::DeviceChoice;
use passerelle::workers::{
    Backoff, BackoffBounds, OfferedKind, OfferedModel, Revive, StepTap, WorkError, WorkerFacts, WorkerModel,
    WorkerParts, work,
};
use passerelle_engine::StepObserver;
use passerelle_engine::clock::{Clock, SystemClock};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::devices::{DeviceKey, Sight, compute_on};
use super::engines::{self, EngineFactory, Fleet, RunningHandle};
use super::gateway_address::{GatewayAddress, needs_enrolment};
use super::hashes::KeptHashes;
use super::kept_costs::KeptCosts;
use super::memory::KV_CACHE_MEMORY;
use super::models::{self, AnyLoaded, LoadContext};
use super::signals::Signals;
use super::{logging, runtime};

/// A gateway that is there answers so soon.
const LONGEST_DIAL: Duration = Duration::from_secs(10);
/// Exit status of a worker that nobody needs any more.
const GATEWAY_GONE: i32 = 1;

/// Which worker this process is, and whose.
#[derive(Debug, Clone)]
pub(crate) struct WorkerAssignment {
    pub(crate) partition: String,
    pub(crate) gateway: GatewayAddress,
    pub(crate) lifeline: Lifeline,
    pub(crate) until: Option<Until>,
    pub(crate) sight: Sight,
}

/// Nothing runs beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Until {
    /// Since 1970.
    pub(crate) at: Duration,
    /// What said so, for errors.
    pub(crate) said_by: &'static str,
}

/// What shows a worker that its gateway lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifeline {
    /// Their stream, once there is one.
    Stream,
    /// The standard input too, from the start.
    Input,
}

impl Lifeline {
    fn watch(self) -> io::Result<()> {
        if self == Self::Input {
            thread::Builder::new().name("lifeline".to_owned()).spawn(|| {
                // What cannot be read has ended too.
                let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
                tracing::error!("the gateway is gone");
                process::exit(GATEWAY_GONE);
            })?;
        }
        Ok(())
    }
}

/// Serves until a signal and then what runs to its end. A worker that its server started ends when that is gone;
/// another dials again.
pub(crate) fn run_worker(config: &Config, assignment: WorkerAssignment) -> Result<()> {
    logging::start(&config.log);
    // Or lists of processes, and the kernel where it kills for want of memory, call it `exe`. Only a name.
    let _ = fs::write("/proc/self/comm", "passerelle");
    assignment.lifeline.watch().context("cannot watch the standard input")?;
    let runtime = runtime()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let bell = Arc::new(Notify::new());
    let config = of_partition(config, &assignment.partition)?;
    let patience = config.server.drain_timeout;
    if let Some(Until { at, said_by }) = assignment.until {
        ensure!(at.saturating_sub(clock.wall()) > patience, "{said_by}: less than server.drain_timeout is left");
    }
    assignment.gateway.check()?;
    let loaded =
        LoadedPartition::load(&config, &clock, &bell, named(&config, &assignment.partition)?, assignment.sight)?;
    let bounds = BackoffBounds { first: config.workers.first_restart, longest: config.workers.longest_restart };
    let served = runtime.block_on(async {
        tokio::select! {
            served = loaded.serve(&assignment, bounds, patience) => served,
            never = assignment.gateway.remind(&assignment.partition, &*clock) => match never {},
        }
    });
    drop(loaded);
    served.with_context(|| format!("partition `{}`", assignment.partition))?;
    tracing::info!(partition = assignment.partition, "left");
    Ok(())
}

/// The same, as if nothing but the models of one partition were served, here.
fn of_partition(config: &Config, name: &str) -> Result<Config> {
    let PartitionConfig { is, processors, .. } = named(config, name)?;
    let lies_here = |model: &&ModelConfig| model.partition.as_deref() == Some(name);
    let here = |model: &ModelConfig| ModelConfig { partition: None, ..model.clone() };
    let models = config.models.iter().filter(lies_here).map(here).collect();
    let engine = EngineConfig {
        device: DeviceChoice::Named(is.device.clone()),
        threads: is.threads.map(usize::from).or(config.engine.threads),
        processors: processors.clone().or_else(|| config.engine.processors.clone()),
        ..config.engine.on(is.device.backend())
    };
    Ok(Config { models, engine, ..config.clone() })
}

fn named<'a>(config: &'a Config, name: &str) -> Result<&'a PartitionConfig> {
    let partition = config.partitions.iter().find(|partition| partition.name == name);
    partition.with_context(|| format!("no [[partitions]] is named `{name}`"))
}

/// A partition whose models are loaded.
struct LoadedPartition {
    fleet: Fleet,
    facts: WorkerFacts,
    taps: Vec<(String, Arc<StepTap>)>,
    bell: Arc<Notify>,
    clock: Arc<dyn Clock>,
}

/// Why a worker has no gateway.
#[derive(Debug, thiserror::Error)]
enum Parted {
    #[error("{0:#}")]
    NotReached(anyhow::Error),
    #[error(transparent)]
    Ended(#[from] WorkError),
}

impl Parted {
    /// Whether the gateway may take the worker another time. One that it never wanted has something wrong with it.
    fn may_pass(&self, was_let_in: bool) -> bool {
        match self {
            Self::NotReached(error) => !needs_enrolment(error),
            Self::Ended(WorkError::EngineDead | WorkError::Nonsense(_)) => false,
            Self::Ended(WorkError::Unwanted(_)) => was_let_in,
            Self::Ended(WorkError::Broken(_) | WorkError::GatewayGone | WorkError::GatewayStuck) => true,
        }
    }
}

impl LoadedPartition {
    /// One gateway connection after the other, as the assignment's lifeline allows.
    async fn serve(&self, assignment: &WorkerAssignment, bounds: BackoffBounds, patience: Duration) -> Result<()> {
        let mut signals = Signals::new()?;
        let mut backoff = Backoff::new(bounds);
        let mut was_let_in = false;
        let time_left = || assignment.until.map(|until| until.at.saturating_sub(self.clock.wall()));
        let leaves_in = || time_left().map_or(Duration::MAX, |left| left.saturating_sub(patience));
        loop {
            let began = self.clock.now();
            let leave_in_time = leave(&mut signals, leaves_in());
            let served = self.serve_once(&assignment.gateway, time_left(), patience, leave_in_time).await;
            let Err(parted) = served else { return Ok(()) };
            was_let_in |= matches!(parted, Parted::Ended(WorkError::Broken(_) | WorkError::GatewayGone));
            if assignment.lifeline == Lifeline::Input || !parted.may_pass(was_let_in) {
                return Err(parted.into());
            }
            let pause = backoff.after(self.clock.now().saturating_sub(began));
            tracing::warn!(partition = assignment.partition, why = %parted, again_in = ?pause, "no gateway; it is dialled again");
            tokio::select! {
                () = sleep(pause) => {}
                _ = leave(&mut signals, leaves_in()) => return Ok(()),
            }
        }
    }

    async fn serve_once(
        &self,
        gateway: &GatewayAddress,
        ends_in: Option<Duration>,
        patience: Duration,
        leave: impl Future<Output = String>,
    ) -> Result<(), Parted> {
        let mut leave = pin!(leave);
        let dialled = tokio::select! {
            dialled = timeout(LONGEST_DIAL, gateway.dial()) => dialled,
            _ = &mut leave => return Ok(()),
        };
        let dialled = dialled.unwrap_or_else(|_| Err(anyhow!("no answer in {LONGEST_DIAL:?}")));
        let facts = WorkerFacts { ends_in, ..self.facts.clone() };
        let models = crew(&self.fleet, &self.taps);
        let (bell, clock) = (Arc::clone(&self.bell), Arc::clone(&self.clock));
        let parts = WorkerParts { facts, models, bell, clock, patience };
        Ok(work(dialled.map_err(Parted::NotReached)?, parts, leave).await?)
    }

    /// `config`: see [`of_partition`].
    fn load(
        config: &Config,
        clock: &Arc<dyn Clock>,
        bell: &Arc<Notify>,
        partition: &PartitionConfig,
        sight: Sight,
    ) -> Result<Self> {
        let compute = compute_on(&config.engine, &DeviceKey::of_partition(partition), sight)?;
        let hashes = KeptHashes::open(&config.server.data_dir);
        let context = LoadContext { hub: &config.hub, compute: &compute, hashes: &hashes };
        let loaded = models::load_all(config, context)?;
        let weights: Vec<u64> = loaded.iter().map(AnyLoaded::weights_bytes).collect();
        let (engine, memory_key) = within(&config.engine, partition, weights.iter().sum())?;
        let names = config.models.iter().map(|model| model.name.as_str());
        let taps: Vec<(String, Arc<StepTap>)> =
            names.clone().map(|name| (name.to_owned(), Arc::new(StepTap::new(Arc::clone(bell))))).collect();
        let (device, kernels) = (super::report::device(&compute).to_owned(), compute.kernels().to_string());
        let threads = compute.num_threads();
        let factory = EngineFactory::new(&engine, config.ledger.gpu_factor, compute, clock, names)?
            .bounded_by(memory_key)
            .remembering(KeptCosts::open(&config.server.data_dir));
        let fleet = engines::start(loaded, factory.observed_by(observers(&taps)))?;
        let facts = WorkerFacts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            partition: partition.name.clone(),
            device,
            kernels,
            threads,
            models: offered(&fleet, &weights),
            ends_in: None,
        };
        Ok(Self { fleet, facts, taps, bell: Arc::clone(bell), clock: Arc::clone(clock) })
    }
}

/// Why the worker leaves, once it does.
async fn leave(signals: &mut Signals, in_any_case: Duration) -> String {
    tokio::select! {
        () = signals.next() => "it was asked to end".to_owned(),
        () = sleep(in_any_case) => "its time is over".to_owned(),
    }
}

/// What the weights leave of the partition's memory is for K/V, unless less was stated. With what bounds it, for errors.
fn within(engine: &EngineConfig, partition: &PartitionConfig, weights_bytes: u64) -> Result<(EngineConfig, String)> {
    let Some(memory) = partition.is.memory else { return Ok((engine.clone(), KV_CACHE_MEMORY.to_owned())) };
    let (key, weights) = (partition.key("memory"), ByteSize(weights_bytes));
    let Some(left) = memory.0.checked_sub(weights_bytes).filter(|left| *left > 0) else {
        bail!("{key}: the weights take {weights} of {memory}");
    };
    let (kv_cache_memory, bounded_by) = match engine.kv_cache_memory {
        Some(stated) if stated.0 <= left => (stated, KV_CACHE_MEMORY.to_owned()),
        _ => (ByteSize(left), format!("{key} (less {weights} of weights)")),
    };
    Ok((EngineConfig { kv_cache_memory: Some(kv_cache_memory), ..engine.clone() }, bounded_by))
}

fn observers(taps: &[(String, Arc<StepTap>)]) -> engines::Observers {
    let taps = taps.to_vec();
    Arc::new(move |model: &str| {
        let tap = taps.iter().find(|(name, _)| name == model).map(|(_, tap)| Arc::clone(tap));
        tap.map(|tap| tap as Arc<dyn StepObserver>)
    })
}

fn offered(fleet: &Fleet, weights: &[u64]) -> Vec<OfferedModel> {
    let models = fleet.served.iter().zip(&fleet.running).zip(weights);
    let offer = |((served, running), &weights_bytes): ((&passerelle::api::ServedModel, &engines::Running), _)| {
        let bounds = running.handle().bounds();
        OfferedModel {
            name: served.name.clone(),
            digest: served.digest,
            fingerprint: served.fingerprint.clone(),
            weights_bytes,
            kv_cache_bytes: bounds.kv_cache_bytes,
            input_vocab_size: served.input_vocab_size,
            max_model_len: served.max_model_len,
            max_waiting_requests: bounds.max_waiting_requests,
            max_waiting_tokens: bounds.max_waiting_tokens,
            max_running: bounds.max_running,
            kind: bounds.vocab_size.map_or(OfferedKind::Encoder, |vocab_size| OfferedKind::Generator { vocab_size }),
        }
    };
    models.map(offer).collect()
}

fn crew(fleet: &Fleet, taps: &[(String, Arc<StepTap>)]) -> Vec<WorkerModel> {
    let models = fleet.served.iter().zip(&fleet.running).zip(taps);
    let man = |((served, running), (_, tap)): (
        (&passerelle::api::ServedModel, &engines::Running),
        &(String, Arc<StepTap>),
    )| {
        let door: Box<dyn ReplicaDoor> = match running.handle() {
            RunningHandle::Generator(engine) => Box::new(engine),
            RunningHandle::Encoder(encoder) => Box::new(encoder),
        };
        let grammars = Arc::clone(&served.grammars);
        let revive: Revive = Arc::new(move |recipe: &[u8]| grammars.compile_recipe(recipe).ok());
        WorkerModel { door, tap: Arc::clone(tap), revive }
    };
    models.map(man).collect()
}

#[cfg(test)]
mod tests {
    use passerelle::config::Environment;

    use super::*;

    #[test]
    fn a_cache_is_told_to_be_bounded_by_whichever_states_less() {
        let bounded = |engine: &str| {
            let partition = "[[partitions]]\nname = \"a\"\nmemory = \"4MiB\"\n";
            let model = "[[models]]\nsource = \"demo\"\npartition = \"a\"\n";
            let written = toml::from_str(&format!("[engine]\n{engine}\n{partition}{model}")).expect("well formed");
            let environment = Environment { home: Some("/home/nobody".into()), ..Environment::default() };
            let config = Config::check(written, &environment).expect("it makes sense");
            let (engine, key) = within(&config.engine, &config.partitions[0], 1 << 20).expect("there is room");
            (engine.kv_cache_memory, key)
        };
        let by_partition = (Some(ByteSize(3 << 20)), "partitions[0].memory (less 1.0 MiB of weights)".to_owned());
        assert_eq!(bounded(""), by_partition);
        assert_eq!(bounded("kv_cache_memory = \"9MiB\""), by_partition);
        assert_eq!(bounded("kv_cache_memory = \"2MiB\""), (Some(ByteSize(2 << 20)), KV_CACHE_MEMORY.to_owned()));
    }
}
