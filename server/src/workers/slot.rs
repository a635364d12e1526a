//! A partition, as the gateway knows it: its models, and the worker that serves them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use passerelle_engine::StepObserver;
use passerelle_models::ModelDigest;
use tokio::sync::watch;

use super::facts::{OfferedModel, WorkerFacts};
use super::link::{Link, Parting};
use super::mutual_tls::Peer;
use super::remote_replica::RemoteReplica;
use super::wire::PROTOCOL;

/// Of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// For the workers of one partition, one after the other.
#[derive(Debug)]
pub struct WorkerSlot {
    partition: String,
    from: WorkersFrom,
    replicas: Vec<RemoteReplica>,
    standing: watch::Sender<Standing>,
    /// Of the models as the gateway has read them, else as the first worker had loaded them; no worker may have others.
    digests: Mutex<BTreeMap<String, ModelDigest>>,
    /// Takes requests. Whoever leaves frees the slot, and finishes what it has.
    registered: Mutex<Option<Arc<Link>>>,
    /// Those that left, and may still run something.
    leavers: Mutex<Vec<Weak<Link>>>,
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
    /// Workers on the slot that said that they leave.
    pub leavings: u64,
    /// Workers on the slot whose streams ended without that.
    pub losses: u64,
    /// Processes that ended without having said so, also before they came.
    pub ends: u64,
}

/// How a partition is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerSlotFigures {
    pub arrivals: u64,
    pub ends: u64,
    /// Since its worker said something; `None` while it has none that takes requests.
    pub silence: Option<Duration>,
}

/// Why a worker is sent away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotRegistered {
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

impl WorkerSlot {
    pub fn new(partition: impl Into<String>, from: WorkersFrom, replicas: Vec<RemoteReplica>) -> Self {
        let standing = watch::Sender::new(Standing::default());
        let (digests, registered, leavers) = Default::default();
        Self { partition: partition.into(), from, replicas, standing, digests, registered, leavers }
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
    pub fn replicas(&self) -> &[RemoteReplica] {
        &self.replicas
    }

    /// Changes when a worker comes, says that it leaves, or ends.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// For operators.
    pub fn figures(&self, now: Duration) -> WorkerSlotFigures {
        let Standing { arrivals, ends, .. } = *self.standing.borrow();
        WorkerSlotFigures { arrivals, ends, silence: self.registered().as_ref().map(|link| link.silence(now)) }
    }

    /// Requests go to this worker from now on, until it leaves or is gone. `now`: on the gateway's clock.
    pub(super) fn register(&self, facts: WorkerFacts, peer: &Peer, now: Duration) -> Result<Arc<Link>, NotRegistered> {
        match (peer, self.from) {
            (Peer::Certified(_), WorkersFrom::Here) => return Err(NotRegistered::FromElsewhere(facts.partition)),
            _ if !peer.may_serve(&facts.partition) => return Err(NotRegistered::OfAnotherPartition(facts.partition)),
            _ => {}
        }
        let replicas = self.replicas_of(&facts)?;
        let mut registered = self.registered();
        if registered.is_some() {
            return Err(NotRegistered::Taken(facts.partition));
        }
        self.check_digests(&facts)?;
        let observers: Vec<Arc<dyn StepObserver>> = replicas.iter().map(|replica| replica.observer()).collect();
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
        replicas.iter().zip(0..).for_each(|(replica, model)| replica.take_up(&link, model));
        *registered = Some(Arc::clone(&link));
        self.standing.send_modify(|standing| standing.arrivals += 1);
        Ok(link)
    }

    /// It takes nothing more, and finishes what it has. What comes meanwhile waits only where a successor is sure to be
    /// started.
    pub(super) fn leave(&self, link: &Arc<Link>, why: &str) {
        tracing::info!(partition = self.partition, why, "a worker leaves");
        // Before its replicas let go of it: whoever shuts down finds it here or there.
        let mut leavers = self.leavers();
        let is_new = !leavers.iter().any(|leaver| std::ptr::eq(leaver.as_ptr(), Arc::as_ptr(link)));
        leavers.retain(|leaver| leaver.strong_count() > 0);
        leavers.extend(is_new.then(|| Arc::downgrade(link)));
        drop(leavers);
        self.replicas.iter().for_each(|replica| match self.from {
            WorkersFrom::Here => replica.hand_over(link),
            WorkersFrom::Anywhere => replica.vacate(link),
        });
        link.leave();
        // Once, however often it says so.
        if self.free(link) {
            self.standing.send_modify(|standing| standing.leavings += 1);
        }
    }

    /// Its stream has ended.
    pub(super) fn release(&self, link: &Arc<Link>) {
        self.replicas.iter().for_each(|replica| replica.vacate(link));
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
        self.replicas.iter().for_each(RemoteReplica::shut_down);
        let leavers = std::mem::take(&mut *self.leavers());
        leavers.iter().filter_map(Weak::upgrade).for_each(|link| _ = link.close());
    }

    /// Whether the worker was on the slot.
    fn free(&self, link: &Arc<Link>) -> bool {
        self.registered().take_if(|registered| Arc::ptr_eq(registered, link)).is_some()
    }

    fn registered(&self) -> MutexGuard<'_, Option<Arc<Link>>> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leavers(&self) -> MutexGuard<'_, Vec<Weak<Link>>> {
        self.leavers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the worker's order.
    fn replicas_of(&self, facts: &WorkerFacts) -> Result<Vec<&RemoteReplica>, NotRegistered> {
        let find = |name: &str| self.replicas.iter().find(|replica| replica.model() == name);
        let replicas: Option<Vec<&RemoteReplica>> = facts.models.iter().map(|model| find(&model.name)).collect();
        let has_all = |replicas: &Vec<&RemoteReplica>| {
            let is_there = |own: &RemoteReplica| replicas.iter().any(|replica| replica.model() == own.model());
            // As many, and so each of them once.
            replicas.len() == self.replicas.len() && self.replicas.iter().all(is_there)
        };
        replicas.filter(has_all).ok_or_else(|| {
            let offered = facts.models.iter().map(|model| model.name.clone()).collect();
            let expected = self.replicas.iter().map(|replica| replica.model().to_owned()).collect();
            NotRegistered::OtherModels(offered, expected)
        })
    }

    /// The gateway keeps the text side of what it served first, and its ledger the digest. Of a worker that is sent away it
    /// keeps nothing.
    fn check_digests(&self, facts: &WorkerFacts) -> Result<(), NotRegistered> {
        let mut known = self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = |model: &OfferedModel| known.get(&model.name).is_some_and(|digest| *digest != model.digest);
        if let Some(other) = facts.models.iter().find(|&model| is_other(model)) {
            return Err(NotRegistered::OtherCheckpoint(other.name.clone()));
        }
        known.extend(facts.models.iter().map(|model| (model.name.clone(), model.digest)));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
