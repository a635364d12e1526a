//! A seed replays a world: layers and their windows, arrivals, disconnects, preemptions, prefixes, constraints, classes,
//! accounts, choices, grants, failures, against the real engine on simulated time. Whatever happens around it, a request
//! gets what it gets alone, and nothing is lost at any step.

use std::sync::Arc;
use std::time::Duration;

use crate::chance::{Chance, Kinds};
use crate::common::{VOCAB, alone, model, parts, tokens};
use crate::crowd::Crowd;
use passerelle_engine::clock::ManualClock;
use passerelle_engine::testing::{Mishap, Pace, StubModel};
use passerelle_engine::{
    AddedLatency, CostModel, EngineConfig, EngineHandle, EngineParts, Request, StepLoop, StepReport,
};
use passerelle_models::{CausalLm, KvReach};

const SEEDS: u64 = 300;
const ALL_SEEDS: u64 = 10_000;
/// Nothing ran in a step of the first: the one batch stream whose turn it was lost its blocks. In the second requests
/// starved: one had a turn out of order, was parked, and had another one preempted that went before it.
const ONCE_FAILED: [u64; 2] = [1050, 9001];
const REQUESTS: usize = 24;
/// A world's work is at most `REQUESTS` times three choices of 40 tokens, recomputed a few times over.
const FAR_TOO_MANY_STEPS: usize = 40_000;

#[test]
fn every_request_gets_what_it_gets_alone_and_nothing_is_lost() {
    live_through((0..SEEDS).chain(ONCE_FAILED));
}

#[test]
#[ignore = "ten thousand worlds take minutes; .ci/full runs them"]
fn ten_thousand_worlds_lose_nothing() {
    live_through(0..ALL_SEEDS);
}

fn live_through(seeds: impl Iterator<Item = u64>) {
    let (mut preemptions, mut hits, mut failures, mut parked) = (0, 0, 0, 0);
    let mut count = 0;
    for seed in seeds {
        count += 1;
        let mut world = World::new(seed);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.run();
            world.check_outcomes();
        }));
        if let Err(panic) = outcome {
            panic!("seed {seed}: {:?}", panic.downcast_ref::<String>());
        }
        let stats = world.handle.stats();
        preemptions += stats.preemptions_total;
        hits += stats.prefix_hit_tokens_total;
        failures += stats.failures_total;
        parked += world.most_parked as u64;
    }
    // Worlds without these would prove little.
    let seen = [preemptions, hits, failures, parked];
    assert!(seen.iter().all(|&times| times > count), "{seen:?}");
}

