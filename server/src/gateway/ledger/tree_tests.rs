//! Limits on several nodes of a path, and those that last.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Barrier;
use std::thread;

use passerelle_engine::Usage;
use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::account::{Account, Node, ServiceClass};
use crate::gateway::quota::{Bound, Enforcement, Limit, LimitName, Percent, Period, PeriodName, Quota};
use crate::gateway::tariff::Price;

const DAY: Duration = Duration::from_secs(86_400);

fn n(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn path(text: &str) -> AccountPath {
    text.parse().unwrap()
}

/// `limits`: by path. The caller's account is `account`; nodes that are not listed have no limits.
fn caller(account: &str, limits: &[(&str, Limit)]) -> Arc<Caller> {
    let of_node = |node: AccountPath| {
        let own = limits.iter().filter(|(path, _)| *path == node.as_str()).map(|(_, limit)| limit.clone());
        let limits = Arc::new(Quota::new(own.collect()).unwrap());
        Node { path: node, limits }
    };
    let nodes = path(account).lineage().map(of_node).collect();
    Arc::new(Caller::at_open_door(Account::new(nodes, NonZeroU32::MIN)))
}

fn budget(unit: Unit, amount: u64, period: Period) -> Limit {
    Limit::of(Bound::Budget { unit, amount: n(amount), period })
}

fn ledger() -> (Ledger, ManualClock) {
    let clock = ManualClock::default();
    (Ledger::without_past(Arc::new(clock.clone())), clock)
}

fn ask(prompt_tokens: u32, max_output_tokens: u32) -> Ask {
    Ask::new("m", prompt_tokens, max_output_tokens)
}

fn used(prompt_tokens: u32, generated_tokens: u32) -> Usage {
    Usage { prompt_tokens, generated_tokens, ..Usage::default() }
}

#[test]
fn every_node_of_the_path_must_have_room_and_a_refusal_takes_from_none() {
    let (ledger, _) = ledger();
    let limits = [
        ("acme/vision/alice", Limit::requests_per_minute(n(5))),
        ("acme/vision", Limit::tokens_per_minute(n(100))),
        ("acme", Limit::concurrent_requests(n(2))),
        ("/", Limit::requests_per_minute(n(50))),
    ];
    let alice = caller("acme/vision/alice", &limits);
    let before = ledger.limits_of(&alice);
    for (ask, scope) in [(ask(60, 50), "acme/vision"), (ask(200, 0), "acme/vision")] {
        let refusal = ledger.reserve(&alice, &ask).unwrap_err();
        assert_eq!((refusal.scope.as_str(), refusal.retry), (scope, Retry::Never));
    }
    assert_eq!(ledger.limits_of(&alice), before);
    let bob = caller("acme/vision/bob", &limits);
    let _held = [ledger.reserve(&alice, &ask(10, 10)).unwrap(), ledger.reserve(&bob, &ask(10, 10)).unwrap()];
    let refusal = ledger.reserve(&alice, &ask(1, 1)).unwrap_err();
    assert_eq!((refusal.limit, refusal.scope.as_str()), (LimitName::ConcurrentRequests, "acme"));
    assert!(ledger.reserve(&caller("other", &limits), &ask(1, 1)).is_ok());
}

#[test]
fn a_thousand_concurrent_requests_of_a_tree_against_room_for_a_hundred_admit_a_hundred() {
    let limits = [
        ("/", budget(Unit::Tokens, 10_000, Period::Month)),
        ("acme", budget(Unit::Requests, 500, Period::Day)),
        ("acme/vision", Limit::tokens_per_minute(n(1_000_000))),
    ];
    let (ledger, _) = ledger();
    let callers: Vec<_> = (0..8).map(|user| caller(&format!("acme/vision/user-{user}"), &limits)).collect();
    let all_ready = Barrier::new(20);
    let admitted: Vec<Reservation> = thread::scope(|scope| {
        let some = |thread: usize| {
            let (ledger, callers, all_ready) = (&ledger, &callers, &all_ready);
            move || {
                all_ready.wait();
                (0..50)
                    .filter_map(|i| ledger.reserve(&callers[(thread + i) % 8], &ask(60, 40)).ok())
                    .collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..20).map(|thread| scope.spawn(some(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(admitted.len(), 100);
    assert_eq!(ledger.totals().refused, 900);
}

#[test]
fn a_spent_day_is_refused_until_midnight_and_names_its_window() {
    let (ledger, clock) = ledger();
    let alice = caller("alice", &[("alice", budget(Unit::OutputTokens, 100, Period::Day))]);
    clock.advance(Duration::from_secs(3_600));
    ledger.reserve(&alice, &ask(10, 90)).unwrap().settle_as(used(10, 90));
    let refusal = ledger.reserve(&alice, &ask(10, 11)).unwrap_err();
    assert_eq!(refusal.limit, LimitName::Budget(Unit::OutputTokens, PeriodName::Day));
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(23 * 3_600)));
    assert_eq!(refusal.window.map(|(start, end)| end.since(start)), Some(DAY));
    let window = "is 100 from 2026-01-01T00:00:00Z until 2026-01-02T00:00:00Z, of which 90 are in use";
    assert!(refusal.to_string().contains(window), "{refusal}");
    assert!(ledger.reserve(&alice, &ask(10, 10)).is_ok());
    clock.advance(Duration::from_secs(23 * 3_600));
    assert!(ledger.reserve(&alice, &ask(10, 100)).is_ok());
}

/// Nobody is sent away until midnight by what is back in a moment.
#[test]
fn what_requests_that_run_hold_of_a_budget_may_come_back_when_they_end() {
    let (ledger, clock) = ledger();
    let period = Period::Grant { from: UnixSeconds(0), until: UnixSeconds::of(clock.wall()).after(2 * DAY) };
    for period in [Period::Day, period] {
        let account = format!("alice/{:?}", period.name()).to_lowercase();
        let alice = caller(&account, &[(account.as_str(), budget(Unit::Tokens, 100, period))]);
        let held = ledger.reserve(&alice, &ask(10, 70)).unwrap();
        let refused = |output| ledger.reserve(&alice, &ask(10, output)).unwrap_err().retry;
        assert_eq!(refused(20), Retry::After(Duration::from_secs(1)), "before anything ended");
        assert_eq!(ledger.would_refuse(&alice, &ask(10, 20)).unwrap().retry, refused(20));
        clock.advance(Duration::from_secs(16));
        held.settle_as(used(10, 20));
        let _held = ledger.reserve(&alice, &ask(10, 50)).unwrap();
        assert_eq!(refused(15), Retry::After(Duration::from_secs(4)), "15 of 60 come back in a quarter of 16 s");
        assert!(refused(61) > Retry::After(Duration::from_secs(3_600)), "what is used does not come back");
    }
}

#[test]
fn what_a_request_holds_itself_is_not_told_to_come_back() {
    let (ledger, _) = ledger();
    let alice = caller("alice", &[("alice", budget(Unit::Tokens, 100, Period::Day))]);
    let _first = ledger.reserve(&alice, &ask(10, 60)).unwrap();
    let of_another = ledger.reserve(&alice, &ask(10, 30)).unwrap_err().retry;
    assert_eq!(of_another, Retry::After(Duration::from_secs(1)));
    assert!(ledger.reserve_further(&alice, &ask(10, 30)).unwrap_err().retry > Retry::After(Duration::from_secs(60)));
}

#[test]
fn gpu_time_is_taken_by_the_tariff_and_a_spent_grant_has_no_later() {
    let clock = ManualClock::default();
    let tariff = Tariff::new("1", [("m".to_owned(), Price::flat(1_000, 100, 10_000))]);
    let parts = LedgerParts::without_past(Arc::new(clock.clone()));
    let ledger = Ledger::new(LedgerParts { tariff: Arc::new(tariff), ..parts });
    let period = Period::Grant { from: UnixSeconds(0), until: UnixSeconds::of(clock.wall()).after(DAY) };
    let alice = caller("alice", &[("alice", budget(Unit::GpuMicros, 1_000, period))]);
    ledger.reserve(&alice, &ask(100, 90)).unwrap().settle_as(used(100, 40));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 500);
    let refusal = ledger.reserve(&alice, &ask(1, 50)).unwrap_err();
    assert_eq!((refusal.asked, refusal.retry), (501, Retry::Spent));
    assert_eq!(ledger.reserve(&alice, &ask(1, 100)).unwrap_err().retry, Retry::Never);
    clock.advance(DAY);
    assert_eq!(ledger.reserve(&alice, &ask(1, 1)).unwrap_err().retry, Retry::Spent);
}

#[test]
fn a_used_up_grant_may_be_overrun_by_a_quarter_in_the_class_that_gives_way_to_everybody() {
    let clock = ManualClock::default();
    let parts = LedgerParts::without_past(Arc::new(clock.clone()));
    let ledger = Ledger::new(LedgerParts { overrun: Percent(25), ..parts });
    let period = Period::Grant { from: UnixSeconds(0), until: UnixSeconds::of(clock.wall()).after(DAY) };
    let alice = caller("alice", &[("alice", budget(Unit::Tokens, 100, period))]);
    let within = ledger.reserve(&alice, &ask(90, 10)).unwrap();
    assert_eq!(within.class(), ServiceClass::Standard);
    within.settle_as(used(90, 10));
    let beyond = ledger.reserve(&alice, &ask(10, 10)).unwrap();
    assert_eq!(beyond.class(), ServiceClass::Batch);
    assert_eq!(ledger.reserve(&alice, &ask(3, 3)).unwrap_err().retry, Retry::Spent);
    drop(beyond);
    let in_parts = Ask { reserve: Reserve::InParts, ..ask(5, 80) };
    let mut growing = ledger.reserve(&alice, &Ask { max_output_tokens: 10, ..in_parts }).unwrap();
    assert_eq!((growing.extend(1, 8), growing.extend(1, 8)), (Ok(8), Ok(2)), "an answer grows beyond the grant too");
    assert_eq!(growing.extend(1, 1), Err(Denied::Spent));
    clock.advance(DAY);
    assert_eq!(ledger.reserve(&alice, &ask(1, 0)).unwrap_err().retry, Retry::Spent, "a grant that is over is over");
}

#[test]
fn a_batch_that_began_within_a_grant_grows_into_the_overrun_and_never_past_it_and_nothing_better_does() {
    let in_parts = PartBounds { tokens: NonZeroU32::new(10).unwrap(), ..PartBounds::default() };
    let parts = LedgerParts::without_past(Arc::new(ManualClock::default()));
    let ledger = Ledger::new(LedgerParts { in_parts, overrun: Percent(25), ..parts });
    let forever = Period::Grant { from: UnixSeconds(0), until: UnixSeconds(u64::MAX) };
    let alice = caller("alice", &[("alice", budget(Unit::Tokens, 100, forever))]);
    ledger.reserve(&alice, &ask(30, 0)).unwrap().settle_as(used(30, 0));
    let growing = |class| ledger.reserve(&alice, &Ask { class, reserve: Reserve::InParts, ..ask(20, 80) }).unwrap();
    let mut standard = growing(ServiceClass::Standard);
    assert_eq!([standard.extend(1, 40), standard.extend(1, 1)], [Ok(40), Err(Denied::Spent)], "100 are used");
    standard.settle_as(used(20, 0));
    let mut batch = growing(ServiceClass::Batch);
    assert_eq!([batch.extend(1, 20), batch.extend(1, 20), batch.extend(1, 10)], [Ok(20), Ok(20), Ok(5)]);
    assert_eq!(batch.extend(1, 1), Err(Denied::Spent), "125 are used");
    batch.settle_as(used(20, 55));
    assert_eq!(ledger.reserve(&alice, &ask(1, 0)).unwrap_err().retry, Retry::Spent);
}

#[test]
fn of_an_ask_that_would_be_admitted_the_grants_that_it_would_overrun_are_known() {
    let parts = LedgerParts::without_past(Arc::new(ManualClock::default()));
    let ledger = Ledger::new(LedgerParts { overrun: Percent(25), ..parts });
    let forever = Period::Grant { from: UnixSeconds(0), until: UnixSeconds(u64::MAX) };
    let limits = [
        ("alice", budget(Unit::Tokens, 100, forever)),
        ("alice", budget(Unit::Requests, 100, forever)),
        ("/", budget(Unit::Tokens, 1_000, Period::Day)),
    ];
    let alice = caller("alice", &limits);
    ledger.reserve(&alice, &ask(90, 5)).unwrap().settle_as(used(90, 5));
    let overrun = |output| {
        let grants = ledger.would_overrun(&alice, &ask(1, output)).ok()?;
        Some(grants.iter().map(|grant| (grant.limit.name(), grant.overrun_remaining)).collect::<Vec<_>>())
    };
    let tokens = LimitName::Budget(Unit::Tokens, PeriodName::Grant);
    assert_eq!(overrun(4), Some(Vec::new()));
    assert_eq!(overrun(5), Some(vec![(tokens, Some(25))]));
    assert_eq!([overrun(29).map(|grants| grants.len()), overrun(30).map(|grants| grants.len())], [Some(1), None]);
    assert_eq!(ledger.limits_of(&alice)[2].overrun_remaining, None, "a day is no grant");
    assert_eq!(ledger.totals().refused, 0, "nothing is counted");
}

#[test]
fn batches_hold_so_many_tokens_at_a_time_and_the_other_classes_do_not_count() {
    let (ledger, _) = ledger();
    let alice = caller("acme/alice", &[("acme", Limit::of(Bound::BatchTokens(n(100))))]);
    let batch = |prompt, output| Ask { class: ServiceClass::Batch, ..ask(prompt, output) };
    let held = ledger.reserve(&alice, &batch(50, 30)).unwrap();
    let refusal = ledger.reserve(&alice, &batch(20, 10)).unwrap_err();
    assert_eq!((refusal.limit, refusal.current_value, refusal.asked), (LimitName::BatchTokens, 80, 30));
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(1)), "before anything ended");
    assert!(ledger.reserve(&alice, &ask(500, 500)).is_ok());
    assert_eq!(ledger.reserve(&alice, &batch(80, 30)).unwrap_err().retry, Retry::Never);
    drop(held);
    assert!(ledger.reserve(&alice, &batch(20, 10)).is_ok());
}

/// Two answers that grow into each other's way would both be stuck, and no budget is spent.
#[test]
fn a_batch_holds_all_of_its_answer_at_once_and_is_never_ended_by_the_limit_on_batch_tokens() {
    let (ledger, clock) = ledger();
    let alice = caller("acme/alice", &[("acme", Limit::of(Bound::BatchTokens(n(1_000))))]);
    let in_parts = Ask { class: ServiceClass::Batch, reserve: Reserve::InParts, ..ask(100, 600) };
    let mut growing = ledger.reserve(&alice, &in_parts).unwrap();
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 300);
    assert!(ledger.reserve(&alice, &in_parts).is_err());
    assert!((0..8).all(|_| growing.extend(1, 64) == Ok(64)));
    assert_eq!(ledger.limits_of(&alice)[0].remaining, 300);
    clock.advance(Duration::from_secs(20));
    growing.settle();
    let _held = ledger.reserve(&alice, &in_parts).unwrap();
    let refusal = ledger.reserve(&alice, &in_parts).unwrap_err();
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(8)), "400 of 1,000 come free in 0.4 of 20 s");
}

