use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io::BufReader;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::task::Poll;

use super::conformance::{opening, settlement, used};
use super::export::{ExportError, verify_csv, write_csv};
use super::*;
use crate::gateway::attribution::{Asker, Attribution};
use crate::gateway::data::DataDir;
use crate::gateway::ledger::Spent;
use crate::gateway::quota::{Unit, UnixSeconds};
use crate::gateway::tariff::Tariff;

/// A disk that can be full or hang, over what a store writes.
#[derive(Clone, Default)]
pub(in crate::gateway) struct Disk {
    pub(in crate::gateway) is_full: Arc<Mutex<bool>>,
    hangs: Arc<(Mutex<bool>, Condvar)>,
    /// Bringing what is written to the disk hangs.
    sync_hangs: Arc<(Mutex<bool>, Condvar)>,
    sync_fails: Arc<Mutex<bool>>,
    reopened: Arc<AtomicUsize>,
    /// Begun.
    writes: Arc<AtomicUsize>,
    written: Arc<Mutex<Vec<Record>>>,
}

impl LedgerDisk for Disk {
    fn sync(&mut self) -> Result<(), StoreError> {
        let (hangs, moves) = &*self.sync_hangs;
        drop(moves.wait_while(hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        if *self.sync_fails.lock().unwrap() { Err(StoreError("input/output error".into())) } else { Ok(()) }
    }
}

impl LedgerStore for Disk {
    fn write(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let (hangs, moves) = &*self.hangs;
        drop(moves.wait_while(hangs.lock().unwrap(), |hangs| *hangs).unwrap());
        if *self.is_full.lock().unwrap() {
            return Err(StoreError("no space left".into()));
        }
        self.written.lock().unwrap().extend_from_slice(records);
        Ok(())
    }

    fn disk(&self) -> Box<dyn LedgerDisk> {
        Box::new(self.clone())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        self.reopened.fetch_add(1, Ordering::Relaxed);
        if *self.sync_fails.lock().unwrap() { Err(StoreError("input/output error".into())) } else { Ok(()) }
    }

    fn recover(&mut self, _: UnixSeconds) -> Result<usize, StoreError> {
        Ok(0)
    }

    fn next_id(&self) -> Result<EntryId, StoreError> {
        Ok(EntryId(1))
    }

    fn latest_instant(&self) -> Result<UnixSeconds, StoreError> {
        Ok(UnixSeconds(0))
    }

    fn asked_before(&self, _: usize) -> Result<Vec<AskedBefore>, StoreError> {
        Ok(Vec::new())
    }
}

impl Disk {
    /// As they were written down.
    pub(in crate::gateway) fn settlements(&self) -> Vec<Settlement> {
        let settlement = |record: &Record| match record {
            Record::Settle(_, settlement) => Some(settlement.clone()),
            _ => None,
        };
        self.written.lock().unwrap().iter().filter_map(settlement).collect()
    }

    fn hang(&self, hangs: bool) {
        set(&self.hangs, hangs);
    }
}

fn set((hangs, moves): &(Mutex<bool>, Condvar), to: bool) {
    *hangs.lock().unwrap() = to;
    moves.notify_all();
}

fn settle_one(journal: &Journal) {
    journal
        .open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk)
        .settle(settlement(1_001, used(5, 3)), Proof::default());
}

pub(in crate::gateway) fn start(disk: &Disk) -> (JournalThread, Journal) {
    let millisecond = Duration::from_millis(1);
    let config = JournalConfig {
        sync_interval: millisecond,
        retry_interval: millisecond,
        max_backlog: 8,
        ..JournalConfig::default()
    };
    JournalThread::start(Box::new(disk.clone()), config).unwrap()
}

async fn covers(page: &mut Page, tokens: u32) {
    poll_fn(|context| page.poll_covers(tokens, context)).await.unwrap();
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

fn is_covered(page: &mut Page, tokens: u32) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    page.poll_covers(tokens, &mut context) == Poll::Ready(Ok(()))
}

#[tokio::test]
async fn a_stream_waits_for_its_reservation_and_then_for_each_mark() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    let mut page = journal.open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk);
    covers(&mut page, 16).await;
    assert!(!is_covered(&mut page, 17));
    page.mark(used(5, 7));
    assert!(!is_covered(&mut page, 24), "too early for a mark");
    page.mark(used(5, 8));
    covers(&mut page, 24).await;
    assert!(!is_covered(&mut page, 25));
}

