use passerelle_engine::clock::ManualClock;
use passerelle_engine::{StepObserver, StepReport};

use super::super::facts::OfferedKind;
use super::super::remote_replica::RemoteReplicaBounds;
use super::*;

#[derive(Debug)]
struct Nobody;

impl StepObserver for Nobody {
    fn step(&self, _: &StepReport) {}
}

/// Of a partition with the models `m` and `n`.
fn slot() -> WorkerSlot {
    let bounds = RemoteReplicaBounds { longest_hand_over: Duration::ZERO, vector_len: 0 };
    let replica = |model: &str| RemoteReplica::new(model, bounds, Arc::new(ManualClock::default()), Arc::new(Nobody));
    WorkerSlot::new("a", WorkersFrom::Here, ["m", "n"].map(replica).into())
}

/// One that has loaded these, each of a checkpoint whose digest is made of that digit.
fn facts(models: [(&str, char); 2]) -> WorkerFacts {
    let model = |(name, digit): (&str, char)| OfferedModel {
        name: name.to_owned(),
        digest: format!("sha256:{}", digit.to_string().repeat(64)).parse().expect("64 digits"),
        fingerprint: "fp".to_owned(),
        weights_bytes: 1,
        kv_cache_bytes: 1,
        input_vocab_size: 9,
        max_model_len: 9,
        max_waiting_requests: 1,
        max_waiting_tokens: 9,
        max_running: 1,
        kind: OfferedKind::Generator { vocab_size: 9 },
    };
    let [version, partition, device, kernels] = ["1", "a", "cpu", "none"].map(str::to_owned);
    WorkerFacts { version, partition, device, kernels, threads: 1, models: models.map(model).into(), ends_in: None }
}

fn register(slot: &WorkerSlot, models: [(&str, char); 2]) -> Result<Arc<Link>, NotRegistered> {
    slot.register(facts(models), &Peer::Owner, Duration::ZERO)
}

#[test]
fn a_worker_that_offers_one_model_twice_and_another_not_at_all_is_sent_away() {
    let slot = slot();
    let refused = register(&slot, [("m", '1'), ("m", '1')]).expect_err("nobody would serve `n`");
    assert!(matches!(&refused, NotRegistered::OtherModels(..)), "{refused}");
    register(&slot, [("n", '2'), ("m", '1')]).expect("in whatever order");
}

#[test]
fn a_worker_that_is_sent_away_decides_nothing_about_those_that_come_after_it() {
    let slot = slot();
    let first = register(&slot, [("m", '1'), ("n", '2')]).expect("nothing is known of the models");
    slot.release(&first);
    let refused = register(&slot, [("m", '1'), ("n", '3')]).expect_err("another checkpoint");
    assert!(matches!(&refused, NotRegistered::OtherCheckpoint(model) if model == "n"), "{refused}");
    let slot = slot_that_knows("n", '2');
    register(&slot, [("m", '3'), ("n", '3')]).expect_err("another checkpoint");
    register(&slot, [("m", '1'), ("n", '2')]).expect("what `m` is was decided by nobody");
}

/// Of one of its models it knows the checkpoint.
fn slot_that_knows(model: &str, digit: char) -> WorkerSlot {
    let digest = format!("sha256:{}", digit.to_string().repeat(64)).parse().expect("64 digits");
    slot().with_digests([(model.to_owned(), digest)])
}
