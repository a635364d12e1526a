//! Every way out settles what was really generated until then, and what a server failed at is nobody's bill. Those who
//! finish, meet a stop string or leave are in [`super`].

use passerelle_engine::RequestError;
use passerelle_engine::testing::Mishap;

use super::*;
use crate::gateway::journal::{self, ProofCounts, tests::Disk};
use crate::gateway::tariff::Price;

const VOCABULARY: usize = 4096;
const OTHER_PROMPT: [u32; 5] = [2, 7, 1, 8, 2];

fn stub() -> StubModel {
    StubModel::new(VOCABULARY, 4)
}

async fn tokens(generation: &mut Generation, count: usize) {
    for _ in 0..count {
        assert!(matches!(generation.next().await, Some(Event::Token(_))));
    }
}

#[tokio::test]
async fn an_answer_that_is_preempted_pays_for_each_token_once() {
    let gate = StepGate::default();
    let config = EngineConfig { num_kv_blocks: 8, ..EngineConfig::default() };
    let limit = Limit::concurrent_requests(NonZeroU64::new(2).unwrap());
    let bench = bench_of(stub().with_gate(gate.clone()), config, limit, Tariff::free());
    // Six blocks each.
    let (mut first, mut second) = (bench.start(19).unwrap(), bench.start_after(&OTHER_PROMPT, 19));
    gate.open();
    tokio::join!(read(&mut first), read(&mut second));
    assert!(bench.engine.handle().stats().preemptions_total > 0, "both together need more blocks than there are");
    drop((first, second));
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert_eq!((totals.prompt_tokens, totals.generated_tokens), (10, 38));
}

#[tokio::test]
async fn an_answer_that_runs_out_of_time_pays_what_was_generated_until_then() {
    let gate = StepGate::default();
    let bench = bench(stub().with_gate(gate.clone()));
    let mut generation = bench.start(40).unwrap();
    gate.allow(4);
    tokens(&mut generation, 4).await;
    let further = tokio::time::timeout(Duration::from_millis(5), generation.next()).await;
    assert!(further.is_err(), "the gate is closed");
    drop(generation);
    gate.open();
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert_eq!((totals.prompt_tokens, totals.generated_tokens), (5, 4));
}