/// An upstream says as many tokens at a time as it likes.
#[tokio::test]
async fn a_piece_of_many_tokens_that_comes_while_a_mark_is_written_is_marked_itself() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    let mut page = journal.open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk);
    poll_fn(|context| page.poll_marked(used(5, 1), context)).await.unwrap();
    disk.hang(true);
    poll_fn(|context| page.poll_marked(used(5, 8), context)).await.unwrap();
    let mut waiting = pin!(poll_fn(|context| page.poll_marked(used(5, 48), context)));
    assert!(poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await.is_pending());
    disk.hang(false);
    assert_eq!(waiting.await, Ok(()));
}

#[tokio::test]
async fn settlements_are_durable_only_once_they_are_on_the_disk() {
    let disk = Disk::default();
    let (thread, journal) = start(&disk);
    let page = journal.open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk);
    page.settle(settlement(1_001, used(5, 3)), Proof::default());
    until(|| journal.state().durable_settlements == 1).await;
    drop(thread);
    assert_eq!(journal.state().backlog, 0);
}

#[tokio::test]
async fn a_full_disk_closes_budgets_lets_others_go_on_loses_nothing_and_opens_again() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    *disk.is_full.lock().unwrap() = true;
    let mut with_budget = journal.open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk);
    let mut without = journal.open(Opening::clone(&opening(2, "b")), Trust::GoOn);
    covers(&mut without, 1_000).await;
    assert!(journal.state().is_failing && !is_covered(&mut with_budget, 1));
    assert_eq!(journal.admits(Trust::WaitForDisk), Err(JournalUnavailable));
    assert_eq!(journal.admits(Trust::GoOn), Ok(()));
    with_budget.settle(settlement(1_001, used(5, 3)), Proof::default());
    assert_eq!(journal.state().durable_settlements, 0);
    *disk.is_full.lock().unwrap() = false;
    covers(&mut with_budget, 16).await;
    until(|| journal.state().durable_settlements == 1).await;
    assert_eq!(journal.admits(Trust::WaitForDisk), Ok(()));
    let written = disk.written.lock().unwrap();
    assert_eq!(written.iter().filter(|record| matches!(record, Record::Open(_))).count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stream_with_a_budget_waits_for_the_disk_no_longer_than_it_may() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    *disk.is_full.lock().unwrap() = true;
    let mut page = journal.open(Opening::clone(&opening(1, "a")), Trust::WaitForDisk);
    let longest = JournalConfig::default().longest_stall;
    let began = tokio::time::Instant::now();
    // Polled anew each time, as a stream among others is.
    let given_up = loop {
        let one_poll = poll_fn(|context| Poll::Ready(page.poll_covers(1, context))).await;
        match one_poll {
            Poll::Ready(result) => break result,
            Poll::Pending => tokio::time::advance(longest / 10).await,
        }
    };
    assert_eq!(given_up, Err(JournalUnavailable));
    assert!(began.elapsed() >= longest && began.elapsed() < 2 * longest);
}

/// One that does not even refuse.
#[tokio::test(start_paused = true)]
async fn before_a_disk_that_hangs_a_stream_without_a_budget_goes_on_after_the_longest_stall() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    disk.hang(true);
    let longest = JournalConfig::default().longest_stall;
    for (trust, after) in [(Trust::GoOn, Ok(())), (Trust::WaitForDisk, Err(JournalUnavailable))] {
        let mut page = journal.open(Opening::clone(&opening(1, "a")), trust);
        let began = tokio::time::Instant::now();
        assert_eq!(poll_fn(|context| page.poll_covers(1, context)).await, after);
        assert!(began.elapsed() >= longest, "{trust:?}");
    }
    disk.hang(false);
}

/// An `fsync` may take seconds beside other programs that write.
#[tokio::test]
async fn a_disk_that_takes_its_time_over_a_sync_holds_up_no_stream() {
    let disk = Disk::default();
    let (thread, journal) = start(&disk);
    set(&disk.sync_hangs, true);
    settle_one(&journal);
    until(|| journal.state().backlog == 0).await;
    let mut page = journal.open(Opening::clone(&opening(2, "a")), Trust::WaitForDisk);
    for tokens in 1..=100 {
        covers(&mut page, tokens).await;
        page.mark(used(5, tokens));
    }
    assert_eq!(journal.state().durable_settlements, 0, "it is written, but not on the disk");
    set(&disk.sync_hangs, false);
    until(|| journal.state().durable_settlements == 1).await;
    drop(thread);
}

