//! The worker processes of this machine: a socket that they dial, and a supervisor for each.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use passerelle::api::AppState;
use passerelle::config::{Config, Listen, WorkerPlace};
use passerelle::metrics::Metrics;
use passerelle::placement::Backend;
use passerelle::workers::{
    Authority, BackoffBounds, Ended, Gate, GateBounds, GatewayTls, Keeping, LastDay, Peer, WorkerSlot, supervise,
};
use passerelle_engine::clock::{Clock, SystemClock};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::{sleep, timeout};

use super::caps;
use super::devices::OneDevice;
use super::engines::EngineFactory;
use super::listener::{ACCEPT_RETRY, listen_unix, remove_left_over};
use super::memory_order::spawn_first_to_go;
use super::placed::Placed;

/// In the data directory.
const WORKER_SOCKET: &str = "workers.sock";
/// Connections for each partition: its worker, one that leaves, and one that is sent away.
const CONNECTIONS_PER_PARTITION: usize = 4;

/// A worker of another machine proves itself so soon.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections from elsewhere that have not proven themselves yet. For one more the oldest is dropped, so that strangers
/// keep no worker out.
const MAX_UNPROVEN: usize = 64;
/// Of the certificate that the gateway makes for itself at each start.
const GATEWAY_DAYS: u32 = 3650;
const SECONDS_OF_A_DAY: u64 = 24 * 60 * 60;
/// What a worker's command line begins with, whatever file it was started from.
const PROGRAM: &str = "passerelle";
/// For `passerelle chat`, and nothing to a worker.
const CHAT_KEY: &str = "OPENAI_API_KEY";
/// How often `/metrics` hears of the workers.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How a worker is started.
pub(crate) struct WorkerCommand {
    program: PathBuf,
    /// Those of `passerelle serve`, which a worker reads as the server did.
    options: Vec<OsString>,
}

/// Dropped: the workers end, and their socket is gone.
pub(super) struct WorkersKeeper {
    slots: Vec<Arc<WorkerSlot>>,
    tasks: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    socket: PathBuf,
}

impl WorkersKeeper {
    /// From now on none is started in the place of one that ends or leaves.
    pub(super) fn start_no_more(&self) -> impl Fn() + Send + use<> {
        let stop = self.stop.clone();
        move || _ = stop.send_replace(true)
    }

    /// Ends what runs, so that each client is told.
    pub(super) fn shutdown(&self) -> impl Fn() + Send + use<> {
        let slots = self.slots.clone();
        move || slots.iter().for_each(|slot| slot.shut_down())
    }
}

impl Drop for WorkersKeeper {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // Whoever removed it already had the right to.
        let _: io::Result<()> = std::fs::remove_file(&self.socket);
    }
}

/// What is to be done once the worker of a partition has come.
#[derive(Clone)]
pub(super) struct Arrivals {
    pub(super) placed: Arc<Placed>,
    pub(super) state: AppState,
    pub(super) factory: EngineFactory,
}

impl Arrivals {
    /// Serves the partition's models. Errors when its worker ends before it has come.
    async fn await_first(&self, slot: &WorkerSlot) -> Result<()> {
        let mut standing = slot.standing();
        let has_come = standing.wait_for(|standing| standing.arrivals > 0 || standing.ends > 0).await?.arrivals > 0;
        let partition = slot.partition();
        ensure!(has_come, "partition `{partition}`: its worker ended before it had loaded its models");
        self.placed.serve(partition, &self.state)
    }

    /// For a worker of another machine, which nobody waits for.
    async fn whenever_it_comes(self, slot: Arc<WorkerSlot>) {
        if let Err(error) = self.await_first(&slot).await {
            tracing::error!(partition = slot.partition(), %error, "the models of a worker cannot be served");
        }
    }
}

