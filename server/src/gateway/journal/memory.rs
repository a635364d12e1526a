//! A ledger that ends with the process: for tests, and as the plainest body of the contract.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use passerelle_engine::Usage;

use super::entry::{Counts, Entry, EntryEnd, EntryId, Opening, Settlement};
use super::store::{AskedBefore, LedgerDisk, LedgerStore, Record, StoreError};
use crate::gateway::ledger::{Origins, PeerReservation};
use crate::gateway::quota::UnixSeconds;

#[derive(Debug, Default)]
pub struct MemoryStore {
    open: BTreeMap<EntryId, (Arc<Opening>, Usage)>,
    settled: Vec<Entry>,
    last_id: u64,
}

impl MemoryStore {
    pub fn settled(&self) -> &[Entry] {
        &self.settled
    }

    fn settle(&mut self, opening: &Opening, settlement: Settlement) {
        if self.open.remove(&opening.id).is_some() {
            let seq = self.settled.len() as u64 + 1;
            self.settled.push(Entry { seq, opening: opening.clone(), settlement });
        }
    }
}

struct NoDisk;

impl LedgerDisk for NoDisk {
    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }
}

impl LedgerStore for MemoryStore {
    fn write(&mut self, records: &[Record]) -> Result<(), StoreError> {
        for record in records {
            match record {
                Record::Open(opening) => {
                    self.last_id = self.last_id.max(opening.id.0);
                    self.open.insert(opening.id, (Arc::clone(opening), Usage::default()));
                }
                Record::Mark { id, used } => {
                    if let Some((_, mark)) = self.open.get_mut(id) {
                        *mark = *used;
                    }
                }
                Record::Settle(opening, settlement) => self.settle(opening, settlement.clone()),
                Record::Withdraw(id) => drop(self.open.remove(id)),
            }
        }
        Ok(())
    }

    fn disk(&self) -> Box<dyn LedgerDisk> {
        Box::new(NoDisk)
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn recover(&mut self, at: UnixSeconds) -> Result<usize, StoreError> {
        let open: Vec<_> = self.open.values().cloned().collect();
        let origins = Origins::new(NonZeroUsize::MAX, self.asked_before(usize::MAX)?);
        for (opening, used) in &open {
            let (used, counts) = match PeerReservation::of(opening) {
                Some(origin) => origins.bill(&origin, *used, |_| 0),
                None => (*used, Counts::One),
            };
            let (billed_micros, measured_micros, end, told) = (0, 0, EntryEnd::Died, None);
            self.settle(opening, Settlement { at, used, billed_micros, measured_micros, end, told, counts });
        }
        Ok(open.len())
    }

    fn next_id(&self) -> Result<EntryId, StoreError> {
        Ok(EntryId(self.last_id + 1))
    }

    fn asked_before(&self, most: usize) -> Result<Vec<AskedBefore>, StoreError> {
        let asked = |entry: &Entry| {
            let (opening, Settlement { used, billed_micros, .. }) = (&entry.opening, &entry.settlement);
            let asker = opening.attribution.asker.as_ref()?;
            let (account, reservation, part) = (opening.account.clone(), Arc::clone(&asker.reservation), asker.part);
            let asked = AskedBefore { account, reservation, part, used: *used, billed_micros: *billed_micros };
            Some((opening.id, asked))
        };
        let mut asked: Vec<_> = self.settled.iter().filter_map(asked).collect();
        asked.sort_by_key(|(id, _)| *id);
        let earlier = asked.len().saturating_sub(most);
        Ok(asked.split_off(earlier).into_iter().map(|(_, asked)| asked).collect())
    }

    fn latest_instant(&self) -> Result<UnixSeconds, StoreError> {
        Ok(self.settled.iter().map(|entry| entry.settlement.at).max().unwrap_or_default())
    }
}
