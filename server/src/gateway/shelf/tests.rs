use std::collections::{BTreeMap, BTreeSet};

use passerelle_engine::clock::ManualClock;

use super::*;
use crate::gateway::chance::Chance;

/// Of weights and of a KV cache.
fn size(weights_bytes: u64) -> Offer {
    Ok(Size { weights_bytes, kv_cache_bytes: 0 })
}

fn shelf(memory: u64, models: &[(&str, u64)]) -> (Shelf, ManualClock) {
    let clock = ManualClock::default();
    let shelf = Shelf::new(memory, Arc::new(clock.clone()));
    models.iter().for_each(|(model, bytes)| shelf.offer(model, size(*bytes)));
    (shelf, clock)
}

fn next(shelf: &Shelf) -> Option<Order> {
    shelf.open().next_order(shelf.shared.clock.now())
}

fn load(model: &str) -> Option<Order> {
    Some(Order::Load(model.to_owned()))
}

fn unload(model: &str) -> Option<Order> {
    Some(Order::Unload(model.to_owned()))
}

fn wait(shelf: &Shelf, model: &str) -> Waiting {
    match shelf.ask(model) {
        Some(Asked::Coming(waiting)) => waiting,
        other => panic!("{other:?}"),
    }
}

fn use_it(shelf: &Shelf, model: &str) -> InUse {
    match shelf.ask(model) {
        Some(Asked::Ready(in_use)) => in_use,
        other => panic!("{other:?}"),
    }
}

/// Loaded for somebody who uses it at once.
fn bring(shelf: &Shelf, model: &str) -> InUse {
    let _waiting = wait(shelf, model);
    assert_eq!(next(shelf), load(model));
    shelf.loaded(model);
    use_it(shelf, model)
}

fn state(shelf: &Shelf, model: &str) -> ShelfState {
    shelf.row(model).unwrap().state
}

#[test]
fn the_idle_model_that_was_used_longest_ago_makes_room() {
    let (shelf, _) = shelf(30, &[("a", 10), ("b", 10), ("c", 10), ("d", 10)]);
    for model in ["a", "b", "c"] {
        drop(bring(&shelf, model));
    }
    drop(use_it(&shelf, "a"));
    let _waiting = wait(&shelf, "d");
    assert_eq!((next(&shelf), next(&shelf)), (unload("b"), None), "its memory is not free yet");
    assert_eq!(state(&shelf, "b"), ShelfState::Leaving);
    shelf.left("b");
    assert_eq!(next(&shelf), load("d"));
    assert_eq!(["a", "b"].map(|model| state(&shelf, model)), [ShelfState::Ready, ShelfState::Available]);
}

#[test]
fn models_that_have_no_room_together_are_known_before_anybody_waits_for_them() {
    let (shelf, _) = shelf(20, &[("a", 10), ("b", 10), ("c", 11)]);
    let together = |models: &[&str]| shelf.check_together(&models.iter().copied().collect());
    assert_eq!(together(&["a", "b"]), Ok(()));
    assert_eq!(together(&["c", "c", "elsewhere"]), Ok(()));
    let refused = Err(NotTogether { bytes: 21, limit_bytes: 20 });
    assert_eq!(together(&["a", "c"]), refused);
    let _in_use = bring(&shelf, "a");
    assert_eq!(together(&["c", "a"]), refused, "also when one of them is there");
}

#[test]
fn a_model_that_is_used_or_pinned_is_never_evicted() {
    let (shelf, _) = shelf(20, &[("a", 10), ("b", 10), ("c", 10)]);
    let in_use = bring(&shelf, "a");
    drop(bring(&shelf, "b"));
    shelf.pin("b").unwrap();
    let _waiting = wait(&shelf, "c");
    assert_eq!(next(&shelf), None);
    let refused = |model: &str| shelf.unload(model).unwrap_err().to_string();
    assert_eq!(shelf.unload("a"), Err(HandError::InUse { model: "a".to_owned(), uses: 1 }));
    assert_eq!(refused("a"), "1 request uses `a`; try again when `passerelle model list` shows none");
    let second = use_it(&shelf, "a");
    assert!(refused("a").starts_with("2 requests use `a`;"), "{}", refused("a"));
    assert_eq!(shelf.unload("b"), Err(HandError::Pinned("b".to_owned())));
    drop((in_use, second));
    assert_eq!(next(&shelf), unload("a"), "as soon as nobody uses it");
    shelf.left("a");
    assert_eq!(next(&shelf), load("c"));
}

