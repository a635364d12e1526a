use super::*;
use crate::request::ShareKey;

const QUANTUM: CostNs = 10;
const PATIENCE: Duration = Duration::from_secs(30);
const A: Share = share(1);
const B: Share = share(2);

const fn share(key: u64) -> Share {
    Share { class: Class::Standard, key: ShareKey(key) }
}

const fn id(arrival: u64) -> SequenceId {
    SequenceId { class: Class::Standard, arrival, choice: 0 }
}

/// The queue at a time that stands still unless a test says otherwise.
struct Bench {
    queue: WaitingQueue<u64>,
    now: Duration,
}

impl Bench {
    fn new(items: &[(Share, u64)]) -> Self {
        let mut bench = Self { queue: WaitingQueue::new(QUANTUM, PATIENCE), now: Duration::ZERO };
        items.iter().for_each(|&(share, arrival)| bench.arrive(share, arrival));
        bench
    }

    /// Request 0 of class batch waits in the share that is told; one of B had a turn before it.
    fn with_batch_passed_over() -> (Self, Share) {
        let batch = Share { class: Class::Batch, ..A };
        let mut bench = Self::new(&[(batch, 0), (B, 1)]);
        assert_eq!(bench.next(), Some(1));
        (bench, batch)
    }

    fn arrive(&mut self, share: Share, arrival: u64) {
        self.queue.enter(share);
        self.queue.push(share, SequenceId { class: share.class, ..id(arrival) }, arrival);
    }

    fn charge(&mut self, share: Share, cost: CostNs) {
        self.queue.charge(share, ShareWeight::default(), cost);
    }

    /// Items above 1000 have that much of their prefix cached.
    fn next(&mut self) -> Option<u64> {
        let shown = self.queue.peek(self.now, |item| *item as usize / 1000).copied()?;
        let taken = self.queue.pop(self.now).unwrap();
        assert_eq!(shown, taken.item);
        Some(shown)
    }

    fn order(mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.next()).collect()
    }

    fn credit(&self, share: Share) -> i64 {
        self.queue.accounts[&share].credit
    }
}

#[test]
fn one_share_is_served_by_arrival() {
    assert_eq!(Bench::new(&[(A, 0), (A, 1), (A, 2)]).order(), [0, 1, 2]);
}

#[test]
fn a_share_that_has_used_its_credit_waits_for_the_others_however_long_its_backlog() {
    let mut bench = Bench::new(&[(A, 0), (A, 1), (A, 2), (B, 3), (B, 4), (B, 5)]);
    let mut order = Vec::new();
    for cost in [100, 30, 30, 50, 50] {
        let next = bench.next().unwrap();
        bench.charge(if next < 3 { A } else { B }, cost);
        order.push(next);
    }
    // B goes on until it has been served as much as A, to the quantum.
    assert_eq!(order, [0, 3, 4, 5, 1]);
}

#[test]
fn a_credit_never_exceeds_the_quantum_and_silence_earns_none() {
    let mut bench = Bench::new(&[(A, 0), (A, 1), (A, 2)]);
    bench.queue.enter(B);
    for _ in 0..2 {
        bench.next();
        bench.charge(A, 1000);
    }
    assert_eq!(bench.credit(B), 0);
    bench.arrive(B, 3);
    assert_eq!(bench.next(), Some(3));
    bench.charge(B, 1);
    assert!(bench.credit(B) <= QUANTUM as i64);
}

#[test]
fn twice_the_weight_is_served_twice_as_much() {
    let mut bench = Bench::new(&[]);
    (0..60).for_each(|arrival| bench.arrive(if arrival % 2 == 0 { A } else { B }, arrival));
    let two = ShareWeight(2.try_into().unwrap());
    let mut served = [0, 0];
    for _ in 0..30 {
        let next = bench.next().unwrap() as usize % 2;
        let (share, weight) = [(A, two), (B, ShareWeight::default())][next];
        bench.queue.charge(share, weight, 100);
        served[next] += 1;
    }
    assert_eq!(served, [20, 10]);
}

