//! The listening side: connections in, bounded in number and patience, drained at the end.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

mod head;
mod patience;
mod tls;
mod turns;

use patience::{Patience, Patient};
pub use tls::{Tls, TlsError};
use turns::Turns;

/// Where connections come from.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Tls(TcpListener, Tls),
    Unix(UnixSocket),
    /// Takes connections of the user who owns the socket, and of root.
    Owner(UnixSocket),
}

/// A bound Unix socket; its file is removed when it is dropped, unless another one has taken its place.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: which file is ours to remove.
    file: (u64, u64),
    /// Whose it is.
    owner: u32,
}

/// The bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub struct ServeConfig {
    /// Further connections wait in the system's queue.
    pub max_connections: usize,
    /// A request's head must be there this long after its connection or the previous answer.
    pub header_timeout: Duration,
    /// A peer that writes no more may be gone, or wait for its answer. Which, it is asked after this, and then ever more rarely.
    /// One that cannot be asked is answered if that is done within this.
    pub half_closed_timeout: Duration,
    /// A reader that takes nothing of an answer for this long is cut.
    pub write_timeout: Duration,
    /// Requests that run at the same time on one HTTP/2 connection.
    pub max_streams_per_connection: usize,
    /// What runs when the shutdown begins may go on for this long.
    pub drain_timeout: Duration,
}

impl Default for ServeConfig {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            header_timeout: Duration::from_secs(30),
            half_closed_timeout: Duration::from_millis(5),
            write_timeout: Duration::from_secs(60),
            max_streams_per_connection: 128,
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

const ROOT: u32 = 0;
/// So much later the HTTP library ends a connection without a head, so that whoever sent half of one is told so before.
const AFTER_PATIENCE: Duration = Duration::from_millis(100);
/// Largest request head.
const MAX_HEAD_BYTES: u32 = 64 << 10;
/// An HTTP/2 peer that answers no ping for twice this long is gone.
const PING_EVERY: Duration = Duration::from_secs(30);
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
        let (file, owner) = (file_id(&path)?, path.symlink_metadata()?.uid());
        Ok(Self { listener, path, file, owner })
    }

    /// Whoever got past the mode of the file is asked who they are all the same.
    async fn accept_owner(&self) -> io::Result<UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let peer = stream.peer_cred()?.uid();
            if peer == self.owner || peer == ROOT {
                return Ok(stream);
            }
            tracing::warn!(peer, "another user asked to administrate this server");
        }
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
    incoming: Incoming,
    place: OwnedSemaphorePermit,
}

enum Incoming {
    Plain(Box<dyn Stream>),
    Tls(TcpStream, Tls),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

async fn accept(listener: &Listener, places: &Arc<Semaphore>) -> io::Result<Connection> {
    let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
    let incoming = match listener {
        Listener::Tcp(listener) => Incoming::Plain(Box::new(accept_tcp(listener).await?)),
        Listener::Tls(listener, tls) => Incoming::Tls(accept_tcp(listener).await?, tls.clone()),
        Listener::Unix(socket) => Incoming::Plain(Box::new(socket.listener.accept().await?.0)),
        Listener::Owner(socket) => Incoming::Plain(Box::new(socket.accept_owner().await?)),
    };
    Ok(Connection { incoming, place })
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    // Tokens are small and must not wait for each other.
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Incoming {
    /// Shakes hands where that is due. The peer has until `patience` is over.
    async fn open(self, patience: Duration) -> io::Result<Box<dyn Stream>> {
        match self {
            Self::Plain(stream) => Ok(stream),
            Self::Tls(stream, tls) => Ok(Box::new(timeout(patience, tls.acceptor().accept(stream)).await??)),
        }
    }
}

impl Connection {
    fn spawn(self, router: &Router, config: &ServeConfig, watcher: Watcher) {
        let (router, config) = (router.clone(), *config);
        tokio::spawn(async move {
            let _place = self.place;
            let served = match self.incoming.open(config.header_timeout).await {
                Ok(stream) => serve_stream(stream, router, &config, watcher).await,
                Err(error) => Err(error.into()),
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            }
        });
    }
}

/// HTTP/1.1 or HTTP/2, as the client's first bytes say.
async fn serve_stream(
    stream: Box<dyn Stream>,
    router: Router,
    config: &ServeConfig,
    watcher: Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let patience =
        Patience { head: config.header_timeout, half_closed: config.half_closed_timeout, write: config.write_timeout };
    let turns = Turns::default();
    let io = TokioIo::new(Patient::new(stream, patience, turns.clone()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_timeout + AFTER_PATIENCE)
        .max_buf_size(MAX_HEAD_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(u32::try_from(config.max_streams_per_connection).unwrap_or(u32::MAX))
        .max_header_list_size(MAX_HEAD_BYTES)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_EVERY);
    let connection = builder.serve_connection(io, turns.count(router));
    watcher.watch(connection).await
}