#[tokio::test]
async fn an_answer_that_a_drain_ends_pays_what_was_generated_until_then() {
    let gate = StepGate::default();
    let bench = bench(stub().with_gate(gate.clone()));
    let mut generation = bench.start(40).unwrap();
    gate.allow(3);
    tokens(&mut generation, 3).await;
    bench.engine.handle().shutdown();
    gate.open();
    let counted = loop {
        match generation.next().await {
            Some(Event::Failed { error, usage }) => break (error, usage.generated_tokens),
            Some(Event::Token(_)) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(counted.0 == RequestError::ShuttingDown && (3..40).contains(&counted.1), "{counted:?}");
    drop(generation);
    let totals = bench.ledger.totals();
    assert_eq!((totals.open, totals.prompt_tokens, totals.generated_tokens), (0, 5, u64::from(counted.1)));
}

/// In the middle of the answer, while another one runs.
async fn a_failed_request_is_free(mishap: Mishap) {
    let answer = stub().greedy(&PROMPT, 5);
    let bench = bench(stub().with_mishap(answer[3], mishap));
    let (mut failing, mut well) = (bench.start(40).unwrap(), bench.start_after(&OTHER_PROMPT, 6));
    tokens(&mut failing, 4).await;
    assert!(matches!(failing.next().await, Some(Event::Failed { .. })));
    assert_eq!(read(&mut well).await, [(6, false)]);
    assert_eq!(Usage { measured_ns: 0, ..failing.close() }, Usage::default());
    drop(well);
    let totals = bench.ledger.totals();
    assert_eq!((totals.open, totals.settled), (0, 2));
    assert_eq!((totals.prompt_tokens, totals.generated_tokens), (5, 6), "its neighbour pays for itself");
    assert!(bench.engine.handle().stats().generated_tokens_total > 6, "the engine did work for it");
}

#[tokio::test]
async fn an_answer_that_an_engine_error_ends_is_free() {
    a_failed_request_is_free(Mishap::Error).await;
    a_failed_request_is_free(Mishap::Nan).await;
}

#[tokio::test]
async fn an_answer_that_a_panic_ends_is_free() {
    a_failed_request_is_free(Mishap::Panic).await;
}

/// Nothing of it may be sent, whatever the engine has done for it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_written_down_is_free() {
    let disk = Disk::default();
    let (_thread, journal) = journal::tests::start(&disk);
    let budget = Limit::of(a_day(Unit::OutputTokens, NonZeroU64::new(1_000).unwrap()));
    let config = EngineConfig { num_kv_blocks: 64, ..EngineConfig::default() };
    let bench = bench_on(stub(), config, budget, Tariff::free(), Some(journal));
    *disk.is_full.lock().unwrap() = true;
    let mut generation = bench.start(4).unwrap();
    assert!(generation.next().await.is_none() && generation.is_unwritten());
    assert!(generation.used().generated_tokens > 0);
    assert_eq!(Usage { measured_ns: 0, ..generation.close() }, Usage::default());
    assert_eq!(bench.ledger.totals().generated_tokens, 0);
}

/// Finished, left, met a stop string in one of three choices, and failed; and one that is settled wrongly.
#[tokio::test]
async fn every_way_out_leaves_an_entry_that_adds_up_to_what_the_engine_counted_and_a_wrong_one_shows() {
    let disk = Disk::default();
    let (_thread, journal) = journal::tests::start(&disk);
    let limit = Limit::concurrent_requests(NonZeroU64::new(100).unwrap());
    let failing = stub().greedy(&OTHER_PROMPT, 5)[3];
    let config = EngineConfig { num_kv_blocks: 256, ..EngineConfig::default() };
    let model = stub().with_mishap(failing, Mishap::Error);
    let bench = bench_on(model, config, limit, Tariff::free(), Some(journal.clone()));
    let proofs = async |checked: u64| {
        while journal.state().proofs.checked < checked {
            tokio::task::yield_now().await;
        }
        journal.state().proofs
    };
    read(&mut bench.start(6).unwrap()).await;
    tokens(&mut bench.start(40).unwrap(), 3).await;
    let mut stopped = bench.start_in_parts(30, 3).unwrap();
    let mut delivered = 0;
    while let Some(event) = stopped.next().await {
        delivered += u32::from(matches!(event, Event::Token(TokenEvent { choice: 1, .. })));
        if delivered == 7 && stopped.choices[1].is_open() {
            stopped.end_here(1);
        }
    }
    drop(stopped);
    let mut failed = bench.start_after(&OTHER_PROMPT, 40);
    tokens(&mut failed, 4).await;
    assert!(matches!(failed.next().await, Some(Event::Failed { .. })));
    drop(failed);
    assert_eq!(proofs(4).await, ProofCounts { checked: 4, unproven: 0 });
    let mut wrong = bench.start(6).unwrap();
    read(&mut wrong).await;
    wrong.reservation.proof().leave_out(usage(1));
    drop(wrong);
    assert_eq!(proofs(5).await, ProofCounts { checked: 5, unproven: 1 });
}

/// A prompt whose beginning another request of the account has left in the cache.
#[tokio::test]
async fn cached_tokens_are_a_class_of_their_own_at_settlement() {
    const PROMPT: [u32; 13] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9];
    let limit = Limit::of(a_day(Unit::GpuMicros, NonZeroU64::new(1_000_000).unwrap()));
    let tariff = Tariff::new("1", [("stub".to_owned(), Price::flat(1_000_000, 1_000, 10_000_000))]);
    let bench = bench_of(stub(), EngineConfig { num_kv_blocks: 64, ..EngineConfig::default() }, limit, tariff);
    let mut billed = Vec::new();
    for _ in 0..2 {
        let before = bench.remaining();
        let mut generation = bench.start_after(&PROMPT, 2);
        read(&mut generation).await;
        drop(generation);
        billed.push(before - bench.remaining());
    }
    let totals = bench.assert_settled_is_what_the_engine_counted().await;
    assert_eq!((totals.prompt_tokens, totals.cached_tokens), (26, 12));
    assert_eq!(billed, [13 * 1_000 + 2 * 10_000, 1_000 + 12 + 2 * 10_000]);
}
