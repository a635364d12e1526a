use super::*;
use crate::event_stream::EventStream;
use crate::fixtures::{request, sequence};
use crate::request::{SamplingParams, ShareKey};

/// Ten blocks of four tokens, and a model that answers with tokens nobody else has.
struct Bench {
    scheduler: Scheduler,
    streams: Vec<EventStream>,
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
        Self { scheduler: Scheduler::new(config, 4), streams: Vec::new() }
    }

    fn add(&mut self, id: u64, prompt_len: usize) {
        self.add_for(ShareKey(0), id, prompt_len);
    }

    fn add_for(&mut self, share_key: ShareKey, id: u64, prompt_len: usize) {
        let prompt: Vec<_> = (0..prompt_len as u32).map(|token| id as u32 * 1000 + token).collect();
        let (sequence, stream) = sequence(crate::Request { share_key, ..request(id, &prompt) });
        self.scheduler.add(sequence);
        self.streams.push(stream);
    }

    /// What ran: `(id, tokens)`.
    fn step(&mut self) -> Vec<(u64, usize)> {
        let batch = self.scheduler.schedule();
        self.scheduler.check_integrity();
        for scheduled in &batch.sequences {
            let samples = self.scheduler.sequence(scheduled.id).unwrap().samples_next();
            let sequence = self.scheduler.advance(scheduled.id).unwrap();
            if samples {
                sequence.append(900_000 + sequence.tokens().len() as u32).unwrap();
            }
        }
        self.scheduler.check_integrity();
        batch.sequences.iter().map(|scheduled| (scheduled.id.0, scheduled.num_tokens)).collect()
    }

    fn table(&self, id: u64) -> Vec<u32> {
        self.scheduler.sequence(SequenceId(id)).unwrap().block_table.iter().map(|block| block.0).collect()
    }

    fn remove(&mut self, id: u64) {
        self.scheduler.remove(SequenceId(id), Prefixes::Keep).unwrap();
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
    assert_eq!(bench.scheduler.sequence(SequenceId(3)).unwrap().num_generated(), 1);
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
    assert_eq!(bench.scheduler.num_preempted(), 0);
}

#[test]
fn running_prompts_go_before_new_ones_and_share_the_chunk() {
    let mut bench = Bench::new(config());
    bench.add(0, 1);
    bench.step();
    bench.add(1, 6);
    bench.add(2, 6);
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 2)]);
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 2)]);
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 2)]);
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
    assert_eq!((bench.scheduler.num_preempted(), bench.scheduler.num_running()), (1, 1));
    assert_eq!(bench.step(), [(0, 1)]);
    bench.remove(0);
    // Sixteen of its eighteen tokens stand in the cache; its generated token is not lost.
    assert_eq!(bench.step(), [(1, 2)]);
    assert_eq!(bench.table(1)[..4], [5, 6, 7, 8]);
    assert_eq!(bench.scheduler.sequence(SequenceId(1)).unwrap().num_generated(), 3);
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
    let batch = bench.scheduler.schedule();
    assert_eq!(batch.sequences[0].num_tokens, 3);
    let sequence = bench.scheduler.sequence(SequenceId(0)).unwrap();
    assert_eq!(sequence.prompt_logprob_positions(), 0..3);
    assert_eq!(bench.scheduler.advance(SequenceId(0)).unwrap().num_computed, 3);
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
fn extracted_sequences_give_their_blocks_back_wherever_they_are() {
    let mut bench = Bench::new(EngineConfig { max_num_seqs: 2, ..config() });
    (0..4).for_each(|id| bench.add(id, 5));
    bench.step();
    let taken = bench.scheduler.extract(|sequence| [0, 3].contains(&sequence.id.0));
    assert_eq!(taken.len(), 2);
    bench.scheduler.check_integrity();
    assert_eq!(bench.scheduler.cache().pool().num_free(), 8);
    assert_eq!(bench.step(), [(1, 1), (2, 4)]);
    assert_eq!(bench.scheduler.extract(|_| true).len(), 2);
    assert!(bench.scheduler.is_idle());
    assert_eq!(bench.scheduler.cache().pool().num_free(), 10);
}
