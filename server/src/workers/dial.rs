//! A worker's connection to its gateway: gRPC over whatever carries bytes.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper::{Request, Response, Uri};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::body::Body;
use tonic::codegen::Service;

use super::MAX_MESSAGE_BYTES;
use super::wire::gateway_client::GatewayClient;

/// Bytes that may be on the way before they are read.
const WINDOW_BYTES: u32 = 4 << 20;
/// A gateway that has said nothing for so long is asked whether it lives.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// It answers so soon, or is gone: one whose machine lost its power hangs up on nobody.
const LONGEST_PONG: Duration = Duration::from_secs(20);
/// A request of HTTP/2 names a host; nobody looks at it.
const ORIGIN: &str = "http://gateway";

/// A gateway that answered.
#[derive(Debug)]
pub struct Dialled {
    client: GatewayClient<Direct>,
}

/// Why nobody who speaks HTTP/2 is there.
#[derive(Debug, thiserror::Error)]
#[error("the gateway does not answer: {0}")]
pub struct DialError(#[from] hyper::Error);

/// One connection, without a pool.
#[derive(Debug, Clone)]
pub(super) struct Direct(SendRequest<Body>);

/// Over a connection that is there. It ends with what is returned.
pub async fn dial(connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Dialled, DialError> {
    let (sender, driver) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(LONGEST_SILENCE)
        .keep_alive_timeout(LONGEST_PONG)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .handshake(TokioIo::new(connection))
        .await?;
    tokio::spawn(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "the connection to the gateway ended early");
        }
    });
    let client = GatewayClient::with_origin(Direct(sender), Uri::from_static(ORIGIN))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Dialled { client })
}

impl Dialled {
    pub(super) fn client(&mut self) -> &mut GatewayClient<Direct> {
        &mut self.client
    }
}

impl Service<Request<Body>> for Direct {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
