use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Barrier;
use std::thread;

use passerelle_engine::Usage;
use passerelle_engine::clock::ManualClock;

use super::super::account::Account;
use super::super::quota::{Bound, Limit, LimitName, Period, Quota};
use super::super::tariff::{Band, Price};
use super::*;

const NANOSECOND: Duration = Duration::from_nanos(1);

fn n(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn account(path: &str, limits: impl IntoIterator<Item = Limit>) -> Arc<Caller> {
    let limits = Quota::new(limits.into_iter().collect()).unwrap();
    Arc::new(Caller::at_open_door(Account::alone(path.parse().unwrap(), limits)))
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

fn assert_books_balance(totals: LedgerTotals) {
    assert_eq!(totals.reservations_taken, totals.settled + totals.open, "{totals:?}");
}

/// 200 threads ask at the same instant; returns how many were admitted. All reservations are held until all have asked.
fn admitted_of_200(limit: Limit, ask: Ask) -> usize {
    let (ledger, _) = ledger();
    let account = account("a", [limit]);
    let all_ready = Barrier::new(200);
    let reservations: Vec<_> = thread::scope(|scope| {
        let one = || {
            all_ready.wait();
            ledger.reserve(&account, &ask).ok()
        };
        let threads: Vec<_> = (0..200).map(|_| scope.spawn(one)).collect();
        threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(ledger.totals().open, reservations.len() as u64);
    assert_eq!(ledger.totals().refused, 200 - reservations.len() as u64);
    let admitted = reservations.len();
    drop(reservations);
    assert_eq!(ledger.totals().open, 0);
    assert_books_balance(ledger.totals());
    admitted
}

#[test]
fn two_hundred_concurrent_requests_against_room_for_twenty_admit_twenty() {
    assert_eq!(admitted_of_200(Limit::concurrent_requests(n(20)), ask(1, 1)), 20);
    assert_eq!(admitted_of_200(Limit::requests_per_minute(n(20)), ask(1, 1)), 20);
    assert_eq!(admitted_of_200(Limit::tokens_per_minute(n(20 * 150)), ask(100, 50)), 20);
}

#[test]
fn requests_that_stand_together_take_all_their_room_at_once_or_leave_no_trace() {
    let (ledger, _) = ledger();
    let limits =
        [Limit::requests_per_minute(n(10)), Limit::tokens_per_minute(n(100)), Limit::concurrent_requests(n(5))];
    let account = account("a", limits);
    let of = |model: &str, tokens: u32| Ask::new(model, tokens, 0);
    let before = (ledger.headroom(&account, None), ledger.totals());
    let refusal = ledger.reserve_together(&account, &[of("m", 60), of("n", 30), of("o", 11)]).unwrap_err();
    assert_eq!(refusal.limit, LimitName::Rate(Unit::Tokens));
    let totals = LedgerTotals { refused: 1, ..before.1 };
    assert_eq!((ledger.headroom(&account, None), ledger.totals()), (before.0, totals));
    let together = ledger.reserve_together(&account, &[of("m", 60), of("n", 30), of("o", 10)]).unwrap();
    assert_eq!((together.len(), ledger.totals().open), (3, 3));
    assert!(ledger.reserve(&account, &of("m", 1)).is_err());
    drop(together);
    assert_books_balance(ledger.totals());
}

#[test]
fn of_two_that_each_have_room_for_half_nobody_keeps_the_other_out() {
    let (ledger, _) = ledger();
    let account = account("a", [Limit::concurrent_requests(n(3))]);
    let asks = [ask(1, 0), ask(1, 0)];
    let all_ready = Barrier::new(100);
    let admitted = thread::scope(|scope| {
        let one = || {
            all_ready.wait();
            ledger.reserve_together(&account, &asks).ok()
        };
        let threads: Vec<_> = (0..100).map(|_| scope.spawn(one)).collect();
        let held: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect();
        held.len()
    });
    assert_eq!(admitted, 1, "there is room for one pair, and it is given");
}

#[test]
fn a_refused_request_consumes_nothing_of_any_limit() {
    let (ledger, _) = ledger();
    let limits =
        [Limit::requests_per_minute(n(10)), Limit::tokens_per_minute(n(100)), Limit::concurrent_requests(n(5))];
    let account = account("a", limits);
    let held = ledger.reserve(&account, &ask(50, 40)).unwrap();
    let before = (ledger.headroom(&account, None), ledger.account_totals(&account.account.path));
    for _ in 0..100 {
        assert_eq!(ledger.reserve(&account, &ask(5, 6)).unwrap_err().limit, LimitName::Rate(Unit::Tokens));
    }
    let after = (ledger.headroom(&account, None), ledger.account_totals(&account.account.path));
    assert_eq!(before.0, after.0);
    assert_eq!(LedgerTotals { refused: 100, ..before.1 }, after.1);
    assert!(ledger.reserve(&account, &ask(5, 5)).is_ok(), "exactly the room that was left");
    drop(held);
}

#[test]
fn an_ask_repeated_at_exactly_its_retry_after_passes_and_a_nanosecond_earlier_fails() {
    for limit in [Limit::requests_per_minute(n(7)), Limit::tokens_per_minute(n(7 * 13))] {
        let (ledger, clock) = ledger();
        let account = account("a", [limit]);
        for _ in 0..7 {
            let mut reservation = ledger.reserve(&account, &ask(10, 3)).unwrap();
            reservation.record(used(10, 3));
        }
        let Retry::After(wait) = ledger.reserve(&account, &ask(10, 3)).unwrap_err().retry else { panic!("fits later") };
        clock.advance(wait - NANOSECOND);
        assert_eq!(ledger.reserve(&account, &ask(10, 3)).unwrap_err().retry, Retry::After(NANOSECOND));
        clock.advance(NANOSECOND);
        assert!(ledger.reserve(&account, &ask(10, 3)).is_ok());
    }
}

#[test]
fn of_several_limits_the_one_that_keeps_out_longest_is_named() {
    let (ledger, _) = ledger();
    let account = account("team", [Limit::requests_per_minute(n(60)), Limit::tokens_per_minute(n(60))]);
    let _held: Vec<_> = (0..60).map(|_| ledger.reserve(&account, &ask(1, 0)).unwrap()).collect();
    let refusal = ledger.reserve(&account, &ask(20, 10)).unwrap_err();
    let expected = Refusal {
        limit: LimitName::Rate(Unit::Tokens),
        scope: "team".parse().unwrap(),
        model: None,
        limit_value: 60,
        current_value: 60,
        asked: 30,
        window: None,
        retry: Retry::After(Duration::from_secs(30)),
    };
    assert_eq!(refusal, expected);
    assert_eq!(
        refusal.to_string(),
        "the limit tokens_per_minute of 'team' is 60, of which 60 are in use; this request asks for 30 and would fit \
         in 30.000 s"
    );
}

#[test]
fn an_ask_that_can_never_fit_is_told_so() {
    let (ledger, _) = ledger();
    let account = account("a", [Limit::tokens_per_minute(n(100))]);
    assert_eq!(ledger.reserve(&account, &ask(60, 41)).unwrap_err().retry, Retry::Never);
    assert_eq!(ledger.reserve(&account, &ask(u32::MAX, u32::MAX)).unwrap_err().retry, Retry::Never);
    assert_eq!(ledger.largest_output(&account, "m", 60), Some(40));
    assert_eq!(ledger.largest_output(&account, "m", 101), Some(0));
    assert!(ledger.reserve(&account, &ask(60, 40)).is_ok());
    assert_eq!(ledger.largest_output(&self::account("free", []), "m", 60), None);
}

#[test]
fn settling_gives_unused_tokens_back_and_bills_what_was_generated() {
    let (ledger, _) = ledger();
    let account = account("a", [Limit::tokens_per_minute(n(1000))]);
    let mut reservation = ledger.reserve(&account, &ask(100, 800)).unwrap();
    assert_eq!(ledger.headroom(&account, None).tokens.unwrap().remaining, 100);
    reservation.record(used(100, 1));
    reservation.record(used(100, 7));
    assert_eq!(ledger.headroom(&account, None).tokens.unwrap().remaining, 100, "nothing is given back before the end");
    reservation.settle();
    assert_eq!(ledger.headroom(&account, None).tokens.unwrap().remaining, 893);
    let totals = ledger.account_totals(&account.account.path);
    assert_eq!((totals.prompt_tokens, totals.generated_tokens, totals.open), (100, 7, 0));
    assert_eq!(totals, ledger.totals());
}

#[test]
fn a_usage_above_the_reservation_becomes_a_debt() {
    let (ledger, clock) = ledger();
    let account = account("a", [Limit::tokens_per_minute(n(60))]);
    let mut reservation = ledger.reserve(&account, &ask(60, 0)).unwrap();
    reservation.record(used(60, 30));
    drop(reservation);
    let refusal = ledger.reserve(&account, &ask(1, 0)).unwrap_err();
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(31)));
    clock.advance(Duration::from_secs(31));
    assert!(ledger.reserve(&account, &ask(1, 0)).is_ok());
}

#[test]
fn what_is_read_again_is_priced_as_prompt_behind_the_prompt() {
    let (dear, cheap) = (7_000, 1_000);
    let band = |below, ns| Band { below, input_ns: ns, cached_ns: ns, output_ns: ns };
    let price = Price::new(vec![band(Some(100), cheap), band(None, dear)]).unwrap();
    let tariff = Arc::new(Tariff::new("1", [("m".to_owned(), price)]));
    let ledger = Ledger::new(LedgerParts { tariff, ..LedgerParts::without_past(Arc::new(ManualClock::default())) });
    let gpu = |micros| {
        let bound = Bound::Budget { unit: Unit::GpuMicros, amount: n(micros), period: Period::Day };
        account("a", [Limit::of(bound)])
    };
    let ask = Ask { read_again_tokens: 60, ..ask(60, 0) };
    assert!(ledger.reserve(&gpu(100 + 20 * 7), &ask).is_ok(), "100 in the first band and 20 in the second");
    assert!(ledger.reserve(&gpu(100 + 20 * 7 - 1), &ask).is_err());
}

#[test]
fn a_panic_settles_once_and_bills_what_was_recorded() {
    let (ledger, _) = ledger();
    let account = account("a", [Limit::concurrent_requests(n(1)), Limit::tokens_per_minute(n(100))]);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let mut reservation = ledger.reserve(&account, &ask(10, 90)).unwrap();
        reservation.record(used(10, 2));
        panic!("a bug elsewhere");
    }));
    assert!(panicked.is_err());
    let totals = ledger.totals();
    assert_eq!((totals.open, totals.settled, totals.prompt_tokens, totals.generated_tokens), (0, 1, 10, 2));
    assert_eq!(ledger.headroom(&account, None).tokens.unwrap().remaining, 88);
    assert!(ledger.reserve(&account, &ask(10, 78)).is_ok(), "the slot is free again");
}