struct World {
    chance: Chance,
    model: StubModel,
    config: EngineConfig,
    clock: ManualClock,
    step_loop: StepLoop,
    handle: EngineHandle,
    crowd: Crowd,
    stepped: Duration,
    most_parked: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let model = sick_model(&mut chance);
        let config = config(&mut chance, &model);
        let kinds = Kinds {
            longest_prompt: 20,
            most_tokens: 20,
            most_choices: config.max_num_seqs.min(3),
            usual_ids: 60,
            ids: VOCAB,
        };
        let arrivals = (0..REQUESTS as u64).map(|id| chance.request(&kinds, id)).collect();
        let clock = ManualClock::default();
        let pace =
            Pace { clock: clock.clone(), step: Duration::from_micros(1), further_token: Duration::from_nanos(77) };
        let parts = EngineParts {
            name: format!("seed {seed}"),
            clock: Arc::new(clock.clone()),
            ..parts(model.clone().with_pace(pace), config.clone())
        };
        let (step_loop, handle) = StepLoop::new(parts).expect("every configuration drawn is possible");
        let (crowd, stepped, most_parked) = (Crowd::new(arrivals), Duration::ZERO, 0);
        Self { chance, model, config, clock, step_loop, handle, crowd, stepped, most_parked }
    }

    fn run(&mut self) {
        for _ in 0..FAR_TOO_MANY_STEPS {
            self.crowd.arrive(&mut self.chance, &self.handle);
            self.clock.advance(Duration::from_millis(1));
            let report = self.step_loop.step();
            self.stepped += report.duration;
            self.check_step(&report);
            self.crowd.read(&mut self.chance);
            if self.crowd.is_over() && self.step_loop.is_idle() {
                return;
            }
        }
        panic!(
            "requests starve: {} to come, {} live, {:?}",
            self.crowd.arrivals.len(),
            self.crowd.live.len(),
            self.handle.stats()
        );
    }

    /// Blocks, order and fairness; queues; nobody waits for nothing; and every token and nanosecond is somebody's.
    fn check_step(&mut self, report: &StepReport) {
        self.step_loop.check_integrity();
        let stats = self.handle.stats();
        let could_run = stats.running + stats.waiting + stats.resuming;
        assert!(report.num_sequences > 0 || could_run == 0, "nothing runs: {stats:?}");
        assert!(stats.waiting <= self.config.max_waiting_requests);
        assert!(stats.waiting_tokens <= self.config.max_waiting_tokens);
        assert!(stats.fair_share_gap <= stats.fair_share_bound);
        assert_eq!(stats.generated_tokens_total, self.crowd.sum(|usage| usage.generated_tokens.into()));
        assert_eq!(stats.prompt_tokens_total, self.crowd.sum(|usage| usage.prompt_tokens.into()));
        assert_eq!(stats.measured_ns_total, self.crowd.sum(|usage| usage.measured_ns));
        let accounted = u128::from(stats.measured_ns_total + stats.unclaimed_ns_total);
        assert_eq!(accounted, self.stepped.as_nanos());
        self.most_parked = self.most_parked.max(stats.parked);
    }

    fn check_outcomes(&self) {
        let roomy = EngineConfig {
            num_kv_blocks: 100,
            max_num_seqs: 8,
            max_num_batched_tokens: 40,
            prefill_chunk_tokens: 1000,
            ..self.config.clone()
        };
        assert_eq!(self.crowd.ended.len(), REQUESTS);
        for ended in &self.crowd.ended {
            let request = Request { granted_tokens: None, ..ended.request.clone() };
            ended.assert_is_part_of(&alone(self.model.clone(), roomy.clone(), request));
            assert!(tokens(&ended.events).len() <= ended.usage.generated_tokens as usize);
        }
        let stats = self.handle.stats();
        assert_eq!((stats.free_blocks, stats.running, stats.parked), (stats.total_blocks, 0, 0));
        assert!(self.handle.is_idle());
    }
}

fn sick_model(chance: &mut Chance) -> StubModel {
    let window = KvReach::Window((1 + chance.below(12)).try_into().expect("at least one"));
    let layers = [vec![KvReach::Full], vec![window], vec![window, KvReach::Full, window]];
    let mishaps = [(61, Mishap::Panic), (62, Mishap::Nan), (63, Mishap::Error)];
    let healthy = model().with_layers(&layers[chance.below(3)]);
    mishaps.into_iter().fold(healthy, |model, (token, mishap)| model.with_mishap(token, mishap))
}

/// The longest request, 20 + 20 tokens, just fits the smallest pool.
fn config(chance: &mut Chance, model: &StubModel) -> EngineConfig {
    let max_num_seqs = 1 + chance.below(7);
    let max_num_batched_tokens = max_num_seqs + chance.below(30);
    EngineConfig {
        num_kv_blocks: model.kv_cache_spec().most_blocks(40, max_num_batched_tokens) + chance.below(16),
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len: 40,
        max_waiting_requests: 1 + chance.below(8),
        max_waiting_tokens: 20 + chance.below(100),
        prefill_chunk_tokens: 1 + chance.below(12),
        prompt_logprobs_chunk_tokens: 1 + chance.below(6),
        max_added_latency: AddedLatency::AtMost(Duration::from_micros(chance.below(900) as u64)),
        class_patience: Duration::from_millis(chance.below(60) as u64),
        costs: Some(CostModel {
            prompt_token_ns: 80_000.0,
            generated_token_ns: 300_000.0,
            context_token_ns: 900.0,
            prompt_context_token_ns: 900.0,
            lone_token_ns: 300_000.0,
        }),
        former_costs: None,
        seed: 0,
    }
}
