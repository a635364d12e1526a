//! Where the commands of administration go: to the server that runs on the data directory, through its socket, else to the
//! ledger itself. Both are asked the same requests and have the same handlers, so both do the same things.

use std::io::{self, Read};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use axum::Router;
use axum::body::{Body, BodyDataStream, Bytes};
use futures_util::StreamExt;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::service::Service;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use passerelle::api::{ApiConfig, OperatorBackend, ShelvedBooks};
use passerelle::config::Config;
use passerelle::gateway::quota::Calendar;
use passerelle::gateway::{Administration, DataDir, Directory};
use passerelle_engine::clock::{Clock, SystemClock};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::serve::{ADMIN_SOCKET, calendar, default_limits, on_the_shelf, owners};

/// The whole of a large ledger's accounts or audit log.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// For an answer to begin, and for each part of it: a large model takes minutes to load, a large ledger to copy.
const LONGEST_WAIT: Duration = Duration::from_secs(15 * 60);

pub(super) struct AdminClient {
    way: Way,
    runtime: Runtime,
    pub(super) calendar: Calendar,
}

enum Way {
    /// The socket of the server that runs.
    Server(PathBuf),
    /// No server runs, or none that answers at this socket.
    Ledger(Router, PathBuf),
}

/// What becomes of a data directory in which nothing is kept yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoLedger {
    Make,
    /// It was probably mistyped, and is not made.
    Refuse,
}

/// An answer that is read as it comes. One that breaks off is an error, and no end.
pub(super) struct Download<'a> {
    runtime: &'a Runtime,
    chunks: BodyDataStream,
    chunk: Bytes,
}

/// Something that was asked for and is not done.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refused {
    code: String,
    message: String,
}

impl Refused {
    /// Whether what was to be made is there already.
    pub(super) fn is_conflict(error: &anyhow::Error) -> bool {
        error.downcast_ref::<Self>().is_some_and(|refused| refused.code == "conflict")
    }
}

impl AdminClient {
    /// `model`: the one that will be asked about, whose price is derived where nobody publishes one.
    pub(super) fn open(config: &Config, none: NoLedger, model: Option<&str>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let calendar = calendar(&config.ledger).map_err(|error| config.located(error))?;
        let socket = config.server.data_dir.join(ADMIN_SOCKET);
        let way = match is_answered(&socket)? {
            true => Way::Server(socket),
            false => {
                require_ledger(&config.server.data_dir, none)?;
                Way::Ledger(backend(config, model)?.router(), socket)
            }
        };
        Ok(Self { way, runtime, calendar })
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, path, Body::empty())
    }

    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask(Method::POST, path, body.to_string().into())
    }

    pub(super) fn delete(&self, path: &str) -> Result<Value> {
        self.ask(Method::DELETE, path, Body::empty())
    }

    /// What is there, as it comes.
    pub(super) fn download(&self, path: &str) -> Result<Download<'_>> {
        let request = Request::get(path).header(HOST, "localhost").body(Body::empty())?;
        let response = self.runtime.block_on(self.send(request))?;
        if !response.status().is_success() {
            let bytes = self.runtime.block_on(axum::body::to_bytes(response.into_body(), MAX_ANSWER_BYTES))?;
            return Err(refused(&serde_json::from_slice(&bytes).context("the answer is no JSON")?));
        }
        if response.headers().contains_key("x-passerelle-audit-entry") {
            tell!("passerelle: {}", self.unwritten());
        }
        Ok(Download { runtime: &self.runtime, chunks: response.into_body().into_data_stream(), chunk: Bytes::new() })
    }

    /// What is said where an act is done that the audit log has no room for.
    fn unwritten(&self) -> &'static str {
        match self.way {
            Way::Server(_) => {
                "no room for it in the audit log; the server writes it there before the next entry, or when the log is next read"
            }
            Way::Ledger(..) => "there is no room for it in the audit log, and it stays missing there",
        }
    }

    /// The `data` of a list.
    pub(super) fn rows<T: DeserializeOwned>(&self, mut answer: Value) -> Result<Vec<T>> {
        serde_json::from_value(answer["data"].take()).context(match self.way {
            Way::Server(_) => "the server that runs is of another version",
            Way::Ledger(..) => "the ledger holds what cannot be shown",
        })
    }

    fn ask(&self, method: Method, path: &str, body: Body) -> Result<Value> {
        let request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        let request = request.header(CONTENT_TYPE, "application/json").body(body)?;
        let (is_success, bytes) = self.runtime.block_on(async {
            let response = self.send(request).await?;
            let is_success = response.status().is_success();
            Ok::<_, anyhow::Error>((is_success, axum::body::to_bytes(response.into_body(), MAX_ANSWER_BYTES).await?))
        })?;
        let answer: Value = serde_json::from_slice(&bytes).context("the answer is no JSON")?;
        if is_success { Ok(answer) } else { Err(self.refused(&answer)) }
    }

    /// Who is told that no server runs is told where one was looked for.
    fn refused(&self, answer: &Value) -> anyhow::Error {
        let error = refused(answer);
        match (&self.way, error.downcast_ref::<Refused>()) {
            (Way::Ledger(_, socket), Some(refused)) if refused.code == "no_server" => {
                let looked =
                    format!("{}: none answers at {}; --data-dir says where it is", refused.message, socket.display());
                anyhow!(looked)
            }
            _ => error,
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>> {
        let answer = timeout(LONGEST_WAIT, self.hand_over(request)).await;
        answer.context("the server that runs does not answer")?
    }

    async fn hand_over(&self, request: Request<Body>) -> Result<Response<Body>> {
        match &self.way {
            Way::Ledger(router, _) => match TowerToHyperService::new(router.clone()).call(request).await {
                Ok(response) => Ok(response),
            },
            Way::Server(socket) => {
                let stream = UnixStream::connect(socket).await;
                let stream = stream.with_context(|| format!("cannot reach the server at {}", socket.display()))?;
                let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                Ok(sender.send_request(request).await?.map(Body::new))
            }
        }
    }
}

fn require_ledger(folder: &Path, none: NoLedger) -> Result<()> {
    ensure!(
        none == NoLedger::Make || DataDir::is_at(folder),
        "nothing is kept in {}: name another --data-dir, or make an account or a key there",
        folder.display()
    );
    Ok(())
}

/// Whether a server listens there. A socket that a killed one left is none.
fn is_answered(socket: &Path) -> Result<bool> {
    use io::ErrorKind::{ConnectionRefused, InvalidInput, NotFound};
    match StdUnixStream::connect(socket) {
        Ok(_) => Ok(true),
        // The last: a path that is too long for a socket, so no server listens there either.
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused | InvalidInput) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot reach the server at {}", socket.display())),
    }
}

