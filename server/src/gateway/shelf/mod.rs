//! Models that lie on the disk, and come into memory when somebody asks for them.
//!
//! ```text
//!                   asked for            loaded               evicted, unloaded
//!      available ------------> loading ---------> ready ------------------------> leaving
//!       |     ^                   |                                                  |
//!       |     |  files changed    | why                                              |
//!       +-> failed <--------------+             available <--------------------------+
//! ```
//!
//! Everything that holds memory (loading, ready, leaving) fits the shelf's memory together, at every instant. A model that
//! has no room takes the place of those that nobody uses, the one first that was used longest ago; one that is used is
//! never taken away, nor one that is pinned. Models that wait for room wait in one line, so that a large one is not passed
//! by small ones for ever.
//!
//! This room decides; [`Shelf::next_order`] tells whoever loads models what to do. It knows names, digests and bytes,
//! nothing else.

mod plan;
mod rate;

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;
use tokio::sync::watch;

pub use plan::{DiskDigest, HandError, HeldUp, Offer, Order, ShelfMemory, ShelfRow, ShelfState, Size, TooLarge};
use plan::{Plan, Wanted};

use crate::units::ByteSize;

/// Clones are one shelf.
#[derive(Debug, Clone)]
pub struct Shelf {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Mutex<Plan>,
    /// For whoever carries orders out.
    ordered: Condvar,
    /// For whoever waits for a model.
    changed: watch::Sender<()>,
    clock: Arc<dyn Clock>,
}

/// What somebody who asks for a model gets.
#[derive(Debug)]
pub enum Asked {
    Ready(InUse),
    Coming(Waiting),
    /// It cannot be loaded, and why.
    Failed(Arc<str>),
}

/// Models that whoever needs all of them would wait for in vain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the models take {} together, and all models have {} (--model-memory)", ByteSize(*bytes), ByteSize(*limit_bytes))]
pub struct NotTogether {
    pub bytes: u64,
    pub limit_bytes: u64,
}

/// A model that stays as long as this does.
#[derive(Debug)]
#[must_use = "the model may leave when this is dropped"]
pub struct InUse {
    shelf: Shelf,
    model: String,
}

/// A place in the line. When nobody waits any more for a model that has no room yet, nor was told to come back, it
/// leaves the line.
#[derive(Debug)]
#[must_use = "the place is given up when this is dropped"]
pub struct Waiting {
    shelf: Shelf,
    model: String,
    changes: watch::Receiver<()>,
}

impl Shelf {
    /// `memory_bytes`: of weights and KV caches together.
    pub fn new(memory_bytes: u64, clock: Arc<dyn Clock>) -> Self {
        let (plan, ordered, changed) = (Mutex::new(Plan::new(memory_bytes)), Condvar::new(), watch::Sender::new(()));
        Self { shared: Arc::new(Shared { plan, ordered, changed, clock }) }
    }

    /// `None`: no such model lies here. Otherwise it is loaded, if it is not and can be.
    pub fn ask(&self, model: &str) -> Option<Asked> {
        // Before the question, so that no answer is missed.
        let changes = self.shared.changed.subscribe();
        let (shelf, model) = (self.clone(), model.to_owned());
        Some(match self.change(|plan, now| plan.want(&model, now)) {
            Wanted::Unknown => return None,
            Wanted::Ready => Asked::Ready(InUse { shelf, model }),
            Wanted::Failed(why) => Asked::Failed(why),
            Wanted::Coming => Asked::Coming(Waiting { shelf, model, changes }),
        })
    }

    /// The same, for whoever does without it where it would have to be loaded. `None`: it is not in memory.
    pub fn ask_in_memory(&self, model: &str) -> Option<InUse> {
        let is_used = self.change(|plan, now| plan.is_in_memory(model) && plan.want(model, now) == Wanted::Ready);
        is_used.then(|| InUse { shelf: self.clone(), model: model.to_owned() })
    }

    /// What lies on the disk under this name from now on. A model in memory stays as it is until it leaves.
    pub fn offer(&self, model: &str, offer: Offer) {
        let created = self.shared.clock.wall().as_secs();
        self.change(|plan, _| plan.offer(model, offer, created));
    }

    /// Which checkpoint its files are, as they lie there; `None`: nobody has read them yet, and nobody says.
    pub fn identify(&self, model: &str, digest: Option<DiskDigest>) {
        self.change(|plan, _| plan.identify(model, digest));
    }

    /// Nothing lies there any more. A model in memory stays until it is evicted.
    pub fn withdraw(&self, model: &str) {
        self.change(|plan, _| plan.withdraw(model));
    }

    /// No eviction takes it, from the next time on that it is in memory.
    pub fn pin(&self, model: &str) -> Result<(), HandError> {
        self.change(|plan, _| plan.pin(model))
    }

