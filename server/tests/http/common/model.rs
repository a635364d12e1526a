//! A model that says what it is told to. A prompt that holds `say:TEXT` is answered with TEXT and then the end token;
//! any other prompt is answered with letters that depend on every token before them, and never ends by itself. What holds
//! `break:` can be answered and not be scored.
//!
//! It keeps tokens by slot and reads them back through the block tables, so that a wrong block is a wrong answer. Caches of
//! one size are one to it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use candle_core::Device;
use passerelle_models::{
    BlockCopy, CausalLm, KvCache, KvCacheSpec, KvFormat, KvGroup, Logits, ModelError, ModelInput, Pulse, TokenId,
};

use super::text::{END, START, VOCAB};

const BLOCK_SIZE: usize = 16;
const ORDER: &[u8] = b"say:";
/// Scored, it breaks the step. Answered, it is a text like others.
const UNSCORABLE: &[u8] = b"break:";
const ASSISTANT: &[u8] = b"assistant\n";

/// Holds the model's steps back until a test lets them run. Clones are one gate.
#[derive(Clone)]
pub(crate) struct Gate {
    lets: Arc<(Mutex<Lets>, Condvar)>,
    pulse: Pulse,
}

/// What a gate lets through.
enum Lets {
    /// So many steps more.
    Pass(usize),
    PassAll,
}

pub(crate) struct TestModel {
    gate: Gate,
    /// Models of different salts say the same, with another background.
    salt: u64,
    /// Numbers of a row of logits.
    width: usize,
    /// Of each cache, by its size.
    slots: Mutex<BTreeMap<usize, Vec<TokenId>>>,
}

impl Gate {
    pub(crate) fn open() -> Self {
        Self::that(Lets::PassAll)
    }

    pub(crate) fn closed() -> Self {
        Self::that(Lets::Pass(0))
    }

    fn that(lets: Lets) -> Self {
        Self { lets: Arc::new((Mutex::new(lets), Condvar::new())), pulse: Pulse::default() }
    }

    pub(crate) fn release(&self) {
        *self.lets.0.lock().unwrap() = Lets::PassAll;
        self.lets.1.notify_all();
    }

    /// Lets one step through, the one that stands at the gate or the next.
    pub(crate) fn let_one_pass(&self) {
        let mut lets = self.lets.0.lock().unwrap();
        if let Lets::Pass(steps) = &mut *lets {
            *steps += 1;
        }
        self.lets.1.notify_all();
    }

    /// Every step that was let through has been taken.
    pub(crate) fn is_used_up(&self) -> bool {
        matches!(*self.lets.0.lock().unwrap(), Lets::Pass(0))
    }

    /// As if a step that stands at the gate got on.
    pub(crate) fn beat(&self) {
        self.pulse.beat();
    }

    pub(crate) fn pass(&self) {
        let lets = self.lets.0.lock().unwrap();
        let mut lets = self.lets.1.wait_while(lets, |lets| matches!(lets, Lets::Pass(0))).unwrap();
        if let Lets::Pass(steps) = &mut *lets {
            *steps -= 1;
        }
    }
}

impl TestModel {
    pub(crate) fn new(gate: Gate) -> Self {
        Self { gate, salt: 0, width: VOCAB, slots: Mutex::default() }
    }

    pub(crate) fn with_salt(self, salt: u64) -> Self {
        Self { salt, ..self }
    }

    /// Rows are padded with tokens that nothing is spelt with.
    pub(crate) fn with_width(self, width: usize) -> Self {
        Self { width, ..self }
    }

