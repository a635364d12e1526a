//! The listening side: connections in, bounded in number and patience, drained at the end.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

mod patience;

use patience::Patient;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A bound Unix socket; its file is removed when it is dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: which file is ours to remove.
    file: (u64, u64),
}

/// The bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ServeConfig {
    /// Further connections wait in the system's queue.
    pub max_connections: usize,
    /// A request's head must be there this long after its connection or the previous answer.
    pub header_timeout: Duration,
    /// A reader that takes nothing of an answer for this long is cut.
    pub write_timeout: Duration,
    /// What runs when the shutdown begins may go on for this long.
    pub drain_timeout: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was finished.
    Completely,
    /// Some were cut when [`ServeConfig::drain_timeout`] had passed.
    TimedOut,
}

/// Largest request head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// After a failed `accept` (no file descriptors left), so that the loop does not spin.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready, then takes no more connections and waits for what runs.
pub async fn serve(
    listener: Listener,
    router: Router,
    config: ServeConfig,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let places = Arc::new(Semaphore::new(config.max_connections.max(1)));
    let graceful = GracefulShutdown::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok(connection) => connection.spawn(&router, &config, graceful.watcher()),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(listener);
    match timeout(config.drain_timeout, graceful.shutdown()).await {
        Ok(()) => Drained::Completely,
        Err(_) => Drained::TimedOut,
    }
}

impl UnixSocket {
    /// `listener` is bound to `path`. Errors if the file cannot be looked at.
    pub fn new(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        let file = file_id(&path)?;
        Ok(Self { listener, path, file })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if file_id(&self.path).is_ok_and(|file| file == self.file) {
            // Someone may have removed it already; there is nobody left to tell.
            let _: io::Result<()> = std::fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    path.symlink_metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// A connection and the place it takes.
struct Connection {
    stream: Box<dyn Stream>,
    place: OwnedSemaphorePermit,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener, places: &Arc<Semaphore>) -> io::Result<Connection> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let stream: Box<dyn Stream> = match listener {
        Listener::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            // Tokens are small and must not wait for each other.
            stream.set_nodelay(true)?;
            Box::new(stream)
        }
        Listener::Unix(socket) => Box::new(socket.listener.accept().await?.0),
    };
    Ok(Connection { stream, place })
}

impl Connection {
    fn spawn(self, router: &Router, config: &ServeConfig, watcher: Watcher) {
        let io = TokioIo::new(Patient::new(self.stream, config.write_timeout));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_buf_size(MAX_HEAD_BYTES)
            .serve_connection(io, TowerToHyperService::new(router.clone()));
        let connection = watcher.watch(connection);
        let place = self.place;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}
