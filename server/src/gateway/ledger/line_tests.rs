//! What waits for its turn.

use std::num::NonZeroU64;
use std::sync::Mutex as StdMutex;

use passerelle_engine::clock::ManualClock;
use tokio::task::{JoinHandle, yield_now};

use super::*;
use crate::gateway::account::Account;
use crate::gateway::quota::{Bound, Enforcement, Limit, LimitName, Period, Quota};

struct Bench {
    ledger: Ledger,
    clock: ManualClock,
    /// What has become of whoever waits, if anything has: with other limits, or gone.
    became: Arc<StdMutex<Option<Option<Arc<Caller>>>>>,
    /// Who was admitted, in order.
    admitted: Arc<StdMutex<Vec<&'static str>>>,
}

fn n(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).unwrap()
}

fn caller(path: &str, limits: Vec<Limit>) -> Arc<Caller> {
    Arc::new(Caller::at_open_door(Account::alone(path.parse().unwrap(), Quota::new(limits).unwrap())))
}

fn bench() -> Bench {
    let clock = ManualClock::default();
    let line = LineBounds { max_waiting: 6, max_waiting_per_account: 4, longest_wait: Duration::from_secs(5) };
    let ledger = Ledger::new(LedgerParts { line, ..LedgerParts::without_past(Arc::new(clock.clone())) });
    Bench { ledger, clock, became: Arc::default(), admitted: Arc::default() }
}

fn ask(tokens: u32) -> Ask {
    Ask::new("m", tokens, 0)
}

impl Bench {
    /// In a task of its own, which keeps what it gets for a moment; returns once it waits or is over.
    async fn send(&self, name: &'static str, caller: &Arc<Caller>, ask: Ask) -> JoinHandle<Result<(), NoTurn>> {
        let (ledger, caller, admitted) = (self.ledger.clone(), Arc::clone(caller), Arc::clone(&self.admitted));
        let became = Arc::clone(&self.became);
        let task = tokio::spawn(async move {
            let today = || became.lock().unwrap().clone().unwrap_or_else(|| Some(Arc::clone(&caller)));
            let reservation = ledger.reserve_in_turn(&caller, &ask, today).await?;
            admitted.lock().unwrap().push(name);
            yield_now().await;
            reservation.settle_as(passerelle_engine::Usage { prompt_tokens: ask.prompt_tokens, ..Default::default() });
            Ok(())
        });
        for _ in 0..10 {
            yield_now().await;
        }
        task
    }

    fn spend(&self, caller: &Arc<Caller>, tokens: u32) {
        let reservation = self.ledger.reserve(caller, &ask(tokens)).unwrap();
        reservation.settle_as(passerelle_engine::Usage { prompt_tokens: tokens, ..Default::default() });
    }

    /// On the ledger's clock, and then on the runtime's.
    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
        tokio::time::sleep(time).await;
    }

    fn num_waiting(&self) -> usize {
        self.ledger.books.open().line.len()
    }

    fn admitted(&self) -> Vec<&'static str> {
        self.admitted.lock().unwrap().clone()
    }
}

async fn refused(task: JoinHandle<Result<(), NoTurn>>) -> Refusal {
    match task.await.unwrap().unwrap_err() {
        NoTurn::Refused(refusal) => refusal,
        NoTurn::Gone => panic!("nobody left"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_fit_a_moment_later_waits_and_goes_first_come_first_served() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::concurrent_requests(n(1))]);
    let held = bench.ledger.reserve(&alice, &ask(1)).unwrap();
    let mut tasks = Vec::new();
    for name in ["first", "second", "third"] {
        tasks.push(bench.send(name, &alice, ask(1)).await);
    }
    assert_eq!((bench.num_waiting(), bench.admitted()), (3, vec![]));
    drop(held);
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bench.admitted(), ["first", "second", "third"]);
    assert_eq!((bench.num_waiting(), bench.ledger.totals().refused), (0, 0), "who waited was not refused");
}

