//! Answers that are reserved in parts.

use std::num::NonZeroU64;
use std::sync::Barrier;
use std::thread;

use passerelle_engine::Usage;
use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::account::Account;
use crate::gateway::quota::{Bound, Limit, Period, Quota};

fn n(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn caller(limits: Vec<Limit>) -> Arc<Caller> {
    Arc::new(Caller::at_open_door(Account::alone("a".parse().unwrap(), Quota::new(limits).unwrap())))
}

fn ledger(tokens: u32) -> (Ledger, ManualClock) {
    let clock = ManualClock::default();
    let in_parts = PartBounds { tokens: NonZeroU32::new(tokens).unwrap(), longest_park: Duration::from_secs(60) };
    let parts = LedgerParts::without_past(Arc::new(clock.clone()));
    (Ledger::new(LedgerParts { in_parts, ..parts }), clock)
}

fn in_parts(prompt_tokens: u32, max_output_tokens: u32) -> Ask {
    Ask { reserve: Reserve::InParts, ..Ask::new("m", prompt_tokens, max_output_tokens) }
}

fn of_a_day(unit: Unit, amount: u64) -> Limit {
    Limit::of(Bound::Budget { unit, amount: n(amount), period: Period::Day })
}

#[test]
fn a_part_is_reserved_first_and_only_output_is_asked_for_again() {
    let (ledger, _) = ledger(10);
    let limits = [of_a_day(Unit::Tokens, 100), of_a_day(Unit::Requests, 1), Limit::concurrent_requests(n(1))];
    let alice = caller(limits.to_vec());
    let mut reservation = ledger.reserve(&alice, &in_parts(20, 50)).unwrap();
    assert_eq!(reservation.first_part(), Some(10));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 70);
    assert_eq!(reservation.extend(1, 10), Ok(10));
    let states = ledger.limits_of(&alice);
    assert_eq!([states[0].remaining, states[1].remaining, states[2].remaining], [60, 0, 0]);
    reservation.settle_as(Usage { prompt_tokens: 20, generated_tokens: 12, ..Usage::default() });
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 68);
}

#[test]
fn a_short_answer_is_reserved_whole() {
    let (ledger, _) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::Tokens, 100)]);
    assert_eq!(ledger.reserve(&alice, &in_parts(20, 10)).unwrap().first_part(), None);
    assert_eq!(ledger.reserve(&alice, &Ask::new("m", 20, 50)).unwrap().first_part(), None);
}

#[test]
fn accounts_that_are_named_for_it_have_all_of_an_answer_reserved_or_nothing_of_it() {
    let bounds = PartBounds { tokens: NonZeroU32::new(10).unwrap(), longest_park: Duration::from_secs(60) };
    let reserve_whole = vec!["acme".parse().unwrap()];
    let parts = LedgerParts::without_past(Arc::new(ManualClock::default()));
    let ledger = Ledger::new(LedgerParts { in_parts: bounds, reserve_whole, ..parts });
    for (account, first_part, left) in [("acme", None, 30), ("acme/ai", None, 30), ("acme2", Some(10), 70)] {
        let quota = Quota::new(vec![of_a_day(Unit::Tokens, 100)]).unwrap();
        let alice = Arc::new(Caller::at_open_door(Account::alone(account.parse().unwrap(), quota)));
        let reservation = ledger.reserve(&alice, &in_parts(20, 50)).unwrap();
        assert_eq!((reservation.first_part(), ledger.limits_of(&alice)[0].remaining), (first_part, left), "{account}");
        let second = in_parts(20, 50);
        assert_eq!(ledger.would_refuse(&alice, &second).is_some(), first_part.is_none(), "{account}");
        assert_eq!(ledger.reserve(&alice, &second).is_err(), first_part.is_none(), "{account}");
    }
}

#[test]
fn an_answer_that_no_limit_could_ever_hold_is_refused_though_its_first_part_would_fit() {
    let (ledger, _) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::Tokens, 100)]);
    let refusal = ledger.reserve(&alice, &in_parts(20, 81)).unwrap_err();
    assert_eq!((refusal.retry, refusal.asked), (Retry::Never, 101));
    let bob = caller(vec![Limit::of(Bound::ContextTokens(n(100)))]);
    assert_eq!(ledger.reserve(&bob, &in_parts(20, 81)).unwrap_err().retry, Retry::Never);
}