#[test]
fn a_backlogged_share_runs_however_many_come_and_go() {
    let mut bench = Bench::new(&[(A, 0), (A, 1)]);
    assert_eq!(bench.next(), Some(0));
    bench.charge(A, 50);
    // Single requests of ever new shares, each there before the last one leaves.
    bench.arrive(share(100), 100);
    let served = (101..130).find(|&arrival| {
        bench.arrive(share(arrival), arrival);
        let next = bench.next().unwrap();
        if next >= 100 {
            bench.charge(share(next), 5);
            bench.queue.leave(share(next));
        }
        next == 1
    });
    assert!(served.is_some(), "share A starves");
}

#[test]
fn a_debt_outlives_the_share_but_not_the_busy_time() {
    let mut bench = Bench::new(&[(A, 0), (B, 1), (B, 2)]);
    bench.next();
    bench.charge(A, 500);
    bench.queue.leave(A);
    bench.arrive(A, 3);
    assert!(bench.credit(A) < -400);
    (1..4).for_each(|_| _ = bench.next());
    [A, B, B].into_iter().for_each(|share| bench.queue.leave(share));
    assert!(bench.queue.accounts.is_empty());
}

#[test]
fn a_longer_cached_prefix_goes_first_within_the_credit_and_passes_over_so_often_at_most() {
    let mut bench = Bench::new(&[(A, 0), (B, 1)]);
    (0..2 * MAX_PASSED_OVER as u64).for_each(|arrival| bench.arrive(A, 5000 + arrival));
    let order: Vec<_> = (0..MAX_PASSED_OVER + 1).map(|_| bench.next().unwrap()).collect();
    let last = order.len() - 1;
    assert!(order[..last].iter().all(|&item| item >= 5000), "{order:?}");
    assert!(order[last] < 2, "{order:?}");
    let mut spent = Bench::new(&[(B, 1), (A, 5000), (A, 5001)]);
    assert_eq!(spent.next(), Some(5000));
    spent.charge(A, 100);
    assert_eq!(spent.next(), Some(1), "a share without credit is not eligible");
}

#[test]
fn preempted_items_come_first_oldest_first() {
    let mut bench = Bench::new(&[(A, 5)]);
    bench.queue.push_preempted(A, id(4), 4);
    bench.queue.push_preempted(A, id(2), 2);
    assert_eq!(bench.order(), [2, 4, 5]);
}

#[test]
fn whoever_was_chosen_keeps_its_turn_but_not_before_a_better_class() {
    let mut bench = Bench::new(&[(A, 0)]);
    bench.queue.peek(bench.now, |_| 0);
    bench.arrive(A, 5000);
    assert_eq!(bench.next(), Some(0));
    bench.queue.peek(bench.now, |_| 0);
    bench.arrive(Share { class: Class::Interactive, ..B }, 7);
    assert_eq!(bench.order(), [7, 5000]);
}

#[test]
fn a_better_class_goes_first_until_the_others_patience_is_over() {
    let batch = Share { class: Class::Batch, ..A };
    let mut bench = Bench::new(&[(batch, 0), (batch, 1), (B, 2), (B, 3), (B, 4)]);
    bench.queue.push_preempted(batch, SequenceId { class: Class::Batch, ..id(9) }, 9);
    assert_eq!(bench.next(), Some(2));
    bench.now += PATIENCE;
    assert_eq!(bench.next(), Some(9), "in its class, preempted ones go first");
    assert_eq!(bench.next(), Some(3));
    bench.now += PATIENCE;
    bench.queue.peek(bench.now, |_| 0);
    assert_eq!(bench.queue.pop(bench.now).unwrap().class, Class::Standard, "it runs above its class");
    assert_eq!(bench.next(), Some(4));
    assert_eq!(bench.next(), Some(1));
}

#[test]
fn the_patience_of_a_class_begins_when_it_begins_to_wait() {
    let (mut bench, batch) = Bench::with_batch_passed_over();
    assert_eq!(bench.queue.extract(|_| true), [0], "its reader has left");
    bench.queue.leave(batch);
    bench.now += PATIENCE;
    bench.arrive(batch, 2);
    bench.arrive(B, 3);
    assert_eq!(bench.next(), Some(3));
}