/// A smaller ask that would fit now does not pass a larger one that came first.
#[tokio::test(start_paused = true)]
async fn nobody_passes_whoever_waits_for_the_same_limit() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::tokens_per_minute(n(60))]);
    bench.spend(&alice, 58);
    let large = bench.send("large", &alice, ask(5)).await;
    let small = bench.send("small", &alice, ask(1)).await;
    assert_eq!(bench.num_waiting(), 2);
    bench.pass(Duration::from_secs(3)).await;
    large.await.unwrap().unwrap();
    assert_eq!(bench.admitted()[0], "large");
    bench.pass(Duration::from_secs(2)).await;
    small.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_one_limit_holds_up_nobody_at_another() {
    let bench = bench();
    let of_m = Limit { model: Some("m".into()), ..Limit::concurrent_requests(n(1)) };
    let alice = caller("alice", vec![of_m]);
    let _held = bench.ledger.reserve(&alice, &ask(1)).unwrap();
    let _waits = bench.send("of m", &alice, ask(1)).await;
    bench.send("of another", &alice, Ask::new("other", 1, 0)).await.await.unwrap().unwrap();
    assert_eq!((bench.admitted(), bench.num_waiting()), (vec!["of another"], 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_too_long_is_refused_and_leaves_its_place() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::concurrent_requests(n(1))]);
    let _held = bench.ledger.reserve(&alice, &ask(1)).unwrap();
    let task = bench.send("first", &alice, ask(1)).await;
    bench.pass(Duration::from_millis(4_999)).await;
    assert_eq!(bench.num_waiting(), 1);
    bench.pass(Duration::from_millis(2)).await;
    assert_eq!(refused(task).await.limit, LimitName::ConcurrentRequests);
    assert_eq!((bench.num_waiting(), bench.ledger.totals().refused), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_fits_only_later_than_anybody_waits_is_refused_at_once() {
    let bench = bench();
    let day = Bound::Budget { unit: Unit::Requests, amount: n(1), period: Period::Day };
    for limit in [Limit::requests_per_minute(n(2)), Limit::of(day)] {
        let alice = caller("alice", vec![limit.clone()]);
        while bench.ledger.reserve(&alice, &ask(1)).is_ok() {}
        let refusal = refused(bench.send("late", &alice, ask(1)).await).await;
        assert_eq!((refusal.limit, bench.num_waiting()), (limit.name(), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn the_line_is_bounded_in_all_for_each_account_and_by_a_limit_on_queued_requests() {
    let bench = bench();
    let full = || vec![Limit::concurrent_requests(n(1))];
    let (alice, bob) = (caller("alice", full()), caller("bob", full()));
    let queued = Limit::of(Bound::QueuedRequests(n(1)));
    let carol = caller("carol", [full(), vec![queued]].concat());
    let mut tasks = Vec::new();
    let held: Vec<_> = [&alice, &bob, &carol].map(|caller| bench.ledger.reserve(caller, &ask(1)).unwrap()).into();
    for (caller, sent) in [(&carol, 2), (&alice, 5), (&bob, 2)] {
        for _ in 0..sent {
            tasks.push(bench.send("", caller, ask(1)).await);
        }
    }
    assert_eq!(bench.num_waiting(), 6);
    let is_refused: Vec<bool> = tasks.iter().map(JoinHandle::is_finished).collect();
    assert_eq!(is_refused, [false, true, false, false, false, false, true, false, true]);
    drop(held);
    for (task, is_refused) in tasks.into_iter().zip(is_refused) {
        assert_eq!(task.await.unwrap().is_err(), is_refused);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_on_queued_requests_counts_those_of_its_model_and_one_on_trial_refuses_nobody() {
    let queued = |model: Option<&str>, enforcement| Limit {
        model: model.map(Into::into),
        enforcement,
        ..Limit::of(Bound::QueuedRequests(n(1)))
    };
    let waiting_and_noted = async |queued: Limit, models: &[&'static str]| {
        let bench = bench();
        let alice = caller("alice", vec![Limit::concurrent_requests(n(1)), queued]);
        let _held = bench.ledger.reserve(&alice, &ask(1)).unwrap();
        let mut tasks = Vec::new();
        for model in models {
            tasks.push(bench.send("further", &alice, Ask::new(model, 1, 0)).await);
        }
        (bench.num_waiting(), bench.ledger.limits_of(&alice)[1].would_have_refused)
    };
    assert_eq!(waiting_and_noted(queued(Some("m"), Enforcement::Refuse), &["m", "m"]).await, (1, 0));
    assert_eq!(
        waiting_and_noted(queued(Some("m"), Enforcement::Refuse), &["m", "other"]).await,
        (2, 0),
        "another model's"
    );
    assert_eq!(waiting_and_noted(queued(None, Enforcement::Refuse), &["m", "other"]).await, (1, 0));
    assert_eq!(waiting_and_noted(queued(None, Enforcement::DryRun), &["m", "m", "m"]).await, (3, 2), "on trial");
}

#[tokio::test(start_paused = true)]
async fn whoever_stands_behind_others_is_told_when_it_would_fit_once_they_have_had_theirs() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::requests_per_minute(n(30))]);
    while bench.ledger.reserve(&alice, &ask(1)).is_ok() {}
    let _first = bench.send("first", &alice, ask(1)).await;
    let _second = bench.send("second", &alice, ask(1)).await;
    bench.pass(Duration::from_secs(1)).await;
    let refusal = bench.ledger.reserve(&alice, &ask(1)).unwrap_err();
    assert_eq!(refusal.retry, Retry::After(Duration::from_secs(5)), "1, 3 and 5 seconds");
}

#[tokio::test(start_paused = true)]
async fn who_would_not_be_served_before_its_deadline_is_not_let_into_the_line() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::requests_per_minute(n(30))]);
    while bench.ledger.reserve(&alice, &ask(1)).is_ok() {}
    let mut served = vec![bench.send("first", &alice, ask(1)).await, bench.send("second", &alice, ask(1)).await];
    let refusal = refused(bench.send("third", &alice, ask(1)).await).await;
    assert_eq!((refusal.retry, bench.num_waiting()), (Retry::After(Duration::from_secs(6)), 2));
    bench.pass(Duration::from_secs(1)).await;
    served.push(bench.send("fourth", &alice, ask(1)).await);
    for _ in 0..5 {
        bench.pass(Duration::from_secs(1)).await;
    }
    for task in served {
        task.await.unwrap().unwrap();
    }
    assert_eq!(bench.admitted(), ["first", "second", "fourth"]);
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_gives_its_place_to_the_next() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::tokens_per_minute(n(60))]);
    bench.spend(&alice, 58);
    let large = bench.send("large", &alice, ask(4)).await;
    let small = bench.send("small", &alice, ask(2)).await;
    large.abort();
    small.await.unwrap().unwrap();
    assert_eq!((bench.admitted(), bench.num_waiting()), (vec!["small"], 0));
}

