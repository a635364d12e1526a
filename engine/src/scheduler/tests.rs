use passerelle_models::KvReach;

use super::*;
use crate::config::AddedLatency;
use crate::event_stream::EventStream;
use crate::fixtures::{kv_cache, request, sequence};
use crate::request::{Class, SamplingParams, ShareKey};

mod held;
mod pace;
mod streams;

/// Ten blocks of four tokens, and a model that answers with tokens nobody else has.
struct Bench {
    scheduler: Scheduler,
    streams: Vec<EventStream>,
    now: Duration,
}

fn id(arrival: u64) -> SequenceId {
    SequenceId { class: Class::Standard, arrival, choice: 0 }
}

fn config() -> EngineConfig {
    EngineConfig {
        num_kv_blocks: 10,
        max_num_seqs: 4,
        max_num_batched_tokens: 16,
        prefill_chunk_tokens: 4,
        prompt_logprobs_chunk_tokens: 3,
        ..EngineConfig::default()
    }
}

impl Bench {
    fn new(config: EngineConfig) -> Self {
        let costs = config.costs.unwrap();
        Self {
            scheduler: Scheduler::new(config, costs, kv_cache(4, &[KvReach::Full])),
            streams: Vec::new(),
            now: Duration::ZERO,
        }
    }

    fn add(&mut self, id: u64, prompt_len: usize) {
        self.add_for(ShareKey(0), id, prompt_len);
    }

    fn add_for(&mut self, share_key: ShareKey, id: u64, prompt_len: usize) {
        let prompt: Vec<_> = (0..prompt_len as u32).map(|token| id as u32 * 1000 + token).collect();
        self.add_request(crate::Request { share_key, ..request(id, &prompt) });
    }

    /// What ran: `(id, tokens)`.
    fn step(&mut self) -> Vec<(u64, usize)> {
        let batch = self.scheduler.schedule(self.now);
        self.scheduler.check_integrity();
        self.finish(&batch)
    }

    fn finish(&mut self, batch: &ScheduledBatch) -> Vec<(u64, usize)> {
        for scheduled in &batch.sequences {
            let samples = self.scheduler.sequence(scheduled.id).unwrap().samples_next();
            let sequence = self.scheduler.advance(scheduled.id).unwrap();
            if samples {
                sequence.append(900_000 + sequence.tokens().len() as u32).unwrap();
            }
        }
        self.scheduler.check_integrity();
        batch.sequences.iter().map(|scheduled| (scheduled.id.arrival, scheduled.num_tokens)).collect()
    }

    fn sequence(&self, arrival: u64) -> &Sequence {
        self.scheduler.sequence(id(arrival)).unwrap()
    }

    fn sequence_of(&self, class: Class, arrival: u64) -> &Sequence {
        self.scheduler.sequence(of_class(class, arrival)).unwrap()
    }

    fn table(&self, arrival: u64) -> Vec<u32> {
        self.sequence(arrival).block_tables[0].iter().map(|block| block.0).collect()
    }

    fn remove(&mut self, arrival: u64) {
        self.scheduler.remove(id(arrival), Prefixes::Keep).unwrap();
    }
}

#[test]
fn a_long_prompt_is_cut_so_that_a_stream_moves_at_every_step() {
    let mut bench = Bench::new(config());
    bench.add(0, 3);
    assert_eq!(bench.step(), [(0, 3)]);
    bench.add(1, 12);
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
}

#[test]
fn prompts_take_the_whole_budget_while_nobody_generates() {
    let mut bench = Bench::new(config());
    bench.add(0, 20);
    bench.add(1, 9);
    assert_eq!(bench.step(), [(0, 8), (1, 8)]);
    assert_eq!(bench.step(), [(0, 4), (1, 1)]);
}

#[test]
fn a_short_prompt_does_not_wait_for_long_ones() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 100, ..config() });
    bench.add(0, 1);
    bench.step();
    bench.add(1, 150);
    bench.add(2, 150);
    bench.step();
    bench.add(3, 2);
    // Half of the chunk of four goes to the oldest, half of the rest to the next, and what is left to the new one.
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 1), (3, 1)]);
    bench.step();
    assert_eq!(bench.sequence(3).num_generated(), 1);
}

