use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use passerelle_engine::clock::ManualClock;
use passerelle_engine::{EventStream, Request};

use super::super::breaker::BreakerBounds;
use super::super::health::STUCK_AFTER;
use super::super::replica::{Load, ReplicaDoor, ReplicaId, ReplicaRefusal, UpstreamParts};
use super::super::upstream::{Call, Events, Failure, UpstreamDoor};
use super::pool::OVERLOAD_SLACK_TOKENS;
use super::*;

const SALT: CacheSalt = CacheSalt([7; 32]);

/// A door whose load a test sets and that takes nothing.
#[derive(Debug, Clone)]
struct FakeDoor {
    load: Arc<Mutex<Load>>,
    answer: ReplicaRefusal,
    looks: Arc<AtomicUsize>,
}

impl ReplicaDoor for FakeDoor {
    fn submit(&self, _: Request) -> Result<EventStream, ReplicaRefusal> {
        Err(self.answer.clone())
    }

    fn load(&self) -> Load {
        self.looks.fetch_add(1, Ordering::Relaxed);
        *self.load.lock().unwrap()
    }
}

/// An upstream that is never called.
#[derive(Debug)]
struct NoUpstream;

impl UpstreamDoor for NoUpstream {
    fn call(&self, _: &Call) -> Events {
        unreachable!("these tests only choose")
    }
}

struct Fleet {
    router: Router,
    clock: ManualClock,
    loads: Vec<Arc<Mutex<Load>>>,
    /// How often any replica was looked at.
    looks: Arc<AtomicUsize>,
}

/// `count` idle replicas of the model `m`, numbered from 0.
fn fleet(count: u32, seed: u64) -> Fleet {
    let looks = Arc::<AtomicUsize>::default();
    let door = |_| FakeDoor { load: Arc::default(), answer: ReplicaRefusal::Closed, looks: Arc::clone(&looks) };
    fleet_behind((0..count).map(door).collect(), seed)
}

/// One replica, whose engine answers every request like this.
fn fleet_of_one(answer: ReplicaRefusal) -> Fleet {
    fleet_behind(vec![FakeDoor { load: Arc::default(), answer, looks: Arc::default() }], 1)
}

fn fleet_behind(doors: Vec<FakeDoor>, seed: u64) -> Fleet {
    let clock = ManualClock::default();
    let loads = doors.iter().map(|door| Arc::clone(&door.load)).collect();
    let looks = doors.first().map(|door| Arc::clone(&door.looks)).unwrap_or_default();
    let replica = |(door, id)| Arc::new(Replica::new(ReplicaId(id), "m", Box::new(door) as Box<dyn ReplicaDoor>));
    let router = Router::new(doors.into_iter().zip(0..).map(replica), Arc::new(clock.clone()), seed);
    Fleet { router, clock, loads, looks }
}

impl Fleet {
    fn pick(&self, prefix: PrefixHint) -> u32 {
        self.router.pick("m", prefix, &[]).unwrap().id().0
    }

    /// Replica `index` has work and stands still.
    fn hang(&self, index: usize) {
        *self.loads[index].lock().unwrap() = Load { running_requests: 1, progress: 3, ..Load::default() };
    }

    fn replica(&self, id: u32) -> &Arc<Replica> {
        self.router.replicas().find(|replica| replica.id().0 == id).unwrap()
    }

    fn look(&self) {
        self.router.look();
    }
}

fn request() -> Request {
    Request::new(passerelle_engine::RequestId(1), vec![1], passerelle_engine::SamplingParams::default())
}

fn nobody_ready() -> RouteError {
    RouteError::NoReplicaReady { model: "m".into(), retry_after: None }
}

/// A router over one upstream of the model `m`.
fn upstream(clock: &ManualClock) -> Router {
    let clock = || Arc::new(clock.clone()) as Arc<dyn Clock>;
    let bounds = BreakerBounds { failures_to_open: 1, ..BreakerBounds::default() };
    let parts = UpstreamParts { name: "u".into(), door: Box::new(NoUpstream), bounds, clock: clock(), seed: 1 };
    Router::new([Arc::new(Replica::upstream(ReplicaId(0), "m", parts))], clock(), 1)
}

fn hint(conversation: u32) -> PrefixHint {
    PrefixHint::of(&[conversation; LEADING_TOKENS], &SALT)
}

#[test]
fn a_model_that_is_not_served_is_told_from_one_that_is_not_ready() {
    let fleet = fleet(0, 1);
    assert_eq!(fleet.router.pick("m", PrefixHint::NONE, &[]).unwrap_err(), RouteError::UnknownModel("m".into()));
    let fleet = self::fleet(1, 1);
    fleet.hang(0);
    fleet.look();
    fleet.clock.advance(STUCK_AFTER);
    fleet.look();
    assert_eq!(fleet.router.pick("m", PrefixHint::NONE, &[]).unwrap_err(), nobody_ready());
    assert!(!fleet.router.is_ready());
}