#[tokio::test]
async fn a_sync_that_fails_closes_budgets_until_the_store_was_opened_again() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    *disk.sync_fails.lock().unwrap() = true;
    settle_one(&journal);
    until(|| journal.state().is_failing).await;
    assert_eq!(journal.admits(Trust::WaitForDisk), Err(JournalUnavailable));
    assert_eq!(journal.state().durable_settlements, 0);
    *disk.sync_fails.lock().unwrap() = false;
    until(|| journal.state().durable_settlements == 1).await;
    assert_eq!(journal.admits(Trust::WaitForDisk), Ok(()));
}

/// The system tells of a write that failed once, so the next sync would succeed.
#[tokio::test]
async fn a_sync_that_fails_while_others_write_is_not_forgotten() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    set(&disk.sync_hangs, true);
    settle_one(&journal);
    until(|| journal.state().backlog == 0).await;
    disk.hang(true);
    let before = disk.writes.load(Ordering::Relaxed);
    let _page = journal.open(Opening::clone(&opening(2, "a")), Trust::WaitForDisk);
    until(|| disk.writes.load(Ordering::Relaxed) > before).await;
    *disk.sync_fails.lock().unwrap() = true;
    set(&disk.sync_hangs, false);
    until(|| journal.state().is_failing).await;
    *disk.sync_fails.lock().unwrap() = false;
    assert_eq!(disk.reopened.load(Ordering::Relaxed), 0, "the writer stands in the middle of a write");
    disk.hang(false);
    until(|| journal.state().durable_settlements == 1).await;
    assert_eq!(disk.reopened.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_backlog_that_grows_past_its_bound_admits_nobody() {
    let disk = Disk::default();
    let (_thread, journal) = start(&disk);
    *disk.is_full.lock().unwrap() = true;
    let _pages: Vec<_> = (0..8).map(|id| journal.open(Opening::clone(&opening(id, "a")), Trust::GoOn)).collect();
    assert_eq!(journal.admits(Trust::GoOn), Err(JournalUnavailable));
}

/// A ledger of three entries of two accounts, one of them left open by a process that died.
fn ledger_on_disk() -> (tempfile::TempDir, DataDir) {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    let mut records = Vec::new();
    for (id, account) in [(1, "acme/a"), (2, "acme/b"), (3, "other")] {
        records.push(Record::Open(opening(id, account)));
        if id < 3 {
            records.push(Record::Settle(opening(id, account), settlement(1_000 * id, used(5, 3))));
        }
    }
    store.write(&records).unwrap();
    drop(store);
    let mut restarted = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    assert_eq!(restarted.recover(UnixSeconds(3_000)), Ok(1));
    (folder, data)
}

#[test]
fn what_was_used_is_summed_over_a_node_and_a_window() {
    let (_folder, data) = ledger_on_disk();
    let reader = UsageReader::open(&data).unwrap();
    let used = |account: &str, unit, window: (u64, u64)| {
        let window = (UnixSeconds(window.0), UnixSeconds(window.1));
        reader.used(&account.parse().unwrap(), unit, None, window)
    };
    assert_eq!(used("acme", Unit::Tokens, (0, 9_000)), 16);
    assert_eq!(used("acme/a", Unit::OutputTokens, (0, 9_000)), 3);
    assert_eq!(used("acme", Unit::GpuMicros, (1_800, 9_000)), 7, "only the one that ended in the window");
    assert_eq!(used("/", Unit::Requests, (0, 9_000)), 3);
    let sums = reader.sums(&"acme".parse().unwrap(), (UnixSeconds(0), UnixSeconds(9_000))).unwrap();
    assert_eq!(sums.iter().map(|sum| sum.account.as_str()).collect::<Vec<_>>(), ["acme/a", "acme/b"]);
}

/// Quarters of an hour are summed; a grant may begin in the middle of one.
#[test]
fn what_was_used_since_any_second_is_known_to_the_entry() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    for (id, at) in [(1, 880), (2, 901), (3, 1_200), (4, 1_199), (5, 1_201), (6, 1_202), (7, 1_900)] {
        let opening = opening(id, if id == 5 { "other" } else { "acme/a" });
        // One is what another gateway asks again.
        let counts = if id == 6 { Counts::None } else { Counts::One };
        let settlement = Settlement { counts, ..settlement(at, used(5, 3)) };
        let settle = Record::Settle(Arc::clone(&opening), settlement);
        store.write(&[Record::Open(opening), settle]).unwrap();
    }
    let reader = UsageReader::open(&data).unwrap();
    let used = |account: &str, unit, from: u64| {
        reader.used(&account.parse().unwrap(), unit, None, (UnixSeconds(from), UnixSeconds(9_000)))
    };
    let requests = [900, 901, 902, 1_199, 1_200, 1_201, 1_799, 1_800].map(|from| used("acme", Unit::Requests, from));
    assert_eq!(requests, [4, 4, 3, 3, 2, 1, 1, 1]);
    assert_eq!((used("/", Unit::Tokens, 1_201), used("acme", Unit::Tokens, 1_201)), (24, 16));
    let of_model = |model| {
        reader.used(&"acme".parse().unwrap(), Unit::GpuMicros, Some(model), (UnixSeconds(1_200), UnixSeconds(9_000)))
    };
    assert_eq!((of_model("m"), of_model("other")), (21, 0));
}