#[test]
fn what_nobody_else_can_use_goes_to_the_oldest() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 10, ..config() });
    bench.add(0, 30);
    bench.add(1, 30);
    // The second one wants half of the step, but finds no blocks.
    assert_eq!(bench.step(), [(0, 16)]);
}

#[test]
fn blocks_that_running_sequences_need_next_are_not_given_away() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 64, ..config() });
    // Three full blocks each; both need another one in the next step.
    bench.add(0, 12);
    bench.add(1, 12);
    bench.step();
    bench.add(2, 9);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    assert_eq!(bench.scheduler.num_resuming(), 0);
}

#[test]
fn running_prompts_go_before_new_ones_and_share_the_chunk() {
    let mut bench = Bench::new(config());
    bench.add(0, 1);
    bench.step();
    bench.add(1, 6);
    bench.add(2, 6);
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 2)]);
    // What is left is all that the first needs.
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 4)]);
}

#[test]
fn no_more_sequences_run_than_may() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 2, ..config() });
    (0..3).for_each(|id| bench.add(id, 2));
    assert_eq!(bench.step(), [(0, 2), (1, 2)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    bench.remove(0);
    assert_eq!(bench.step(), [(1, 1), (2, 2)]);
}

#[test]
fn the_youngest_gives_its_blocks_to_the_oldest_and_resumes_from_its_cached_prefix() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 64, ..config() });
    bench.add(0, 19);
    bench.add(1, 16);
    assert_eq!(bench.step(), [(0, 19), (1, 16)]);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    assert_eq!((bench.table(0), bench.table(1)), (vec![0, 1, 2, 3, 4], vec![5, 6, 7, 8, 9]));
    // Sequence 0 needs a sixth block: the one that 1 had only begun goes first.
    assert_eq!(bench.step(), [(0, 1)]);
    assert_eq!(bench.table(0), [0, 1, 2, 3, 4, 9]);
    assert_eq!((bench.scheduler.num_resuming(), bench.scheduler.num_running()), (1, 1));
    assert_eq!(bench.step(), [(0, 1)]);
    bench.remove(0);
    // Sixteen of its eighteen tokens stand in the cache; its generated token is not lost.
    assert_eq!(bench.step(), [(1, 2)]);
    assert_eq!(bench.table(1)[..4], [5, 6, 7, 8]);
    assert_eq!(bench.sequence(1).num_generated(), 3);
}

#[test]
fn a_preempted_sequence_resumes_before_new_requests_and_in_its_old_place() {
    let mut bench = Bench::new(EngineConfig { max_num_batched_tokens: 64, ..config() });
    bench.add(0, 19);
    bench.add(1, 16);
    (0..3).for_each(|_| drop(bench.step()));
    bench.add(2, 4);
    // The new request would fit, but nobody overtakes.
    assert_eq!(bench.step(), [(0, 1)]);
    bench.remove(0);
    assert_eq!(bench.step(), [(1, 2), (2, 4)]);
}

#[test]
fn the_share_key_served_least_is_admitted_next() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, ..config() });
    (0..3).for_each(|id| bench.add_for(ShareKey(1), id, 4));
    bench.add_for(ShareKey(2), 3, 4);
    assert_eq!(bench.step(), [(0, 4)]);
    bench.remove(0);
    assert_eq!(bench.step(), [(3, 4)]);
    bench.remove(3);
    assert_eq!(bench.step(), [(1, 4)]);
}

#[test]
fn a_prompt_whose_logprobs_are_wanted_runs_in_small_chunks() {
    let mut bench = Bench::new(config());
    let mut asking = request(0, &[1, 2, 3, 4, 5, 6, 7]);
    asking.sampling = SamplingParams { prompt_logprobs: Some(1), ..asking.sampling };
    let (sequence, stream) = sequence(asking);
    bench.scheduler.add(sequence);
    bench.streams.push(stream);
    let batch = bench.scheduler.schedule(Duration::ZERO);
    assert_eq!(batch.sequences[0].num_tokens, 3);
    let sequence = bench.sequence(0);
    assert_eq!(sequence.prompt_logprob_positions(), 0..3);
    assert_eq!(bench.scheduler.advance(id(0)).unwrap().num_computed, 3);
}