#[test]
fn requests_go_round_a_replica_that_makes_no_progress_and_return_with_its_next_step() {
    let fleet = fleet(3, 1);
    fleet.hang(1);
    fleet.look();
    fleet.clock.advance(STUCK_AFTER);
    let chosen: BTreeSet<_> = (0..200).map(|i| fleet.pick(hint(i))).collect();
    assert_eq!(chosen, BTreeSet::from([0, 2]));
    fleet.loads[1].lock().unwrap().progress += 1;
    let chosen: BTreeSet<_> = (0..200).map(|i| fleet.pick(hint(i))).collect();
    assert_eq!(chosen, BTreeSet::from([0, 1, 2]));
}

#[test]
fn a_replica_whose_requests_fail_is_not_ready_and_serves_only_when_there_is_no_other() {
    let fleet = fleet(2, 1);
    let distrust = |index: usize| {
        fleet.loads[index].lock().unwrap().distrusted_until = Some(Duration::from_secs(60));
    };
    distrust(0);
    assert!((0..50).all(|conversation| fleet.pick(hint(conversation)) == 1));
    assert!(fleet.router.is_ready());
    distrust(1);
    let chosen: BTreeSet<_> = (0..200).map(|i| fleet.pick(hint(i))).collect();
    assert_eq!(chosen, BTreeSet::from([0, 1]));
    assert!(!fleet.router.is_ready());
    fleet.clock.advance(Duration::from_secs(60));
    assert!(fleet.router.is_ready());
}

#[test]
fn prompts_that_begin_alike_meet_on_one_replica_and_different_ones_spread() {
    let fleet = fleet(4, 1);
    let mut shares = BTreeMap::<u32, u32>::new();
    for conversation in 0..400 {
        let chosen = fleet.pick(hint(conversation));
        assert!((0..5).all(|_| fleet.pick(hint(conversation)) == chosen));
        *shares.entry(chosen).or_default() += 1;
    }
    assert!(shares.len() == 4 && shares.values().all(|share| (60..=140).contains(share)), "{shares:?}");
}

#[test]
fn a_replica_that_goes_moves_only_its_own_prompts() {
    let fleet = fleet(4, 1);
    let before: Vec<_> = (0..200).map(|conversation| fleet.pick(hint(conversation))).collect();
    fleet.hang(2);
    fleet.look();
    fleet.clock.advance(STUCK_AFTER);
    for (conversation, home) in (0..200).zip(before) {
        let now = fleet.pick(hint(conversation));
        assert!(now != 2 && (home == 2 || now == home), "{home} -> {now}");
    }
}

#[test]
fn affinity_gives_way_to_load() {
    let fleet = fleet(2, 1);
    let home = fleet.pick(hint(5));
    let _a_little = fleet.replica(home).hold(OVERLOAD_SLACK_TOKENS);
    assert_eq!(fleet.pick(hint(5)), home, "a cache is worth some waiting");
    let _too_much = fleet.replica(home).hold(1);
    assert_eq!(fleet.pick(hint(5)), 1 - home);
    drop(_too_much);
    assert_eq!(fleet.pick(hint(5)), home, "and the prompt comes home");
}

#[test]
fn without_a_hint_work_spreads_by_load() {
    let fleet = fleet(8, 42);
    let mut held = Vec::new();
    for _ in 0..800 {
        let id = fleet.pick(PrefixHint::NONE);
        held.push(fleet.replica(id).hold(100));
    }
    let loads: Vec<_> = fleet.router.replicas().map(|replica| replica.tokens_in_flight() / 100).collect();
    assert!(loads.iter().all(|load| (95..=105).contains(load)), "two choices stay near 100 each: {loads:?}");
    held.clear();
    assert!(fleet.router.replicas().all(|replica| replica.tokens_in_flight() == 0));
}

#[test]
fn a_seed_replays_every_choice() {
    let choices = |seed| {
        let fleet = fleet(5, seed);
        (0..50).map(|_| fleet.pick(PrefixHint::NONE)).collect::<Vec<_>>()
    };
    assert_eq!(choices(9), choices(9));
    assert_ne!(choices(9), choices(10));
}

#[test]
fn a_hint_depends_on_the_salt_and_on_leading_tokens_only() {
    let prompt = [1; LEADING_TOKENS + 9];
    assert_eq!(PrefixHint::of(&prompt, &SALT), PrefixHint::of(&prompt[..LEADING_TOKENS], &SALT));
    assert_ne!(PrefixHint::of(&prompt, &SALT), PrefixHint::of(&prompt, &CacheSalt([8; 32])));
    assert_eq!(PrefixHint::of(&prompt[..LEADING_TOKENS - 1], &SALT), PrefixHint::NONE);
}