#[test]
fn nothing_is_evicted_for_half_a_room() {
    let (shelf, _) = shelf(30, &[("a", 10), ("b", 10), ("large", 30)]);
    drop(bring(&shelf, "a"));
    let in_use = bring(&shelf, "b");
    let _waiting = wait(&shelf, "large");
    assert_eq!((next(&shelf), state(&shelf, "a")), (None, ShelfState::Ready));
    drop(in_use);
    assert_eq!([next(&shelf), next(&shelf)], [unload("a"), unload("b")]);
}

#[test]
fn whoever_waits_longest_is_next_and_whoever_gives_up_holds_nobody_up() {
    let (shelf, _) = shelf(20, &[("a", 20), ("large", 20), ("small", 5)]);
    let in_use = bring(&shelf, "a");
    let (large, small) = (wait(&shelf, "large"), wait(&shelf, "small"));
    drop(in_use);
    assert_eq!(next(&shelf), unload("a"));
    drop(large);
    shelf.left("a");
    assert_eq!([next(&shelf), next(&shelf)], [load("small"), None]);
    drop(small);
}

#[test]
fn a_model_that_is_waited_for_is_not_evicted_before_it_was_used() {
    let (shelf, clock) = shelf(10, &[("a", 10), ("b", 10)]);
    let first = wait(&shelf, "a");
    assert_eq!(next(&shelf), load("a"));
    let _second = wait(&shelf, "b");
    shelf.loaded("a");
    assert_eq!(next(&shelf), None);
    drop(first);
    assert_eq!(next(&shelf), None, "somebody may have been told to come back");
    clock.advance(Duration::from_secs(5));
    assert_eq!(next(&shelf), unload("a"), "nobody else need ask");
}

/// Moves by a millisecond at each look.
#[derive(Debug, Default)]
struct LookedAt(ManualClock);

impl Clock for LookedAt {
    fn now(&self) -> Duration {
        self.0.advance(Duration::from_millis(1));
        self.0.now()
    }

    fn wall(&self) -> Duration {
        self.0.wall()
    }
}

#[test]
fn whoever_carries_orders_out_wakes_when_time_alone_makes_room() {
    let clock = ManualClock::default();
    let shelf = Shelf::new(10, Arc::new(LookedAt(clock.clone())));
    ["a", "b"].into_iter().for_each(|model| shelf.offer(model, size(10)));
    drop(wait(&shelf, "a"));
    assert_eq!(shelf.next_order(), load("a"));
    shelf.loaded("a");
    let _waiting = wait(&shelf, "b");
    clock.advance(Duration::from_millis(4990));
    let (told, orders) = std::sync::mpsc::sync_channel(1);
    let loader = shelf.clone();
    std::thread::spawn(move || told.send(loader.next_order()));
    assert_eq!(orders.recv_timeout(Duration::from_secs(30)), Ok(unload("a")));
}

#[test]
fn whoever_was_told_to_come_back_keeps_a_place_until_then() {
    let (shelf, clock) = shelf(400_000_000, &[("a", 400_000_000), ("b", 400_000_000), ("c", 1)]);
    drop(bring(&shelf, "a"));
    let waiting = wait(&shelf, "b");
    assert_eq!(next(&shelf), unload("a"));
    let told = waiting.come_back();
    drop(waiting);
    shelf.left("a");
    assert_eq!(next(&shelf), load("b"), "a has not left for nothing");
    clock.advance(told);
    shelf.loaded("b");
    let in_use = use_it(&shelf, "b");
    // Who does not come back holds nobody up.
    let waiting = [wait(&shelf, "a"), wait(&shelf, "c")];
    let [gone, _stays] = waiting;
    let until = gone.come_back() + Duration::from_secs(5);
    drop(gone);
    clock.advance(until - Duration::from_millis(1));
    assert_eq!(shelf.open().next_turn(clock.now()), Some(clock.now() + Duration::from_millis(1)));
    clock.advance(Duration::from_millis(1));
    drop(in_use);
    assert_eq!(next(&shelf), unload("b"));
    shelf.left("b");
    assert_eq!([next(&shelf), next(&shelf)], [load("c"), None]);
}

