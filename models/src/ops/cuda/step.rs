//! A step's integers, packed for one copy to the device.

use crate::ops::AttentionPlan;
use crate::{BlockId, Slot};

/// ```text
/// words   positions | slots of each group | block tables of each group | items of decode | items of prefill
/// ```
#[derive(Debug)]
pub(crate) struct StepWords {
    pub(super) words: Vec<u32>,
    pub(super) layout: StepLayout,
}

/// Where in the words something begins.
#[derive(Debug, Clone)]
pub(crate) struct StepLayout {
    pub(super) positions: usize,
    /// By group of layers.
    pub(super) slots: Vec<usize>,
    /// By group; the tables of all sequences, one after the other.
    pub(super) blocks: Vec<usize>,
    /// Single tokens.
    pub(super) decode: Items,
    /// Chunks of several tokens.
    pub(super) prefill: Items,
}

/// Chunks of tokens for attention, four words each: first row, rows, where the sequence's blocks begin, its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Items {
    pub(super) start: usize,
    pub(super) count: usize,
    /// Of the sequence that has most of them.
    pub(super) most_keys: usize,
}

/// Of a chunk: enough that the rows of one K/V head fill whole blocks of threads, few enough that blocks take turns at a long
/// prompt.
pub(super) const ITEM_TOKENS: usize = 128;

impl StepWords {
    pub(crate) fn new(plan: &AttentionPlan<'_>) -> Self {
        let input = plan.input();
        let mut words = input.positions().to_vec();
        let groups = 0..input.num_groups();
        let slots = groups.clone().map(|group| append(&mut words, input.slots(group).iter().map(|Slot(slot)| *slot)));
        let slots = slots.collect();
        let tables = |group: usize| {
            (0..input.num_sequences())
                .flat_map(move |sequence| input.block_table(group, sequence).iter().map(|BlockId(block)| *block))
        };
        let blocks = groups.map(|group| append(&mut words, tables(group))).collect();
        // A sequence has as many blocks in every group.
        let table_len = |sequence: usize| input.num_keys(sequence).div_ceil(input.block_size());
        let mut table_starts = vec![0; input.num_sequences() + 1];
        for sequence in 0..input.num_sequences() {
            table_starts[sequence + 1] = table_starts[sequence] + table_len(sequence);
        }
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
        Self { words, layout: StepLayout { positions: 0, slots, blocks, decode, prefill } }
    }
}

/// Where what was appended begins.
fn append(words: &mut Vec<u32>, more: impl Iterator<Item = u32>) -> usize {
    let start = words.len();
    words.extend(more);
    start
}
