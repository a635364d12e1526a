//! HTTP/1.1 as this instrument needs it: streamed answers with a timestamp on each read, and connections in hand, so
//! that tests of reliability can misuse them.

mod connection;
mod endpoint;
mod framing;
mod network;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

pub use connection::{Connection, Head};
pub use endpoint::{Endpoint, Scheme};
pub use framing::{BadChunk, ChunkedDecoder, Framing};
pub use network::{Network, Trust, TrustError};

/// Connections that wait for their next request.
const MAX_IDLE_CONNECTIONS: usize = 1024;
/// Of what is not a generation: those have timeouts of their own.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// An answer that is read whole.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Where connections come from: the network, or a test's memory.
pub trait Connect: Clone + Send + Sync + std::fmt::Debug + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + std::fmt::Debug + 'static;

    fn connect(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;

    /// A connection that takes little before its reader reads, where that can be had.
    fn connect_narrow(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send {
        self.connect()
    }
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),
    #[error("the connection broke: {0}")]
    Broken(#[from] std::io::Error),
    #[error("the connection was closed before the answer was complete")]
    Cut,
    #[error("no answer within {} s", FETCH_TIMEOUT.as_secs())]
    Timeout,
    #[error("not HTTP: {0}")]
    Malformed(String),
    #[error("the answer is longer than {MAX_ANSWER_BYTES} bytes")]
    TooLong,
}

/// One request, as its line, headers and body say.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a str,
    pub path: &'a str,
    pub api_key: Option<&'a str>,
    pub body: &'a [u8],
}

/// A server, and the idle connections to it.
#[derive(Debug)]
pub struct Client<C: Connect> {
    connector: C,
    endpoint: Arc<Endpoint>,
    idle: Arc<Mutex<Vec<Connection<C::Stream>>>>,
}

/// An answer whose head is read. Dropping it before its end closes the connection.
#[derive(Debug)]
pub struct Response<S> {
    pub head: Head,
    connection: Connection<S>,
    framing: Framing,
}

impl<C: Connect> Client<C> {
    pub fn new(connector: C, endpoint: Endpoint) -> Self {
        Self { connector, endpoint: Arc::new(endpoint), idle: Arc::default() }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A connection that has carried nothing yet.
    pub async fn connect(&self) -> Result<Connection<C::Stream>, HttpError> {
        self.connector.connect().await.map(Connection::new).map_err(HttpError::Connect)
    }

    /// One whose reader is about to be slow.
    pub async fn connect_narrow(&self) -> Result<Connection<C::Stream>, HttpError> {
        self.connector.connect_narrow().await.map(Connection::new).map_err(HttpError::Connect)
    }

    /// Sends `request` and reads the head of its answer. A connection that the server closed while it was idle is
    /// replaced once; that is the server's right and no failure.
    pub async fn open(&self, request: &Request<'_>) -> Result<Response<C::Stream>, HttpError> {
        let bytes = self.endpoint.encode(request);
        if let Some(mut connection) = self.take_idle() {
            match connection.exchange(&bytes).await {
                Ok(head) => return Response::new(connection, head),
                Err(HttpError::Cut | HttpError::Broken(_)) if !connection.has_read() => {}
                Err(error) => return Err(error),
            }
        }
        let mut connection = self.connect().await?;
        let head = connection.exchange(&bytes).await?;
        Response::new(connection, head)
    }

    /// The status and the whole body of an answer.
    pub async fn fetch(&self, request: &Request<'_>) -> Result<(u16, Vec<u8>), HttpError> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.fetch_patiently(request)).await;
        fetched.unwrap_or(Err(HttpError::Timeout))
    }

    async fn fetch_patiently(&self, request: &Request<'_>) -> Result<(u16, Vec<u8>), HttpError> {
        let mut response = self.open(request).await?;
        let body = response.read_to_end().await?;
        let status = response.head.status;
        self.give_back(response);
        Ok((status, body))
    }

    /// Keeps the connection of an answer that was read to its end.
    pub fn give_back(&self, response: Response<C::Stream>) {
        if !response.is_reusable() {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE_CONNECTIONS {
            idle.push(response.connection);
        }
    }

    /// The same for an answer that needs no more reading: its body may take so long to end, or its connection is closed.
    pub async fn give_back_within(&self, patience: Duration, mut response: Response<C::Stream>) {
        if let Ok(Ok(_)) = tokio::time::timeout(patience, response.read_to_end()).await {
            self.give_back(response);
        }
    }

    /// Closes the connections that wait, so that the next request comes as a stranger.
    pub fn forget_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn take_idle(&self) -> Option<Connection<C::Stream>> {
        let mut connection = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        connection.forget_reads();
        Some(connection)
    }
}

impl<C: Connect> Clone for Client<C> {
    fn clone(&self) -> Self {
        Self { connector: self.connector.clone(), endpoint: Arc::clone(&self.endpoint), idle: Arc::clone(&self.idle) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Response<S> {
    fn new(connection: Connection<S>, head: Head) -> Result<Self, HttpError> {
        let framing = Framing::of(&head);
        Ok(Self { head, connection, framing })
    }

    /// Appends what the next read brings of the body to `out`; false at the body's end.
    pub async fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, HttpError> {
        self.connection.read_body(&mut self.framing, out).await
    }

    pub async fn read_to_end(&mut self) -> Result<Vec<u8>, HttpError> {
        let mut body = Vec::new();
        while self.next(&mut body).await? {
            if body.len() > MAX_ANSWER_BYTES {
                return Err(HttpError::TooLong);
            }
        }
        Ok(body)
    }

    fn is_reusable(&self) -> bool {
        self.framing.is_done() && self.head.keep_alive
    }
}
