//! Where workers come in: the gRPC service of a gateway.

use std::collections::BTreeMap;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::poll_fn;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use passerelle_engine::clock::Clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status, Streaming};

use super::facts::WorkerFacts;
use super::link::Link;
use super::mutual_tls::Peer;
use super::slot::{NotRegistered, WorkerSlot};
use super::wire::gateway_server::{Gateway, GatewayServer};
use super::wire::{FromGateway, FromWorker, Goodbye, Hello, PROTOCOL, Welcome, from_gateway, from_worker};
use super::{MAX_MESSAGE_BYTES, MAX_MESSAGES_ON_THE_WAY, in_words};
use crate::gateway::health::{LOOK_EVERY, Progress};

/// Bytes that may be on the way before they are read.
const WINDOW_BYTES: u32 = 4 << 20;
/// A worker asks to be let in so soon, and then introduces itself so soon.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// What was sent last has arrived so soon, or the connection is cut.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Of what a worker of another protocol calls itself, in the log.
const LONGEST_VERSION: usize = 64;
/// A worker gives a sign of life so often within the time after which it counts as gone.
const BEATS_IN_SILENCE: u32 = 20;

/// Of all partitions. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    slots: Arc<BTreeMap<String, Arc<WorkerSlot>>>,
    bounds: GateBounds,
    clock: Arc<dyn Clock>,
}

/// Whose connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateBounds {
    /// A worker that says nothing for so long is gone.
    pub longest_silence: Duration,
    /// A worker with a model that has work and gets nowhere for so long is as good as gone, whatever else it says.
    pub longest_standstill: Duration,
}

impl GateBounds {
    /// How often a worker gives a sign of life: at least as often as its replicas are looked at, or a long step, of which
    /// nothing else tells, would look like one that hangs.
    fn beat(&self) -> Duration {
        (self.longest_silence / BEATS_IN_SILENCE).clamp(Duration::from_millis(1), LOOK_EVERY)
    }
}

type FromStream = Streaming<FromWorker>;
type ToWorker = mpsc::Sender<Result<FromGateway, Status>>;

impl Gate {
    pub fn new(slots: impl IntoIterator<Item = Arc<WorkerSlot>>, bounds: GateBounds, clock: Arc<dyn Clock>) -> Self {
        let slots = slots.into_iter().map(|slot| (slot.partition().to_owned(), slot)).collect();
        Self { slots: Arc::new(slots), bounds, clock }
    }

    /// Serves one worker's connection until the worker goes, or is not attended to any more.
    pub async fn serve(self, connection: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
        let (come, visitor) = mpsc::channel(1);
        let attends = tokio::spawn(WorkerConnection { gate: self, peer }.receive(visitor));
        let service = GatewayServer::new(Entrance { come })
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .max_concurrent_streams(1)
                .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service))
        );
        let served = tokio::select! {
            served = connection.as_mut() => served,
            _ = attends => {
                connection.as_mut().graceful_shutdown();
                timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a worker's connection ended early");
        }
    }
}

/// One connection, and who is at its other end.
#[derive(Debug)]
struct WorkerConnection {
    gate: Gate,
    peer: Peer,
}

/// Both ways of a worker's stream.
#[derive(Debug)]
struct WorkerStream {
    from: FromStream,
    to: ToWorker,
}

/// A worker that has been let in. Dropped, also by a panic: its slot is free, and what it had is lost.
struct Registered {
    slot: Arc<WorkerSlot>,
    link: Arc<Link>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.slot.release(&self.link);
    }
}

impl WorkerConnection {
    /// The one worker of this connection.
    async fn receive(self, mut visitor: mpsc::Receiver<WorkerStream>) {
        let come = timeout(HELLO_TIMEOUT, visitor.recv()).await;
        drop(visitor);
        if let Ok(Some(WorkerStream { from, to })) = come {
            self.attend(from, to).await;
        }
    }

    async fn attend(self, mut from: FromStream, to: ToWorker) {
        let registered = match self.greet(&mut from).await {
            Ok(registered) => registered,
            Err(why) => {
                tracing::warn!(why, "a worker is sent away");
                // It may have gone by itself.
                let _ = to.send(Ok(message(from_gateway::What::Goodbye(Goodbye { why })))).await;
                return;
            }
        };
        let beat_ms = self.gate.bounds.beat().as_millis() as u64;
        let welcome = to.send(Ok(message(from_gateway::What::Welcome(Welcome { beat_ms })))).await;
        if welcome.is_ok() {
            let giving = tokio::spawn({
                let link = Arc::clone(&registered.link);
                async move { link.give_orders(to).await }
            });
            self.listen(&mut from, &registered).await;
            giving.abort();
        }
    }

