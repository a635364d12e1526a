//! What batch may take of a step in which better ones generate.

use super::*;

const STEP: Duration = Duration::from_millis(1);
const NUM_BATCH: u64 = 5;

impl Bench {
    /// A standard stream, number 0, and batch streams after it.
    fn beside_a_stream(config: EngineConfig) -> Self {
        // Contexts cost next to nothing, so every stream has one price.
        let costs = Some(CostModel { context_token_ns: 1e-6, prompt_context_token_ns: 1e-6, ..CostModel::default() });
        let mut bench = Self::new(EngineConfig { num_kv_blocks: 8000, max_num_seqs: 8, costs, ..config });
        (1..=NUM_BATCH).for_each(|id| bench.add_of_class(Class::Batch, id, 1));
        assert_eq!(bench.timed_step(STEP).len(), NUM_BATCH as usize, "without better ones all of batch moves");
        bench.add_of_class(Class::Standard, 0, 1);
        bench.timed_step(2 * STEP);
        bench
    }

    /// The engine notes how long each took.
    fn timed_step(&mut self, took: Duration) -> Vec<(u64, usize)> {
        self.now += took;
        let batch = self.scheduler.schedule(self.now);
        self.scheduler.note_duration(&batch, took);
        self.finish(&batch)
    }
}

#[test]
fn beside_a_better_stream_batch_streams_take_turns_and_add_no_more_than_a_token_of_its_price() {
    let mut bench = Bench::beside_a_stream(config());
    for step in 0..4 * NUM_BATCH {
        // A step takes what its tokens cost, so nothing is learnt of it.
        assert_eq!(bench.timed_step(2 * STEP), [(0, 1), (1 + (step + 1) % NUM_BATCH, 1)], "one moved while it came in");
    }
    bench.scheduler.remove(of_class(Class::Standard, 0), Prefixes::Keep).unwrap();
    assert_eq!(bench.timed_step(STEP).len(), NUM_BATCH as usize);
}

#[test]
fn as_many_batch_streams_move_as_there_are_better_ones() {
    let mut bench = Bench::beside_a_stream(config());
    bench.add_of_class(Class::Interactive, 100, 1);
    bench.add_of_class(Class::Standard, 101, 1);
    // Both come in, then all three move.
    bench.step();
    let of_batch = bench.step().iter().filter(|(id, _)| (1..=NUM_BATCH).contains(id)).count();
    assert!((2..=3).contains(&of_batch), "by rounded prices: {of_batch}");
}

#[test]
fn where_a_step_of_many_takes_no_longer_than_one_of_few_all_of_batch_comes_to_move() {
    let mut bench = Bench::beside_a_stream(config());
    let flat = 8 * STEP;
    let whole = |bench: &mut Bench| bench.timed_step(flat).len() == 1 + NUM_BATCH as usize;
    assert!(!whole(&mut bench));
    assert!((0..4000).any(|_| whole(&mut bench)));
    let num_whole = (0..640).filter(|_| whole(&mut bench)).count();
    assert_eq!(num_whole, 630, "all but those that batch sits out");
}

/// A stream alone that takes so long, and a batch prompt that has come beside it.
fn batch_beside_a_lone_stream_of(lone_token_ns: f64) -> Bench {
    let costs = CostModel {
        prompt_token_ns: 1000.0,
        generated_token_ns: 5000.0,
        context_token_ns: 0.1,
        prompt_context_token_ns: 0.1,
        lone_token_ns,
    };
    let mut bench = Bench::new(EngineConfig {
        num_kv_blocks: 1000,
        max_num_batched_tokens: 64,
        prefill_chunk_tokens: 64,
        costs: Some(costs),
        ..config()
    });
    bench.add(0, 1);
    bench.step();
    bench.add_of_class(Class::Batch, 1, 200);
    bench
}

#[test]
fn a_batch_prompt_takes_as_long_as_a_lone_stream_does_whose_price_is_that_of_one_among_several() {
    let mut bench = batch_beside_a_lone_stream_of(20_000.0);
    assert_eq!(bench.step(), [(0, 1), (1, 19)]);
}

#[test]
fn a_batch_prompt_takes_no_more_time_than_the_better_stream_beside_it() {
    let mut bench = batch_beside_a_lone_stream_of(5000.0);
    assert_eq!(bench.step(), [(0, 1), (1, 4)]);
    bench.add_of_class(Class::Batch, 2, 1);
    assert_eq!(bench.step(), [(0, 1), (1, 2), (2, 1)], "they share it");
    // Now 2 generates, and the prompt gets on all the same.
    assert_eq!(bench.step(), [(0, 1), (1, 1), (2, 1)]);
    bench.add(3, 200);
    let ran = bench.step();
    assert_eq!((ran[0], ran[1].0), ((0, 1), 3));
    assert!(ran[1].1 > 40, "better ones keep to max_added_latency: {ran:?}");
}

#[test]
fn a_batch_stream_that_is_left_out_finds_the_block_of_its_next_token_when_its_turn_comes() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 5, ..config() });
    bench.add_of_class(Class::Batch, 1, 3);
    bench.add_of_class(Class::Batch, 2, 3);
    assert_eq!(bench.step(), [(1, 3), (2, 3)]);
    bench.add(0, 1);
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    assert_eq!(bench.step(), [(0, 1), (2, 1)]);
    bench.add_of_class(Class::Batch, 3, 3);
    // From here each of batch needs its second block, of which two are left: the newcomer must not take the other.
    assert_eq!(bench.step(), [(0, 1), (1, 1)]);
    assert_eq!(bench.step(), [(0, 1), (2, 1)]);
    assert_eq!(bench.scheduler.num_resuming(), 0);
}

#[test]
fn a_better_prompt_runs_beside_batch_streams_as_if_one_of_them_were_all() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 200, max_num_seqs: 16, ..config() });
    (1..=10).for_each(|id| bench.add_of_class(Class::Batch, id, 1));
    assert_eq!(bench.step().len(), 10);
    bench.add_of_class(Class::Interactive, 0, 60);
    for step in 0..4 {
        bench.now += STEP;
        let batch = bench.scheduler.schedule(bench.now);
        assert_eq!(batch.num_one_behind, 0, "nobody for whose sake it is bounded, and judged");
        assert_eq!(bench.finish(&batch), [(0, 15), (1 + step, 1)], "all of the step but a token");
    }
}

#[test]
fn a_batch_prompt_takes_no_more_time_than_the_better_prompt_beside_it() {
    let mut bench = Bench::new(EngineConfig { num_kv_blocks: 200, ..config() });
    bench.add_of_class(Class::Batch, 1, 60);
    assert_eq!(bench.step(), [(1, 16)]);
    bench.add_of_class(Class::Interactive, 0, 3);
    let ran = bench.step();
    assert!(ran[0] == (0, 3) && ran[1].0 == 1 && ran[1].1 <= 3, "{ran:?}");
}
