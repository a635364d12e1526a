//! A server of known delays, in memory: with the runtime's time paused, a run of minutes takes milliseconds and its
//! figures are exact.

use std::fmt::{self, Debug};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use passerelle_loadtests::http::{Client, Connect, Endpoint};
use passerelle_loadtests::plan::Keys;
use passerelle_loadtests::run::{Pacing, RunOptions};
use passerelle_loadtests::session::{Session, SessionError};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};

const PIPE_BYTES: usize = 64 * 1024;
const MAX_REQUEST_BYTES: usize = 256 * 1024;
const READ_TIMEOUT: Duration = Duration::from_secs(15);
const PLACE_POLL: Duration = Duration::from_millis(10);

/// What a test's server does with one generation.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// A token after each delay.
    Tokens {
        delays: Vec<Duration>,
        text: String,
    },
    Status {
        status: u16,
        body: String,
    },
    /// These bytes after the head of a stream, then the connection ends.
    Raw(String),
    /// These bytes, and then the stream neither goes on nor ends.
    Lingers(String),
    Silence,
}

/// One generation, as the server saw it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) number: usize,
    pub(crate) in_flight: usize,
    pub(crate) body: Value,
    pub(crate) api_key: Option<String>,
}

#[derive(Clone)]
pub(crate) struct Scripted {
    behave: Arc<dyn Fn(&Seen) -> Reply + Send + Sync>,
    state: Arc<State>,
    fault: Option<Fault>,
    billed_each: u64,
}

/// What a faulty server gets wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    /// What a request holds is never given back.
    Leaks,
    /// It lets so many connections in and no more.
    Full(usize),
    /// So many connections at once; a further one waits until another ends.
    Places(usize),
    /// It tells no usage.
    Silent,
    /// It waits for the rest of a request for ever.
    Patient,
    /// It answers `/tokenize` with this status.
    TokenizesNot(u16),
    /// Its client may open so many connections and no more.
    OutOfFiles(usize),
}

#[derive(Default)]
struct State {
    requests: AtomicUsize,
    /// Those that were not refused.
    billed: AtomicUsize,
    in_flight: AtomicUsize,
    connections: AtomicUsize,
    /// Of those, the ones that have not ended.
    open: AtomicUsize,
    seen: Mutex<Vec<Seen>>,
}

impl Debug for Scripted {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("Scripted")
    }
}

impl Connect for Scripted {
    type Stream = DuplexStream;

    async fn connect(&self) -> std::io::Result<DuplexStream> {
        let before = self.state.connections.fetch_add(1, Ordering::SeqCst);
        if matches!(self.fault, Some(Fault::OutOfFiles(most)) if before >= most) {
            const EMFILE: i32 = 24;
            return Err(std::io::Error::from_raw_os_error(EMFILE));
        }
        if matches!(self.fault, Some(Fault::Full(most)) if before >= most) {
            std::future::pending::<()>().await;
        }
        while matches!(self.fault, Some(Fault::Places(most)) if self.state.open.load(Ordering::SeqCst) >= most) {
            tokio::time::sleep(PLACE_POLL).await;
        }
        self.state.open.fetch_add(1, Ordering::SeqCst);
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let server = self.clone();
        tokio::spawn(async move {
            server.clone().serve(far).await;
            server.state.open.fetch_sub(1, Ordering::SeqCst);
        });
        Ok(near)
    }
}

/// Options with which paused time is honoured.
pub(crate) fn virtual_time() -> RunOptions {
    RunOptions { pacing: Pacing::Runtime, ..RunOptions::default() }
}

/// A token after `first`, then one every `gap`; as many as the request asks.
pub(crate) fn steady(first: Duration, gap: Duration) -> impl Fn(&Seen) -> Reply + Send + Sync {
    move |seen| {
        let count = seen.body["max_tokens"].as_u64().expect("requests say how long") as usize;
        let delays = std::iter::once(first).chain(std::iter::repeat_n(gap, count - 1)).collect();
        Reply::Tokens { delays, text: "w ".to_owned() }
    }
}

impl Scripted {
    pub(crate) fn new(behave: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self { behave: Arc::new(behave), state: Arc::default(), fault: None, billed_each: 0 }
    }

    pub(crate) fn with(mut self, fault: Fault) -> Self {
        self.fault = Some(fault);
        self
    }

    /// Says that each request that it did not refuse used so many tokens.
    pub(crate) fn billing(mut self, each: u64) -> Self {
        self.billed_each = each;
        self
    }

    pub(crate) async fn session(&self) -> Session<Self> {
        self.session_with(Keys::default()).await
    }

    pub(crate) async fn session_with(&self, keys: Keys) -> Session<Self> {
        self.open(keys).await.expect("the scripted server can be opened")
    }

