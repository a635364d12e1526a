//! Clocks that jump. Rates run on the monotonic clock and budgets on the wall clock, which is not believed blindly.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};

use passerelle_engine::Usage;

use super::*;
use crate::gateway::account::Account;
use crate::gateway::journal::{JournalConfig, JournalThread, MemoryStore};
use crate::gateway::quota::{Bound, Limit, Period, Quota};

const HOUR: u64 = 3_600;
/// Eight in the morning of some day.
const MORNING: u64 = 1_767_225_600 + 8 * HOUR;

/// Clocks that a test moves apart, in seconds.
#[derive(Debug, Clone, Default)]
struct TwoClocks {
    monotonic: Arc<AtomicU64>,
    wall: Arc<AtomicU64>,
}

impl TwoClocks {
    fn at(wall: u64) -> Self {
        let clocks = Self::default();
        clocks.wall.store(wall, Ordering::Relaxed);
        clocks
    }

    fn pass(&self, seconds: u64) {
        self.monotonic.fetch_add(seconds, Ordering::Relaxed);
        self.wall.fetch_add(seconds, Ordering::Relaxed);
    }

    fn set_wall(&self, wall: u64) {
        self.wall.store(wall, Ordering::Relaxed);
    }
}

impl Clock for TwoClocks {
    fn now(&self) -> Duration {
        Duration::from_secs(self.monotonic.load(Ordering::Relaxed))
    }

    fn wall(&self) -> Duration {
        Duration::from_secs(self.wall.load(Ordering::Relaxed))
    }
}

fn ledger(clocks: &TwoClocks) -> Ledger {
    Ledger::without_past(Arc::new(clocks.clone()))
}

fn caller(limit: Limit) -> Arc<Caller> {
    Arc::new(Caller::at_open_door(Account::alone("a".parse().unwrap(), Quota::new(vec![limit]).unwrap())))
}

fn of_a_day(amount: u64) -> Arc<Caller> {
    let amount = NonZeroU64::new(amount).unwrap();
    caller(Limit::of(Bound::Budget { unit: Unit::Tokens, amount, period: Period::Day }))
}

fn a_minute(amount: u64) -> Arc<Caller> {
    caller(Limit::requests_per_minute(NonZeroU64::new(amount).unwrap()))
}

fn spend(ledger: &Ledger, caller: &Arc<Caller>, tokens: u32) {
    let reservation = ledger.reserve(caller, &Ask::new("m", tokens, 0)).unwrap();
    reservation.settle_as(Usage { prompt_tokens: tokens, ..Usage::default() });
}

fn remaining(ledger: &Ledger, caller: &Arc<Caller>) -> u64 {
    ledger.limits_of(caller)[0].remaining
}

#[test]
fn a_wall_clock_that_goes_back_reopens_no_window() {
    let clocks = TwoClocks::at(MORNING);
    let (ledger, alice) = (ledger(&clocks), of_a_day(100));
    spend(&ledger, &alice, 100);
    clocks.pass(24 * HOUR);
    spend(&ledger, &alice, 70);
    clocks.set_wall(MORNING + HOUR);
    assert_eq!(remaining(&ledger, &alice), 30, "yesterday does not come back");
    clocks.set_wall(MORNING + 48 * HOUR - 1);
    clocks.pass(1);
    assert_eq!(remaining(&ledger, &alice), 100);
}

#[test]
fn time_does_not_go_back_over_a_restart() {
    let clocks = TwoClocks::at(MORNING);
    let store = Box::new(MemoryStore::default());
    let (_thread, journal) = JournalThread::start(store, JournalConfig::default()).unwrap();
    let latest = UnixSeconds(MORNING + 48 * HOUR);
    let (next_id, binary, models) = (EntryId(1), "1".into(), BTreeMap::new());
    let journal = Some(JournalParts { journal, next_id, latest, asked_before: Vec::new(), binary, models });
    let ledger = Ledger::new(LedgerParts { journal, ..LedgerParts::without_past(Arc::new(clocks.clone())) });
    let alice = of_a_day(100);
    let refusal = ledger.reserve(&alice, &Ask::new("m", 60, 0)).and_then(|held| {
        let refused = ledger.reserve(&alice, &Ask::new("m", 60, 0)).map(drop);
        held.settle();
        refused
    });
    let (start, end) = refusal.unwrap_err().window.unwrap();
    assert!(start <= latest && latest < end, "the day of the last entry, not the clock's: {start} to {end}");
}

