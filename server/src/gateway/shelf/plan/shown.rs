//! What is shown of the shelf.

use std::sync::Arc;
use std::time::Duration;

use passerelle_models::ModelDigest;
use serde::Serialize;

use super::{Entry, Order, Place, Plan, Size};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShelfState {
    Available,
    Loading,
    Ready,
    Leaving,
    Failed,
}

/// Which checkpoint lies on the disk, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskDigest {
    /// Its files were hashed, and have not changed since as far as the system says.
    Hashed(ModelDigest),
    /// The manifest beside them does. Nobody has read them since it was written.
    Stated(ModelDigest),
}

/// One model, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShelfRow {
    pub model: String,
    pub state: ShelfState,
    /// Of one that failed.
    pub why: Option<Arc<str>>,
    pub is_pinned: bool,
    /// Requests that use it.
    pub uses: usize,
    /// What it holds, or would hold, in bytes.
    pub bytes: u64,
    /// When it was first seen; seconds since 1970.
    pub created: u64,
    /// Of its files as they lie there, where it is known.
    pub digest: Option<DiskDigest>,
    /// How long it takes until it could be used.
    pub expected: Duration,
}

/// Why there is no room for a model, and will be none until something else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldUp {
    /// Models that are pinned leave too little: somebody must unpin one.
    ByPins,
    /// Models that requests use do: one of them must come to its end.
    ByUse,
}

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ShelfMemory {
    pub limit_bytes: u64,
    pub held_bytes: u64,
    /// Ever at once.
    pub most_held_bytes: u64,
}

impl Plan {
    pub(in crate::gateway::shelf) fn memory(&self) -> ShelfMemory {
        let Self { memory_bytes: limit_bytes, held_bytes, most_held_bytes, .. } = *self;
        ShelfMemory { limit_bytes, held_bytes, most_held_bytes }
    }

    pub(in crate::gateway::shelf) fn rows(&self, now: Duration) -> Vec<ShelfRow> {
        self.entries.keys().filter_map(|model| self.row(model, now)).collect()
    }

    pub(in crate::gateway::shelf) fn row(&self, model: &str, now: Duration) -> Option<ShelfRow> {
        let entry = self.entries.get(model)?;
        let (state, uses) = match entry.place {
            Place::Disk if entry.why().is_some() => (ShelfState::Failed, 0),
            Place::Disk => (ShelfState::Available, 0),
            Place::Loading { .. } => (ShelfState::Loading, 0),
            Place::Memory { uses, .. } => (ShelfState::Ready, uses),
            Place::Leaving { .. } => (ShelfState::Leaving, 0),
        };
        Some(ShelfRow {
            model: model.to_owned(),
            state,
            why: entry.why().filter(|_| state == ShelfState::Failed),
            is_pinned: entry.is_pinned,
            uses,
            bytes: entry.held().unwrap_or_else(|| entry.loadable().map_or(0, Size::total)),
            created: entry.created,
            digest: entry.digest,
            expected: if state == ShelfState::Ready { Duration::ZERO } else { self.expected(model, now) },
        })
    }

    /// What keeps a model on the disk, though it is waited for.
    pub(in crate::gateway::shelf) fn held_up(&self, model: &str) -> Option<HeldUp> {
        let entry = self.entries.get(model).filter(|entry| matches!(entry.place, Place::Disk))?;
        let needed = entry.loadable()?.total();
        let held_by = |is_held: fn(&Entry, usize) -> bool| -> u64 {
            let held = self.entries.values().filter_map(|entry| match entry.place {
                Place::Memory { held, uses, .. } if is_held(entry, uses) => Some(held),
                _ => None,
            });
            held.sum()
        };
        let has_no_room_beside = |held: u64| needed > self.memory_bytes.saturating_sub(held);
        if has_no_room_beside(held_by(|entry, _| entry.is_pinned)) {
            return Some(HeldUp::ByPins);
        }
        has_no_room_beside(held_by(|entry, uses| entry.is_pinned || uses > 0)).then_some(HeldUp::ByUse)
    }

    /// Loads are one after the other: those that come first are waited for too.
    pub(in crate::gateway::shelf) fn expected(&self, model: &str, now: Duration) -> Duration {
        let took = self.at_work.as_ref().map_or(Duration::ZERO, |(_, began)| now.saturating_sub(*began));
        let ordered = self.orders.iter().filter_map(|order| match order {
            Order::Load(model) => Some(model),
            Order::Unload(_) => None,
        });
        let at_work = self.at_work.iter().map(|(model, _)| model);
        let ahead: Vec<&String> = at_work.chain(ordered).chain(&self.line).collect();
        let place = ahead.iter().position(|other| *other == model);
        let load = |model: &str| {
            let size = self.entries.get(model).and_then(Entry::loadable);
            self.rate.time_for(size.map_or(0, |size| size.weights_bytes))
        };
        match place {
            Some(place) => ahead[..=place].iter().map(|model| load(model)).sum::<Duration>().saturating_sub(took),
            None => load(model),
        }
    }
}
