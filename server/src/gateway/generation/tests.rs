use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use passerelle_engine::clock::ManualClock;
use passerelle_engine::testing::{StepGate, StubModel};
use passerelle_engine::{
    Engine, EngineConfig, EngineParts, FinishReason, NullObserver, RequestId, SamplingParams, StepTurns,
};

use super::*;
use crate::gateway::account::{Account, Caller};
use crate::gateway::journal::{EntryId, Journal};
use crate::gateway::ledger::{Ask, JournalParts, Ledger, LedgerParts, LedgerTotals, PartBounds, Reserve};
use crate::gateway::quota::{Bound, Limit, Period, Quota, Unit, UnixSeconds};
use crate::gateway::replica::ReplicaId;
use crate::gateway::tariff::Tariff;

mod ways_out;

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];
const PART: NonZeroU32 = NonZeroU32::new(4).unwrap();

/// A real engine with a model that costs nothing, and a ledger before it.
struct Bench {
    clock: ManualClock,
    engine: Engine,
    replica: Arc<Replica>,
    ledger: Ledger,
    caller: Arc<Caller>,
}

fn bench(model: StubModel) -> Bench {
    bench_with(model, Limit::concurrent_requests(NonZeroU64::new(100).unwrap()))
}

/// With parts of four tokens.
fn bench_with(model: StubModel, limit: Limit) -> Bench {
    let config = EngineConfig { num_kv_blocks: 256, ..EngineConfig::default() };
    bench_of(model, config, limit, Tariff::free())
}

fn bench_of(model: StubModel, config: EngineConfig, limit: Limit, tariff: Tariff) -> Bench {
    bench_on(model, config, limit, tariff, None)
}

/// With a ledger that is written down.
fn bench_on(model: StubModel, config: EngineConfig, limit: Limit, tariff: Tariff, journal: Option<Journal>) -> Bench {
    let manual = ManualClock::default();
    let clock = Arc::new(manual.clone());
    let engine = Engine::spawn(EngineParts {
        name: "stub".into(),
        model: Box::new(model),
        config,
        turns: StepTurns::new(),
        clock: clock.clone(),
        observer: Arc::new(NullObserver),
    })
    .unwrap();
    let replica = Arc::new(Replica::new(ReplicaId(0), "stub", Box::new(engine.handle())));
    let caller = Arc::new(Caller::at_open_door(Account::local(Quota::new(vec![limit]).unwrap())));
    let in_parts = PartBounds { tokens: PART, longest_park: Duration::from_secs(60) };
    let tariff = Arc::new(tariff);
    let (next_id, latest, binary, models) = (EntryId(1), UnixSeconds(0), "test".into(), BTreeMap::new());
    let journal =
        journal.map(|journal| JournalParts { journal, next_id, latest, asked_before: Vec::new(), binary, models });
    let ledger = Ledger::new(LedgerParts { in_parts, tariff, journal, ..LedgerParts::without_past(clock) });
    Bench { clock: manual, engine, replica, ledger, caller }
}

impl Bench {
    fn reserve(&self, max_tokens: u32) -> Reservation {
        let ask = Ask::new("stub", PROMPT.len() as u32, max_tokens);
        self.ledger.reserve(&self.caller, &ask).unwrap()
    }

    fn start(&self, max_tokens: u32) -> Result<Generation, Box<NotStarted>> {
        Generation::start(&self.replica, request(max_tokens), self.reserve(max_tokens))
    }

    /// The same with another prompt.
    fn start_after(&self, prompt: &[u32], max_tokens: u32) -> Generation {
        let ask = Ask::new("stub", prompt.len() as u32, max_tokens);
        let reservation = self.ledger.reserve(&self.caller, &ask).unwrap();
        let request = Request { prompt: prompt.to_vec(), ..request(max_tokens) };
        Generation::start(&self.replica, request, reservation).unwrap()
    }

    /// Of an answer, or several, that are reserved in parts.
    fn start_in_parts(&self, max_tokens: u32, num_choices: u32) -> Result<Generation, Box<NotStarted>> {
        let num_choices = NonZeroU32::new(num_choices).unwrap();
        let ask = Ask::new("stub", PROMPT.len() as u32, max_tokens);
        let ask = Ask { num_answers: num_choices, reserve: Reserve::InParts, ..ask };
        let reservation = self.ledger.reserve(&self.caller, &ask).unwrap();
        Generation::start(&self.replica, Request { num_choices, ..request(max_tokens) }, reservation)
    }