#[test]
fn rows_of_prompt_logprobs_are_bounded_over_the_whole_step() {
    let mut bench = Bench::new(EngineConfig { prefill_chunk_tokens: 16, ..config() });
    for id in 0..3 {
        let mut asking = request(id, &[1, 2, 3, 4, 5, 6, 7]);
        asking.sampling = SamplingParams { prompt_logprobs: Some(1), ..asking.sampling };
        let (sequence, stream) = sequence(asking);
        bench.scheduler.add(sequence);
        bench.streams.push(stream);
    }
    // Two of three rows for the oldest, the last for the next, none for the third.
    assert_eq!(bench.step(), [(0, 2), (1, 1)]);
    assert_eq!(bench.step(), [(0, 2), (1, 1)]);
}

#[test]
fn a_prompt_for_whose_logprobs_no_row_is_left_holds_up_nobody_and_comes_first_once_there_is() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 40, prefill_chunk_tokens: 16, ..config() });
    let asking = |arrival: u64| {
        let sampling = SamplingParams { prompt_logprobs: Some(1), ..SamplingParams::default() };
        crate::Request { sampling, ..request(arrival, &[arrival as u32 + 1, 2, 3, 4]) }
    };
    (0..3).for_each(|arrival| bench.add_request(asking(arrival)));
    bench.add(3, 2);
    assert_eq!(bench.step(), [(0, 2), (1, 1), (3, 2)]);
    assert!(bench.scheduler.has_work());
    assert!(bench.step().iter().all(|&(arrival, _)| arrival != 2));
    let stepped = bench.step();
    assert!(stepped.iter().any(|&(arrival, _)| arrival == 2), "the first needs no rows any more: {stepped:?}");
}

#[test]
fn extracted_sequences_give_their_blocks_back_wherever_they_are() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 2, ..config() });
    (0..4).for_each(|id| bench.add(id, 5));
    bench.step();
    let taken = bench.scheduler.extract(|sequence| [0, 3].contains(&sequence.id.arrival));
    assert_eq!(taken.len(), 2);
    bench.scheduler.check_integrity();
    assert_eq!(bench.scheduler.cache().pool().num_free(), 8);
    assert_eq!(bench.step(), [(1, 1), (2, 4)]);
    assert_eq!(bench.scheduler.extract(|_| true).len(), 2);
    assert!(bench.scheduler.is_empty());
    assert_eq!(bench.scheduler.cache().pool().num_free(), 10);
}

fn of_class(class: Class, arrival: u64) -> SequenceId {
    SequenceId { class, arrival, choice: 0 }
}

impl Bench {
    fn add_of_class(&mut self, class: Class, id: u64, prompt_len: usize) {
        let prompt: Vec<_> = (0..prompt_len as u32).map(|token| id as u32 * 1000 + token).collect();
        self.add_request(crate::Request { class, ..request(id, &prompt) });
    }

    fn add_request(&mut self, request: crate::Request) {
        let (sequence, stream) = sequence(request);
        self.scheduler.add(sequence);
        self.streams.push(stream);
    }
}

#[test]
fn batch_gives_its_places_and_blocks_to_a_better_class_and_takes_what_is_left() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 2, ..config() });
    bench.add_of_class(Class::Batch, 0, 4);
    bench.add_of_class(Class::Batch, 1, 4);
    assert_eq!(bench.step(), [(0, 4), (1, 4)]);
    bench.add_of_class(Class::Interactive, 2, 3);
    // The younger one goes; the interactive one runs first from now on.
    assert_eq!(bench.step(), [(2, 3), (0, 1)]);
    assert_eq!((bench.scheduler.num_resuming(), bench.scheduler.num_running()), (1, 2));
    bench.scheduler.remove(of_class(Class::Interactive, 2), Prefixes::Keep).unwrap();
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
}