#[test]
fn a_limit_of_one_model_leaves_the_others_alone_and_one_on_trial_refuses_nothing() {
    let (ledger, _) = ledger();
    let of_m = Limit { model: Some("m".into()), ..Limit::requests_per_minute(n(1)) };
    let on_trial = Limit { enforcement: Enforcement::DryRun, ..Limit::concurrent_requests(n(1)) };
    let alice = caller("alice", &[("alice", of_m), ("alice", on_trial)]);
    let _first = ledger.reserve(&alice, &ask(1, 1)).unwrap();
    assert_eq!(ledger.reserve(&alice, &ask(1, 1)).unwrap_err().model.as_deref(), Some("m"));
    let _second = ledger.reserve(&alice, &Ask::new("other", 1, 1)).unwrap();
    assert_eq!(ledger.limits_of(&alice)[1].would_have_refused, 1, "of what nothing else refused");
}

#[test]
fn a_request_gives_nothing_back_to_a_limit_that_was_stated_after_it_began() {
    let (ledger, _) = ledger();
    let of_m = |limit| Limit { model: Some("m".into()), ..limit };
    let stated = [
        of_m(Limit::concurrent_requests(n(1))),
        of_m(Limit::of(Bound::BatchTokens(n(100)))),
        of_m(Limit::tokens_per_minute(n(100))),
        Limit::concurrent_requests(n(2)),
    ];
    let batch = |prompt, output| Ask { class: ServiceClass::Batch, ..ask(prompt, output) };
    let earlier = ledger.reserve(&caller("a", &[]), &batch(50, 50)).unwrap();
    let limits: Vec<_> = stated.into_iter().map(|limit| ("a", limit)).collect();
    let a = caller("a", &limits);
    let later = ledger.reserve(&a, &batch(50, 50)).unwrap();
    let left = || ledger.limits_of(&a).iter().map(|state| state.remaining).collect::<Vec<_>>();
    assert_eq!(left(), [0, 0, 0, 0], "of all requests of the account the earlier one is counted too");
    drop(earlier);
    assert_eq!(left(), [0, 0, 0, 1]);
    assert!(ledger.reserve(&a, &batch(1, 0)).is_err());
    drop(later);
    assert_eq!(left(), [1, 100, 100, 2]);
}

