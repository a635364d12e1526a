//! The simulation's model: costs nothing, and notices every mistake of the engine.
//!
//! [`StubModel`] stores each token id and its position in a cache of its own, at the slots it is told. Logits are a hash of
//! all that its layers look at *as read back through the block tables*, so a wrong block, a block freed too early, a stale
//! prefix or a wrong position changes the answer. [`StubModel::logits`] computes the same from the tokens alone.

use std::ops::RangeInclusive;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use candle_core::Device;
use passerelle_models::{
    BlockCopy, BlockId, CausalLm, DistantLogits, KvCache, KvCacheSpec, KvFormat, KvGroup, KvReach, LogitRows, Logits,
    ModelError, ModelInput, Pulse, TokenId,
};

use crate::clock::ManualClock;
use crate::config::EngineConfig;
use crate::engine::EngineParts;
use crate::random::mix;
use crate::stats::NullObserver;
use crate::turns::StepTurns;

mod free_model;

pub use free_model::FreeModel;

/// An engine that nothing disturbs: the threads are its own, and its clock stands still.
pub fn parts(model: impl CausalLm + 'static, config: EngineConfig) -> EngineParts {
    EngineParts {
        name: "test".into(),
        model: Box::new(model),
        config,
        turns: StepTurns::new(),
        clock: Arc::new(ManualClock::default()),
        observer: Arc::new(NullObserver),
    }
}

/// A deterministic model for tests of the engine and of everything above it.
#[derive(Debug)]
pub struct StubModel {
    vocab_size: usize,
    kv_cache: KvCacheSpec,
    max_position: usize,
    mishaps: Vec<(TokenId, Mishap)>,
    gate: Option<StepGate>,
    pace: Option<Pace>,
    place: LogitsPlace,
    /// Its steps take no time, so it is the engine's reading of rows that beats.
    pulse: Pulse,
    /// Of the one cache that it is run with.
    memory: Mutex<Memory>,
}

/// What goes wrong in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// The step that runs the token panics, after writing its K/V.
    Panic,
    /// The step that runs the token returns an error, after writing its K/V.
    Error,
    /// The same, as of a device that has failed.
    Device,
    /// Every row that looks at the token is NaN.
    Nan,
    /// A block that holds the token cannot be copied.
    Copy,
}

/// Where a step leaves its logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LogitsPlace {
    Here,
    Elsewhere,
}

/// How long steps take, on a clock that stands still otherwise. Clones share the clock.
#[derive(Debug, Clone)]
pub struct Pace {
    /// The engine's.
    pub clock: ManualClock,
    /// Whatever runs in it.
    pub step: Duration,
    /// For each token beyond the first of a sequence, in addition.
    pub further_token: Duration,
}

/// Lets a test decide when steps run. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct StepGate {
    state: Arc<(Mutex<u64>, Condvar)>,
}

impl StubModel {
    /// Ids below `vocab_size`, blocks of `block_size` tokens.
    pub fn new(vocab_size: usize, block_size: usize) -> Self {
        let kv_cache = full_kv_cache(block_size);
        let memory = Mutex::new(Memory { block_size, ..Memory::default() });
        Self {
            vocab_size,
            kv_cache,
            max_position: 1 << 20,
            mishaps: Vec::new(),
            gate: None,
            pace: None,
            place: LogitsPlace::Here,
            pulse: Pulse::default(),
            memory,
        }
    }

    /// As if it had a layer of each reach, instead of one that looks at everything.
    pub fn with_layers(mut self, reaches: &[KvReach]) -> Self {
        self.kv_cache.groups = KvGroup::of_layers(reaches.iter().copied());
        self
    }

    /// The longest sequence the model claims to allow.
    pub fn with_max_position(mut self, max_position: usize) -> Self {
        self.max_position = max_position;
        self
    }

    /// `token` brings `mishap`.
    pub fn with_mishap(mut self, token: TokenId, mishap: Mishap) -> Self {
        self.mishaps.push((token, mishap));
        self
    }

    /// Each step waits for the gate.
    pub fn with_gate(mut self, gate: StepGate) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Each step takes its time.
    pub fn with_pace(mut self, pace: Pace) -> Self {
        self.pace = Some(pace);
        self
    }