#[test]
fn batch_gives_nothing_to_a_better_class_that_would_not_fit_without_it_either() {
    let mut bench = Bench::new(config());
    bench.add_of_class(Class::Standard, 0, 15);
    assert_eq!(bench.step(), [(0, 15)]);
    bench.add_of_class(Class::Batch, 1, 4);
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    // Of ten blocks the first holds four and will soon want one more; with those of batch there are five for these seven.
    bench.add_of_class(Class::Standard, 2, 28);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    assert_eq!((bench.scheduler.num_resuming(), bench.scheduler.num_running()), (0, 2));
}

#[test]
fn a_batch_prompt_gets_only_the_budget_that_a_better_class_leaves() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 40, ..config() });
    bench.add_of_class(Class::Batch, 0, 60);
    assert_eq!(bench.step(), [(0, 16)]);
    bench.add_of_class(Class::Standard, 1, 14);
    assert_eq!(bench.step(), [(1, 14), (0, 2)]);
}

#[test]
fn batch_catches_up_with_what_better_classes_leave_however_long_those_do() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 80, ..config() });
    bench.add_of_class(Class::Batch, 0, 60);
    assert_eq!(bench.step(), [(0, 16)]);
    bench.add_of_class(Class::Standard, 1, 40);
    bench.add_of_class(Class::Batch, 2, 40);
    assert_eq!(bench.step(), [(1, 16)]);
    assert_eq!(bench.step(), [(1, 16)]);
    assert_eq!(bench.step(), [(1, 8), (0, 8)]);
    // Beside a stream, the chunk of four is batch's, in halves.
    assert_eq!(bench.step(), [(1, 1), (0, 2), (2, 2)]);
}

#[test]
fn a_batch_stream_gives_its_token_to_a_better_class_where_streams_take_all() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 4, max_num_batched_tokens: 4, ..config() });
    (0..4).for_each(|id| bench.add_of_class(Class::Batch, id, 1));
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1), (3, 1)]);
    bench.add_of_class(Class::Interactive, 4, 2);
    // While it catches up one of batch moves, and then as many as there are better ones.
    assert_eq!(bench.step(), [(4, 2), (0, 1)]);
    assert_eq!(bench.step(), [(4, 1), (1, 1)]);
    assert_eq!(bench.sequence_of(Class::Interactive, 4).num_generated(), 2);
}

#[test]
fn a_long_prompt_leaves_a_part_to_whoever_takes_the_place_of_batch() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 2, num_kv_blocks: 40, ..config() });
    bench.add_of_class(Class::Batch, 1, 1);
    bench.step();
    bench.add_of_class(Class::Standard, 0, 60);
    // A stream of batch is no reason to cut it.
    assert_eq!(bench.step(), [(0, 15), (1, 1)]);
    bench.add_of_class(Class::Interactive, 2, 2);
    assert_eq!(bench.step(), [(2, 2), (0, 13)]);
}

#[test]
fn a_prompt_that_gets_nothing_for_as_long_as_a_class_has_patience_is_raised() {
    let patience = Duration::from_secs(5);
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 200, class_patience: patience, ..config() });
    bench.add_of_class(Class::Batch, 0, 60);
    bench.add_of_class(Class::Batch, 1, 60);
    assert_eq!(bench.step(), [(0, 8), (1, 8)]);
    bench.add_of_class(Class::Standard, 2, 200);
    assert_eq!(bench.step(), [(2, 16)]);
    bench.now += patience;
    // One at a time.
    assert_eq!(bench.step(), [(0, 8), (2, 8)]);
    bench.now += patience;
    assert_eq!(bench.step(), [(0, 8), (1, 4), (2, 4)]);
}

#[test]
fn a_batch_request_that_waits_beside_long_prompts_comes_in_when_its_patience_is_over() {
    let patience = Duration::from_secs(5);
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 200, class_patience: patience, ..config() });
    bench.add_of_class(Class::Standard, 0, 200);
    assert_eq!(bench.step(), [(0, 16)]);
    bench.add_of_class(Class::Batch, 1, 8);
    assert_eq!(bench.step(), [(0, 16)]);
    bench.now += patience;
    assert_eq!(bench.step(), [(0, 8), (1, 8)]);
}

