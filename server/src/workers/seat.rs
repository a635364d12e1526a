//! A partition, as the gateway knows it: its models, and the worker that serves them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::StepObserver;
use passerelle_models::ModelDigest;
use tokio::sync::watch;

use super::facts::WorkerFacts;
use super::link::{Link, Parting};
use super::mutual_tls::Peer;
use super::post::Post;
use super::wire::PROTOCOL;

/// Of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// For the workers of one partition, one after the other.
#[derive(Debug)]
pub struct Seat {
    partition: String,
    from: WorkersFrom,
    posts: Vec<Post>,
    standing: watch::Sender<Standing>,
    /// Of the models as the gateway has read them, else as the first worker had loaded them; no worker may have others.
    digests: Mutex<BTreeMap<String, ModelDigest>>,
    /// Takes requests. Whoever leaves frees the seat, and finishes what it has.
    seated: Mutex<Option<Arc<Link>>>,
}

/// Whose workers a partition takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorkersFrom {
    /// Those of the gateway's own user alone; no certificate counts.
    Here,
    Anywhere,
}

/// Counted, so that whoever waits misses nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// Workers that came.
    pub arrivals: u64,
    /// Workers on the seat that said that they leave.
    pub leavings: u64,
    /// Workers on the seat whose streams ended without that.
    pub losses: u64,
    /// Processes that ended without having said so, also before they came.
    pub ends: u64,
}

/// How a partition is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeatFigures {
    pub arrivals: u64,
    pub ends: u64,
    /// Since its worker said something; `None` while it has none that takes requests.
    pub silence: Option<Duration>,
}

/// Why a worker is sent away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotSeated {
    #[error("the configuration has no partition `{0}`")]
    NoSuchPartition(String),
    #[error(
        "it speaks protocol {protocol} (version {version:?}), and the gateway protocol {} (version {}): run the same version of \
         passerelle at both ends",
        PROTOCOL,
        VERSION
    )]
    OtherProtocol { version: String, protocol: u32 },
    #[error("its certificate is not for partition `{0}`")]
    OfAnotherPartition(String),
    #[error("partition `{0}` is served by the gateway's own machine")]
    FromElsewhere(String),
    #[error("partition `{0}` has a worker")]
    Taken(String),
    #[error("it has loaded {0:?}, and the gateway expects {1:?} of this partition")]
    OtherModels(Vec<String>, Vec<String>),
    #[error("model `{0}` is another checkpoint than the gateway's")]
    OtherCheckpoint(String),
}

impl Seat {
    pub fn new(partition: impl Into<String>, from: WorkersFrom, posts: Vec<Post>) -> Self {
        let standing = watch::Sender::new(Standing::default());
        let (digests, seated) = Default::default();
        Self { partition: partition.into(), from, posts, standing, digests, seated }
    }

    /// The same, for workers that have these checkpoints and no others under the names.
    #[must_use]
    pub fn with_digests(self, digests: impl IntoIterator<Item = (String, ModelDigest)>) -> Self {
        Self { digests: Mutex::new(digests.into_iter().collect()), ..self }
    }

    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// Of its models.
    pub fn posts(&self) -> &[Post] {
        &self.posts
    }

    /// Changes when a worker comes, says that it leaves, or ends.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// For operators.
    pub fn figures(&self, now: Duration) -> SeatFigures {
        let Standing { arrivals, ends, .. } = *self.standing.borrow();
        SeatFigures { arrivals, ends, silence: self.seated().as_ref().map(|link| link.silence(now)) }
    }

    /// Requests go to this worker from now on, until it leaves or is gone. `now`: on the gateway's clock.
    pub(super) fn sit(&self, facts: WorkerFacts, peer: &Peer, now: Duration) -> Result<Arc<Link>, NotSeated> {
        match (peer, self.from) {
            (Peer::Certified(_), WorkersFrom::Here) => return Err(NotSeated::FromElsewhere(facts.partition)),
            _ if !peer.may_serve(&facts.partition) => return Err(NotSeated::OfAnotherPartition(facts.partition)),
            _ => {}
        }
        let posts = self.posts_of(&facts)?;
        let mut seated = self.seated();
        if seated.is_some() {
            return Err(NotSeated::Taken(facts.partition));
        }
        self.check_digests(&facts)?;
        let observers: Vec<Arc<dyn StepObserver>> = posts.iter().map(|post| post.observer()).collect();
        tracing::info!(
            partition = facts.partition,
            device = facts.device,
            kernels = facts.kernels,
            threads = facts.threads,
            models = facts.models.len(),
            "a worker has come"
        );
        if facts.version != VERSION {
            let (partition, version) = (&facts.partition, &facts.version);
            tracing::warn!(partition, version, "the worker is of another version than the gateway, {VERSION}");
        }
        let link = Arc::new(Link::new(facts, observers, now));
        posts.iter().zip(0..).for_each(|(post, model)| post.take_up(&link, model));
        *seated = Some(Arc::clone(&link));
        self.standing.send_modify(|standing| standing.arrivals += 1);
        Ok(link)
    }

    /// It takes nothing more, and finishes what it has. What comes meanwhile waits only where a successor is sure to be
    /// started.
    pub(super) fn leave(&self, link: &Arc<Link>, why: &str) {
        tracing::info!(partition = self.partition, why, "a worker leaves");
        self.posts.iter().for_each(|post| match self.from {
            WorkersFrom::Here => post.hand_over(link),
            WorkersFrom::Anywhere => post.vacate(link),
        });
        link.leave();
        if self.free(link) {
            self.standing.send_modify(|standing| standing.leavings += 1);
        }
    }

    /// Its stream has ended.
    pub(super) fn rise(&self, link: &Arc<Link>) {
        self.posts.iter().for_each(|post| post.vacate(link));
        let parting = link.close();
        if self.free(link) && parting == Parting::Lost {
            self.standing.send_modify(|standing| standing.losses += 1);
        }
    }

    pub(super) fn note_end(&self) {
        self.standing.send_modify(|standing| standing.ends += 1);
    }

    /// Ends what its workers run, so that each client is told.
    pub fn shut_down(&self) {
        self.posts.iter().for_each(Post::shut_down);
    }

    /// Whether the worker was on the seat.
    fn free(&self, link: &Arc<Link>) -> bool {
        self.seated().take_if(|seated| Arc::ptr_eq(seated, link)).is_some()
    }

    fn seated(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.seated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the worker's order.
    fn posts_of(&self, facts: &WorkerFacts) -> Result<Vec<&Post>, NotSeated> {
        let find = |name: &str| self.posts.iter().find(|post| post.model() == name);
        let posts: Option<Vec<&Post>> = facts.models.iter().map(|model| find(&model.name)).collect();
        posts.filter(|posts| posts.len() == self.posts.len()).ok_or_else(|| {
            let offered = facts.models.iter().map(|model| model.name.clone()).collect();
            let expected = self.posts.iter().map(|post| post.model().to_owned()).collect();
            NotSeated::OtherModels(offered, expected)
        })
    }

    /// The gateway keeps the text side of what it served first, and its ledger the digest.
    fn check_digests(&self, facts: &WorkerFacts) -> Result<(), NotSeated> {
        let mut known = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        for model in &facts.models {
            let digest = *known.entry(model.name.clone()).or_insert(model.digest);
            if digest != model.digest {
                return Err(NotSeated::OtherCheckpoint(model.name.clone()));
            }
        }
        Ok(())
    }
}
