//! Where the ledger is kept. One database in the data directory today; a database that several gateways share can follow.

use std::sync::Arc;

use passerelle_engine::Usage;

use super::entry::{EntryId, Opening, Settlement};
use crate::gateway::account::AccountPath;
use crate::gateway::quota::UnixSeconds;

/// What is written down. Writing a settlement or a withdrawal a second time changes nothing.
#[derive(Debug, Clone)]
pub enum Record {
    Open(Arc<Opening>),
    /// What was used of an open reservation so far. Marks only grow.
    Mark {
        id: EntryId,
        used: Usage,
    },
    Settle(Arc<Opening>, Settlement),
    /// The reservation consumed nothing, not even itself.
    Withdraw(EntryId),
}

/// What an entry added to the bill of another gateway's reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedBefore {
    /// Here, which paid.
    pub account: AccountPath,
    pub reservation: Arc<str>,
    /// Which prompt of the request.
    pub part: u32,
    pub used: Usage,
    pub billed_micros: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ledger cannot be written: {0}")]
pub struct StoreError(pub String);

/// The store is owned by one writer. Each conforming store passes the suite in `conformance.rs`.
pub trait LedgerStore: Send {
    /// All of `records` in their order, or none. They survive the death of the process: they are with the operating
    /// system.
    fn write(&mut self, records: &[Record]) -> Result<(), StoreError>;

    /// What makes them survive a loss of power too.
    fn disk(&self) -> Box<dyn LedgerDisk>;

    /// After a failed write or sync: lets go of everything that the failure may have left half done.
    fn reopen(&mut self) -> Result<(), StoreError>;

    /// Settles what an earlier process left open, at its last mark, and says how many that were.
    fn recover(&mut self, at: UnixSeconds) -> Result<usize, StoreError>;

    /// Larger than every id that was ever written.
    fn next_id(&self) -> Result<EntryId, StoreError>;

    /// The latest instant that was ever written. Time does not go back before it.
    fn latest_instant(&self) -> Result<UnixSeconds, StoreError>;

    /// The settled entries that other gateways asked for, the latest `most` of them, in the order of their ids.
    fn asked_before(&self, most: usize) -> Result<Vec<AskedBefore>, StoreError>;
}

/// It has a thread of its own: a sync takes as long as the disk likes, and meanwhile the store is written.
pub trait LedgerDisk: Send {
    /// Everything that was written before is on the disk.
    fn sync(&mut self) -> Result<(), StoreError>;
}