#[test]
fn an_export_with_a_line_changed_taken_out_or_added_does_not_verify() {
    let (_folder, data) = ledger_on_disk();
    let mut csv = Vec::new();
    let exported = write_csv(&UsageReader::open(&data).unwrap(), &mut csv).unwrap();
    assert_eq!(exported.entries, 3);
    let csv = String::from_utf8(csv).unwrap();
    let verify = |text: &str| verify_csv(BufReader::new(text.as_bytes()));
    assert_eq!(verify(&csv).unwrap(), exported);
    let lines: Vec<_> = csv.lines().collect();
    let spoilt = [
        csv.replacen("acme/a", "acme/b", 1),
        csv.replacen(",5,0,3,", ",5,0,2,", 1),
        [lines[0], lines[2], lines[3]].join("\n"),
        [lines[0], lines[1], lines[1], lines[2]].join("\n"),
    ];
    for text in spoilt {
        assert!(matches!(verify(&text), Err(ExportError::Broken { .. })), "{text}");
    }
    assert!(matches!(verify("seq\n"), Err(ExportError::NoExport)));
}

/// What callers say of their requests: settled once for `alice`, twice for `bob`, and once for nobody.
fn attributed_ledger() -> (tempfile::TempDir, UsageReader) {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    let pairs = BTreeMap::from([("ticket".to_owned(), "7, \"urgent\"".to_owned())]);
    for (id, user) in [(1, Some("alice")), (2, Some("bob, jr")), (3, Some("bob, jr")), (4, None)] {
        let said = Attribution::new(user, if id == 1 { &pairs } else { const { &BTreeMap::new() } });
        let opening = Arc::new(Opening { attribution: said, ..Opening::clone(&opening(id, "acme/a")) });
        let settle = Record::Settle(Arc::clone(&opening), settlement(1_000, used(5, 3)));
        store.write(&[Record::Open(opening), settle]).unwrap();
    }
    (folder, UsageReader::open(&data).unwrap())
}

#[test]
fn usage_by_user_adds_up_to_the_usage_of_the_account() {
    let (_folder, reader) = attributed_ledger();
    let (acme, window) = ("acme".parse().unwrap(), (UnixSeconds(0), UnixSeconds(9_000)));
    let sums = reader.sums_by_user(&acme, window).unwrap();
    let shown: Vec<_> =
        sums.iter().map(|sum| (sum.user.as_deref(), sum.used.requests, sum.used.output_tokens)).collect();
    assert_eq!(shown, [(Some("alice"), 1, 3), (Some("bob, jr"), 2, 6), (None, 1, 3)]);
    let total = reader.sums(&acme, window).unwrap();
    assert_eq!(sums.iter().map(|sum| sum.used.billed_gpu_us).sum::<u64>(), total[0].used.billed_gpu_us);
    assert!(reader.sums_by_user(&"other".parse().unwrap(), window).unwrap().is_empty());
}