#[test]
fn an_ended_request_frees_its_slot_and_a_full_account_is_told_when_to_expect_one() {
    let (ledger, clock) = ledger();
    let account = account("a", [Limit::concurrent_requests(n(2))]);
    let first = ledger.reserve(&account, &ask(1, 1)).unwrap();
    let _second = ledger.reserve(&account, &ask(1, 1)).unwrap();
    let refusal = ledger.reserve(&account, &ask(1, 1)).unwrap_err();
    assert_eq!((refusal.limit, refusal.current_value), (LimitName::ConcurrentRequests, 2));
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(1)), "nothing has ended yet");
    clock.advance(Duration::from_secs(8));
    drop(first);
    let _third = ledger.reserve(&account, &ask(1, 1)).unwrap();
    let refusal = ledger.reserve(&account, &ask(1, 1)).unwrap_err();
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(4)), "two at a time, eight seconds each");
}

#[test]
fn a_withdrawn_request_consumed_nothing() {
    let (ledger, _) = ledger();
    let limits = [Limit::requests_per_minute(n(1)), Limit::tokens_per_minute(n(100)), Limit::concurrent_requests(n(1))];
    let account = account("a", limits);
    let full = ledger.headroom(&account, None);
    for _ in 0..3 {
        ledger.reserve(&account, &ask(50, 50)).unwrap().withdraw();
    }
    assert_eq!(ledger.headroom(&account, None), full);
    drop(ledger.reserve(&account, &ask(50, 50)).unwrap());
    let refusal = ledger.reserve(&account, &ask(1, 1)).unwrap_err();
    assert_eq!(refusal.limit, LimitName::Rate(Unit::Requests), "one that ran and used nothing was still a request");
}

