//! The shelf's bookkeeping: no threads, no time of its own.

mod shown;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::rate::LoadRate;
use crate::units::ByteSize;
pub use shown::{DiskDigest, HeldUp, ShelfMemory, ShelfRow, ShelfState};

/// A model that was loaded and that nobody has used yet stays so long: whoever was told to come back finds it. So much later
/// than told may somebody come back to the line, too.
const GRACE: Duration = Duration::from_secs(5);

/// What lies on the disk, or why it cannot be loaded.
pub type Offer = Result<Size, String>;

/// What a model takes, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Read from the disk, and held.
    pub weights_bytes: u64,
    pub kv_cache_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Load(String),
    /// Nobody uses it, and nobody will before it was loaded again.
    Unload(String),
}

/// Why something that was asked for by hand is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandError {
    #[error("no model of the models folder is called `{0}`")]
    Unknown(String),
    #[error("{} `{model}`; try again when `passerelle model list` shows none", requests_that_use(.uses))]
    InUse { model: String, uses: usize },
    #[error("`{0}` is pinned; unpin it first (`passerelle model unpin {0}`)")]
    Pinned(String),
    #[error("`{0}` is being loaded; try again when it is ready (`passerelle model list`)")]
    Loading(String),
}

fn requests_that_use(uses: &usize) -> String {
    if *uses == 1 { "1 request uses".to_owned() } else { format!("{uses} requests use") }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it takes {bytes} bytes, for which there is no room beside the others")]
pub struct TooLarge {
    pub bytes: u64,
}

/// What asking for a model comes to. `Ready` is used, and `Coming` waited for, until that is given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    Unknown,
    Ready,
    Coming,
    Failed(Arc<str>),
}

#[derive(Debug)]
pub(super) struct Plan {
    memory_bytes: u64,
    entries: BTreeMap<String, Entry>,
    /// Models that are waited for and that are neither in memory nor on their way; the first is the next.
    line: VecDeque<String>,
    /// At most one for each model.
    orders: VecDeque<Order>,
    /// What is being loaded, and since when.
    at_work: Option<(String, Duration)>,
    held_bytes: u64,
    most_held_bytes: u64,
    rate: LoadRate,
    /// Counts uses: an order of time that no clock disturbs.
    tick: u64,
    /// Counts what others may wait for.
    version: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Entry {
    offer: Result<Size, Arc<str>>,
    /// Why the last load failed, until the files change.
    failure: Option<Arc<str>>,
    place: Place,
    is_pinned: bool,
    /// No longer on the disk.
    is_gone: bool,
    /// What is offered changed since its load began: how that ends says nothing of it.
    is_renewed: bool,
    waiting: usize,
    /// Until when somebody who was told to come back is waited for. Ends with the load.
    wanted_until: Option<Duration>,
    last_used: u64,
    created: u64,
    /// Of its files as they lie there, where it is known.
    digest: Option<DiskDigest>,
}

/// Everything but `Disk` holds memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Disk,
    Loading { held: u64 },
    Memory { held: u64, uses: usize, unused_since: Option<Duration> },
    Leaving { held: u64 },
}

impl Size {
    fn total(self) -> u64 {
        self.weights_bytes.saturating_add(self.kv_cache_bytes)
    }
}

