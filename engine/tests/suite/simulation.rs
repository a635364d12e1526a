//! A seed replays a world: arrivals, disconnects, preemptions, prefixes, failures, against the real engine on simulated
//! time. Whatever happens around it, a request gets what it gets alone, and in the end nothing is lost.

use std::sync::Arc;
use std::time::Duration;

use crate::common::{BLOCK_SIZE, VOCAB, alone, events, model, tokens};
use passerelle_engine::clock::ManualClock;
use passerelle_engine::testing::{Mishap, StubModel};
use passerelle_engine::{
    CacheSalt, EngineConfig, EngineHandle, EngineParts, Event, EventStream, FinishReason, NullObserver, Request,
    RequestId, SamplingParams, ShareKey, StepLoop, StepTurns, SubmitError, Usage,
};

const SEEDS: u64 = 300;
const REQUESTS: usize = 24;
/// A world's work is at most `REQUESTS` times 40 tokens, recomputed a few times over.
const FAR_TOO_MANY_STEPS: usize = 20_000;

#[test]
fn every_request_gets_what_it_gets_alone_and_nothing_is_lost() {
    let (mut preemptions, mut hits, mut failures) = (0, 0, 0);
    for seed in 0..SEEDS {
        let mut world = World::new(seed);
        world.run();
        world.check_outcomes();
        let stats = world.handle.stats();
        preemptions += stats.preemptions_total;
        hits += stats.prefix_hit_tokens_total;
        failures += stats.failures_total;
    }
    // A world without these would prove little.
    assert!(preemptions > SEEDS && hits > SEEDS && failures > SEEDS, "{preemptions} {hits} {failures}");
}

struct World {
    seed: u64,
    chance: Chance,
    config: EngineConfig,
    clock: ManualClock,
    step_loop: StepLoop,
    handle: EngineHandle,
    arrivals: Vec<Request>,
    live: Vec<Live>,
    ended: Vec<Ended>,
}

struct Live {
    request: Request,
    stream: EventStream,
    events: Vec<Event>,
    /// Steps until the reader leaves.
    patience: Option<usize>,
}

struct Ended {
    request: Request,
    events: Vec<Event>,
    usage: Usage,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let config = config(&mut chance);
        let arrivals = (0..REQUESTS as u64).map(|id| request(&mut chance, id)).collect();
        let clock = ManualClock::default();
        let parts = EngineParts {
            name: format!("seed {seed}"),
            model: Box::new(sick_model()),
            config: config.clone(),
            turns: StepTurns::new(),
            clock: Arc::new(clock.clone()),
            observer: Arc::new(NullObserver),
        };
        let (step_loop, handle) = StepLoop::new(parts).expect("every configuration drawn is possible");
        Self { seed, chance, config, clock, step_loop, handle, arrivals, live: Vec::new(), ended: Vec::new() }
    }

    fn run(&mut self) {
        for _ in 0..FAR_TOO_MANY_STEPS {
            while !self.arrivals.is_empty() && self.chance.one_in(3) && self.arrive() {}
            self.clock.advance(Duration::from_millis(1));
            self.step_loop.step();
            self.step_loop.check_integrity();
            let stats = self.handle.stats();
            assert!(stats.waiting <= self.config.max_waiting_requests, "seed {}", self.seed);
            assert_eq!(stats.last_step_end, Some(passerelle_engine::clock::Clock::now(&self.clock)));
            self.read();
            if self.arrivals.is_empty() && self.live.is_empty() && self.step_loop.is_idle() {
                return;
            }
        }
        panic!("seed {}: requests starve", self.seed);
    }

    /// False if the queue was full: the request comes again later.
    fn arrive(&mut self) -> bool {
        let Some(request) = self.arrivals.pop() else { return false };
        match self.handle.submit(request.clone()) {
            Ok(stream) => {
                let patience = self.chance.one_in(6).then(|| self.chance.below(20));
                self.live.push(Live { request, stream, events: Vec::new(), patience });
                true
            }
            Err(SubmitError::Full { .. }) => {
                self.arrivals.push(request);
                false
            }
            Err(refusal) => panic!("seed {}: {refusal}", self.seed),
        }
    }

    fn read(&mut self) {
        for mut live in std::mem::take(&mut self.live) {
            live.events.extend(events(&mut live.stream));
            let leaves = live.patience == Some(0) && !live.stream.has_ended();
            live.patience = live.patience.map(|patience| patience.saturating_sub(1));
            if leaves || live.stream.has_ended() {
                let usage = if leaves { live.stream.abort() } else { live.stream.usage() };
                self.ended.push(Ended { request: live.request, events: live.events, usage });
            } else {
                self.live.push(live);
            }
        }
    }

    fn check_outcomes(&self) {
        let seed = self.seed;
        let roomy = EngineConfig { num_kv_blocks: 32, prefill_chunk_tokens: 1000, ..self.config.clone() };
        for Ended { request, events, usage } in &self.ended {
            let expected = alone(sick_model(), roomy.clone(), request.clone());
            let complete = matches!(events.last(), Some(Event::Finished { .. } | Event::Failed { .. }));
            let (got, expected) = (without_usage(events), without_usage(&expected));
            let expected = if complete { &expected[..] } else { &expected[..got.len()] };
            assert_eq!(got, expected, "seed {seed}, {:?}", request.id);
            assert_eq!(usage.generated_tokens as usize, tokens(events).len(), "seed {seed}, {:?}", request.id);
        }
        let stats = self.handle.stats();
        let sum = |count: fn(&Usage) -> u32| self.ended.iter().map(|ended| u64::from(count(&ended.usage))).sum::<u64>();
        assert_eq!(self.ended.len(), REQUESTS, "seed {seed}");
        assert_eq!(stats.generated_tokens_total, sum(|usage| usage.generated_tokens), "seed {seed}");
        assert_eq!(stats.prompt_tokens_total, sum(|usage| usage.prompt_tokens), "seed {seed}");
        assert_eq!((stats.free_blocks, stats.running), (stats.total_blocks, 0), "seed {seed}");
        assert!(self.handle.is_idle(), "seed {seed}");
    }
}

