//! The steps that are replayed: those in which every sequence gives one token and wants its logits. They come in a few sizes;
//! a smaller one is filled up with rows that stand for nobody, so that one recording serves many steps.

use super::step::{Items, NOWHERE, StepLayout, StepWords, slots, table_starts, tables};
use crate::ModelInput;

/// What a recording has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PaddedShape {
    pub(super) rows: usize,
    /// Of a sequence.
    pub(super) most_keys: usize,
}

/// The largest batch that is replayed. Beyond, launches are a small share of a step.
pub(super) const MOST_ROWS: usize = 256;
/// A step reads all weights, which takes about as long for so many rows as for one. So up to here rows for nobody cost less than
/// further recordings; beyond, a product takes rows so many at a time.
const FREE_ROWS: usize = 32;
/// The smallest `most_keys`.
const LEAST_KEYS: usize = 1024;
/// The largest product of rows and keys, which bounds what attention leaves to be merged.
const MOST_ROWS_TIMES_KEYS: usize = 1 << 20;

impl PaddedShape {
    /// `None` for a step that is not replayed.
    pub(crate) fn of(input: &ModelInput) -> Option<Self> {
        let rows = input.num_tokens();
        if rows == 0 || rows > MOST_ROWS || rows != input.num_sequences() || rows != input.rows_to_sample().len() {
            return None;
        }
        let most_keys = input.positions().iter().max().map_or(1, |position| *position as usize + 1);
        let most_keys = most_keys.next_power_of_two().max(LEAST_KEYS);
        let rows = if rows <= FREE_ROWS { rows.next_power_of_two() } else { rows.next_multiple_of(FREE_ROWS) };
        (rows * most_keys <= MOST_ROWS_TIMES_KEYS).then_some(Self { rows, most_keys })
    }

    /// The integers of `input`, in a layout that depends on the shape alone. Behind the rows of `input` stand others, each
    /// a sequence of one token, in the first block of the first sequence, whose keys and values go nowhere.
    pub(crate) fn words(self, input: &ModelInput) -> StepWords {
        let (layout, len) = self.layout(input.num_groups(), input.block_size());
        let mut words = vec![0; len];
        let mut put = |start: usize, values: &mut dyn Iterator<Item = u32>| {
            let mut end = start;
            for (word, value) in words[start..].iter_mut().zip(values) {
                *word = value;
                end += 1;
            }
            end
        };
        put(layout.tokens, &mut input.tokens().iter().copied());
        put(layout.positions, &mut input.positions().iter().copied());
        put(layout.sampled, &mut (0..self.rows as u32));
        for (group, &start) in layout.slots.iter().enumerate() {
            let nobodys = std::iter::repeat_n(NOWHERE, self.rows - input.num_tokens());
            put(start, &mut slots(input, group).chain(nobodys));
        }
        let starts = table_starts(input).into_iter().enumerate();
        let items = starts.map(|(row, start)| [row, 1, start, input.num_keys(row)]);
        let nobodys = (input.num_tokens()..self.rows).map(|row| [row, 1, 0, 1]);
        put(layout.decode.start, &mut items.chain(nobodys).flatten().map(|word| word as u32));
        let ends = layout.blocks.iter().enumerate().map(|(group, &start)| put(start, &mut tables(input, group)));
        // What no item names need not be copied.
        let end = ends.last().unwrap_or(len);
        words.truncate(end);
        StepWords { words, layout }
    }

    /// The same with other tokens, whose keys and values go where those of `input` belong.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn spoilt_words(self, input: &ModelInput) -> StepWords {
        let mut step = self.words(input);
        let tokens = &mut step.words[step.layout.tokens..][..input.num_tokens()];
        tokens.iter_mut().for_each(|token| *token = u32::from(*token == 0));
        step
    }

    /// And how many words it takes.
    pub(crate) fn layout(self, num_groups: usize, block_size: usize) -> (StepLayout, usize) {
        let mut len = 0;
        let mut take = |words: usize| {
            len += words;
            len - words
        };
        let [tokens, positions, sampled] = [(); 3].map(|()| take(self.rows));
        let slots = (0..num_groups).map(|_| take(self.rows)).collect();
        let decode = Items { start: take(4 * self.rows), count: self.rows, most_keys: self.most_keys };
        let prefill = Items { start: decode.start, count: 0, most_keys: 0 };
        let table = self.rows * self.most_keys.div_ceil(block_size);
        let blocks = (0..num_groups).map(|_| take(table)).collect();
        (StepLayout { tokens, positions, sampled, slots, decode, prefill, blocks }, len)
    }
}