impl Plan {
    pub(super) fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            entries: BTreeMap::new(),
            line: VecDeque::new(),
            orders: VecDeque::new(),
            at_work: None,
            held_bytes: 0,
            most_held_bytes: 0,
            rate: LoadRate::new(),
            tick: 0,
            version: 0,
            is_closed: false,
        }
    }

    pub(super) fn want(&mut self, model: &str, now: Duration) -> Wanted {
        let Some(entry) = self.entries.get_mut(model) else { return Wanted::Unknown };
        match &mut entry.place {
            Place::Memory { uses, unused_since, .. } => {
                (*uses, *unused_since) = (*uses + 1, None);
                return Wanted::Ready;
            }
            Place::Loading { .. } => {}
            Place::Leaving { .. } if entry.is_gone => return Wanted::Unknown,
            Place::Disk | Place::Leaving { .. } => {
                if let Some(why) = entry.why() {
                    return Wanted::Failed(why);
                }
                if !self.line.iter().any(|waiting| waiting == model) {
                    self.line.push_back(model.to_owned());
                }
            }
        }
        entry.waiting += 1;
        self.advance(now);
        Wanted::Coming
    }

    pub(super) fn is_in_memory(&self, model: &str) -> bool {
        self.entries.get(model).is_some_and(|entry| matches!(entry.place, Place::Memory { .. }))
    }

    /// The end of one use.
    pub(super) fn used(&mut self, model: &str, now: Duration) {
        self.tick += 1;
        let Some(entry) = self.entries.get_mut(model) else { return };
        if let Place::Memory { uses, .. } = &mut entry.place {
            *uses = uses.saturating_sub(1);
            entry.last_used = self.tick;
        }
        self.advance(now);
    }

    /// The end of one wait.
    pub(super) fn give_up(&mut self, model: &str, now: Duration) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.waiting = entry.waiting.saturating_sub(1);
        if !entry.is_wanted(now) {
            self.line.retain(|waiting| waiting != model);
        }
        self.advance(now);
    }

    /// Somebody is told to come back, and when: the model stays in the line until then.
    pub(super) fn promise(&mut self, model: &str, now: Duration) -> Duration {
        let expected = self.expected(model, now);
        if let Some(entry) = self.entries.get_mut(model) {
            let until = now.saturating_add(expected).saturating_add(GRACE);
            entry.wanted_until = entry.wanted_until.max(Some(until));
        }
        expected
    }

    pub(super) fn offer(&mut self, model: &str, offer: Offer, created: u64) {
        let offer = offer.map_err(Arc::from).and_then(|size| self.require_fit(size));
        let entry = self.entries.entry(model.to_owned()).or_insert_with(|| Entry::new(created));
        (entry.offer, entry.failure, entry.is_gone, entry.is_renewed) = (offer, None, false, true);
        self.version += 1;
    }

    fn require_fit(&self, size: Size) -> Result<Size, Arc<str>> {
        if size.total() <= self.memory_bytes {
            return Ok(size);
        }
        let [takes, have] = [size.total(), self.memory_bytes].map(ByteSize);
        let why = format!("takes {takes}, and all models have {have} (--model-memory)");
        Err(why.into())
    }

    pub(super) fn identify(&mut self, model: &str, digest: Option<DiskDigest>) {
        if let Some(entry) = self.entries.get_mut(model) {
            entry.digest = digest;
        }
    }

    pub(super) fn withdraw(&mut self, model: &str) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.is_gone = true;
        if entry.place == Place::Disk {
            self.forget(model);
        }
        self.version += 1;
    }

    fn forget(&mut self, model: &str) {
        self.entries.remove(model);
        self.line.retain(|waiting| waiting != model);
    }

    pub(super) fn pin(&mut self, model: &str) -> Result<(), HandError> {
        self.entry(model)?.is_pinned = true;
        Ok(())
    }

    pub(super) fn unpin(&mut self, model: &str, now: Duration) -> Result<(), HandError> {
        self.entry(model)?.is_pinned = false;
        self.advance(now);
        Ok(())
    }

    pub(super) fn forgive(&mut self, model: &str) -> Result<(), HandError> {
        self.entry(model)?.failure = None;
        Ok(())
    }

    pub(super) fn unload(&mut self, model: &str) -> Result<(), HandError> {
        let entry = self.entry(model)?;
        match entry.place {
            Place::Disk | Place::Leaving { .. } => return Ok(()),
            Place::Loading { .. } => return Err(HandError::Loading(model.to_owned())),
            Place::Memory { .. } if entry.is_pinned => return Err(HandError::Pinned(model.to_owned())),
            Place::Memory { uses, .. } if uses > 0 => return Err(HandError::InUse { model: model.to_owned(), uses }),
            Place::Memory { .. } => {}
        }
        self.send_away(model);
        Ok(())
    }

    fn entry(&mut self, model: &str) -> Result<&mut Entry, HandError> {
        self.entries.get_mut(model).ok_or_else(|| HandError::Unknown(model.to_owned()))
    }

    /// The load of an order begins when it is handed out.
    pub(super) fn next_order(&mut self, now: Duration) -> Option<Order> {
        self.advance(now);
        let order = self.orders.pop_front()?;
        if let Order::Load(model) = &order {
            self.at_work = Some((model.clone(), now));
            if let Some(entry) = self.entries.get_mut(model) {
                entry.is_renewed = false;
            }
        }
        Some(order)
    }

    /// When there may be an order although nothing happened until then.
    pub(super) fn next_turn(&self, now: Duration) -> Option<Duration> {
        let first = self.entries.get(self.line.front()?)?;
        let promise = first.wanted_until.filter(|_| first.waiting == 0);
        let graces = self.entries.values().filter_map(Entry::grace_end);
        graces.chain(promise).filter(|turn| *turn > now).min()
    }

    pub(super) fn weighed(&mut self, model: &str, bytes: u64, now: Duration) -> Result<(), TooLarge> {
        let free = self.free_bytes();
        let Some(Entry { place: Place::Loading { held }, .. }) = self.entries.get_mut(model) else { return Ok(()) };
        if bytes > free.saturating_add(*held) {
            self.enlarge(model, bytes);
            return Err(TooLarge { bytes });
        }
        self.held_bytes = self.held_bytes - *held + bytes;
        *held = bytes;
        self.note_held();
        self.advance(now);
        Ok(())
    }

    /// It waits for as much room as it was measured to take, if there can be so much. Newer files were not measured.
    fn enlarge(&mut self, model: &str, bytes: u64) {
        let Some(Entry { offer: Ok(size), is_renewed: false, .. }) = self.entries.get(model) else { return };
        let enlarged = self.require_fit(Size { kv_cache_bytes: bytes.saturating_sub(size.weights_bytes), ..*size });
        if let Some(entry) = self.entries.get_mut(model) {
            (entry.offer, entry.is_renewed) = (enlarged, true);
        }
    }

    pub(super) fn loaded(&mut self, model: &str, now: Duration) {
        let began = self.at_work.take().map_or(now, |(_, began)| began);
        self.tick += 1;
        let Some(entry) = self.entries.get_mut(model) else { return };
        let Place::Loading { held } = entry.place else { return };
        entry.place = Place::Memory { held, uses: 0, unused_since: Some(now) };
        (entry.last_used, entry.wanted_until) = (self.tick, None);
        if let Ok(size) = &entry.offer {
            self.rate.measure(size.weights_bytes, now.saturating_sub(began));
        }
        self.version += 1;
        self.advance(now);
    }

    pub(super) fn failed(&mut self, model: &str, why: &str, now: Duration) {
        self.at_work = None;
        if let Some(entry) = self.entries.get_mut(model) {
            if !entry.is_renewed {
                (entry.failure, entry.wanted_until) = (Some(why.into()), None);
            } else if entry.is_wanted(now) {
                // Those who wait have not lost their place.
                self.line.push_front(model.to_owned());
            }
        }
        self.left(model, now);
    }

    pub(super) fn left(&mut self, model: &str, now: Duration) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        if let Place::Loading { held } | Place::Leaving { held } = entry.place {
            self.held_bytes -= held;
            entry.place = Place::Disk;
        }
        if entry.is_gone {
            self.forget(model);
        }
        self.version += 1;
        self.advance(now);
    }

    pub(super) fn close(&mut self) {
        self.is_closed = true;
        self.version += 1;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Begins what has room, and makes room for the first that has none.
    fn advance(&mut self, now: Duration) {
        while let Some(model) = self.line.front().cloned() {
            let entry = self.entries.get(&model).filter(|entry| entry.is_wanted(now));
            match entry.map(|entry| (entry.place, entry.loadable())) {
                Some((Place::Disk, Some(size))) if size.total() <= self.free_bytes() => self.begin(&model, size),
                Some((Place::Disk, Some(size))) => return self.make_room(size.total(), now),
                // It is loaded again when it is gone.
                Some((Place::Leaving { .. }, Some(_))) => return,
                _ => drop(self.line.pop_front()),
            }
        }
    }

    fn begin(&mut self, model: &str, size: Size) {
        self.line.pop_front();
        let Some(entry) = self.entries.get_mut(model) else { return };
        entry.place = Place::Loading { held: size.total() };
        self.held_bytes += size.total();
        self.note_held();
        self.orders.push_back(Order::Load(model.to_owned()));
        self.version += 1;
    }

    /// All that is needed, or nothing: half a room is of use to nobody.
    fn make_room(&mut self, needed: u64, now: Duration) {
        let leaving = self.entries.values().map(|entry| match entry.place {
            Place::Leaving { held } => held,
            Place::Disk | Place::Loading { .. } | Place::Memory { .. } => 0,
        });
        let mut room = self.free_bytes() + leaving.sum::<u64>();
        let mut idle: Vec<(u64, u64, String)> = self
            .entries
            .iter()
            .filter_map(|(model, entry)| Some((entry.last_used, entry.evictable(now)?, model.clone())))
            .collect();
        idle.sort_unstable();
        let mut chosen = Vec::new();
        for (_, held, model) in idle {
            if room >= needed {
                break;
            }
            room += held;
            chosen.push(model);
        }
        if room >= needed {
            chosen.iter().for_each(|model| self.send_away(model));
        }
    }

    fn send_away(&mut self, model: &str) {
        let Some(entry) = self.entries.get_mut(model) else { return };
        let Place::Memory { held, .. } = entry.place else { return };
        entry.place = Place::Leaving { held };
        self.orders.push_back(Order::Unload(model.to_owned()));
        self.version += 1;
    }

    fn free_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.held_bytes)
    }

    fn note_held(&mut self) {
        self.most_held_bytes = self.most_held_bytes.max(self.held_bytes);
    }
}

