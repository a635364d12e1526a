//! What is shown of the shelf.

use std::sync::Arc;
use std::time::Duration;

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
    /// How long it takes until it could be used.
    pub expected: Duration,
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
            expected: if state == ShelfState::Ready { Duration::ZERO } else { self.expected(model, now) },
        })
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
