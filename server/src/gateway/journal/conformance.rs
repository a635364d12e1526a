//! What every [`LedgerStore`] does. A new store is added to `stores`.

use std::num::NonZeroU32;
use std::sync::Arc;

use passerelle_engine::Usage;

use super::*;
use crate::gateway::attribution::{Asker, Attribution};
use crate::gateway::data::DataDir;
use crate::gateway::quota::UnixSeconds;
use crate::gateway::tariff::Tariff;

/// Runs `check` on every store there is. The folder lives as long as the check.
fn stores(check: impl Fn(Box<dyn LedgerStore>)) {
    check(Box::new(MemoryStore::default()));
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    check(Box::new(SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap()));
}

pub(super) fn opening(id: u64, account: &str) -> Arc<Opening> {
    Arc::new(Opening {
        id: EntryId(id),
        account: account.parse().unwrap(),
        key: "key".into(),
        model: "m".into(),
        model_digest: "fp_1".into(),
        partition: "cpu".into(),
        tariff: "1".into(),
        binary: "0.1.0".into(),
        at: UnixSeconds(1_000),
        prompt_tokens: 5,
        answers: NonZeroU32::MIN,
        attribution: Attribution::default(),
        bill: None,
    })
}

pub(super) fn used(prompt_tokens: u32, generated_tokens: u32) -> Usage {
    Usage { prompt_tokens, generated_tokens, ..Usage::default() }
}

pub(super) fn settlement(at: u64, used: Usage) -> Settlement {
    let (at, end, counts) = (UnixSeconds(at), EntryEnd::Stop, Counts::One);
    Settlement { at, used, billed_micros: 7, measured_micros: 3, end, told: None, counts }
}

#[test]
fn what_was_left_open_is_settled_once_at_its_last_mark() {
    stores(|mut store| {
        let open = |id| Record::Open(opening(id, "a"));
        let mark = |id, tokens| Record::Mark { id: EntryId(id), used: used(5, tokens) };
        store.write(&[open(1), open(2), mark(1, 8), mark(1, 16), open(3)]).unwrap();
        store.write(&[Record::Settle(opening(2, "a"), settlement(1_001, used(5, 3)))]).unwrap();
        assert_eq!(store.recover(UnixSeconds(2_000)), Ok(2));
        assert_eq!(store.recover(UnixSeconds(3_000)), Ok(0));
        assert_eq!(store.next_id(), Ok(EntryId(4)));
        assert_eq!(store.latest_instant(), Ok(UnixSeconds(2_000)));
    });
}

#[test]
fn settling_or_withdrawing_again_changes_nothing() {
    stores(|mut store| {
        let settle = Record::Settle(opening(1, "a"), settlement(1_001, used(5, 3)));
        let records = [Record::Open(opening(1, "a")), settle.clone(), settle, Record::Withdraw(EntryId(1))];
        store.write(&records).unwrap();
        let late = Record::Settle(opening(1, "a"), settlement(9_999, used(5, 30)));
        let withdrawn = [Record::Open(opening(2, "a")), Record::Withdraw(EntryId(2)), late];
        store.write(&withdrawn).unwrap();
        assert_eq!(store.latest_instant(), Ok(UnixSeconds(1_001)), "the first settlement stands");
        assert_eq!(store.recover(UnixSeconds(2_000)), Ok(0));
    });
}

#[test]
fn what_was_written_reaches_the_disk_and_a_store_can_be_reopened() {
    stores(|mut store| {
        store.write(&[Record::Open(opening(1, "a"))]).unwrap();
        store.disk().sync().unwrap();
        store.reopen().unwrap();
        store.write(&[Record::Withdraw(EntryId(1))]).unwrap();
        assert_eq!(store.recover(UnixSeconds(1)), Ok(0));
    });
}

/// By another gateway, as a prompt of its request, or by nobody else.
fn asked(id: u64, asker: Option<(&str, u32)>) -> Arc<Opening> {
    let asker = asker.map(|(reservation, part)| Asker { reservation: reservation.into(), part, account: None });
    let attribution = Attribution { asker, ..Attribution::default() };
    Arc::new(Opening { attribution, ..Opening::clone(&opening(id, "a")) })
}

#[test]
fn what_was_asked_again_when_the_process_died_is_billed_for_what_it_used_beyond_the_first_time() {
    stores(|mut store| {
        let (first, again) = (asked(1, Some(("r", 1))), asked(2, Some(("r", 1))));
        let mark = |id, tokens| Record::Mark { id: EntryId(id), used: used(5, tokens) };
        let settled = Record::Settle(Arc::clone(&first), settlement(1_001, used(5, 16)));
        store.write(&[Record::Open(first), settled, Record::Open(again), mark(2, 24)]).unwrap();
        assert_eq!(store.recover(UnixSeconds(2_000)), Ok(1));
        let known: Vec<_> = store.asked_before(9).unwrap().iter().map(|asked| (asked.part, asked.used)).collect();
        assert_eq!(known, [(1, used(5, 16)), (1, used(0, 8))]);
    });
}

#[test]
fn what_other_gateways_asked_for_is_known_to_the_entry() {
    stores(|mut store| {
        let entries = [
            asked(1, Some(("first", 0))),
            asked(2, None),
            asked(3, Some(("list", 0))),
            asked(4, Some(("list", 1))),
            asked(5, Some(("open", 0))),
        ];
        let opened: Vec<_> = entries.iter().cloned().map(Record::Open).collect();
        store.write(&opened).unwrap();
        // In another order than they were opened in.
        for (entry, tokens) in entries[..4].iter().zip(1..5).rev() {
            store.write(&[Record::Settle(Arc::clone(entry), settlement(1_001, used(5, tokens)))]).unwrap();
        }
        let known = |most| {
            let asked = store.asked_before(most).unwrap().into_iter();
            asked
                .map(|asked| (asked.reservation.to_string(), asked.part, asked.used, asked.billed_micros))
                .collect::<Vec<_>>()
        };
        let entry = |name: &str, part, tokens| (name.to_owned(), part, used(5, tokens), 7);
        assert_eq!(known(9), [entry("first", 0, 1), entry("list", 0, 3), entry("list", 1, 4)]);
        assert_eq!(known(2), [entry("list", 0, 3), entry("list", 1, 4)], "the latest");
    });
}
