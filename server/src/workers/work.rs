//! A worker's whole life with its gateway.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::poll_fn;
use passerelle_engine::clock::Clock;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::{Status, Streaming};

use super::dial::Dialled;
use super::facts::WorkerFacts;
use super::job_table::{JobTable, Signs};
pub use super::job_table::{Revive, WorkerModel};
use super::wire::{FromGateway, FromWorker, Hello, Leaving, Malformed, from_gateway, from_worker};
use super::{MAX_MESSAGES_ON_THE_WAY, in_words};

/// The gateway answers a worker that introduces itself so soon.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// The gateway takes a message so soon, or hangs.
const LONGEST_STALL: Duration = Duration::from_secs(30);
/// What was sent last is read so soon.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// A worker that has loaded its models.
#[derive(Debug)]
pub struct WorkerParts {
    pub facts: WorkerFacts,
    /// In the order of the facts.
    pub models: Vec<WorkerModel>,
    /// Rung after each step of any of the engines.
    pub bell: Arc<Notify>,
    /// The engines'.
    pub clock: Arc<dyn Clock>,
    /// What runs may take so long to finish once it leaves.
    pub patience: Duration,
}

/// Why a worker ended before it had left.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("the stream to the gateway broke: {0}")]
    Broken(String),
    #[error("the gateway is gone")]
    GatewayGone,
    #[error("the gateway reads nothing any more")]
    GatewayStuck,
    #[error("the gateway does not want this worker: {0}")]
    Unwanted(String),
    #[error("the gateway says what no gateway says: {0}")]
    Nonsense(#[from] Malformed),
    #[error("an engine has failed")]
    EngineDead,
}

/// Serves the gateway until `leave`, which says why, and then what runs to its end.
pub async fn work(
    mut gateway: Dialled,
    parts: WorkerParts,
    leave: impl Future<Output = String>,
) -> Result<(), WorkError> {
    let WorkerParts { facts, models, bell, clock, patience } = parts;
    let (to, mut said) = mpsc::channel(MAX_MESSAGES_ON_THE_WAY);
    say(&to, from_worker::What::Hello(Hello::from(&facts))).await?;
    let attached = gateway.client().attach(poll_fn(move |context| said.poll_recv(context)));
    let attached = timeout(WELCOME_TIMEOUT, attached).await.map_err(|_| WorkError::GatewayGone)?;
    let mut from = attached.map_err(broken)?.into_inner();
    let beat = welcome(&mut from).await?;
    let mut worker = Worker { jobs: JobTable::new(models, clock), to, stage: Stage::Serving };
    worker.serve(&mut from, (&bell, beat), (leave, patience)).await?;
    drop(worker);
    // The gateway ends its side when it has read ours.
    let _ = timeout(LAST_WORDS, async { while let Ok(Some(_)) = from.message().await {} }).await;
    Ok(())
}

struct Worker {
    jobs: JobTable,
    to: mpsc::Sender<FromWorker>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// The gateway was told, and may have sent something before it heard.
    Leaving,
    /// Nothing new comes any more.
    Finishing,
}

impl Worker {
    async fn serve(
        &mut self,
        from: &mut Streaming<FromGateway>,
        (bell, beat): (&Notify, Duration),
        (leave, patience): (impl Future<Output = String>, Duration),
    ) -> Result<(), WorkError> {
        let mut leave = std::pin::pin!(leave);
        let mut too_late = std::pin::pin!(sleep(Duration::MAX));
        let mut beats = interval(beat);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while self.stage != Stage::Finishing || !self.jobs.is_done() {
            tokio::select! {
                message = from.message() => self.hear(message.map_err(broken)?)?,
                () = bell.notified() => self.tell(Signs::OfWork).await?,
                () = self.jobs.next_aside() => self.tell(Signs::OfWork).await?,
                _ = beats.tick() => {
                    if self.jobs.is_dead() {
                        return Err(WorkError::EngineDead);
                    }
                    self.tell(Signs::OfLife).await?;
                }
                why = &mut leave, if self.stage == Stage::Serving => {
                    self.stage = Stage::Leaving;
                    too_late.set(sleep(patience));
                    say(&self.to, from_worker::What::Leaving(Leaving { why })).await?;
                }
                () = &mut too_late => {
                    tracing::warn!(?patience, "what still runs is given up");
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn hear(&mut self, message: Option<FromGateway>) -> Result<(), WorkError> {
        match message.ok_or(WorkError::GatewayGone)?.what {
            Some(from_gateway::What::Orders(orders)) => self.jobs.obey(orders)?,
            Some(from_gateway::What::Goodbye(goodbye)) if goodbye.why.is_empty() => self.stage = Stage::Finishing,
            Some(from_gateway::What::Goodbye(goodbye)) => return Err(WorkError::Unwanted(goodbye.why)),
            // What a later version may say.
            Some(from_gateway::What::Welcome(_)) | None => {}
        }
        Ok(())
    }

    /// Takes what there is once there is a place for it, so that nothing waits in two places.
    async fn tell(&mut self, signs: Signs) -> Result<(), WorkError> {
        let place = timeout(LONGEST_STALL, self.to.reserve()).await.map_err(|_| WorkError::GatewayStuck)?;
        let place = place.map_err(|_| WorkError::GatewayGone)?;
        let mut steps = self.jobs.take_steps(signs).into_iter();
        if let Some(first) = steps.next() {
            place.send(FromWorker { what: Some(from_worker::What::Step(first)) });
        }
        for step in steps {
            say(&self.to, from_worker::What::Step(step)).await?;
        }
        Ok(())
    }
}

fn broken(status: Status) -> WorkError {
    WorkError::Broken(in_words(&status))
}

async fn say(to: &mpsc::Sender<FromWorker>, what: from_worker::What) -> Result<(), WorkError> {
    let sent = timeout(LONGEST_STALL, to.send(FromWorker { what: Some(what) })).await;
    sent.map_err(|_| WorkError::GatewayStuck)?.map_err(|_| WorkError::GatewayGone)
}

/// How often the gateway wants a sign of life.
async fn welcome(from: &mut Streaming<FromGateway>) -> Result<Duration, WorkError> {
    let first = timeout(WELCOME_TIMEOUT, from.message()).await.map_err(|_| WorkError::GatewayGone)?;
    match first.map_err(broken)?.and_then(|message| message.what) {
        Some(from_gateway::What::Welcome(welcome)) => Ok(Duration::from_millis(welcome.beat_ms.max(1))),
        Some(from_gateway::What::Goodbye(goodbye)) => Err(WorkError::Unwanted(goodbye.why)),
        Some(from_gateway::What::Orders(_)) => Err(Malformed("orders before a welcome").into()),
        None => Err(WorkError::GatewayGone),
    }
}