    pub(crate) async fn open(&self, keys: Keys) -> Result<Session<Self>, SessionError> {
        let endpoint = Endpoint::parse("http://127.0.0.1:1").expect("it is a URL");
        Session::open(Client::new(self.clone(), endpoint), None, keys, None).await
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no test panics while it holds the lock").clone()
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    /// Answers requests until the connection ends.
    pub(crate) async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send>(self, mut stream: S) {
        let patience = if self.fault == Some(Fault::Patient) { Duration::MAX } else { READ_TIMEOUT };
        let mut bytes = Vec::new();
        loop {
            let read = tokio::time::timeout(patience, read_request(&mut stream, &mut bytes)).await;
            let (path, api_key, body) = match read {
                Ok(Ok(Some(request))) => request,
                Ok(Err(TooLarge)) => {
                    let _ = answer(&mut stream, 413, "{}").await;
                    return;
                }
                Ok(Ok(None)) | Err(_) => return,
            };
            let running = self.state.in_flight.load(Ordering::SeqCst);
            let goes_on = match path.as_str() {
                "/v1/models" => answer(&mut stream, 200, &json!({"data": [{"id": "scripted"}]}).to_string()).await,
                "/tokenize" => match self.fault {
                    Some(Fault::TokenizesNot(status)) => answer(&mut stream, status, "{}").await,
                    _ => answer(&mut stream, 200, &tokenize(&body).to_string()).await,
                },
                "/metrics" => answer(&mut stream, 200, &format!("passerelle_running_sequences {running}\n")).await,
                "/v1/me/usage" => answer(&mut stream, 200, &self.usage().to_string()).await,
                _ => self.generate(&mut stream, api_key, body).await,
            };
            if goes_on.is_err() {
                return;
            }
        }
    }

    fn usage(&self) -> Value {
        let requests = self.state.billed.load(Ordering::SeqCst) as u64;
        json!({"data": [{"requests": requests, "output_tokens": requests * self.billed_each}]})
    }

    async fn generate<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        api_key: Option<String>,
        body: Value,
    ) -> std::io::Result<()> {
        let number = self.state.requests.fetch_add(1, Ordering::SeqCst);
        let in_flight = self.state.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        let seen = Seen { number, in_flight, body, api_key };
        let reply = (self.behave)(&seen);
        self.state.seen.lock().expect("no test panics while it holds the lock").push(seen.clone());
        if !matches!(reply, Reply::Status { .. }) {
            self.state.billed.fetch_add(1, Ordering::SeqCst);
        }
        let done = self.carry_out(stream, &reply, &seen.body).await;
        if self.fault != Some(Fault::Leaks) {
            self.state.in_flight.fetch_sub(1, Ordering::SeqCst);
        }
        done
    }

    async fn carry_out<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        reply: &Reply,
        body: &Value,
    ) -> std::io::Result<()> {
        const STREAM_HEAD: &[u8] =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
        let silent_about_usage = self.fault == Some(Fault::Silent);
        match reply {
            Reply::Status { status, body } => answer(stream, *status, body).await,
            Reply::Silence => std::future::pending().await,
            Reply::Raw(bytes) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await?;
                stream.write_all(bytes.as_bytes()).await?;
                Err(std::io::ErrorKind::ConnectionAborted.into())
            }
            Reply::Lingers(bytes) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await?;
                stream.write_all(bytes.as_bytes()).await?;
                std::future::pending().await
            }
            Reply::Tokens { delays, text } => {
                stream.write_all(STREAM_HEAD).await?;
                event(stream, &json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}).to_string())
                    .await?;
                for delay in delays {
                    tokio::time::sleep(*delay).await;
                    event(stream, &json!({"choices": [{"delta": {"content": text}}]}).to_string()).await?;
                }
                event(stream, r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#).await?;
                let prompt_tokens = body["messages"].to_string().split_whitespace().count();
                let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": delays.len()});
                if !silent_about_usage {
                    event(stream, &json!({"choices": [], "usage": usage}).to_string()).await?;
                }
                event(stream, "[DONE]").await?;
                stream.write_all(b"0\r\n\r\n").await
            }
        }
    }
}

async fn event<S: AsyncWrite + Unpin>(stream: &mut S, data: &str) -> std::io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await?;
    stream.flush().await
}

async fn answer<S: AsyncWrite + Unpin>(stream: &mut S, status: u16, body: &str) -> std::io::Result<()> {
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all((head + body).as_bytes()).await
}

/// Words are tokens.
fn tokenize(body: &Value) -> Value {
    let hash = |word: &str| word.bytes().fold(7u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let tokens: Vec<u32> = body["prompt"].as_str().unwrap_or("").split_whitespace().map(hash).collect();
    json!({"count": tokens.len(), "tokens": tokens})
}

struct TooLarge;

/// Path, key and body.
type Parts = (String, Option<String>, Value);

/// The next request; `None` when the connection ends.
async fn read_request<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut Vec<u8>) -> Result<Option<Parts>, TooLarge> {
    loop {
        let text = String::from_utf8_lossy(bytes).into_owned();
        if let Some((head, _)) = text.split_once("\r\n\r\n") {
            let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
            let length: usize = header("Content-Length: ").map_or(0, |value| value.parse().expect("a length"));
            let start = head.len() + 4;
            if length > MAX_REQUEST_BYTES {
                return Err(TooLarge);
            }
            if bytes.len() >= start + length && header("Transfer-Encoding: ").is_none() {
                let path = head.split(' ').nth(1).expect("a path").to_owned();
                let body = serde_json::from_slice(&bytes[start..start + length]).unwrap_or(Value::Null);
                bytes.drain(..start + length);
                return Ok(Some((path, header("Authorization: Bearer "), body)));
            }
        }
        if bytes.len() > MAX_REQUEST_BYTES {
            return Err(TooLarge);
        }
        if stream.read_buf(bytes).await.unwrap_or(0) == 0 {
            return Ok(None);
        }
    }
}