    /// As if it ran on a device: rows of logits are asked about where they are.
    pub fn with_logits_elsewhere(mut self) -> Self {
        self.place = LogitsPlace::Elsewhere;
        self
    }

    /// What the model answers after `tokens`, alone: `[vocab_size]`, in [-4, 4).
    pub fn logits(&self, tokens: &[TokenId]) -> Vec<f32> {
        let seen = |group: &KvGroup| group.reach.first_key(tokens.len() - 1)..tokens.len();
        let positions = self.kv_cache.groups.iter().flat_map(seen);
        self.row(positions.fold(0, |hash, position| extend(hash, (tokens[position], position as u32))))
    }

    /// The `count` tokens a greedy request generates after `prompt` if no stop token comes first.
    pub fn greedy(&self, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
        let mut tokens = prompt.to_vec();
        for _ in 0..count {
            let logits = self.logits(&tokens);
            let best = (0..self.vocab_size).reduce(|best, id| if logits[id] > logits[best] { id } else { best });
            tokens.push(best.unwrap_or_default() as TokenId);
        }
        tokens.split_off(prompt.len())
    }

    fn row(&self, history: u64) -> Vec<f32> {
        (0..self.vocab_size as u64).map(|id| (mix(history ^ mix(id)) >> 40) as f32 / (1 << 21) as f32 - 4.0).collect()
    }

    fn has(&self, tokens: &[TokenId], mishap: Mishap) -> bool {
        self.mishaps.iter().any(|(token, kind)| *kind == mishap && tokens.contains(token))
    }

    /// A mishap may panic while it is held, and leaves nothing half written.
    fn lock_memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for StubModel {
    /// With a memory of its own, which holds what this one's does.
    fn clone(&self) -> Self {
        let Self { vocab_size, kv_cache, max_position, mishaps, gate, pace, place, .. } = self;
        Self {
            vocab_size: *vocab_size,
            kv_cache: kv_cache.clone(),
            max_position: *max_position,
            mishaps: mishaps.clone(),
            gate: gate.clone(),
            pace: pace.clone(),
            place: *place,
            pulse: Pulse::default(),
            memory: Mutex::new(self.lock_memory().clone()),
        }
    }
}

impl CausalLm for StubModel {
    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn input_vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn max_position(&self) -> usize {
        self.max_position
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.kv_cache.clone()
    }

    fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        // No layer, so no tensor: what is stored stands in `memory`, which holds blocks of any size.
        let groups = self.kv_cache.groups.iter().map(|group| KvGroup { layers: Vec::new(), ..group.clone() }).collect();
        new_kv_cache(KvCacheSpec { groups, ..self.kv_cache.clone() }, num_blocks)
    }

    fn copy_blocks(&self, copies: &[BlockCopy], _: &mut KvCache) -> Result<(), ModelError> {
        let mut memory = self.lock_memory();
        for &copy in copies {
            if self.has(&memory.tokens(copy.from), Mishap::Copy) {
                return Err(ModelError::Input("a token that must not be copied".into()));
            }
            memory.copy(copy);
        }
        Ok(())
    }

    fn forward(&self, input: &ModelInput, _: &mut KvCache) -> Result<Logits, ModelError> {
        if let Some(gate) = &self.gate {
            gate.pass();
        }
        if let Some(pace) = &self.pace {
            let further = input.num_tokens() - input.num_sequences();
            pace.clock.advance(pace.step + pace.further_token * further as u32);
        }
        let mut memory = self.lock_memory();
        memory.write(input);
        if self.has(input.tokens(), Mishap::Error) {
            return Err(ModelError::Input("a token that brings an error".into()));
        }
        if self.has(input.tokens(), Mishap::Device) {
            return Err(ModelError::device("a token that brings a device down".to_owned()));
        }
        assert!(!self.has(input.tokens(), Mishap::Panic), "a token that brings a panic");
        let mut values = Vec::with_capacity(input.rows_to_sample().len() * self.vocab_size);
        for &row in input.rows_to_sample() {
            let sequence = input.query_start().partition_point(|&start| start <= row) - 1;
            let position = input.positions()[row] as usize;
            let tokens: Vec<_> = (self.kv_cache.groups.iter().enumerate())
                .flat_map(|(group, is)| {
                    memory.read(input.block_table(group, sequence), is.reach.first_key(position)..=position)
                })
                .collect();
            let ids: Vec<_> = tokens.iter().map(|(token, _)| *token).collect();
            match self.has(&ids, Mishap::Nan) {
                true => values.extend(std::iter::repeat_n(f32::NAN, self.vocab_size)),
                false => values.extend(self.row(tokens.into_iter().fold(0, extend))),
            }
        }
        let rows = LogitRows::new(self.vocab_size, values);
        match self.place {
            LogitsPlace::Here => Ok(Logits::Here(rows)),
            LogitsPlace::Elsewhere => Ok(Logits::Elsewhere(DistantLogits::pretend(rows)?)),
        }
    }
}