    /// A peak at the next token, over a background that depends on the history too.
    fn logits(&self, history: &[TokenId]) -> Vec<f32> {
        let seed = history.iter().fold(0x9e37_79b9_u64, |hash, token| mix(hash ^ u64::from(*token)));
        let noise = |id: usize| (mix(seed ^ id as u64 ^ self.salt << 32) % 1000) as f32 / 500.0;
        let mut row: Vec<f32> = (0..self.width).map(noise).collect();
        row[next_token(history, seed) as usize] = 8.0;
        row
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<TokenId>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(slots: &mut Vec<TokenId>, input: &ModelInput) {
    for (slot, token) in input.slots(0).iter().zip(input.tokens()) {
        let slot = slot.0 as usize;
        if slots.len() <= slot {
            slots.resize(slot + 1, 0);
        }
        slots[slot] = *token;
    }
}

/// The tokens of the sequence that `row` belongs to, up to and with it.
fn history(slots: &[TokenId], input: &ModelInput, row: usize) -> Vec<TokenId> {
    let sequence = input.query_start().partition_point(|start| *start <= row) - 1;
    let table = input.block_table(0, sequence);
    let slot = |position: usize| table[position / BLOCK_SIZE].0 as usize * BLOCK_SIZE + position % BLOCK_SIZE;
    (0..=input.positions()[row] as usize).map(|position| slots[slot(position)]).collect()
}

impl CausalLm for TestModel {
    fn vocab_size(&self) -> usize {
        self.width
    }

    fn input_vocab_size(&self) -> usize {
        VOCAB
    }

    fn max_position(&self) -> usize {
        1 << 16
    }

    fn pulse(&self) -> Pulse {
        self.gate.pulse.clone()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        let (groups, block_size) = (vec![KvGroup::full(1)], BLOCK_SIZE);
        KvCacheSpec { groups, num_kv_heads: 1, head_dim: 1, format: KvFormat::F32, block_size }
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        KvCache::new(self.kv_cache_spec(), num_blocks, &Device::Cpu)
    }

    fn copy_blocks(&self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        let mut slots = self.slots();
        let slots = slots.entry(cache.num_blocks()).or_default();
        for BlockCopy { from, to } in copies {
            let [from, to] = [from, to].map(|block| block.0 as usize * BLOCK_SIZE);
            slots.resize(slots.len().max(from + BLOCK_SIZE).max(to + BLOCK_SIZE), 0);
            slots.copy_within(from..from + BLOCK_SIZE, to);
        }
        Ok(())
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.gate.pass();
        let is_scored = input.rows_to_sample().len() >= input.query_start().len();
        if is_scored && find(input.tokens(), UNSCORABLE).is_some() {
            return Err(ModelError::Input("the test breaks this step".to_owned()));
        }
        let mut slots = self.slots();
        let slots = slots.entry(cache.num_blocks()).or_default();
        write(slots, input);
        let rows = input.rows_to_sample().iter().flat_map(|row| self.logits(&history(slots, input, *row)));
        let values = rows.collect();
        Ok(Logits::new(self.width, values))
    }
}

fn next_token(history: &[TokenId], seed: u64) -> TokenId {
    let Some(order) = find(history, ORDER) else { return letter(seed) };
    let said = match rfind(history, ASSISTANT).filter(|at| *at > order && history[at - 1] == START) {
        Some(at) => history.len() - at - ASSISTANT.len(),
        None => return letter(seed),
    };
    let begin = order + ORDER.len();
    let length = history[begin..].iter().position(|token| *token == END).unwrap_or(0);
    if said < length { history[begin + said] } else { END }
}

fn letter(seed: u64) -> TokenId {
    u32::from(b'a') + (seed % 26) as u32
}

fn find(history: &[TokenId], bytes: &[u8]) -> Option<usize> {
    history.windows(bytes.len()).position(|window| same(window, bytes))
}

fn rfind(history: &[TokenId], bytes: &[u8]) -> Option<usize> {
    history.windows(bytes.len()).rposition(|window| same(window, bytes))
}

fn same(tokens: &[TokenId], bytes: &[u8]) -> bool {
    tokens.iter().zip(bytes).all(|(token, byte)| *token == u32::from(*byte))
}

/// SplitMix64's finaliser.
fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