/// Returns when every partition with a worker of this machine has it; fails with the first whose worker ends before. `None`:
/// it was `interrupted`, and its workers are gone.
pub(super) fn open(
    config: &Config,
    command: WorkerCommand,
    arrivals: Arrivals,
    runtime: &Runtime,
    interrupted: impl Future<Output = ()>,
) -> Result<Option<WorkersKeeper>> {
    caps::say(config);
    let socket = std::path::absolute(config.server.data_dir.join(WORKER_SOCKET))?;
    let _in_runtime = runtime.enter();
    let listener = listen(&socket).with_context(|| format!("cannot listen to workers on {}", socket.display()))?;
    let slots = arrivals.placed.slots.clone();
    let clock = arrivals.factory.clock();
    let bounds = GateBounds {
        longest_silence: config.workers.longest_silence,
        longest_standstill: config.workers.longest_standstill,
    };
    let gate = Gate::new(slots.iter().cloned(), bounds, Arc::clone(&clock));
    // Strangers that dial from elsewhere take no place of a worker of this machine.
    let places = || Arc::new(Semaphore::new(slots.len() * CONNECTIONS_PER_PARTITION));
    let mut tasks = vec![runtime.spawn(let_in(listener, gate.clone(), places()))];
    tasks.push(runtime.spawn(report(slots.clone(), Arc::clone(&arrivals.factory.metrics), Arc::clone(&clock))));
    if let Some(address) = config.workers.listen {
        let remote = RemoteEntry::open(address, &config.server.data_dir).context("workers.listen")?;
        tasks.push(runtime.spawn(remote.let_in(gate, places())));
    }
    let (local, remote): (Vec<_>, Vec<_>) = slots.iter().partition(|slot| is_local(config, slot));
    let (command, stop) = (Arc::new(command), watch::Sender::new(false));
    for &slot in &local {
        let supervisor = supervisor((config, &stop), (&command, socket.as_path()), slot, &clock)?;
        tasks.push(runtime.spawn(supervisor));
    }
    tasks.extend(remote.into_iter().map(|slot| runtime.spawn(arrivals.clone().whenever_it_comes(Arc::clone(slot)))));
    let keeper = WorkersKeeper { slots: slots.clone(), tasks, stop, socket };
    let all_come = async {
        for slot in local {
            arrivals.await_first(slot).await?;
        }
        Ok(())
    };
    runtime.block_on(async {
        tokio::select! {
            all = all_come => all.map(|()| Some(keeper)),
            () = interrupted => Ok(None),
        }
    })
}

fn is_local(config: &Config, slot: &WorkerSlot) -> bool {
    let of_slot = config.partitions.iter().find(|partition| partition.name == slot.partition());
    of_slot.is_some_and(|partition| partition.worker == WorkerPlace::Local)
}

fn supervisor(
    (config, stop): (&Config, &watch::Sender<bool>),
    (command, socket): (&Arc<WorkerCommand>, &Path),
    slot: &Arc<WorkerSlot>,
    clock: &Arc<dyn Clock>,
) -> Result<impl Future<Output = ()> + Send + use<>> {
    let restarts = BackoffBounds { first: config.workers.first_restart, longest: config.workers.longest_restart };
    let keeping = Keeping { restarts, patience: config.server.drain_timeout, is_stopping: stop.subscribe() };
    let (command, dials, partition) = (Arc::clone(command), socket.to_owned(), slot.partition().to_owned());
    let of_slot = config.partitions.iter().find(|other| other.name == partition);
    let device = of_slot.map(|partition| OneDevice::of(&config.engine, partition)).transpose()?.flatten();
    let start = move || start_process(command.process(&partition, &dials, device.as_ref()), &partition);
    Ok(supervise(Arc::clone(slot), keeping, Arc::clone(clock), start))
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    remove_left_over(socket)?;
    listen_unix(socket)
}

async fn let_in(listener: UnixListener, gate: Gate, places: Arc<Semaphore>) {
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = gate.clone();
                tokio::spawn(async move {
                    gate.serve(stream, Peer::Owner).await;
                    drop(place);
                });
            }
            Err(error) => rest(&error).await,
        }
    }
}

/// Where workers of other machines come in.
struct RemoteEntry {
    listener: TcpListener,
    tls: GatewayTls,
}

impl RemoteEntry {
    /// Inside the runtime. With a certificate for this run, by the data directory's authority.
    fn open(address: SocketAddr, data_dir: &Path) -> Result<Self> {
        let credentials = Authority::open(data_dir)?.gateway(last_day(GATEWAY_DAYS)?)?;
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        tracing::info!(address = %listener.local_addr()?, "workers of other machines may come");
        Ok(Self { listener: TcpListener::from_std(listener)?, tls: GatewayTls::new(&credentials)? })
    }

