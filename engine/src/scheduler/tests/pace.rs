//! What prompts add to a step in which others generate, where no bound is stated.

use super::*;

#[test]
fn prompts_add_to_a_step_by_what_its_streams_take_unless_a_bound_is_stated() {
    let by_default = AddedLatency::default();
    let stated = AddedLatency::AtMost(Duration::from_millis(7));
    for (bound, stream_ms, added_ms) in
        [(by_default, 1.0, 50), (by_default, 80.0, 60), (by_default, 400.0, 250), (stated, 80.0, 7)]
    {
        let stream_ns = stream_ms * 1e6;
        let costs = CostModel {
            prompt_token_ns: 1e6,
            generated_token_ns: stream_ns,
            context_token_ns: 0.0,
            prompt_context_token_ns: 0.0,
            lone_token_ns: stream_ns,
        };
        let mut bench = Bench::new(EngineConfig {
            num_kv_blocks: 200,
            max_num_batched_tokens: 512,
            prefill_chunk_tokens: 512,
            max_added_latency: bound,
            costs: Some(costs),
            ..config()
        });
        bench.add(0, 3);
        bench.step();
        bench.add(1, 400);
        assert_eq!(bench.step(), [(0, 1), (1, added_ms)], "beside a stream that takes {stream_ms} ms");
    }
}

#[test]
fn where_several_prompts_have_waited_for_long_a_step_takes_more_of_them_and_those_of_batch_do_not_count() {
    for (second, grows) in [(Class::Standard, true), (Class::Batch, false)] {
        let costs = CostModel {
            prompt_token_ns: 1e6,
            generated_token_ns: 1e8,
            context_token_ns: 1e-6,
            prompt_context_token_ns: 1e-6,
            lone_token_ns: 1e8,
        };
        let mut bench = Bench::new(EngineConfig {
            num_kv_blocks: 8000,
            max_num_batched_tokens: 512,
            prefill_chunk_tokens: 512,
            costs: Some(costs),
            ..config()
        });
        bench.add(0, 3);
        bench.step();
        bench.add(1, 12_000);
        bench.add_of_class(second, 2, 12_000);
        let mut timed_step = || {
            let batch = bench.scheduler.schedule(bench.now);
            let took = Duration::from_millis(100 + batch.catch_up_tokens as u64);
            bench.scheduler.note_duration(&batch, took);
            bench.finish(&batch);
            batch.catch_up_tokens
        };
        let first = timed_step();
        let later = (0..100).fold(0, |_, _| timed_step());
        assert!((70..=75).contains(&first), "{second:?}: {first}, then {later}");
        assert_eq!(later > first + 10, grows, "{second:?}: {first}, then {later}");
    }
}