#[test]
fn an_overdue_batch_request_takes_the_place_of_batch_and_holds_up_nobody_better() {
    let patience = Duration::from_secs(5);
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 3, class_patience: patience, ..config() });
    (0..3).for_each(|id| bench.add_of_class(Class::Batch, id, 1));
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1)]);
    bench.add_of_class(Class::Standard, 3, 1);
    assert_eq!(bench.step(), [(3, 1), (0, 1)]);
    bench.now += patience;
    assert_eq!(bench.step(), [(1, 2), (3, 1)], "the turn is that of the oldest without a place");
    bench.add_of_class(Class::Interactive, 4, 1);
    assert_eq!(bench.step(), [(4, 1), (3, 1)], "it has the place of the batch stream whose turn it was");
}

#[test]
fn a_class_whose_patience_is_over_gets_a_turn_and_is_not_preempted_at_once() {
    let patience = Duration::from_secs(5);
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, class_patience: patience, ..config() });
    (0..4).for_each(|id| bench.add_of_class(Class::Standard, id, 2));
    bench.add_of_class(Class::Batch, 9, 2);
    assert_eq!(bench.step(), [(0, 2)]);
    bench.remove(0);
    bench.now += patience;
    assert_eq!(bench.step(), [(9, 2)]);
    // It has been raised to the class that waits, so it keeps its place.
    assert_eq!(bench.step(), [(9, 1)]);
}

#[test]
fn a_turn_out_of_order_is_over_when_its_sequence_is_parked() {
    let patience = Duration::from_secs(5);
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 1, class_patience: patience, ..config() });
    bench.add_of_class(Class::Standard, 0, 2);
    bench.add_of_class(Class::Standard, 1, 2);
    bench.add_request(crate::Request { class: Class::Batch, granted_tokens: Some(1), ..request(9, &[9000, 9001]) });
    assert_eq!(bench.step(), [(0, 2)]);
    bench.remove(0);
    bench.now += patience;
    assert_eq!(bench.step(), [(9, 2)]);
    assert_eq!(bench.step(), [(1, 2)], "9 is parked");
    bench.remove(1);
    bench.add_of_class(Class::Batch, 10, 2);
    assert_eq!(bench.step(), [(10, 2)]);
    bench.add_of_class(Class::Standard, 2, 2);
    assert_eq!(bench.step(), [(2, 2)], "10 has given way");
    bench.remove(2);
    bench.streams[2].grant(5);
    // It goes before 9, which does not make it give way again and again.
    assert_eq!(bench.step(), [(10, 3)]);
}

#[test]
fn prompts_add_no_more_time_to_a_stream_than_was_configured() {
    let costs = CostModel {
        prompt_token_ns: 1000.0,
        generated_token_ns: 5000.0,
        context_token_ns: 10.0,
        prompt_context_token_ns: 10.0,
        lone_token_ns: 5000.0,
    };
    let most = Duration::from_nanos(6000);
    let mut bench = Bench::new(EngineConfig {
        num_kv_blocks: 200,
        max_num_batched_tokens: 64,
        prefill_chunk_tokens: 64,
        max_added_latency: AddedLatency::AtMost(most),
        costs: Some(costs),
        ..config()
    });
    bench.add(0, 3);
    bench.step();
    bench.add(1, 300);
    let mut chunks = Vec::new();
    while bench.scheduler.sequence(id(1)).is_none_or(|sequence| sequence.num_remaining() > 1) {
        let computed = bench.scheduler.sequence(id(1)).map_or(0, |sequence| sequence.num_computed);
        let ran = bench.step();
        assert_eq!(ran[0], (0, 1), "the stream moves at every step");
        let added = costs.of_tokens(computed, ran[1].1);
        assert!(added <= most.as_nanos() as CostNs || ran[1].1 == 1, "{added}");
        chunks.push(ran[1].1);
    }
    assert!(chunks[0] == 5 && chunks.is_sorted_by(|a, b| a >= b), "a longer context leaves fewer tokens: {chunks:?}");
}
