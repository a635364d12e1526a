//! The worker processes of this machine: a socket that they dial, and a supervisor for each.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use passerelle::config::{Config, Listen};
use passerelle::workers::{BackoffBounds, Ended, Gate, Seat, supervise};
use passerelle_engine::clock::Clock;
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::listener::{ACCEPT_RETRY, listen_unix, remove_left_over};

/// In the data directory.
const WORKER_SOCKET: &str = "workers.sock";
/// Connections for each partition: its worker, one that leaves, and one that is sent away.
const CONNECTIONS_PER_PARTITION: usize = 4;

/// How often a process is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The options of `passerelle serve`, which a worker reads as the server did.
pub(crate) struct WorkerCommand {
    pub(crate) program: PathBuf,
    pub(crate) options: Vec<OsString>,
}

/// Dropped: the workers end, and their socket is gone.
pub(super) struct WorkersKeeper {
    seats: Vec<Arc<Seat>>,
    tasks: Vec<JoinHandle<()>>,
    socket: PathBuf,
}

impl WorkersKeeper {
    /// Ends what runs, so that each client is told.
    pub(super) fn shutdown(&self) -> impl Fn() + Send + use<> {
        let seats = self.seats.clone();
        move || seats.iter().for_each(|seat| seat.shut_down())
    }
}

impl Drop for WorkersKeeper {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        // Whoever removed it already had the right to.
        let _: io::Result<()> = std::fs::remove_file(&self.socket);
    }
}

/// Returns when every partition has its worker; fails with the first whose worker ends before.
pub(super) fn open(
    (config, command): (&Config, WorkerCommand),
    seats: &[Arc<Seat>],
    clock: &Arc<dyn Clock>,
    runtime: &Runtime,
) -> Result<WorkersKeeper> {
    let socket = std::path::absolute(config.server.data_dir.join(WORKER_SOCKET))?;
    let listener = {
        let _in_runtime = runtime.enter();
        listen(&socket).with_context(|| format!("cannot listen to workers on {}", socket.display()))?
    };
    let gate = Gate::new(seats.iter().cloned(), config.workers.longest_silence);
    let mut tasks = vec![runtime.spawn(let_in(listener, gate, seats.len() * CONNECTIONS_PER_PARTITION))];
    let command = Arc::new(command);
    for seat in seats {
        let bounds = BackoffBounds { first: config.workers.first_restart, longest: config.workers.longest_restart };
        let patience = config.server.drain_timeout;
        let (command, dials, partition) = (Arc::clone(&command), socket.clone(), seat.partition().to_owned());
        let start = move || start_process(&command, &partition, &dials);
        tasks.push(runtime.spawn(supervise(Arc::clone(seat), (bounds, patience), Arc::clone(clock), start)));
    }
    let keeper = WorkersKeeper { seats: seats.to_vec(), tasks, socket };
    runtime.block_on(async {
        for seat in seats {
            first_arrival(seat).await?;
        }
        Ok(keeper)
    })
}

async fn first_arrival(seat: &Seat) -> Result<()> {
    let mut standing = seat.standing();
    let standing = standing.wait_for(|standing| standing.arrivals > 0 || standing.ends > 0).await?;
    let partition = seat.partition();
    ensure!(standing.arrivals > 0, "partition `{partition}`: its worker ended before it had loaded its models");
    Ok(())
}

fn listen(socket: &Path) -> io::Result<UnixListener> {
    remove_left_over(socket)?;
    listen_unix(socket)
}

async fn let_in(listener: UnixListener, gate: Gate, most: usize) {
    let places = Arc::new(Semaphore::new(most));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let gate = gate.clone();
                tokio::spawn(async move {
                    gate.serve(stream).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a worker could not be let in");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

/// In a process group of its own: what a terminal sends to the server is not for its workers.
fn start_process(
    command: &WorkerCommand,
    partition: &str,
    dials: &Path,
) -> io::Result<impl Future<Output = Ended> + Send + use<>> {
    let child = Command::new(&command.program)
        .args(["worker", "--partition", partition, "--connect"])
        .arg(Listen::Unix(dials.to_owned()).to_string())
        .args(&command.options)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()?;
    tracing::info!(partition, pid = child.id(), "a worker is started");
    Ok(Process(child).end())
}

/// Killed when dropped.
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
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn the_socket_of_workers_is_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join(WORKER_SOCKET);
        std::fs::write(&socket, "left by a server that was killed").expect("the folder is writable");
        let _listener = listen(&socket).expect("the path is free");
        assert_eq!(socket.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
    }
}