#[test]
fn an_answer_settles_with_a_limit_that_was_stated_while_it_grew_what_it_took_of_it() {
    let (ledger, _) = ledger();
    let in_parts = Ask { reserve: Reserve::InParts, ..ask(10, 200) };
    let mut one = ledger.reserve(&caller("c", &[]), &in_parts).unwrap();
    let c = caller("c", &[("c", Limit::concurrent_requests(n(1)))]);
    assert!(ledger.reserve(&c, &ask(1, 1)).is_err(), "the one that runs is counted");
    one.extend(1, 30).unwrap();
    drop(one);
    assert!(ledger.reserve(&c, &ask(1, 1)).is_ok(), "and gone when it has ended, however much it grew");
    let mut growing = ledger.reserve(&caller("a", &[]), &in_parts).unwrap();
    let a = caller("a", &[("a", Limit::tokens_per_minute(n(100))), ("a", budget(Unit::Tokens, 500, Period::Day))]);
    let left = || ledger.limits_of(&a).iter().map(|state| state.remaining).collect::<Vec<_>>();
    assert_eq!(left(), [100, 500]);
    assert_eq!(growing.extend(1, 30), Ok(30));
    assert_eq!(left(), [70, 470]);
    growing.settle_as(used(10, 90));
    assert_eq!(left(), [74, 400], "a budget counts all of what ends in its window");
}