#[tokio::test(start_paused = true)]
async fn a_raised_limit_lets_those_who_wait_go_on_within_a_second_and_nobody_else_need_ask() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::concurrent_requests(n(1))]);
    let _held = bench.ledger.reserve(&alice, &ask(1)).unwrap();
    let waits = bench.send("first", &alice, ask(1)).await;
    bench.pass(Duration::from_secs(1)).await;
    assert_eq!((bench.num_waiting(), bench.admitted()), (1, vec![]));
    *bench.became.lock().unwrap() = Some(Some(caller("alice", vec![Limit::concurrent_requests(n(2))])));
    bench.pass(Duration::from_secs(1)).await;
    waits.await.unwrap().unwrap();
    assert_eq!((bench.num_waiting(), bench.admitted()), (0, vec!["first"]));
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_is_bound_by_a_lowered_limit_and_leaves_with_a_revoked_key() {
    let bench = bench();
    let alice = caller("alice", vec![Limit::concurrent_requests(n(2))]);
    let held: Vec<_> = (0..2).map(|_| bench.ledger.reserve(&alice, &ask(1)).unwrap()).collect();
    let waits = bench.send("first", &alice, ask(1)).await;
    *bench.became.lock().unwrap() = Some(Some(caller("alice", vec![Limit::concurrent_requests(n(1))])));
    bench.pass(Duration::from_secs(1)).await;
    let mut held = held.into_iter();
    drop(held.next());
    yield_now().await;
    assert_eq!((bench.num_waiting(), bench.admitted()), (1, vec![]), "one of one still runs");
    *bench.became.lock().unwrap() = Some(None);
    bench.pass(Duration::from_secs(1)).await;
    assert_eq!(waits.await.unwrap(), Err(NoTurn::Gone));
    assert_eq!((bench.num_waiting(), bench.ledger.totals().open), (0, 1));
}
