//! A machine loses power in the middle of a write: what its disk may hold of the ledger then.

use std::fs;
use std::io::BufReader;

use super::conformance::{opening, settlement, used};
use super::export::{verify_csv, write_csv};
use super::*;
use crate::gateway::data::DataDir;
use crate::gateway::quota::UnixSeconds;
use crate::gateway::tariff::Tariff;

/// At which a write is torn.
const PLACES: usize = 8;

fn ledger_in(data: &DataDir) -> SqliteStore {
    SqliteStore::open(data, Arc::new(Tariff::free())).expect("what is there is a ledger")
}

fn entry(id: u64) -> [Record; 2] {
    let settle = Record::Settle(opening(id, "a"), settlement(1_000 + id, used(5, 3)));
    [Record::Open(opening(id, "a")), settle]
}

/// A log of which `kept` bytes have reached the disk. Behind them stands nothing, or zeros where a file got its place before its
/// content, or what nobody wrote.
fn torn_at(log: &[u8], kept: usize) -> [Vec<u8>; 3] {
    let (there, lost) = log.split_at(kept);
    let followed_by = |rest: Vec<u8>| [there, rest.as_slice()].concat();
    let scrambled = lost.iter().map(|byte| byte ^ 0x55).collect();
    [there.to_vec(), followed_by(vec![0; lost.len()]), followed_by(scrambled)]
}

#[test]
fn a_write_that_a_loss_of_power_tears_takes_nothing_along_that_was_settled() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut ledger = ledger_in(&data);
    for id in 1..=3 {
        ledger.write(&entry(id)).unwrap();
    }
    ledger.disk().sync().unwrap();
    let settled = fs::read(data.log()).unwrap().len();
    ledger.write(&entry(4)).unwrap();
    let (database, log) = (fs::read(data.database()).unwrap(), fs::read(data.log()).unwrap());
    assert!(log.len() > settled, "the last write is still in the log");
    let places = (settled..log.len()).step_by((log.len() - settled).div_ceil(PLACES));
    for torn in places.flat_map(|kept| torn_at(&log, kept)).filter(|torn| *torn != log) {
        let folder = tempfile::tempdir().unwrap();
        for (file, bytes) in [(data.database(), &database), (data.log(), &torn)] {
            fs::write(folder.path().join(file.file_name().unwrap()), bytes).unwrap();
        }
        let data = DataDir::open(folder.path()).unwrap();
        let mut ledger = ledger_in(&data);
        assert_eq!(ledger.next_id(), Ok(EntryId(4)), "of the torn write there is nothing");
        assert_eq!(ledger.recover(UnixSeconds(2_000)), Ok(0));
        ledger.write(&entry(4)).unwrap();
        drop(ledger);
        let mut csv = Vec::new();
        let exported = write_csv(&UsageReader::open(&data).unwrap(), &mut csv).unwrap();
        assert_eq!(exported.entries, 4);
        assert_eq!(verify_csv(BufReader::new(csv.as_slice())).unwrap(), exported);
    }
}