    pub fn unpin(&self, model: &str) -> Result<(), HandError> {
        self.change(|plan, now| plan.unpin(model, now))
    }

    /// Tried again, although it failed and its files are the same.
    pub fn forgive(&self, model: &str) -> Result<(), HandError> {
        self.change(|plan, _| plan.forgive(model))
    }

    /// Out of memory, if nobody uses it.
    pub fn unload(&self, model: &str) -> Result<(), HandError> {
        self.change(|plan, _| plan.unload(model))
    }

    /// Waits for something to do. `None`: the shelf is closed. Blocks; one thread calls it, and obeys before it calls again.
    pub fn next_order(&self) -> Option<Order> {
        let mut plan = self.open();
        loop {
            if plan.is_closed() {
                return None;
            }
            let now = self.shared.clock.now();
            if let Some(order) = self.tell(&mut plan, |plan| plan.next_order(now)) {
                return Some(order);
            }
            plan = match plan.next_turn(now) {
                Some(turn) => {
                    self.shared.ordered.wait_timeout(plan, turn - now).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.shared.ordered.wait(plan).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// What a model that was ordered really takes, before it is used. [`TooLarge`]: more than was reserved, and there is no
    /// more; it must be let go, and comes when there is, if all memory is enough.
    pub fn weighed(&self, model: &str, bytes: u64) -> Result<(), TooLarge> {
        self.change(|plan, now| plan.weighed(model, bytes, now))
    }

    /// A model that was ordered can be used.
    pub fn loaded(&self, model: &str) {
        self.change(|plan, now| plan.loaded(model, now));
    }

    /// A model that was ordered cannot be loaded.
    pub fn failed(&self, model: &str, why: &str) {
        self.change(|plan, now| plan.failed(model, why, now));
    }

    /// A model that was ordered away holds no memory any more.
    pub fn left(&self, model: &str) {
        self.change(|plan, now| plan.left(model, now));
    }

    /// By name, in the order of names.
    pub fn rows(&self) -> Vec<ShelfRow> {
        self.open().rows(self.shared.clock.now())
    }

    pub fn row(&self, model: &str) -> Option<ShelfRow> {
        self.open().row(model, self.shared.clock.now())
    }

    pub fn memory(&self) -> ShelfMemory {
        self.open().memory()
    }

    /// Errors if they could never be in memory at once. What does not lie here takes nothing.
    pub fn check_together(&self, models: &BTreeSet<&str>) -> Result<(), NotTogether> {
        let (plan, now) = (self.open(), self.shared.clock.now());
        let bytes = models
            .iter()
            .filter_map(|model| plan.row(model, now))
            .fold(0_u64, |sum, row| sum.saturating_add(row.bytes));
        let limit_bytes = plan.memory().limit_bytes;
        if bytes > limit_bytes { Err(NotTogether { bytes, limit_bytes }) } else { Ok(()) }
    }

    /// No order follows.
    pub fn close(&self) {
        self.change(|plan, _| plan.close());
    }

    fn change<T>(&self, change: impl FnOnce(&mut Plan, Duration) -> T) -> T {
        let mut plan = self.open();
        self.tell(&mut plan, |plan| change(plan, self.shared.clock.now()))
    }

    /// Those who wait are told only of what they wait for: they ask again, and would wake each other for ever.
    fn tell<T>(&self, plan: &mut Plan, change: impl FnOnce(&mut Plan) -> T) -> T {
        let before = plan.version();
        let changed = change(plan);
        if plan.version() != before {
            self.shared.ordered.notify_one();
            self.shared.changed.send_replace(());
        }
        changed
    }

    /// Each critical section leaves the plan consistent at every point where it could panic.
    fn open(&self) -> MutexGuard<'_, Plan> {
        self.shared.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// How long it takes from now on, by what loads took so far.
    pub fn expected(&self) -> Duration {
        self.shelf.open().expected(&self.model, self.shelf.shared.clock.now())
    }

    /// What it waits for beside its turn.
    pub fn held_up(&self) -> Option<HeldUp> {
        self.shelf.open().held_up(&self.model)
    }

    /// Whoever waits is told to come back after so long. The model stays in its line until then, though this is dropped.
    pub fn come_back(&self) -> Duration {
        self.shelf.change(|plan, now| plan.promise(&self.model, now))
    }

    /// Something changed since this place was taken, or since the last call: ask again. Cancel-safe.
    pub async fn changed(&mut self) {
        // The sender lives in the shelf, which lives in this place.
        let _ = self.changes.changed().await;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.shelf.change(|plan, now| plan.used(&self.model, now));
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shelf.change(|plan, now| plan.give_up(&self.model, now));
    }
}

#[cfg(test)]
mod tests;