fn backend(config: &Config, model: Option<&str>) -> Result<OperatorBackend> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let data = DataDir::open_even_if_full(&config.server.data_dir)?;
    let directory = Directory::open(&data, Arc::clone(&clock), "command line")?;
    let books = ShelvedBooks {
        ledger: on_the_shelf(&data, clock, config, model)?,
        defaults: default_limits(config)?,
        aliases: config.aliases.keys().cloned().collect(),
        owners: owners(config)?,
    };
    Ok(OperatorBackend::on_ledger(Administration::open(&data, directory)?, &ApiConfig::default(), books))
}

impl Read for Download<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            let next = async { timeout(LONGEST_WAIT, self.chunks.next()).await };
            match self.runtime.block_on(next).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? {
                Some(chunk) => self.chunk = chunk.map_err(io::Error::other)?,
                None => return Ok(0),
            }
        }
        let taken = self.chunk.split_to(into.len().min(self.chunk.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

fn refused(answer: &Value) -> anyhow::Error {
    let text = |field: &str| answer["error"][field].as_str().map(str::to_owned);
    match (text("code"), text("message")) {
        (Some(code), Some(message)) => Refused { code, message: message.trim_end_matches('.').to_owned() }.into(),
        _ => anyhow!("the answer is no error of this program: {answer}"),
    }
}

/// As one step of a path, whatever was typed.
pub(super) fn in_path(text: &str) -> String {
    text.bytes().fold(String::new(), |path, byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => path + &char::from(byte).to_string(),
        _ => format!("{path}%{byte:02X}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_typed_is_one_step_of_a_path() {
        assert_eq!(in_path("alice-1"), "alice-1");
        assert_eq!(in_path("a/b?c é"), "a%2Fb%3Fc%20%C3%A9");
    }

    #[test]
    fn a_socket_that_nobody_answers_is_no_server() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let socket = folder.path().join(ADMIN_SOCKET);
        assert!(!is_answered(&socket).expect("nothing is there"));
        let living = std::os::unix::net::UnixListener::bind(&socket).expect("the folder is writable");
        assert!(is_answered(&socket).expect("a server"));
        drop(living);
        assert!(socket.exists() && !is_answered(&socket).expect("a killed server leaves its socket"));
        let long = folder.path().join("x".repeat(200)).join(ADMIN_SOCKET);
        assert!(!is_answered(&long).expect("no socket can be there"));
    }
}