#[test]
fn whoever_waits_learns_what_holds_the_room() {
    let (shelf, _) = shelf(30, &[("a", 10), ("b", 10), ("c", 20), ("d", 10)]);
    let in_use = [bring(&shelf, "a"), bring(&shelf, "b")];
    assert_eq!(wait(&shelf, "c").held_up(), Some(HeldUp::ByUse));
    ["a", "b"].iter().for_each(|model| shelf.pin(model).unwrap());
    drop(in_use);
    let waiting = wait(&shelf, "c");
    assert_eq!(waiting.held_up(), Some(HeldUp::ByPins));
    assert_eq!(wait(&shelf, "d").held_up(), None, "there is room beside the pinned ones");
    shelf.unpin("a").unwrap();
    assert_eq!(waiting.held_up(), None, "it makes room");
}

#[test]
fn a_failure_is_told_until_the_files_change_or_somebody_forgives_it() {
    let (shelf, _) = shelf(10, &[("a", 10), ("huge", 11)]);
    assert!(matches!(shelf.ask("huge"), Some(Asked::Failed(why)) if why.contains("--model-memory")));
    let _waiting = wait(&shelf, "a");
    assert_eq!(next(&shelf), load("a"));
    shelf.failed("a", "a shard is missing");
    let why = |shelf: &Shelf| shelf.row("a").unwrap().why;
    assert_eq!((state(&shelf, "a"), why(&shelf).as_deref()), (ShelfState::Failed, Some("a shard is missing")));
    assert!(matches!(shelf.ask("a"), Some(Asked::Failed(_))));
    shelf.forgive("a").unwrap();
    let _again = wait(&shelf, "a");
    assert_eq!(next(&shelf), load("a"));
    shelf.failed("a", "a shard is missing");
    shelf.offer("a", size(9));
    assert_eq!(state(&shelf, "a"), ShelfState::Available);
}

#[test]
fn a_load_that_fails_while_the_files_change_says_nothing_of_the_new_ones() {
    let (shelf, _) = shelf(10, &[("a", 10)]);
    let _waiting = wait(&shelf, "a");
    // What changes before the load begins is what is loaded.
    shelf.offer("a", size(8));
    assert_eq!(next(&shelf), load("a"));
    shelf.offer("a", size(9));
    shelf.failed("a", "a shard is missing");
    assert_eq!(next(&shelf), load("a"), "somebody still waits");
    assert_eq!(shelf.memory().held_bytes, 9);
    shelf.failed("a", "a shard is missing");
    assert_eq!((next(&shelf), state(&shelf, "a")), (None, ShelfState::Failed));
}

#[test]
fn what_is_gone_from_the_disk_stays_until_it_is_evicted() {
    let (shelf, _) = shelf(10, &[("a", 10), ("b", 10)]);
    drop(bring(&shelf, "a"));
    shelf.withdraw("a");
    drop(use_it(&shelf, "a"));
    let _waiting = wait(&shelf, "b");
    assert_eq!(next(&shelf), unload("a"));
    shelf.left("a");
    assert!(shelf.ask("a").is_none() && shelf.row("a").is_none());
}

#[test]
fn a_model_that_takes_more_than_was_thought_is_let_go_where_there_is_no_more() {
    let (shelf, _) = shelf(20, &[("a", 8), ("b", 10)]);
    let _waiting = [wait(&shelf, "a"), wait(&shelf, "b")];
    assert_eq!(next(&shelf), load("a"));
    assert_eq!(shelf.weighed("a", 10), Ok(()));
    assert_eq!(shelf.weighed("a", 11), Err(TooLarge { bytes: 11 }));
    assert_eq!(shelf.memory().most_held_bytes, 20);
}

#[test]
fn a_model_that_was_too_large_beside_the_others_comes_when_they_leave() {
    let (shelf, _) = shelf(20, &[("a", 8), ("b", 10)]);
    let b = bring(&shelf, "b");
    let _waiting = wait(&shelf, "a");
    assert_eq!(next(&shelf), load("a"));
    assert_eq!(shelf.weighed("a", 11), Err(TooLarge { bytes: 11 }));
    shelf.failed("a", "no room");
    assert_eq!((next(&shelf), state(&shelf, "a")), (None, ShelfState::Available), "b is used");
    drop(b);
    assert_eq!(next(&shelf), unload("b"));
    shelf.left("b");
    assert_eq!(next(&shelf), load("a"));
    assert_eq!(shelf.weighed("a", 11), Ok(()));
    assert_eq!(shelf.weighed("a", 21), Err(TooLarge { bytes: 21 }));
    shelf.failed("a", "no room");
    assert!(matches!(shelf.ask("a"), Some(Asked::Failed(why)) if why.contains("--model-memory")));
}