impl StepGate {
    /// Lets `steps` more steps run.
    pub fn allow(&self, steps: u64) {
        let (permits, changed) = &*self.state;
        let mut permits = permits.lock().expect("no code panics while it holds the gate");
        *permits = permits.saturating_add(steps);
        changed.notify_all();
    }

    /// Lets every further step run.
    pub fn open(&self) {
        self.allow(u64::MAX);
    }

    pub(crate) fn pass(&self) {
        let (permits, changed) = &*self.state;
        let mut permits = permits.lock().expect("no code panics while it holds the gate");
        while *permits == 0 {
            permits = changed.wait(permits).expect("no code panics while it holds the gate");
        }
        // Open is open for good.
        if *permits != u64::MAX {
            *permits -= 1;
        }
    }
}

/// A token id and its position that no sequence has.
const NO_TOKEN: (TokenId, u32) = (TokenId::MAX, u32::MAX);

/// The cache: a token id and a position in each slot.
#[derive(Debug, Clone, Default)]
struct Memory {
    block_size: usize,
    slots: Vec<(TokenId, u32)>,
}

impl Memory {
    fn write(&mut self, input: &ModelInput) {
        for slots in (0..input.num_groups()).map(|group| input.slots(group)) {
            for ((slot, &token), &position) in slots.iter().zip(input.tokens()).zip(input.positions()) {
                *self.slot_mut(slot.0 as usize) = (token, position);
            }
        }
    }

    fn tokens(&mut self, block: BlockId) -> Vec<TokenId> {
        let start = block.0 as usize * self.block_size;
        (start..start + self.block_size).map(|slot| self.slot_mut(slot).0).collect()
    }

    fn copy(&mut self, copy: BlockCopy) {
        let starts = [copy.from, copy.to].map(|block| block.0 as usize * self.block_size);
        for offset in 0..self.block_size {
            let held = *self.slot_mut(starts[0] + offset);
            *self.slot_mut(starts[1] + offset) = held;
        }
    }

    fn slot_mut(&mut self, slot: usize) -> &mut (TokenId, u32) {
        self.slots.resize(self.slots.len().max(slot + 1), NO_TOKEN);
        &mut self.slots[slot]
    }

    fn read(&self, table: &[BlockId], positions: RangeInclusive<usize>) -> Vec<(TokenId, u32)> {
        let slot = |position: usize| {
            table[position / self.block_size].0 as usize * self.block_size + position % self.block_size
        };
        // What was never written looks like no token.
        let held = |slot: usize| self.slots.get(slot).copied().unwrap_or(NO_TOKEN);
        positions.map(|position| held(slot(position))).collect()
    }
}

/// The cache of a model with one layer that looks at everything.
pub(crate) fn full_kv_cache(block_size: usize) -> KvCacheSpec {
    KvCacheSpec { groups: vec![KvGroup::full(1)], num_kv_heads: 1, head_dim: 1, format: KvFormat::F32, block_size }
}

fn new_kv_cache(spec: KvCacheSpec, num_blocks: usize) -> Result<KvCache, ModelError> {
    KvCache::new(spec, num_blocks, &Device::Cpu)
}

fn extend(history: u64, (token, position): (TokenId, u32)) -> u64 {
    mix(history ^ (u64::from(token) << 32 | u64::from(position)))
}