/// A ledger whose last entry was made a while ago, whoever's.
fn ledger_of_long_ago(clocks: &TwoClocks, absence: u64) -> (JournalThread, Ledger) {
    let store = Box::new(MemoryStore::default());
    let clock: Arc<dyn Clock> = Arc::new(clocks.clone());
    let (thread, journal) = JournalThread::start(store, JournalConfig::default()).unwrap();
    let latest = UnixSeconds(MORNING - absence);
    let (next_id, binary, models) = (EntryId(1), "1".into(), BTreeMap::new());
    let journal = Some(JournalParts { journal, next_id, latest, asked_before: Vec::new(), binary, models });
    (thread, Ledger::new(LedgerParts { journal, ..LedgerParts::without_past(clock) }))
}

#[test]
fn a_clock_that_is_far_ahead_at_the_start_opens_no_budget_until_an_operator_says_that_it_is_right() {
    let (clocks, alice, rate) = (TwoClocks::at(MORNING), of_a_day(100), a_minute(10));
    let (_thread, after_a_summer) = ledger_of_long_ago(&clocks, 90 * 24 * HOUR);
    assert_eq!(after_a_summer.available_to(&alice), Ok(()));
    let (_thread, ledger) = ledger_of_long_ago(&clocks, 92 * 24 * HOUR);
    assert_eq!(ledger.available_to(&alice), Err(LedgerClosed::ClockLeapt));
    assert_eq!(ledger.available_to(&rate), Ok(()));
    assert_eq!(ledger.today(), UnixSeconds(MORNING - 92 * 24 * HOUR), "the high-water mark stays where it was");
    assert!(ledger.accept_clock());
    assert_eq!(ledger.available_to(&alice), Ok(()));
    assert_eq!(ledger.today(), UnixSeconds(MORNING));
}

#[test]
fn a_rate_does_not_look_at_the_wall_clock() {
    let clocks = TwoClocks::at(MORNING);
    let (ledger, alice) = (ledger(&clocks), a_minute(2));
    for wall in [MORNING - HOUR, MORNING + 1000 * HOUR] {
        (0..2).for_each(|_| drop(ledger.reserve(&alice, &Ask::new("m", 1, 0)).unwrap()));
        clocks.set_wall(wall);
        let refusal = ledger.reserve(&alice, &Ask::new("m", 1, 0)).unwrap_err();
        assert_eq!(refusal.retry, Retry::After(Duration::from_secs(30)));
        clocks.monotonic.fetch_add(60, Ordering::Relaxed);
    }
}

#[test]
fn a_clock_that_leaps_closes_budgets_and_nothing_else_until_it_is_right_or_is_said_to_be() {
    let clocks = TwoClocks::at(MORNING);
    let (ledger, with_budget, with_rate) = (ledger(&clocks), of_a_day(100), a_minute(10));
    spend(&ledger, &with_budget, 90);
    clocks.set_wall(MORNING + 30 * 24 * HOUR);
    assert_eq!(ledger.available_to(&with_budget), Err(LedgerClosed::ClockLeapt));
    assert_eq!(ledger.available_to(&with_rate), Ok(()));
    assert_eq!(remaining(&ledger, &with_budget), 10, "next month has not begun");
    clocks.set_wall(MORNING);
    clocks.pass(5);
    assert_eq!(ledger.available_to(&with_budget), Ok(()), "the clock is right again");
    assert_eq!(remaining(&ledger, &with_budget), 10);
    clocks.set_wall(MORNING + 30 * 24 * HOUR);
    assert!(ledger.accept_clock());
    assert_eq!(ledger.available_to(&with_budget), Ok(()));
    assert_eq!(remaining(&ledger, &with_budget), 100);
}