#[test]
fn an_estimate_counts_those_that_come_first() {
    let (shelf, clock) = shelf(1 << 40, &[("a", 400_000_000), ("b", 200_000_000)]);
    let waiting = [wait(&shelf, "a"), wait(&shelf, "b")];
    assert_eq!(next(&shelf), load("a"));
    assert_eq!(waiting.each_ref().map(Waiting::expected), [2, 3].map(Duration::from_secs));
    clock.advance(Duration::from_secs(1));
    assert_eq!(waiting.each_ref().map(Waiting::expected), [1, 2].map(Duration::from_secs));
    clock.advance(Duration::from_secs(3));
    shelf.loaded("a");
    let expected = waiting[1].expected().as_secs_f64();
    assert!((2.0..2.1).contains(&expected), "by the 100 MB a second that were measured: {expected}");
}

#[tokio::test]
async fn those_who_wait_are_told_and_do_not_wake_each_other() {
    let (shelf, _) = shelf(10, &[("a", 10)]);
    let mut waiting = wait(&shelf, "a");
    waiting.changed().await;
    let other = wait(&shelf, "a");
    assert!(!waiting.changes.has_changed().unwrap(), "a question is no news");
    drop(other);
    assert_eq!(next(&shelf), load("a"));
    shelf.loaded("a");
    waiting.changed().await;
}

/// Users come and go, loads end when they end, and the disk changes; what must hold is looked at after every step.
#[test]
fn whatever_happens_the_memory_holds_and_nobody_waits_for_ever() {
    const MEMORY: u64 = 30;
    for seed in 0..200 {
        let chance = Chance::new(seed);
        let draw = |below: u64| chance.draw() % below;
        let models: Vec<(String, u64)> = (0..12).map(|index| (format!("m{index}"), 5 + draw(8))).collect();
        let (shelf, clock) = shelf(MEMORY, &[]);
        models.iter().for_each(|(model, bytes)| shelf.offer(model, size(*bytes)));
        let (mut in_use, mut waiting): (Vec<InUse>, Vec<Waiting>) = Default::default();
        let mut at_work: Vec<Order> = Vec::new();
        let mut resident = BTreeMap::<String, u64>::new();
        let obey = |order: Order, resident: &mut BTreeMap<String, u64>| match order {
            Order::Load(model) => {
                let bytes = models.iter().find(|(name, _)| *name == model).unwrap().1;
                resident.insert(model.clone(), bytes);
                assert!(resident.values().sum::<u64>() <= MEMORY, "seed {seed}");
                shelf.loaded(&model);
            }
            Order::Unload(model) => {
                assert!(!in_use_names(&shelf).contains(&model), "seed {seed}: {model} is used");
                resident.remove(&model).expect("it was loaded");
                shelf.left(&model);
            }
        };
        for _ in 0..400 {
            match draw(5) {
                0 | 1 if in_use.len() + waiting.len() < 8 => match shelf.ask(&models[draw(12) as usize].0) {
                    Some(Asked::Ready(used)) => in_use.push(used),
                    Some(Asked::Coming(place)) => waiting.push(place),
                    other => panic!("{other:?}"),
                },
                2 if !in_use.is_empty() => drop(in_use.swap_remove(draw(in_use.len() as u64) as usize)),
                3 => at_work.extend(next(&shelf)),
                _ => at_work.pop().into_iter().for_each(|order| obey(order, &mut resident)),
            }
            // Whoever waited uses what has come.
            for place in std::mem::take(&mut waiting) {
                match shelf.ask(&place.model) {
                    Some(Asked::Ready(used)) => in_use.push(used),
                    Some(Asked::Coming(again)) => waiting.push(again),
                    other => panic!("{other:?}"),
                }
            }
            assert!(shelf.memory().most_held_bytes <= MEMORY);
        }
        // Once nobody comes any more, everybody who waits is served.
        for _ in 0..200 {
            clock.advance(Duration::from_secs(6));
            drop(in_use.pop());
            at_work.extend(next(&shelf));
            at_work.pop().into_iter().for_each(|order| obey(order, &mut resident));
            waiting.retain(|place| match shelf.ask(&place.model) {
                Some(Asked::Ready(_)) => false,
                Some(Asked::Coming(_)) => true,
                other => panic!("{other:?}"),
            });
        }
        assert!(waiting.is_empty(), "seed {seed}: {waiting:?}");
    }
}

fn in_use_names(shelf: &Shelf) -> BTreeSet<String> {
    shelf.rows().into_iter().filter(|row| row.uses > 0).map(|row| row.model).collect()
}
