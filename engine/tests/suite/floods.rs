//! Floods that never end, of several classes and of younger requests of the same share, on simulated time: whoever is patient
//! beside them is served within what `policy` derives, at every step.

use std::sync::Arc;
use std::time::Duration;

use crate::chance::Chance;
use crate::common::{events, greedy, model, parts};
use passerelle_engine::clock::ManualClock;
use passerelle_engine::{
    Class, CostModel, EngineConfig, EngineHandle, EngineParts, EventStream, Request, RequestId, ShareKey, StepLoop,
    Usage,
};
use passerelle_models::CausalLm;

const SEEDS: u64 = 60;
const ALL_SEEDS: u64 = 10_000;
const STEPS: usize = 2500;
const PROMPT: usize = 6;
const ANSWER: usize = 4;
const STEP: Duration = Duration::from_millis(1);
/// As `policy` has it.
const MAX_PASSED_OVER: usize = 8;

#[test]
fn nobody_starves_beside_floods_of_other_classes_and_of_younger_requests_with_cached_prefixes() {
    wait_beside_floods(0..SEEDS);
}

#[test]
#[ignore = "ten thousand floods take minutes; .ci/full runs them"]
fn nobody_starves_in_ten_thousand_floods() {
    wait_beside_floods(0..ALL_SEEDS);
}

fn wait_beside_floods(seeds: impl Iterator<Item = u64>) {
    let mut closest = 0.0_f64;
    for seed in seeds {
        let mut world = World::new(seed);
        for step in 0..STEPS {
            world.step();
            for patient in &world.patients {
                let Patient { class, idle, .. } = *patient;
                assert!(idle <= world.bound, "seed {seed}, step {step}: {class:?} waits for {idle} of {}", world.bound);
                closest = closest.max(idle as f64 / world.bound as f64);
            }
        }
        assert!(world.patients.iter().all(|patient| patient.num_answered > 0), "seed {seed}");
    }
    // The bound is not empty words: a tenth of it is waited for.
    assert!(closest > 0.1, "{closest}");
}

struct World {
    clock: ManualClock,
    step_loop: StepLoop,
    handle: EngineHandle,
    floods: Vec<Flood>,
    patients: Vec<Patient>,
    next_id: u64,
    /// Steps in which a patient may get nothing.
    bound: usize,
}

/// Requests of one kind, of which more always wait than there are places.
struct Flood {
    class: Class,
    share: ShareKey,
    streams: Vec<EventStream>,
    num_live: usize,
}

/// Asks again when it is answered, and never for what is cached.
struct Patient {
    class: Class,
    share: ShareKey,
    stream: Option<EventStream>,
    seen: Usage,
    /// Steps since it got anything, or came.
    idle: usize,
    num_answered: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed);
        let places = 1 + chance.below(3);
        let max_num_batched_tokens = places + chance.below(10);
        let patience = chance.below(20);
        let longest = PROMPT + ANSWER;
        let model = model();
        let config = EngineConfig {
            num_kv_blocks: (places + 2) * model.kv_cache_spec().most_blocks(longest, max_num_batched_tokens),
            max_num_seqs: places,
            max_num_batched_tokens,
            max_model_len: longest,
            prefill_chunk_tokens: 1 + chance.below(8),
            class_patience: STEP * patience as u32,
            costs: Some(CostModel {
                prompt_token_ns: 80.0,
                generated_token_ns: 300.0,
                context_token_ns: 1.0,
                prompt_context_token_ns: 1.0,
                lone_token_ns: 300.0,
            }),
            ..EngineConfig::default()
        };
        let clock = ManualClock::default();
        let parts = EngineParts { clock: Arc::new(clock.clone()), ..parts(model, config) };
        let (step_loop, handle) = StepLoop::new(parts).expect("every configuration drawn is possible");
        let flood = |class, share| Flood { class, share: ShareKey(share), streams: Vec::new(), num_live: places + 2 };
        let patient = |class, share| Patient {
            class,
            share: ShareKey(share),
            stream: None,
            seen: Usage::default(),
            idle: 0,
            num_answered: 0,
        };
        let free_place = places * longest + 1;
        let start = (MAX_PASSED_OVER + 1) * (patience + 1 + 3 * free_place);
        // One that runs and gets nothing is raised after its class's patience, twice at most, one of all at a time.
        let bound = start + 2 * places * (patience + 1) + longest;
        let all = [(Class::Interactive, 0), (Class::Standard, 1), (Class::Batch, 2)];
        let classes = [&all[..], &all[..2], &all[1..]][chance.below(3)];
        let floods = classes.iter().map(|&(class, share)| flood(class, share)).collect();
        let patients = classes.iter().map(|&(class, share)| patient(class, share)).collect();
        Self { clock, step_loop, handle, floods, patients, next_id: 0, bound }
    }

    fn step(&mut self) {
        let (handle, next_id) = (&self.handle, &mut self.next_id);
        let mut submit = |class, share_key, prompt: Vec<u32>| {
            *next_id += 1;
            let request = Request::new(RequestId(*next_id), prompt, greedy(ANSWER as u32));
            handle.submit(Request { class, share_key, ..request }).expect("there is room in the queue")
        };
        for patient in self.patients.iter_mut().filter(|patient| patient.stream.is_none()) {
            let of_its_own = |i: usize| ((patient.num_answered + i * i) % 50 + 10) as u32;
            let prompt = (0..PROMPT).map(of_its_own).collect();
            patient.stream = Some(submit(patient.class, patient.share, prompt));
            (patient.seen, patient.idle) = (Usage::default(), 0);
        }
        for flood in &mut self.floods {
            while flood.streams.len() < flood.num_live {
                flood.streams.push(submit(flood.class, flood.share, vec![1; PROMPT]));
            }
        }
        self.clock.advance(STEP);
        self.step_loop.step();
        self.step_loop.check_integrity();
        for flood in &mut self.floods {
            flood.streams.iter_mut().for_each(|stream| drop(events(stream)));
            flood.streams.retain(|stream| !stream.has_ended());
        }
        self.patients.iter_mut().for_each(Patient::look);
    }
}

impl Patient {
    fn look(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        drop(events(stream));
        let usage = stream.usage();
        let got = (usage.prompt_tokens, usage.generated_tokens);
        let is_idle = got == (self.seen.prompt_tokens, self.seen.generated_tokens);
        self.idle = if is_idle { self.idle + 1 } else { 0 };
        self.seen = usage;
        if stream.has_ended() {
            self.stream = None;
            self.num_answered += 1;
        }
    }
}