impl Entry {
    fn new(created: u64) -> Self {
        Self {
            offer: Err("not looked at yet".into()),
            failure: None,
            place: Place::Disk,
            is_pinned: false,
            is_gone: false,
            is_renewed: false,
            waiting: 0,
            wanted_until: None,
            last_used: 0,
            created,
            digest: None,
        }
    }

    /// Why it cannot be loaded.
    fn why(&self) -> Option<Arc<str>> {
        self.failure.clone().or_else(|| self.offer.clone().err())
    }

    fn loadable(&self) -> Option<Size> {
        self.offer.as_ref().ok().copied().filter(|_| self.failure.is_none())
    }

    fn held(&self) -> Option<u64> {
        match self.place {
            Place::Disk => None,
            Place::Loading { held } | Place::Memory { held, .. } | Place::Leaving { held } => Some(held),
        }
    }

    /// Somebody waits for it, or was told to come back.
    fn is_wanted(&self, now: Duration) -> bool {
        self.waiting > 0 || self.wanted_until.is_some_and(|until| now < until)
    }

    /// What would come free. Whoever waits for it is about to use it, and one that was told to come back soon will.
    fn evictable(&self, now: Duration) -> Option<u64> {
        match self.place {
            Place::Memory { held, uses: 0, .. } if !self.is_pinned && self.waiting == 0 => {
                let is_awaited = self.grace_end().is_some_and(|end| now < end);
                (!is_awaited).then_some(held)
            }
            _ => None,
        }
    }

    /// Of one that nobody has used since it was loaded.
    fn grace_end(&self) -> Option<Duration> {
        match self.place {
            Place::Memory { unused_since, .. } => Some(unused_since?.saturating_add(GRACE)),
            Place::Disk | Place::Loading { .. } | Place::Leaving { .. } => None,
        }
    }
}
