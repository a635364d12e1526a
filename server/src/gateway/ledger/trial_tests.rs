//! Limits on trial: a pure rehearsal.

use std::num::NonZeroU64;

use passerelle_engine::Usage;
use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::account::Account;
use crate::gateway::quota::{Bound, Enforcement, Limit, Period, Quota};
use crate::gateway::tariff::Price;

const GRANT: Period = Period::Grant { from: UnixSeconds(0), until: UnixSeconds(u64::MAX) };

fn n(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn caller(limits: Vec<Limit>) -> Arc<Caller> {
    Arc::new(Caller::at_open_door(Account::alone("a".parse().unwrap(), Quota::new(limits).unwrap())))
}

fn on_trial(limit: Limit) -> Limit {
    Limit { enforcement: Enforcement::DryRun, ..limit }
}

fn granted(unit: Unit, amount: u64) -> Limit {
    Limit::of(Bound::Budget { unit, amount: n(amount), period: GRANT })
}

fn ledger() -> (Ledger, ManualClock) {
    let clock = ManualClock::default();
    let in_parts = PartBounds { tokens: NonZeroU32::new(10).unwrap(), longest_park: Duration::from_secs(60) };
    let tariff = Arc::new(Tariff::new("1", [("m".to_owned(), Price::flat(1_000, 100, 10_000))]));
    (Ledger::new(LedgerParts { in_parts, tariff, ..LedgerParts::without_past(Arc::new(clock.clone())) }), clock)
}

fn ask(prompt_tokens: u32, max_output_tokens: u32) -> Ask {
    Ask::new("m", prompt_tokens, max_output_tokens)
}

fn run(ledger: &Ledger, caller: &Arc<Caller>) -> bool {
    let one = ledger.reserve(caller, &ask(1, 0));
    one.map(|one| one.settle_as(Usage { prompt_tokens: 1, ..Usage::default() })).is_ok()
}

/// Of each limit: what is left, and what it would have refused.
fn states(ledger: &Ledger, caller: &Arc<Caller>) -> Vec<(u64, u64)> {
    ledger.limits_of(caller).iter().map(|state| (state.remaining, state.would_have_refused)).collect()
}

#[test]
fn a_rate_on_trial_counts_what_it_would_have_refused_beside_the_one_that_is_enforced() {
    let (ledger, clock) = ledger();
    let both = caller(vec![Limit::requests_per_minute(n(60)), on_trial(Limit::requests_per_minute(n(30)))]);
    let ran = (0..100).filter(|_| run(&ledger, &both)).count();
    assert_eq!(ran, 60, "the enforced one still is");
    assert_eq!(states(&ledger, &both), [(0, 0), (0, 30)], "of those that ran");
    clock.advance(Duration::from_secs(10));
    assert_eq!((0..5).filter(|_| run(&ledger, &both)).count(), 5);
    assert_eq!(states(&ledger, &both)[1], (0, 30), "what it refused took nothing, so that 5 fit after 10 seconds");
}

#[test]
fn what_a_limit_on_trial_counted_is_no_debt_of_the_one_that_is_enforced_then() {
    let (ledger, _) = ledger();
    let rate = Limit::requests_per_minute(n(60));
    let rehearsed = caller(vec![on_trial(rate.clone())]);
    assert!((0..400).all(|_| run(&ledger, &rehearsed)));
    let enforced = caller(vec![rate]);
    assert!(run(&ledger, &enforced));
    assert_eq!(states(&ledger, &enforced), [(59, 0)]);
}

#[test]
fn a_limit_on_trial_shortens_nothing_and_shows_in_no_header() {
    let (ledger, clock) = ledger();
    let small = [
        Limit::of(Bound::ContextTokens(n(40))),
        Limit::of(Bound::BatchTokens(n(40))),
        Limit::concurrent_requests(n(1)),
        Limit::tokens_per_minute(n(40)),
        Limit::requests_per_minute(n(1)),
        granted(Unit::GpuMicros, 40),
    ];
    let alice = caller(small.clone().map(on_trial).to_vec());
    let asks = [ask(30, 100), ask(30, 100)];
    assert_eq!(ledger.never_fit(&alice, &asks), None);
    assert_eq!(ledger.largest_output(&alice, "m", 30), None);
    assert_eq!(ledger.headroom(&alice, Some("m")), RateLimitState::default());
    assert_eq!(trust(&alice), Trust::GoOn, "what binds no budget does not wait for the disk");
    assert_eq!(ledger.would_refuse(&alice, &ask(30, 100)), None);
    let held = [(); 3].map(|()| ledger.reserve(&alice, &ask(30, 100)).unwrap());
    assert_eq!(ledger.limits_of(&alice)[0].would_have_refused, 3);
    drop(held);
    let enforced = caller(small.to_vec());
    clock.advance(Duration::from_secs(60));
    assert!(ledger.never_fit(&enforced, &asks).is_some() && ledger.reserve(&enforced, &ask(30, 100)).is_err());
}

/// One that waits in line behind others is not refused by a rate that is enforced, nor by one on trial.
#[tokio::test(start_paused = true)]
async fn what_would_have_waited_for_its_turn_counts_as_admitted_in_its_turn() {
    let (ledger, _) = ledger();
    let alice = caller(vec![on_trial(Limit::requests_per_minute(n(60)))]);
    let today = || Some(Arc::clone(&alice));
    for _ in 0..70 {
        drop(ledger.reserve_in_turn(&alice, &ask(1, 0), today).await.unwrap());
    }
    assert_eq!(states(&ledger, &alice), [(0, 5)], "60 at once, and 5 within the 5 seconds that anybody waits");
}

#[test]
fn an_answer_that_a_budget_on_trial_would_have_ended_is_counted_and_takes_no_more_of_it() {
    let (ledger, _) = ledger();
    let alice = caller(vec![on_trial(granted(Unit::OutputTokens, 25))]);
    let mut growing = ledger.reserve(&alice, &Ask { reserve: Reserve::InParts, ..ask(1, 60) }).unwrap();
    assert_eq!(states(&ledger, &alice), [(25, 1)], "it could never fit");
    drop(growing);
    growing = ledger.reserve(&alice, &Ask { reserve: Reserve::InParts, ..ask(1, 20) }).unwrap();
    let mut other = ledger.reserve(&alice, &Ask { reserve: Reserve::InParts, ..ask(1, 20) }).unwrap();
    assert_eq!((growing.extend(1, 10), other.extend(1, 10)), (Ok(10), Ok(10)), "nobody is ended");
    assert_eq!(states(&ledger, &alice), [(5, 3)]);
    let all = Usage { prompt_tokens: 1, generated_tokens: 20, ..Usage::default() };
    growing.settle_as(all);
    other.settle_as(all);
    assert_eq!(states(&ledger, &alice), [(5, 3)], "what would not have been generated is not counted");
}

#[test]
fn requests_that_are_refused_together_leave_no_trace_in_a_trial() {
    let (ledger, _) = ledger();
    let alice = caller(vec![Limit::concurrent_requests(n(1)), on_trial(Limit::requests_per_minute(n(1)))]);
    for _ in 0..3 {
        assert!(ledger.reserve_together(&alice, &[ask(1, 0), ask(1, 0)]).is_err());
    }
    assert_eq!(states(&ledger, &alice), [(1, 0), (1, 0)]);
}