    fn remaining(&self) -> u64 {
        self.ledger.limits_of(&self.caller)[0].remaining
    }

    /// The engine has nothing left to do, and what it counted is what was settled.
    async fn assert_settled_is_what_the_engine_counted(&self) -> LedgerTotals {
        let is_between_steps = || self.engine.handle().stats().step_started.is_none();
        while !(self.engine.handle().is_idle() && is_between_steps()) {
            tokio::task::yield_now().await;
        }
        let (stats, totals) = (self.engine.handle().stats(), self.ledger.totals());
        assert_eq!(totals.open, 0);
        assert_eq!(totals.prompt_tokens, stats.prompt_tokens_total);
        assert_eq!(totals.generated_tokens, stats.generated_tokens_total);
        assert_eq!(stats.free_blocks, stats.total_blocks);
        assert_eq!(self.replica.tokens_in_flight(), 0);
        totals
    }
}

/// The time it took apart.
fn usage(generated_tokens: u32) -> Usage {
    Usage { prompt_tokens: 5, generated_tokens, ..Usage::default() }
}

fn request(max_tokens: u32) -> Request {
    let sampling = SamplingParams { max_tokens, temperature: 0.0, ..SamplingParams::default() };
    Request::new(RequestId(1), PROMPT.to_vec(), sampling)
}

#[tokio::test]
async fn a_finished_request_settles_what_the_engine_counted() {
    let bench = bench(StubModel::new(32, 4));
    let mut generation = bench.start(6).unwrap();
    assert_eq!(bench.replica.tokens_in_flight(), 11);
    let mut last = None;
    while let Some(event) = generation.next().await {
        last = Some(event);
    }
    let used = generation.used();
    assert_eq!(last, Some(Event::Finished { choice: 0, reason: FinishReason::Length, usage: used }));
    assert_eq!(Usage { measured_ns: 0, ..used }, usage(6));
    drop(generation);
    bench.assert_settled_is_what_the_engine_counted().await;
}

/// Clients that leave at every point of a request, against clients that stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_pay_exactly_what_was_generated_for_them() {
    let bench = bench(StubModel::new(32, 4));
    let clients = (0..60_u32).map(|client| {
        let mut generation = bench.start(40).unwrap();
        async move {
            let leaves_after = if client % 3 == 0 { u32::MAX } else { client };
            let mut seen = 0;
            while seen < leaves_after && generation.next().await.is_some() {
                seen += 1;
            }
        }
    });
    let tasks: Vec<_> = clients.map(tokio::spawn).collect();
    for task in tasks {
        task.await.unwrap();
    }
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert_eq!(totals.settled, 60);
    assert!(totals.generated_tokens >= 20 * 40);
}

#[tokio::test]
async fn a_request_that_never_ran_owes_nothing() {
    let gate = StepGate::default();
    let bench = bench(StubModel::new(32, 4).with_gate(gate.clone()));
    let mut first = bench.start(2).unwrap();
    let waiting = bench.start(2).unwrap();
    drop(waiting);
    gate.open();
    while first.next().await.is_some() {}
    drop(first);
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert!(totals.generated_tokens == 2 && totals.settled == 2, "{totals:?}");
}

#[tokio::test]
async fn a_stop_string_ends_the_bill_at_the_token_that_completes_it() {
    let bench = bench(StubModel::new(32, 4));
    let mut generation = bench.start(40).unwrap();
    for _ in 0..3 {
        assert!(matches!(generation.next().await, Some(Event::Token(_))));
    }
    generation.end_here(0);
    assert!(generation.next().await.is_none());
    assert_eq!(Usage { measured_ns: 0, ..generation.close() }, usage(3));
    let totals = bench.ledger.totals();
    assert_eq!((totals.open, totals.generated_tokens), (0, 3));
}

#[tokio::test]
async fn a_request_that_no_engine_takes_keeps_its_reservation_for_another_try() {
    let bench = bench(StubModel::new(32, 4));
    let refused = bench.start(1_000_000).unwrap_err();
    assert!(matches!(refused.error, ReplicaRefusal::ExceedsContext(_)), "{}", refused.error);
    assert_eq!(bench.ledger.totals().open, 1);
    let mut again = Generation::start(&bench.replica, request(1), refused.reservation).unwrap();
    while again.next().await.is_some() {}
    drop(again);
    bench.assert_settled_is_what_the_engine_counted().await;
}

