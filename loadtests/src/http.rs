//! HTTP/1.1 as this instrument needs it: streamed answers with a timestamp on each read, and connections in hand, so
//! that tests of reliability can misuse them. Plain text only: TLS ends in front of the servers that are measured.

mod connection;
mod framing;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};

pub use connection::{Connection, Head};
pub use framing::{BadChunk, ChunkedDecoder, Framing};

/// Connections that wait for their next request.
const MAX_IDLE_CONNECTIONS: usize = 1024;
/// Of what is not a generation: those have timeouts of their own.
const FETCH_TIMEOUT: Duration = Duration::from_secs(60);
/// What a socket holds for a reader who does not read; the system doubles it.
const NARROW_BUFFER_BYTES: u32 = 2048;
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

#[derive(Debug, Clone)]
pub struct Tcp {
    pub address: String,
}

impl Connect for Tcp {
    type Stream = TcpStream;

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn connect_narrow(&self) -> std::io::Result<TcpStream> {
        let mut addresses = tokio::net::lookup_host(&self.address).await?;
        let address = addresses.next().ok_or(std::io::ErrorKind::NotFound)?;
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_recv_buffer_size(NARROW_BUFFER_BYTES)?;
        socket.connect(address).await
    }
}

/// `http://host:port/prefix`; a trailing `/v1` is accepted, because clients' base URLs have it.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// `host:port`, also the Host header.
    pub authority: String,
    pub prefix: String,
    /// Sent with every request, besides those that it needs: name and value.
    pub headers: Vec<(String, String)>,
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

impl Endpoint {
    pub fn parse(url: &str) -> Result<Self, String> {
        let Some(rest) = url.strip_prefix("http://") else {
            return Err(format!("`{url}` must start with http:// (TLS is not spoken here: measure behind its end)"));
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() || host.contains('@') {
            return Err(format!("`{url}` names no host"));
        }
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { host.to_owned() } else { format!("{host}:80") };
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("v1").map_or(path, |path| path.trim_end_matches('/'));
        let prefix = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { authority, prefix, headers: Vec::new() })
    }

    /// Without a prefix.
    pub fn at(authority: String) -> Self {
        Self { authority, prefix: String::new(), headers: Vec::new() }
    }

    /// Whether load on it stays on this machine.
    pub fn is_loopback(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    pub fn port(&self) -> Option<u16> {
        self.authority.rsplit_once(':')?.1.parse().ok()
    }

    /// The bytes of a request.
    pub fn encode(&self, request: &Request) -> Vec<u8> {
        let Request { method, path, api_key, body } = request;
        let mut head = format!("{method} {}{path} HTTP/1.1\r\nHost: {}\r\n", self.prefix, self.authority);
        if let Some(key) = api_key {
            head.push_str(&format!("Authorization: Bearer {key}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || *method == "POST" {
            head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(body);
        bytes
    }
}

impl Client<Tcp> {
    pub fn tcp(endpoint: Endpoint) -> Self {
        Self::new(Tcp { address: endpoint.authority.clone() }, endpoint)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_as_clients_write_them() {
        let endpoint = |url| Endpoint::parse(url).map(|endpoint| (endpoint.authority, endpoint.prefix));
        assert_eq!(endpoint("http://127.0.0.1:8080"), Ok(("127.0.0.1:8080".into(), String::new())));
        assert_eq!(endpoint("http://localhost:9/v1/"), Ok(("localhost:9".into(), String::new())));
        assert_eq!(endpoint("http://host/api/v1"), Ok(("host:80".into(), "/api".into())));
        assert!(endpoint("https://host").is_err());
        assert!(endpoint("http://").is_err());
    }

    #[test]
    fn further_headers_are_sent_with_every_request() {
        let headers = vec![("X-Team".to_owned(), "blue".to_owned())];
        let endpoint = Endpoint { headers, ..Endpoint::at("host:1".to_owned()) };
        let request = Request { method: "GET", path: "/v1/models", api_key: None, body: b"" };
        let bytes = String::from_utf8(endpoint.encode(&request)).unwrap();
        assert_eq!(bytes, "GET /v1/models HTTP/1.1\r\nHost: host:1\r\nX-Team: blue\r\n\r\n");
    }

    #[test]
    fn loopback_is_told_from_elsewhere() {
        let is_loopback = |url| Endpoint::parse(url).unwrap().is_loopback();
        assert!(is_loopback("http://127.0.0.1:1") && is_loopback("http://[::1]:1") && is_loopback("http://localhost"));
        assert!(!is_loopback("http://10.0.0.1:1") && !is_loopback("http://example.org"));
    }
}