#[test]
fn hours_of_a_grant_that_has_not_begun_or_is_over_are_not_left() {
    let (ledger, clock) = ledger();
    let start = UnixSeconds::of(clock.wall());
    let period = Period::Grant { from: start.after(DAY), until: start.after(2 * DAY) };
    let alice = caller("alice", &[("alice", budget(Unit::Tokens, 100, period))]);
    let left = || (ledger.limits_of(&alice)[0].remaining, ledger.headroom(&alice, None).tokens.unwrap().remaining);
    assert_eq!((left(), ledger.limits_of(&alice)[0].reset), ((0, 0), DAY));
    clock.advance(DAY);
    assert_eq!(left(), (100, 100));
    clock.advance(DAY);
    assert_eq!(left(), (0, 0));
}

#[test]
fn who_states_no_bound_gets_the_longest_answers_that_every_limit_could_hold() {
    let tariff = Arc::new(Tariff::new("1", [("m".to_owned(), Price::flat(1_000, 100, 10_000))]));
    let ledger = Ledger::new(LedgerParts { tariff, ..LedgerParts::without_past(Arc::new(ManualClock::default())) });
    let longest = |limit: Limit, asks: &dyn Fn(u32) -> Vec<Ask>| {
        let alice = caller("alice", &[("alice", limit)]);
        let longest = ledger.longest_answers(&alice, asks).unwrap();
        assert_eq!(ledger.never_fit(&alice, &asks(longest)), None);
        assert!(ledger.never_fit(&alice, &asks(longest + 1)).is_some());
        longest
    };
    let gpu = Limit::of(Bound::Rate { unit: Unit::GpuMicros, per_minute: n(1_000) });
    let batch_tokens = Limit::of(Bound::BatchTokens(n(100)));
    let one = |most| vec![ask(100, most)];
    let batch = |most| vec![Ask { class: ServiceClass::Batch, ..ask(30, most) }];
    let two = |most| vec![ask(10, most), Ask { num_answers: NonZeroU32::new(3).unwrap(), ..ask(15, most) }];
    assert_eq!(longest(gpu.clone(), &one), 90);
    assert_eq!(longest(batch_tokens.clone(), &batch), 70);
    assert_eq!(longest(Limit::tokens_per_minute(n(100)), &two), 18);
    assert_eq!(longest(gpu, &two), 24);
    let alice = caller("alice", &[("alice", batch_tokens)]);
    assert_eq!(ledger.longest_answers(&alice, one), Some(u32::MAX), "only batches count");
}

