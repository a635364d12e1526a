//! Connections to one server, kept open from one request to the next.
//!
//! A connection has no task of its own: whoever asks over it drives it. So what comes is read, understood and passed on
//! in one go, however many events it holds, and nobody is woken between.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::TrySendError;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, Response, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use crate::gateway::upstream::Failure;

/// Idle connections are not used again after this, which is less than the five seconds after which common servers close
/// them: a request that meets a closing connection fails.
const LONGEST_IDLE: Duration = Duration::from_secs(4);
const MAX_IDLE: usize = 64;
/// Parts of a body that are read after its last event, to find its end.
const MAX_LAST_PARTS: usize = 4;

type Connector = HttpsConnector<HttpConnector>;
type Stream = <Connector as Service<Uri>>::Response;
pub(super) type Question = Request<Full<Bytes>>;

/// The connections to one server. Clones share them.
#[derive(Clone)]
pub(super) struct Lines {
    connector: Connector,
    server: Uri,
    idle: Arc<Mutex<Vec<Idle>>>,
}

struct Idle {
    line: Line,
    /// Until it is used no more.
    rest: Pin<Box<Sleep>>,
}

/// One connection, for one request at a time. Dropping it closes it.
pub(super) struct Line {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it is closed.
    connection: Option<Connection<Stream, Full<Bytes>>>,
}

impl Lines {
    /// `server`: of which scheme, host and port count.
    pub(super) fn new(server: Uri, connect_timeout: Duration) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_connect_timeout(Some(connect_timeout));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector =
            HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().wrap_connector(tcp);
        Self { connector, server, idle: Arc::default() }
    }

    /// The head of the answer, and the line that brings the rest. A request that met a closing connection, and was not
    /// sent, is sent over another one.
    pub(super) async fn ask(&self, mut question: Question) -> Result<(Line, Response<Incoming>), Failure> {
        loop {
            let (mut line, is_new) = match self.take() {
                Some(line) => (line, false),
                None => (self.open().await?, true),
            };
            match line.send(question).await {
                Ok(answer) => return Ok((line, answer)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !is_new => question = unsent,
                    _ => return Err(Failure::Broke("the connection broke before the answer".to_owned())),
                },
            }
        }
    }

    /// For the next request, if the answer over it has come to its end.
    pub(super) fn give_back(&self, mut line: Line, mut rest: Incoming) {
        if !line.is_at_end_of(&mut rest) {
            return;
        }
        drop(rest);
        if line.is_free() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < MAX_IDLE {
                idle.push(Idle { line, rest: Box::pin(sleep(LONGEST_IDLE)) });
            }
        }
    }

    fn take(&self) -> Option<Line> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain_mut(|kept| kept.rest.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        while let Some(Idle { mut line, .. }) = idle.pop() {
            if line.is_free() {
                return Some(line);
            }
        }
        None
    }

    async fn open(&self) -> Result<Line, Failure> {
        let stream = self.connector.clone().call(self.server.clone()).await.map_err(|_| Failure::Unreachable)?;
        let broke = |_| Failure::Broke("the connection broke before the request".to_owned());
        let (sender, connection) = handshake(stream).await.map_err(broke)?;
        Ok(Line { sender, connection: Some(connection) })
    }
}

impl Line {
    async fn send(&mut self, question: Question) -> Result<Response<Incoming>, TrySendError<Question>> {
        let mut answer = pin!(self.sender.try_send_request(question));
        let connection = &mut self.connection;
        poll_fn(|context| {
            drive(connection, context);
            answer.as_mut().poll(context)
        })
        .await
    }

    /// The next part of the body of the answer.
    pub(super) fn poll_part(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        drive(&mut self.connection, context);
        pin!(body).poll_frame(context).map_err(io::Error::other)
    }

    /// Without waiting. What follows the last event comes with it.
    fn is_at_end_of(&mut self, rest: &mut Incoming) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        (0..MAX_LAST_PARTS)
            .map(|_| self.poll_part(rest, &mut context))
            .take_while(Poll::is_ready)
            .any(|part| matches!(part, Poll::Ready(None)))
    }

    /// Whether it would take another request; one that the server has closed would not.
    fn is_free(&mut self) -> bool {
        drive(&mut self.connection, &mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && self.sender.is_ready()
    }
}

/// As far as it gets. Its failure is told by whatever waits for something over it.
fn drive(connection: &mut Option<Connection<Stream, Full<Bytes>>>, context: &mut Context<'_>) {
    if let Some(open) = connection
        && pin!(open).poll(context).is_ready()
    {
        *connection = None;
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("server", &self.server).finish_non_exhaustive()
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("is_open", &self.connection.is_some()).finish_non_exhaustive()
    }
}