#[test]
fn what_a_request_is_for_stands_in_the_export_and_is_covered_by_the_chain() {
    let (_folder, reader) = attributed_ledger();
    let mut csv = Vec::new();
    let exported = write_csv(&reader, &mut csv).unwrap();
    let csv = String::from_utf8(csv).unwrap();
    let said: Vec<_> = csv.lines().skip(1).map(|line| line.split_once(",1,,,,").unwrap().1).collect();
    assert!(said[0].starts_with(r#"alice,"{""ticket"":""7, \""urgent\""""}","#), "{}", said[0]);
    assert!(said[1].starts_with(r#""bob, jr",,"#), "{}", said[1]);
    let verify = |text: &str| verify_csv(BufReader::new(text.as_bytes()));
    assert_eq!(verify(&csv).unwrap(), exported);
    for (from, to) in [("alice", "alicf"), ("urgent", "urgenu"), (",1,,,,alice", ",1,,,,")] {
        assert!(verify(&csv.replacen(from, to, 1)).is_err(), "{from}");
    }
}

#[test]
fn the_entries_of_one_request_name_its_bill_in_the_export_and_the_chain_covers_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    for (id, bill) in [(1, None), (2, Some(2)), (3, Some(2))] {
        let opening = Arc::new(Opening { bill: bill.map(EntryId), ..Opening::clone(&opening(id, "a")) });
        let settle = Record::Settle(Arc::clone(&opening), settlement(1_000, used(5, 3)));
        store.write(&[Record::Open(opening), settle]).unwrap();
    }
    let mut csv = Vec::new();
    let exported = write_csv(&UsageReader::open(&data).unwrap(), &mut csv).unwrap();
    let csv = String::from_utf8(csv).unwrap();
    let bills: Vec<_> = csv.lines().map(|line| line.rsplit(',').nth(4).unwrap()).collect();
    assert_eq!(bills, ["bill", "", "2", "2"]);
    assert_eq!(verify_csv(csv.as_bytes()).unwrap(), exported);
    for (from, to) in [(",2,", ",1,"), (",2,", ",,"), (",,,,,,,,,1,", ",,,,,,1,,,1,")] {
        let at = csv.rfind(from).unwrap();
        let spoilt = format!("{}{to}{}", &csv[..at], &csv[at + from.len()..]);
        assert!(verify_csv(spoilt.as_bytes()).is_err(), "{spoilt}");
    }
}

#[test]
fn who_asked_for_somebody_else_stands_in_the_export_and_the_chain_covers_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    for (id, account, counts) in
        [(1, Some("south/a"), Counts::One), (2, Some("south/a"), Counts::None), (3, None, Counts::One)]
    {
        let asker =
            Asker { reservation: "rsv_7_x,\"y\"".into(), part: 0, account: account.map(|path| path.parse().unwrap()) };
        let attribution = Attribution { asker: Some(asker), ..Attribution::default() };
        let opening = Arc::new(Opening { attribution, ..Opening::clone(&opening(id, "a")) });
        let settle = Record::Settle(Arc::clone(&opening), Settlement { counts, ..settlement(1_000, used(5, 3)) });
        store.write(&[Record::Open(opening), settle]).unwrap();
    }
    let mut csv = Vec::new();
    let reader = UsageReader::open(&data).unwrap();
    let exported = write_csv(&reader, &mut csv).unwrap();
    let csv = String::from_utf8(csv).unwrap();
    for (line, end) in csv.lines().skip(1).zip([",south/a,1", ",south/a,0", ",,1"]) {
        let named = format!(",\"rsv_7_x,\"\"y\"\"\"{end}");
        assert!(line.rsplit_once(',').unwrap().0.ends_with(&named), "{line}");
    }
    assert_eq!(verify_csv(csv.as_bytes()).unwrap(), exported);
    for (from, to) in [("rsv_7", "rsv_8"), ("south/a", "south/b"), ("south/a,0,", "south/a,1,"), (",,1,", ",x,1,")] {
        let at = csv.rfind(from).unwrap();
        let spoilt = format!("{}{to}{}", &csv[..at], &csv[at + from.len()..]);
        assert!(verify_csv(spoilt.as_bytes()).is_err(), "{from}");
    }
    let sums = reader.sums(&"a".parse().unwrap(), (UnixSeconds(0), UnixSeconds(9_000))).unwrap();
    assert_eq!(sums[0].used.requests, 2, "what is asked again is no further request");
}

#[test]
fn no_spreadsheet_takes_the_name_of_a_user_for_a_formula() {
    let said = Attribution::new(Some("=1+1"), &BTreeMap::new());
    let opening = Opening { attribution: said, ..Opening::clone(&opening(1, "a")) };
    let entry = Entry { seq: 1, opening, settlement: settlement(1_000, used(5, 3)) };
    assert!(entry.csv().ends_with(",'=1+1,,,,,1"), "{}", entry.csv());
}

/// SQLite's own limit on pages stands in for a disk without space.
#[test]
fn a_database_that_cannot_grow_refuses_whole_batches_and_goes_on_when_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let data = DataDir::open(folder.path()).unwrap();
    let mut store = SqliteStore::open(&data, Arc::new(Tariff::free())).unwrap();
    store.limit_pages(1).unwrap();
    let batch: Vec<_> = (1..500).map(|id| Record::Open(opening(id, "a"))).collect();
    assert!(store.write(&batch).is_err());
    assert_eq!(store.next_id(), Ok(EntryId(1)), "all or nothing");
    store.reopen().unwrap();
    store.write(&batch).unwrap();
    assert_eq!(store.next_id(), Ok(EntryId(500)));
}