#[test]
fn the_patience_of_a_class_ends_when_its_only_request_leaves_from_where_it_was_set_aside() {
    let (mut bench, batch) = Bench::with_batch_passed_over();
    bench.queue.peek(bench.now, |_| 0);
    assert!(bench.queue.set_aside().is_some());
    bench.queue.forget_aside(batch);
    bench.queue.leave(batch);
    bench.now += PATIENCE;
    bench.arrive(batch, 2);
    bench.arrive(B, 3);
    assert_eq!(bench.next(), Some(3));
}

#[test]
fn a_class_whose_only_request_is_set_aside_keeps_its_patience_when_others_leave() {
    let (mut bench, batch) = Bench::with_batch_passed_over();
    bench.queue.peek(bench.now, |_| 0);
    let aside = bench.queue.set_aside().unwrap();
    bench.arrive(B, 2);
    assert_eq!(bench.queue.extract(|&item| item == 2), [2]);
    bench.queue.leave(B);
    bench.queue.put_back(batch, aside);
    bench.now += PATIENCE;
    bench.arrive(B, 3);
    assert_eq!(bench.next(), Some(0));
}

#[test]
fn turns_that_are_further_apart_than_patience_do_not_turn_the_classes_round() {
    let batch = Share { class: Class::Batch, key: ShareKey(1) };
    let mut bench = Bench::new(&[(batch, 0), (batch, 1), (batch, 2), (B, 3), (B, 4), (B, 5)]);
    let mut order = Vec::new();
    while let Some(item) = bench.next() {
        order.push(item);
        bench.now += PATIENCE;
    }
    assert_eq!(order, [3, 0, 4, 1, 5, 2], "the better class first, and then in turn");
}

#[test]
fn what_ran_before_stands_among_its_shares_others_by_its_age() {
    let mut bench = Bench::new(&[(A, 2), (B, 3), (A, 4)]);
    bench.arrive(A, 0);
    bench.arrive(A, 1);
    assert_eq!(bench.order(), [0, 1, 2, 3, 4]);
}

#[test]
fn nobody_is_passed_over_more_often_because_an_older_one_comes_again_and_again() {
    let mut bench = Bench::new(&[(A, 1)]);
    let served = (0..3 * u64::from(MAX_PASSED_OVER)).find(|&younger| {
        bench.arrive(A, 0);
        assert_eq!(bench.next(), Some(0), "it was parked and has more to say");
        bench.arrive(A, 5000 + younger);
        bench.next() == Some(1)
    });
    assert_eq!(served, Some(MAX_PASSED_OVER.into()));
}

#[test]
fn a_class_that_waits_alone_is_overdue_too_when_better_ones_went_on_before_it_for_long() {
    let batch = Share { class: Class::Batch, ..A };
    let mut bench = Bench::new(&[(batch, 0)]);
    bench.queue.peek(bench.now, |_| 0);
    bench.queue.note_turn(Class::Standard, bench.now);
    bench.now += PATIENCE;
    bench.queue.peek(bench.now, |_| 0);
    assert_eq!(bench.queue.head_class(), Some(Class::Standard));
    bench.queue.pop(bench.now).unwrap();
    bench.arrive(batch, 1);
    bench.queue.peek(bench.now, |_| 0);
    assert_eq!(bench.queue.head_class(), Some(Class::Batch), "its patience begins anew");
}

#[test]
fn extracted_items_are_gone_and_a_share_is_forgotten_with_its_last_request() {
    let mut bench = Bench::new(&[(A, 0), (A, 1), (B, 2)]);
    bench.queue.push_preempted(A, id(7), 7);
    let mut taken = bench.queue.extract(|&item| item == 0 || item == 2 || item == 7);
    taken.sort_unstable();
    assert_eq!(taken, [0, 2, 7]);
    bench.queue.leave(B);
    assert!(!bench.queue.accounts.contains_key(&B));
    assert_eq!(bench.order(), [1]);
}