#[test]
fn a_key_parts_what_begins_alike_and_stays_where_it_is() {
    let fleet = fleet(4, 1);
    let mut homes = BTreeSet::new();
    for key in (0..100).map(|key| key.to_string()) {
        let home = fleet.pick(hint(5).under(Some(&key)));
        assert!((0..5).all(|_| fleet.pick(hint(5).under(Some(&key))) == home));
        homes.insert(home);
    }
    assert_eq!(homes.len(), 4, "a beginning that all share is everywhere then");
    assert_ne!(
        hint(5).under(Some("a")),
        hint(6).under(Some("a")),
        "a key adds to the beginning and does not replace it"
    );
    assert_eq!(hint(5).under(None), hint(5));
    assert_eq!(
        PrefixHint::NONE.under(Some("a")),
        PrefixHint::NONE,
        "what is too short to be kept goes where there is room"
    );
}

#[test]
fn an_engine_that_closed_is_not_asked_again() {
    let fleet = fleet(2, 1);
    assert_eq!(fleet.replica(0).submit(request()).unwrap_err(), ReplicaRefusal::Closed);
    assert!((0..50).all(|conversation| fleet.pick(hint(conversation)) == 1));
    assert_eq!(fleet.replica(0).tokens_in_flight(), 0);
}

#[test]
fn an_engine_that_died_is_passed_over_and_its_model_is_not_ready() {
    let fleet = fleet_of_one(ReplicaRefusal::Dead);
    assert!(fleet.router.is_ready());
    assert_eq!(fleet.replica(0).submit(request()).unwrap_err(), ReplicaRefusal::Dead);
    assert!(!fleet.router.is_ready());
    assert_eq!(fleet.router.pick("m", PrefixHint::NONE, &[]).unwrap_err(), nobody_ready());
}

#[test]
fn an_engine_that_died_makes_its_model_not_ready_before_anybody_asks() {
    let fleet = fleet(1, 1);
    assert!(fleet.router.is_ready());
    fleet.loads[0].lock().unwrap().is_dead = true;
    assert!(!fleet.router.is_ready());
}

#[test]
fn models_are_listed_by_name() {
    let clock = Arc::new(ManualClock::default());
    let door = || Box::new(FakeDoor { load: Arc::default(), answer: ReplicaRefusal::Closed, looks: Arc::default() });
    let replica = |(model, id)| Arc::new(Replica::new(ReplicaId(id), model, door()));
    let replicas = [("b", 0), ("a", 1), ("b", 2)].map(replica);
    clock.advance(Duration::from_secs(5));
    let router = Router::new(replicas, Arc::clone(&clock) as Arc<dyn Clock>, 0);
    let names: Vec<_> = router.models().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(router.model("a").unwrap().created, clock.wall().as_secs());
    assert!(router.model("c").is_none());
}

#[test]
fn what_was_tried_is_not_picked_again() {
    let fleet = fleet(3, 1);
    let home = fleet.pick(hint(5));
    let other = fleet.router.pick("m", hint(5), &[ReplicaId(home)]).unwrap().id();
    assert_ne!(other, ReplicaId(home));
    let last = fleet.router.pick("m", hint(5), &[ReplicaId(home), other]).unwrap().id();
    assert_eq!(BTreeSet::from([home, other.0, last.0]), BTreeSet::from([0, 1, 2]));
    let all = [ReplicaId(home), other, last];
    assert_eq!(fleet.router.pick("m", hint(5), &all).unwrap_err(), nobody_ready());
}

#[test]
fn an_upstream_that_rests_is_passed_over_and_says_until_when() {
    let clock = ManualClock::default();
    let router = upstream(&clock);
    let replica = router.pick("m", PrefixHint::NONE, &[]).unwrap();
    let retry_after = Some(Duration::from_secs(9));
    replica.as_upstream().unwrap().probed(Err(Failure::Busy { retry_after }));
    let resting = RouteError::NoReplicaReady { model: "m".into(), retry_after };
    assert_eq!(router.pick("m", PrefixHint::NONE, &[]).unwrap_err(), resting);
    assert!(!router.is_ready());
    clock.advance(Duration::from_secs(9));
    assert!(router.pick("m", PrefixHint::NONE, &[]).is_ok());
}

#[test]
fn a_choice_among_15_000_replicas_looks_at_a_few() {
    let fleet = fleet(15_000, 1);
    for conversation in 0..100 {
        fleet.pick(hint(conversation));
        fleet.pick(PrefixHint::NONE);
    }
    let looks = fleet.looks.load(Ordering::Relaxed);
    assert!(looks <= 200 * 9, "{looks} looks for 200 choices");
}

#[test]
fn a_large_pool_that_is_mostly_down_still_finds_who_serves() {
    let fleet = fleet(1_000, 1);
    (0..999).for_each(|index| fleet.hang(index));
    fleet.look();
    fleet.clock.advance(STUCK_AFTER);
    assert!((0..20).all(|conversation| fleet.pick(hint(conversation)) == 999));
}