#[test]
fn a_context_limit_looks_at_each_request_by_itself() {
    let (ledger, _) = ledger();
    let alice = caller("acme/alice", &[("acme", Limit::of(Bound::ContextTokens(n(100))))]);
    let _held = [ledger.reserve(&alice, &ask(50, 50)).unwrap(), ledger.reserve(&alice, &ask(99, 1)).unwrap()];
    assert_eq!(ledger.reserve(&alice, &ask(50, 51)).unwrap_err().retry, Retry::Never);
    assert_eq!(ledger.largest_output(&alice, "m", 30), Some(70));
}

/// What was spent before, and the wall clock that jumps back.
#[test]
fn a_budget_remembers_what_was_spent_before_it_was_stated() {
    #[derive(Debug)]
    struct Forty;
    impl Spent for Forty {
        fn used(&self, account: &AccountPath, _: Unit, _: Option<&str>, _: (UnixSeconds, UnixSeconds)) -> u64 {
            if account.as_str() == "alice" { 40 } else { 0 }
        }
    }
    let parts = LedgerParts::without_past(Arc::new(ManualClock::default()));
    let ledger = Ledger::new(LedgerParts { spent: Box::new(Forty), ..parts });
    let stated = |amount| caller("alice", &[("alice", budget(Unit::Tokens, amount, Period::Month))]);
    assert!(ledger.reserve(&stated(100), &ask(50, 11)).is_err());
    ledger.reserve(&stated(100), &ask(50, 10)).unwrap().settle_as(used(50, 10));
    assert_eq!(ledger.limits_of(&stated(150))[0].remaining, 50, "a changed amount keeps what was used");
}