    /// `places`: of those that have proven themselves.
    async fn let_in(self, gate: Gate, places: Arc<Semaphore>) {
        let mut unproven = Unproven::default();
        loop {
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let meeting = meet(stream, from, self.tls.clone(), gate.clone(), Arc::clone(&places));
                    unproven.add(tokio::spawn(meeting).abort_handle());
                }
                Err(error) => rest(&error).await,
            }
        }
    }
}

/// Whoever proves itself is served by a task of its own, which is no stranger's to end.
async fn meet(stream: TcpStream, from: SocketAddr, tls: GatewayTls, gate: Gate, places: Arc<Semaphore>) {
    match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok((stream, peer))) => {
            let Ok(place) = places.try_acquire_owned() else {
                tracing::warn!(peer = %from, "too many workers are connected; this one is sent away");
                return;
            };
            tokio::spawn(async move {
                gate.serve(stream, peer).await;
                drop(place);
            });
        }
        Ok(Err(error)) => tracing::warn!(peer = %from, %error, "no worker of this gateway's"),
        Err(_) => tracing::warn!(peer = %from, "a worker does not shake hands"),
    }
}

/// Connections that have yet to prove themselves, the oldest first.
#[derive(Default)]
struct Unproven(VecDeque<AbortHandle>);

impl Unproven {
    fn add(&mut self, newest: AbortHandle) {
        self.0.retain(|meeting| !meeting.is_finished());
        if self.0.len() >= MAX_UNPROVEN
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(newest);
    }
}

/// Says in `/metrics` how partitions are served.
async fn report(slots: Vec<Arc<WorkerSlot>>, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) {
    loop {
        slots.iter().for_each(|slot| metrics.partition_is(slot.partition(), slot.figures(clock.now())));
        sleep(REPORT_EVERY).await;
    }
}

async fn rest(error: &io::Error) {
    tracing::warn!(%error, "a worker could not be let in");
    sleep(ACCEPT_RETRY).await;
}

/// So many days from now.
pub(crate) fn last_day(days: u32) -> Result<LastDay> {
    let wall = SystemClock::new().wall() + Duration::from_secs(u64::from(days) * SECONDS_OF_A_DAY);
    let date = Timestamp::from_second(i64::try_from(wall.as_secs())?)?.to_zoned(TimeZone::UTC).date();
    let (month, day) = (date.month().try_into()?, date.day().try_into()?);
    Ok(LastDay { year: i32::from(date.year()), month, day })
}

impl WorkerCommand {
    /// From the file that this process runs, also where another has taken its name since.
    pub(crate) fn of_this_program(options: impl IntoIterator<Item = OsString>) -> Self {
        Self { program: "/proc/self/exe".into(), options: options.into_iter().collect() }
    }

    /// In a process group of its own: what a terminal sends to the server is not for its workers. Its input ends with the
    /// server, however that ends.
    fn process(&self, partition: &str, dials: &Path, device: Option<&OneDevice>) -> Command {
        let mut process = Command::new(&self.program);
        process
            .arg0(PROGRAM)
            .args(["worker", "--end-with-input", "--partition", partition, "--connect"])
            .arg(Listen::Unix(dials.to_owned()).to_string())
            .env_remove(CHAT_KEY)
            // As this server counted them when it looked a device up.
            .envs(Backend::ALL.into_iter().filter_map(Backend::counted_as_listed))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0);
        if let Some(OneDevice { variable, uuid }) = device {
            process.arg("--sees-one-device").env(variable, uuid);
        }
        process.args(&self.options);
        process
    }
}

fn start_process(mut process: Command, partition: &str) -> io::Result<impl Future<Output = Ended> + Send + use<>> {
    let child = spawn_first_to_go(&mut process)?;
    tracing::info!(partition, pid = child.id(), "a worker is started");
    Ok(Process(child).end())
}

/// Killed when dropped. Holds the other end of its input.
struct Process(Child);

impl Process {
    async fn end(mut self) -> Ended {
        loop {
            match self.0.try_wait() {
                // Its stream ends at once; nobody waits for this.
                Ok(None) => sleep(LOOK_EVERY).await,
                Ok(Some(status)) => return status.to_string(),
                Err(error) => return error.to_string(),
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended, and then nothing is left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests;