#[tokio::test]
async fn a_closed_engine_is_known_as_closed() {
    let bench = bench(StubModel::new(32, 4));
    bench.engine.handle().shutdown();
    let refused = bench.start(1).unwrap_err();
    assert_eq!(refused.error, ReplicaRefusal::Closed);
    assert!(!bench.replica.observe(Duration::ZERO).serves());
    refused.reservation.withdraw();
    assert_eq!(bench.ledger.totals().open, 0);
}

fn output_limit(bound: fn(Unit, NonZeroU64) -> Bound, amount: u64) -> Limit {
    Limit::of(bound(Unit::OutputTokens, NonZeroU64::new(amount).unwrap()))
}

fn a_day(unit: Unit, amount: NonZeroU64) -> Bound {
    Bound::Budget { unit, amount, period: Period::Day }
}

fn a_minute(unit: Unit, per_minute: NonZeroU64) -> Bound {
    Bound::Rate { unit, per_minute }
}

/// Reads to the end: what each choice got, and whether it was out of quota.
/// The tokens that came to the end. `wait` hears of those so far whenever none came for a second.
async fn read_waiting(generation: &mut Generation, mut wait: impl FnMut(u32)) -> u32 {
    let mut delivered = 0;
    loop {
        match tokio::time::timeout(Duration::from_secs(1), generation.next()).await {
            Ok(Some(event)) => delivered += u32::from(matches!(event, Event::Token(_))),
            Ok(None) => return delivered,
            Err(_) => wait(delivered),
        }
    }
}

async fn read(generation: &mut Generation) -> Vec<(u32, bool)> {
    let mut ends = vec![(0, false); generation.choices.len()];
    while let Some(event) = generation.next().await {
        match event {
            Event::Token(token) => ends[token.choice as usize].0 += 1,
            Event::Finished { choice, .. } => ends[choice as usize].1 = generation.is_out_of_quota(choice),
            Event::Failed { .. } | Event::PromptLogprobs(_) => panic!("{event:?}"),
        }
    }
    ends
}

#[tokio::test]
async fn an_answer_in_parts_holds_little_more_than_it_has_used_and_a_large_max_tokens_blocks_nobody() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 100));
    let mut others = Vec::new();
    for _ in 0..4 {
        others.push(bench.start_in_parts(90, 1).unwrap());
    }
    let mut generation = bench.start_in_parts(40, 1).unwrap();
    let mut delivered = 0;
    while let Some(event) = generation.next().await {
        delivered += u64::from(matches!(event, Event::Token(_)));
        let held = 100 - bench.remaining() - 4 * u64::from(PART.get());
        assert!(held <= delivered + 4 * u64::from(PART.get()), "{held} held after {delivered}");
    }
    assert_eq!(delivered, 40);
    drop((generation, others));
    assert!(bench.remaining() >= 100 - 40 - 4 * u64::from(PART.get()), "what nobody read was hardly generated");
    bench.assert_settled_is_what_the_engine_counted().await;
}

#[tokio::test]
async fn a_spent_budget_ends_the_answer_at_its_very_last_token() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 30));
    assert_eq!(read(&mut bench.start_in_parts(9, 1).unwrap()).await, [(9, false)]);
    let mut second = bench.start_in_parts(30, 1).unwrap();
    assert_eq!(read(&mut second).await, [(21, true)]);
    assert_eq!(second.used().generated_tokens, 21);
    drop(second);
    assert_eq!(bench.remaining(), 0);
    bench.assert_settled_is_what_the_engine_counted().await;
}

#[tokio::test]
async fn an_answer_that_ends_with_its_last_granted_token_ended_by_itself() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 8));
    assert_eq!(read(&mut bench.start_in_parts(8, 1).unwrap()).await, [(8, false)]);
}