#[test]
fn accounts_do_not_touch_each_other() {
    let (ledger, _) = ledger();
    let (a, b) = (account("a", [Limit::requests_per_minute(n(1))]), account("b", [Limit::requests_per_minute(n(1))]));
    drop(ledger.reserve(&a, &ask(1, 1)).unwrap());
    assert!(ledger.reserve(&a, &ask(1, 1)).is_err());
    assert!(ledger.reserve(&b, &ask(1, 1)).is_ok());
}

#[test]
fn headroom_reads_as_the_rate_limit_headers_do() {
    let (ledger, clock) = ledger();
    let account = account("a", [Limit::requests_per_minute(n(60))]);
    drop(ledger.reserve(&account, &ask(1, 1)).unwrap());
    let state = ledger.headroom(&account, None);
    assert_eq!(state.requests, Some(WindowState { limit: 60, remaining: 59, reset: Duration::from_secs(1) }));
    assert_eq!(state.tokens, None);
    clock.advance(Duration::from_secs(1));
    assert_eq!(ledger.headroom(&account, None).requests.unwrap().remaining, 60);
}

/// A seed replays it: random asks, progress, ends and time; after each step the books balance and no limit is passed.
#[test]
fn random_traffic_never_passes_a_limit_and_settles_to_the_token() {
    let (ledger, clock) = ledger();
    let limits = [Limit::tokens_per_minute(n(6_000)), Limit::concurrent_requests(n(8))];
    let account = account("a", limits);
    let mut seed = 0x5eed_u64;
    let mut draw = |below: u32| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((seed >> 33) % u64::from(below)) as u32
    };
    let (mut open, mut settled_tokens): (Vec<Reservation>, u64) = (Vec::new(), 0);
    for _ in 0..20_000 {
        clock.advance(Duration::from_millis(u64::from(draw(200))));
        if draw(2) == 0 {
            let ask = ask(1 + draw(200), draw(400));
            if let Ok(mut reservation) = ledger.reserve(&account, &ask) {
                reservation.record(used(ask.prompt_tokens, draw(ask.max_output_tokens + 1)));
                open.push(reservation);
            }
        } else if !open.is_empty() {
            let ended = open.swap_remove(draw(open.len() as u32) as usize);
            settled_tokens += u64::from(ended.used().prompt_tokens + ended.used().generated_tokens);
        }
        let totals = ledger.totals();
        assert_books_balance(totals);
        assert_eq!(totals.open, open.len() as u64);
        assert!(totals.open <= 8);
        assert_eq!(totals.prompt_tokens + totals.generated_tokens, settled_tokens);
        let minute = clock.now().as_secs_f64() / 60.0;
        assert!(settled_tokens as f64 <= 6_000.0 * (1.0 + minute), "a burst of a minute, then the rate");
    }
    assert!(settled_tokens > 50_000, "the limits let traffic through");
}