/// Cached tokens and the moment of an abort legitimately depend on the company.
fn without_usage(events: &[Event]) -> Vec<Event> {
    let neutral = |event: &Event| match event.clone() {
        Event::Finished { reason, .. } => Event::Finished { reason, usage: Usage::default() },
        Event::Failed { error, .. } => Event::Failed { error, usage: Usage::default() },
        other => other,
    };
    events
        .iter()
        .map(neutral)
        .filter(|event| !matches!(event, Event::Finished { reason: FinishReason::Aborted, .. }))
        .collect()
}

fn sick_model() -> StubModel {
    model().with_mishap(62, Mishap::Nan).with_mishap(63, Mishap::Error)
}

/// The longest request, 20 + 20 tokens, just fits the smallest pool.
fn config(chance: &mut Chance) -> EngineConfig {
    let max_num_seqs = 1 + chance.below(7);
    EngineConfig {
        num_kv_blocks: 40_usize.div_ceil(BLOCK_SIZE) + chance.below(16),
        max_num_seqs,
        max_num_batched_tokens: max_num_seqs + chance.below(30),
        max_model_len: 40,
        max_waiting_requests: 1 + chance.below(8),
        max_waiting_tokens: 20 + chance.below(100),
        prefill_chunk_tokens: 1 + chance.below(12),
        prompt_logprobs_chunk_tokens: 1 + chance.below(6),
        seed: 0,
    }
}

/// Prompts share prefixes: each is a stretch of one of two long texts, and now and then something of its own.
fn request(chance: &mut Chance, id: u64) -> Request {
    let text = chance.below(2) as u32;
    let mut prompt: Vec<u32> = (0..1 + chance.below(19) as u32).map(|i| (i * 7 + text * 13) % 60).collect();
    if chance.one_in(3) {
        prompt.push(chance.below(VOCAB) as u32);
    }
    Request {
        id: RequestId(id),
        prompt,
        sampling: sampling(chance),
        share_key: ShareKey(chance.below(3) as u64),
        cache_salt: CacheSalt([chance.below(2) as u8; 32]),
        constraint: None,
    }
}

fn sampling(chance: &mut Chance) -> SamplingParams {
    SamplingParams {
        max_tokens: chance.below(21) as u32,
        min_tokens: chance.below(4) as u32,
        temperature: [0.0, 0.7, 1.0, 1.5][chance.below(4)],
        top_k: chance.one_in(3).then_some(5),
        top_p: [1.0, 0.9, 0.3][chance.below(3)],
        min_p: [0.0, 0.05][chance.below(2)],
        frequency_penalty: [0.0, 0.5][chance.below(2)],
        presence_penalty: [0.0, -0.5][chance.below(2)],
        repetition_penalty: [1.0, 1.2][chance.below(2)],
        seed: Some(chance.next()),
        stop_token_ids: (0..chance.below(3)).map(|_| chance.below(60) as u32).collect(),
        logprobs: chance.one_in(3).then_some(2),
        prompt_logprobs: chance.one_in(5).then_some(1),
        ..SamplingParams::default()
    }
}

/// Knuth's MMIX generator (The Art of Computer Programming 2, 3.3.4); its high bits are good enough here.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 32
    }

    fn below(&mut self, bound: usize) -> usize {
        self.next() as usize % bound
    }

    fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }
}