#[test]
fn the_last_tokens_of_a_budget_are_given_out_and_a_refused_extension_takes_nothing() {
    let (ledger, _) = ledger(16);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 37)]);
    let mut reservation = ledger.reserve(&alice, &in_parts(1, 37)).unwrap();
    let mut granted = 16;
    let denied = loop {
        match reservation.extend(1, 16) {
            Ok(more) => granted += more,
            Err(denied) => break denied,
        }
    };
    assert_eq!((granted, denied), (37, Denied::Spent));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 0);
}

#[test]
fn a_rate_says_when_the_next_part_fits_and_is_waited_for_no_longer_than_is_allowed() {
    let (ledger, clock) = ledger(10);
    let alice = caller(vec![Limit::of(Bound::Rate { unit: Unit::OutputTokens, per_minute: n(60) })]);
    let mut reservation = ledger.reserve(&alice, &in_parts(1, 60)).unwrap();
    let _held = ledger.reserve(&alice, &Ask::new("m", 1, 45)).unwrap();
    assert_eq!(reservation.extend(1, 10), Err(Denied::Later(Duration::from_secs(5))));
    clock.advance(Duration::from_secs(5));
    assert_eq!(reservation.extend(1, 10), Ok(10));
    for _ in 0..6 {
        let Err(Denied::Later(wait)) = reservation.extend(1, 10) else { panic!("there is no room") };
        assert_eq!(wait, Duration::from_secs(10));
        clock.advance(wait);
        // Another request is quicker each time.
        ledger
            .reserve(&alice, &Ask::new("m", 0, 10))
            .unwrap()
            .settle_as(Usage { generated_tokens: 10, ..Usage::default() });
    }
    assert_eq!(reservation.extend(1, 10), Err(Denied::Spent), "a minute was waited");
}

/// What others hold of a budget is neither given away nor given up.
#[test]
fn an_answer_waits_for_what_others_hold_of_a_budget_and_ends_only_once_that_is_used() {
    let (ledger, _) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 30)]);
    let mut growing = ledger.reserve(&alice, &in_parts(1, 30)).unwrap();
    let other = ledger.reserve(&alice, &Ask::new("m", 1, 20)).unwrap();
    assert_eq!(growing.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)));
    growing.stands_still();
    assert_eq!(growing.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)), "the other one still runs");
    other.settle_as(Usage { generated_tokens: 5, ..Usage::default() });
    assert_eq!([growing.extend(1, 10), growing.extend(1, 10)], [Ok(10), Ok(5)]);
    assert_eq!(growing.extend(1, 10), Err(Denied::Spent));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 0);
}

#[test]
fn what_others_hold_of_a_budget_is_waited_for_no_longer_than_is_allowed() {
    let (ledger, clock) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 30)]);
    let mut growing = ledger.reserve(&alice, &in_parts(1, 30)).unwrap();
    let _held = ledger.reserve(&alice, &Ask::new("m", 1, 20)).unwrap();
    assert_eq!(growing.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)));
    clock.advance(Duration::from_secs(59));
    assert_eq!(growing.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)));
    clock.advance(Duration::from_millis(900));
    assert_eq!(growing.extend(1, 10), Err(Denied::Later(Duration::from_millis(100))), "to the end of it");
    clock.advance(Duration::from_millis(100));
    assert_eq!(growing.extend(1, 10), Err(Denied::Spent), "a minute was waited");
}

/// Each has generated all that it holds, so that neither gets anything before the other ends.
#[test]
fn of_two_answers_that_wait_for_each_other_one_ends_and_leaves_what_it_did_not_use() {
    let (ledger, _) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 20)]);
    let mut first = ledger.reserve(&alice, &in_parts(1, 20)).unwrap();
    let mut second = ledger.reserve(&alice, &in_parts(1, 20)).unwrap();
    assert_eq!(first.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)), "the second one may end by itself");
    first.stands_still();
    assert_eq!(second.extend(1, 10), Err(Denied::Spent), "the first one waits and gives nothing back");
    assert_eq!(first.extend(1, 10), Err(Denied::Later(counter::ASK_AGAIN)), "the second one ends");
    second.settle_as(Usage { generated_tokens: 8, ..Usage::default() });
    assert_eq!([first.extend(1, 10), first.extend(1, 10)], [Ok(2), Err(Denied::Spent)]);
    first.settle_as(Usage { generated_tokens: 12, ..Usage::default() });
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 0);
}