/// Time passes only while the answer stands still.
#[tokio::test(start_paused = true)]
async fn a_rate_without_room_parks_the_answer_until_there_is_room_and_does_not_end_it() {
    const A_TOKEN: Duration = Duration::from_secs(1);
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_minute, 60));
    read(&mut bench.start_in_parts(50, 1).unwrap()).await;
    let mut second = bench.start_in_parts(40, 1).unwrap();
    let (mut delivered, mut waited) = (0, 0);
    loop {
        match tokio::time::timeout(A_TOKEN, second.next()).await {
            Ok(Some(Event::Token(_))) => delivered += 1,
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => {
                bench.clock.advance(A_TOKEN);
                waited += 1;
            }
        }
        assert!(50 + delivered <= 60 + waited, "{delivered} tokens after {waited} seconds");
    }
    assert_eq!(delivered, 40);
    assert!(!second.is_out_of_quota(0));
    drop(second);
    bench.assert_settled_is_what_the_engine_counted().await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_stays_full_for_longer_than_is_waited_ends_the_answer() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_minute, 60));
    let held = bench.ledger.reserve(&bench.caller, &Ask::new("stub", 5, 50)).unwrap();
    let mut generation = bench.start_in_parts(40, 1).unwrap();
    let delivered = read_waiting(&mut generation, |_| {
        bench.clock.advance(Duration::from_secs(1));
        // Somebody else takes whatever comes free.
        bench.ledger.reserve(&bench.caller, &Ask::new("stub", 5, 1)).map(|taken| taken.settle_as(usage(1))).ok();
    })
    .await;
    assert!(generation.is_out_of_quota(0) && delivered == 8, "{delivered}");
    drop((generation, held));
    assert_eq!(bench.ledger.totals().open, 0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_goes_on_with_what_others_give_back_of_a_budget() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 40));
    let mut held = Some(bench.ledger.reserve(&bench.caller, &Ask::new("stub", 5, 30)).unwrap());
    let mut generation = bench.start_in_parts(20, 1).unwrap();
    let delivered = read_waiting(&mut generation, |delivered| {
        if let Some(held) = held.take_if(|_| delivered == 10) {
            held.settle_as(usage(1));
        }
    })
    .await;
    assert_eq!((delivered, generation.is_out_of_quota(0), held.is_none()), (20, false, true));
    drop(generation);
    assert_eq!(bench.remaining(), 40 - 21);
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_what_an_answer_holds_that_is_over_and_settles_later() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 50));
    let [mut first, mut second] = [20, 50].map(|max_tokens| bench.start_in_parts(max_tokens, 1).unwrap());
    assert_eq!(read(&mut first).await, [(20, false)]);
    first.rests();
    let start = tokio::time::Instant::now();
    assert_eq!(read(&mut second).await, [(30, true)]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn two_growing_answers_use_a_budget_up_together_and_neither_hangs() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 50));
    let [mut first, mut second] = [50, 50].map(|max_tokens| bench.start_in_parts(max_tokens, 1).unwrap());
    // Each settles when it is read: the other one waits for that.
    let read_both =
        async { tokio::join!(async move { read(&mut first).await }, async move { read(&mut second).await }) };
    let (first, second) = tokio::time::timeout(Duration::from_secs(30), read_both).await.expect("neither hangs");
    assert!(first[0].1 && second[0].1, "{first:?} {second:?}");
    assert_eq!(first[0].0 + second[0].0, 50, "{first:?} {second:?}");
    assert_eq!(bench.remaining(), 0);
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert_eq!(totals.generated_tokens, 50);
}

#[tokio::test]
async fn several_choices_are_reserved_and_end_by_themselves_and_their_prompt_is_paid_once() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 1000));
    let mut generation = bench.start_in_parts(30, 3).unwrap();
    assert_eq!(bench.remaining(), 1000 - 3 * u64::from(PART.get()));
    let mut delivered = [0; 3];
    while let Some(event) = generation.next().await {
        let Event::Token(token) = event else { continue };
        delivered[token.choice as usize] += 1;
        if token.choice == 1 && delivered[1] == 7 {
            generation.end_here(1);
        }
    }
    assert_eq!(delivered, [30, 7, 30]);
    assert_eq!(Usage { measured_ns: 0, ..generation.close() }, usage(67));
    assert_eq!(bench.remaining(), 1000 - 67);
}

#[tokio::test]
async fn a_spent_budget_ends_every_choice_and_passes_no_limit() {
    let bench = bench_with(StubModel::new(32, 4), output_limit(a_day, 50));
    let mut generation = bench.start_in_parts(16, 3).unwrap();
    read(&mut bench.start_in_parts(10, 1).unwrap()).await;
    let ends = read(&mut generation).await;
    drop(generation);
    assert!(ends.iter().all(|(tokens, is_out)| *is_out == (*tokens < 16)), "{ends:?}");
    assert!(ends.iter().any(|(_, is_out)| *is_out), "{ends:?}");
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert!((48..=50).contains(&totals.generated_tokens), "{totals:?}");
}
