//! A step's integers, packed for one copy to the device.

use std::ops::Range;

use crate::ops::AttentionPlan;
use crate::{BlockId, ModelInput, Slot};

/// ```text
/// words   tokens | positions | sampled rows | slots of each group | items of decode, of prefill | tables of each group
/// ```
#[derive(Debug)]
pub(crate) struct StepWords {
    pub(super) words: Vec<u32>,
    pub(super) layout: StepLayout,
}

/// Where in the words something begins.
#[derive(Debug, Clone)]
pub(crate) struct StepLayout {
    pub(super) tokens: usize,
    pub(super) positions: usize,
    /// Those of the flat batch whose logits are wanted.
    pub(super) sampled: usize,
    /// By group of layers.
    pub(super) slots: Vec<usize>,
    /// Single tokens.
    pub(super) decode: Items,
    /// Chunks of several tokens.
    pub(super) prefill: Items,
    /// By group; the tables of all sequences, one after the other.
    pub(super) blocks: Vec<usize>,
}

/// Chunks of tokens for attention, four words each: first row, rows, where the sequence's blocks begin, its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Items {
    pub(super) start: usize,
    pub(super) count: usize,
    /// Of the sequence that has most of them.
    pub(super) most_keys: usize,
}

/// The slot of a row that stands for no token: its keys and values go nowhere.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Of a chunk: enough that the rows of one K/V head fill whole blocks of threads, few enough that blocks take turns at a long
/// prompt.
pub(super) const ITEM_TOKENS: usize = 128;
const ITEM_WORDS: usize = 4;

impl Items {
    /// Some of them.
    pub(super) fn part(self, which: Range<usize>) -> Self {
        Self { start: self.start + ITEM_WORDS * which.start, count: which.len(), ..self }
    }
}

impl StepWords {
    pub(crate) fn new(plan: &AttentionPlan<'_>) -> Self {
        let input = plan.input();
        let mut words = Vec::with_capacity(2 * input.num_tokens());
        let tokens = append(&mut words, input.tokens().iter().copied());
        let positions = append(&mut words, input.positions().iter().copied());
        let sampled = append(&mut words, input.rows_to_sample().iter().map(|&row| row as u32));
        let groups = 0..input.num_groups();
        let slots = groups.clone().map(|group| append(&mut words, slots(input, group))).collect();
        let table_starts = table_starts(input);
        let mut items = |is_wanted: fn(usize) -> bool| {
            let mut items = Items { start: words.len(), count: 0, most_keys: 0 };
            for chunk in plan.chunks_of(ITEM_TOKENS).iter().filter(|chunk| is_wanted(chunk.num_rows)) {
                let num_keys = input.num_keys(chunk.sequence);
                let item = [chunk.first_row, chunk.num_rows, table_starts[chunk.sequence], num_keys];
                words.extend(item.map(|word| word as u32));
                items.count += 1;
                items.most_keys = items.most_keys.max(num_keys);
            }
            items
        };
        let (decode, prefill) = (items(|rows| rows == 1), items(|rows| rows > 1));
        let blocks = groups.map(|group| append(&mut words, tables(input, group))).collect();
        Self { words, layout: StepLayout { tokens, positions, sampled, slots, decode, prefill, blocks } }
    }
}

pub(super) fn slots(input: &ModelInput, group: usize) -> impl Iterator<Item = u32> {
    input.slots(group).iter().map(|Slot(slot)| *slot)
}

/// Of all sequences, one after the other.
pub(super) fn tables(input: &ModelInput, group: usize) -> impl Iterator<Item = u32> {
    (0..input.num_sequences())
        .flat_map(move |sequence| input.block_table(group, sequence).iter().map(|BlockId(block)| *block))
}

/// Where each sequence's begins among [`tables`]: in every group at the same place, since a sequence has as many blocks in
/// each.
pub(super) fn table_starts(input: &ModelInput) -> Vec<usize> {
    let mut starts = Vec::with_capacity(input.num_sequences());
    let mut next = 0;
    for sequence in 0..input.num_sequences() {
        starts.push(next);
        next += input.num_keys(sequence).div_ceil(input.block_size());
    }
    starts
}

/// Where what was appended begins.
fn append(words: &mut Vec<u32>, more: impl Iterator<Item = u32>) -> usize {
    let start = words.len();
    words.extend(more);
    start
}