#[test]
fn whoever_stood_still_leaves_nothing_behind_that_others_would_not_wait_for() {
    let (ledger, _) = ledger(10);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 20)]);
    let running = ledger.reserve(&alice, &Ask::new("m", 1, 10)).unwrap();
    let mut waiting = ledger.reserve(&alice, &in_parts(1, 20)).unwrap();
    assert_eq!(waiting.extend(1, 1), Err(Denied::Later(counter::ASK_AGAIN)));
    waiting.stands_still();
    drop((waiting, running));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 20);
    let _running = ledger.reserve(&alice, &Ask::new("m", 1, 10)).unwrap();
    let mut waiting = ledger.reserve(&alice, &in_parts(1, 20)).unwrap();
    assert_eq!(waiting.extend(1, 1), Err(Denied::Later(counter::ASK_AGAIN)));
}

#[test]
fn extensions_of_several_levels_take_of_all_or_of_none() {
    let (ledger, _) = ledger(10);
    let node = |path: &str, limit: Limit| super::super::account::Node {
        path: path.parse().unwrap(),
        limits: Arc::new(Quota::new(vec![limit]).unwrap()),
    };
    let nodes = vec![node("a/b", of_a_day(Unit::Tokens, 1000)), node("a", of_a_day(Unit::OutputTokens, 40))];
    let caller = Arc::new(Caller::at_open_door(Account::new(nodes, NonZeroU32::MIN)));
    let mut reservation = ledger.reserve(&caller, &in_parts(5, 40)).unwrap();
    let remaining = || ledger.limits_of(&caller).iter().map(|state| state.remaining).collect::<Vec<_>>();
    assert_eq!(reservation.extend(1, 30), Ok(30));
    let before = remaining();
    assert_eq!(before, [1000 - 45, 0]);
    assert_eq!(reservation.extend(1, 10), Err(Denied::Spent));
    assert_eq!(remaining(), before);
}

/// A limit that changes while an answer grows counts from its next part on, and is not changed back by it.
#[test]
fn a_lowered_limit_ends_a_growing_answer_and_a_raised_one_lets_it_grow() {
    let (ledger, _) = ledger(10);
    let stated = |amount| caller(vec![of_a_day(Unit::OutputTokens, amount)]);
    let mut reservation = ledger.reserve(&stated(100), &in_parts(1, 90)).unwrap();
    assert_eq!(ledger.limits_of(&stated(15))[0].remaining, 5);
    assert_eq!(reservation.extend(1, 10), Ok(5));
    assert_eq!(reservation.extend(1, 10), Err(Denied::Spent));
    assert_eq!(ledger.limits_of(&stated(200))[0].remaining, 185);
    assert_eq!(reservation.extend(1, 10), Ok(10));
}

#[test]
fn a_thousand_growing_answers_share_a_budget_to_the_last_token_and_pass_it_by_none() {
    let (ledger, _) = ledger(8);
    let alice = caller(vec![of_a_day(Unit::OutputTokens, 40_000)]);
    let all_ready = Barrier::new(8);
    let granted: u64 = thread::scope(|scope| {
        let some = || {
            let mut held: Vec<_> = (0..125).filter_map(|_| ledger.reserve(&alice, &in_parts(1, 1_000)).ok()).collect();
            all_ready.wait();
            assert_eq!(held.len(), 125);
            let mut granted = 125 * 8;
            while let Some(more) =
                held.iter_mut().map(|one| u64::from(one.extend(1, 8).unwrap_or(0))).reduce(|a, b| a + b)
                && more > 0
            {
                granted += more;
            }
            all_ready.wait();
            granted
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(some)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(granted, 40_000);
}
