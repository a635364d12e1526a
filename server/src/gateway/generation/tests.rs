use std::num::NonZeroU64;
use std::time::Duration;

use passerelle_engine::clock::ManualClock;
use passerelle_engine::testing::{StepGate, StubModel};
use passerelle_engine::{
    Engine, EngineConfig, EngineParts, FinishReason, NullObserver, RequestId, SamplingParams, StepTurns,
};

use super::*;
use crate::gateway::account::{Account, Caller};
use crate::gateway::ledger::{Ask, Ledger, LedgerTotals};
use crate::gateway::quota::{Limit, Quota};
use crate::gateway::replica::ReplicaId;

const PROMPT: [u32; 5] = [3, 1, 4, 1, 5];

/// A real engine with a model that costs nothing, and a ledger before it.
struct Bench {
    engine: Engine,
    replica: Arc<Replica>,
    ledger: Ledger,
    caller: Arc<Caller>,
}

fn bench(model: StubModel) -> Bench {
    let clock = Arc::new(ManualClock::default());
    let engine = Engine::spawn(EngineParts {
        name: "stub".into(),
        model: Box::new(model),
        config: EngineConfig { num_kv_blocks: 256, ..EngineConfig::default() },
        turns: StepTurns::new(),
        clock: clock.clone(),
        observer: Arc::new(NullObserver),
    })
    .unwrap();
    let replica = Arc::new(Replica::new(ReplicaId(0), "stub", Box::new(engine.handle())));
    let limits = Quota::new(vec![Limit::concurrent_requests(NonZeroU64::new(100).unwrap())]).unwrap();
    let caller = Arc::new(Caller::at_open_door(Account::local(limits)));
    Bench { engine, replica, ledger: Ledger::without_past(clock), caller }
}

impl Bench {
    fn reserve(&self, max_tokens: u32) -> Reservation {
        let ask = Ask::new("stub", PROMPT.len() as u32, max_tokens);
        self.ledger.reserve(&self.caller, ask).unwrap()
    }

    fn start(&self, max_tokens: u32) -> Result<Generation, Box<NotStarted>> {
        Generation::start(&self.replica, request(max_tokens), self.reserve(max_tokens))
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
    let used = generation.end_here();
    assert_eq!(Usage { measured_ns: 0, ..used }, usage(3));
    let totals = bench.ledger.totals();
    assert_eq!((totals.open, totals.generated_tokens), (0, 3));
}

#[tokio::test]
async fn a_request_that_no_engine_takes_keeps_its_reservation_for_another_try() {
    let bench = bench(StubModel::new(32, 4));
    let refused = bench.start(1_000_000).unwrap_err();
    assert!(matches!(refused.error, SubmitError::ExceedsContext(_)), "{}", refused.error);
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
    assert_eq!(refused.error, SubmitError::Closed);
    assert!(!bench.replica.observe(Duration::ZERO).serves());
    refused.reservation.withdraw();
    assert_eq!(bench.ledger.totals().open, 0);
}
