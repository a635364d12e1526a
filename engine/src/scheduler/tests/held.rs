//! Prompts that begin alike and come together.

use super::*;

#[test]
fn prompts_that_begin_alike_and_come_together_compute_what_they_share_once() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 20, ..config() });
    let shared: Vec<_> = (0..20).collect();
    for arrival in 0..3 {
        bench.add_request(request(arrival, &[&shared[..], &[1000 + arrival as u32, 1]].concat()));
    }
    bench.add(3, 5);
    // The first computes what all begin with, beside one that begins otherwise and overtakes those that wait for it.
    assert_eq!(bench.step(), [(0, 11), (3, 5)]);
    assert_eq!(bench.step(), [(0, 4), (3, 1)]);
    assert_eq!(bench.step(), [(0, 4), (3, 1)]);
    assert_eq!(bench.step(), [(0, 3), (3, 1)]);
    // The others find it and compute the rest: two tokens.
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 2), (3, 1)]);
    assert_eq!(bench.scheduler.cache().prefix_totals().hit_tokens, 40);
}

#[test]
fn who_waits_for_what_another_computes_goes_on_when_that_one_leaves() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 40, ..config() });
    let shared: Vec<_> = (0..20).collect();
    for arrival in 0..2 {
        bench.add_request(request(arrival, &[&shared[..], &[1000 + arrival as u32]].concat()));
    }
    assert_eq!(bench.step(), [(0, 16)]);
    bench.remove(0);
    assert!(bench.scheduler.has_work() && !bench.scheduler.is_empty());
    // What the first had computed stays.
    assert_eq!(bench.step(), [(1, 5)]);
    bench.add_request(request(2, &[&shared[..], &[7; 9]].concat()));
    bench.add_request(request(3, &[&shared[..], &[7; 10]].concat()));
    assert_eq!(bench.step(), [(1, 1), (2, 4)]);
    // It waits beside the queue, and can be taken out there.
    assert_eq!(bench.scheduler.extract(|sequence| sequence.id == id(3)).len(), 1);
    assert_eq!(bench.step(), [(1, 1), (2, 4)]);
}

#[test]
fn nobody_waits_for_one_that_computes_anew_what_is_cached() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 40, ..config() });
    let prompt: Vec<_> = (0..14).collect();
    bench.add_request(request(0, &prompt));
    bench.step();
    bench.remove(0);
    let longer = [&prompt[..], &[1; 9]].concat();
    let sampling = SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::default() };
    bench.add_request(crate::Request { sampling, ..request(1, &longer) });
    bench.add_request(request(2, &longer));
    let stepped = bench.step();
    assert!(stepped.iter().any(|&(arrival, _)| arrival == 2), "{stepped:?}");
}

#[test]
fn nobody_waits_for_what_a_worse_class_computes() {
    let mut bench = Bench::new(config());
    let prompt: Vec<_> = (0..30).collect();
    let of = |class, arrival| crate::Request { class, ..request(arrival, &prompt) };
    bench.add_request(of(Class::Batch, 0));
    assert_eq!(bench.step(), [(0, 16)]);
    bench.add_request(of(Class::Standard, 1));
    let stepped = bench.step();
    assert!(stepped.iter().any(|&(arrival, tokens)| arrival == 1 && tokens > 0), "{stepped:?}");
}

#[test]
fn a_class_whose_only_request_left_while_it_was_held_is_not_overdue_when_the_next_one_comes() {
    let patience = Duration::from_secs(5);
    let two_places = EngineConfig { num_kv_blocks: 40, max_num_seqs: 2, class_patience: patience, ..config() };
    let mut bench = Bench::new(two_places);
    let prompt: Vec<_> = (0..30).collect();
    bench.add_request(request(0, &prompt));
    bench.add_request(crate::Request { class: Class::Batch, ..request(1, &prompt) });
    assert_eq!(bench.step(), [(0, 16)]);
    assert_eq!(bench.step(), [(0, 14)], "the other waits for it");
    assert_eq!(bench.scheduler.extract(|sequence| sequence.id.arrival == 1).len(), 1);
    bench.now += patience;
    bench.add(2, 2);
    bench.add_of_class(Class::Batch, 3, 2);
    assert_eq!(bench.step(), [(0, 1), (2, 2)]);
}