    /// Errors say why the worker is not wanted.
    async fn greet(&self, from: &mut FromStream) -> Result<Registered, String> {
        let first = timeout(HELLO_TIMEOUT, from.message()).await.map_err(|_| "it says nothing".to_owned())?;
        let first = first.map_err(|status| status.message().to_owned())?.and_then(|message| message.what);
        let Some(from_worker::What::Hello(hello)) = first else {
            return Err("it does not introduce itself".to_owned());
        };
        if hello.protocol != PROTOCOL {
            let Hello { protocol, version, .. } = hello;
            let version: String = version.chars().take(LONGEST_VERSION).collect();
            return Err(NotRegistered::OtherProtocol { version, protocol }.to_string());
        }
        let facts = WorkerFacts::try_from(hello).map_err(|malformed| malformed.to_string())?;
        let slot = self.gate.slots.get(&facts.partition);
        let slot = slot.ok_or_else(|| NotRegistered::NoSuchPartition(facts.partition.clone()).to_string())?;
        let link = slot.register(facts, &self.peer, self.gate.clock.now()).map_err(|refused| refused.to_string())?;
        Ok(Registered { slot: Arc::clone(slot), link })
    }

    /// Until the worker is gone, silent, stuck, or says what no worker says.
    async fn listen(&self, from: &mut FromStream, Registered { slot, link }: &Registered) {
        let (partition, GateBounds { longest_silence, longest_standstill }) = (slot.partition(), self.gate.bounds);
        let mut progress = vec![Progress::default(); link.facts().models.len()];
        loop {
            let what = match timeout(longest_silence, from.message()).await {
                Ok(Ok(Some(FromWorker { what }))) => what,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::debug!(partition, %error, "the stream of a worker broke");
                    tracing::warn!(partition, why = in_words(&error), "a worker left without a word");
                    return;
                }
                Err(_) => {
                    tracing::warn!(partition, silence = ?longest_silence, "a worker says nothing any more");
                    return;
                }
            };
            let now = self.gate.clock.now();
            let heard = match what {
                Some(from_worker::What::Step(step)) => {
                    let model = step.model as usize;
                    link.hear(step, now).map(|()| Some(model))
                }
                Some(from_worker::What::Leaving(leaving)) => {
                    slot.leave(link, &leaving.why);
                    Ok(None)
                }
                // What a later version may say.
                Some(from_worker::What::Hello(_)) | None => Ok(None),
            };
            let told_of = match heard {
                Ok(model) => model,
                Err(violation) => {
                    tracing::error!(partition, %violation, "a worker says what makes no sense, and is sent away");
                    return;
                }
            };
            link.note_sign_of_life(now);
            // What is known of the others may be old.
            let told_of =
                told_of.and_then(|model| Some((progress.get_mut(model)?, link.loads().into_iter().nth(model)?, model)));
            if let Some((progress, load, model)) = told_of {
                progress.observe(now, &load);
                if progress.stands_still_for(now) >= longest_standstill {
                    let model = &link.facts().models[model].name;
                    tracing::error!(partition, model, "a worker lives and gets nowhere, and is given up");
                    return;
                }
            }
        }
    }
}

/// Where a connection's worker asks to be let in.
#[derive(Debug)]
struct Entrance {
    come: mpsc::Sender<WorkerStream>,
}

#[tonic::async_trait]
impl Gateway for Entrance {
    type AttachStream = Pin<Box<dyn Stream<Item = Result<FromGateway, Status>> + Send>>;

    async fn attach(&self, request: Request<FromStream>) -> Result<Response<Self::AttachStream>, Status> {
        let (to, mut orders) = mpsc::channel(MAX_MESSAGES_ON_THE_WAY);
        let visitor = WorkerStream { from: request.into_inner(), to };
        let taken = |_| Status::failed_precondition("a connection has one worker, which comes at once");
        self.come.try_send(visitor).map_err(taken)?;
        Ok(Response::new(Box::pin(poll_fn(move |context| orders.poll_recv(context)))))
    }
}

fn message(what: from_gateway::What) -> FromGateway {
    FromGateway { what: Some(what) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_tells_of_its_progress_as_often_as_it_is_looked_at_however_long_it_may_be_silent() {
        let beat = |longest_silence| GateBounds { longest_silence, longest_standstill: Duration::MAX }.beat();
        let times = [0, 2, 5, 60, 3600].map(|seconds| beat(Duration::from_secs(seconds)).as_millis());
        assert_eq!(times, [1, 100, 250, 250, 250]);
    }
}
