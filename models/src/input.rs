use std::ops::Range;

use crate::ModelError;

/// A row of the embedding table.
pub type TokenId = u32;

/// One physical block of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// One block to be filled with what another holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
}

/// One token's place in the KV cache: `block * block_size + offset`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub u32);

/// One sequence's share of a step.
#[derive(Debug, Clone)]
pub struct SequenceInput<'a> {
    /// The tokens to run now, at positions `num_computed .. num_computed + tokens.len()`.
    pub tokens: &'a [TokenId],
    /// Tokens whose K/V already stand in the cache.
    pub num_computed: usize,
    /// A table for each group of the cache ([`crate::KvCacheSpec`]): blocks in sequence order, covering at least
    /// `num_computed + tokens.len()` tokens. Behind a group's window a table may name any block of
    /// the cache: nothing that stands there counts.
    pub block_tables: &'a [Vec<BlockId>],
    /// Which of `tokens` want logits, by index, ascending.
    pub sample: &'a [usize],
}

/// One step for the model: a flat, ragged batch, checked when it is built.
///
/// ```text
/// tokens      a a a | b | c c          sequence a runs 3 tokens, b runs 1, c runs 2
/// positions   4 5 6 | 9 | 0 1
/// query_start 0     3   4   6
/// ```
#[derive(Debug, Clone)]
pub struct ModelInput {
    block_size: usize,
    tokens: Vec<TokenId>,
    positions: Vec<u32>,
    query_start: Vec<usize>,
    places: Vec<Places>,
    rows_to_sample: Vec<usize>,
}

/// Where one group of layers has its keys and values.
#[derive(Debug, Clone)]
struct Places {
    slots: Vec<Slot>,
    /// The block tables of all sequences, one after the other, so that a step makes one list and not one a sequence.
    blocks: Vec<BlockId>,
    block_start: Vec<usize>,
}

impl ModelInput {
    /// Errors when a sequence is empty, it has not as many block tables as the others, they do not cover its tokens, or its
    /// sampled indexes are out of range or not ascending.
    pub fn new(block_size: usize, sequences: &[SequenceInput<'_>]) -> Result<Self, ModelError> {
        let num_groups = sequences.first().map_or(1, |sequence| sequence.block_tables.len());
        let mut input = Self::empty(block_size, num_groups);
        sequences.iter().try_for_each(|sequence| input.push(sequence))?;
        Ok(input)
    }

    /// Of no sequence yet.
    pub fn empty(block_size: usize, num_groups: usize) -> Self {
        let places = Places { slots: Vec::new(), blocks: Vec::new(), block_start: vec![0] };
        Self {
            block_size,
            tokens: Vec::new(),
            positions: Vec::new(),
            query_start: vec![0],
            places: vec![places; num_groups],
            rows_to_sample: Vec::new(),
        }
    }

    /// Of no sequence again, in the memory that it has. The tables of each group may then grow to `most_blocks` together, from
    /// step to step, and take no more.
    pub fn clear(&mut self, most_blocks: usize) {
        self.tokens.clear();
        self.positions.clear();
        self.query_start.truncate(1);
        self.rows_to_sample.clear();
        self.places.iter_mut().for_each(|places| places.clear(most_blocks));
    }

    /// One sequence more. Errors as [`Self::new`], and is then as it was.
    pub fn push(&mut self, sequence: &SequenceInput<'_>) -> Result<(), ModelError> {
        let end = sequence.num_computed + sequence.tokens.len();
        if sequence.tokens.is_empty() {
            return Err(ModelError::Input("a sequence without tokens".into()));
        }
        let (num_tables, num_groups) = (sequence.block_tables.len(), self.places.len());
        if num_tables != num_groups {
            return Err(ModelError::Input(format!("{num_tables} block tables for {num_groups} groups")));
        }
        if let Some(table) = sequence.block_tables.iter().find(|table| table.len() * self.block_size < end) {
            let (blocks, block_size) = (table.len(), self.block_size);
            return Err(ModelError::Input(format!("{blocks} blocks of {block_size} do not hold {end} tokens")));
        }
        if let Some(row) = sequence.sample.iter().find(|&&row| row >= sequence.tokens.len()) {
            return Err(ModelError::Input(format!("sampled token {row} of {}", sequence.tokens.len())));
        }
        if !sequence.sample.is_sorted_by(|a, b| a < b) {
            return Err(ModelError::Input("sampled tokens that do not ascend".into()));
        }
        let first_row = self.tokens.len();
        self.rows_to_sample.extend(sequence.sample.iter().map(|row| first_row + row));
        self.tokens.extend_from_slice(sequence.tokens);
        self.positions.extend((sequence.num_computed..end).map(|position| position as u32));
        for (places, table) in self.places.iter_mut().zip(sequence.block_tables) {
            places.push(table, sequence.num_computed..end, self.block_size);
        }
        self.query_start.push(self.tokens.len());
        Ok(())
    }

    /// The same with rows behind it that stand for nobody, `num_tokens` in all: each the first token of a sequence in block 0.
    /// Whoever runs them must keep their K/V out of the cache.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn padded(&self, num_tokens: usize) -> Result<Self, ModelError> {
        let tables = vec![vec![BlockId(0)]; self.num_groups()];
        let mut padded = self.clone();
        for _ in self.num_tokens()..num_tokens {
            padded.push(&SequenceInput { tokens: &[0], num_computed: 0, block_tables: &tables, sample: &[0] })?;
        }
        Ok(padded)
    }

    /// `num_tokens` such rows, and no other.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn nobodys(&self, num_tokens: usize) -> Result<Self, ModelError> {
        Self::empty(self.block_size, self.num_groups()).padded(num_tokens)
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_tokens(&self) -> usize {
        self.tokens.len()
    }

    pub fn num_sequences(&self) -> usize {
        self.query_start.len() - 1
    }

    /// `[num_tokens]`
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// `[num_tokens]`, each token's position in its own sequence.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Groups of layers, each with slots and block tables of its own.
    pub fn num_groups(&self) -> usize {
        self.places.len()
    }

    /// `[num_tokens]`, where the layers of `group` write each token's K/V.
    pub fn slots(&self, group: usize) -> &[Slot] {
        &self.places[group].slots
    }

    /// `[num_sequences + 1]`, ascending; sequence `i` owns rows `query_start[i]..query_start[i + 1]`.
    pub fn query_start(&self) -> &[usize] {
        &self.query_start
    }

    /// Keys of sequence `i` once this step's are stored: its tokens up to the last one of this step.
    pub fn num_keys(&self, sequence: usize) -> usize {
        self.positions[self.query_start[sequence + 1] - 1] as usize + 1
    }

    /// The blocks of sequence `i` in `group`, exactly covering its tokens up to the last one of this step.
    pub fn block_table(&self, group: usize, sequence: usize) -> &[BlockId] {
        let Places { blocks, block_start, .. } = &self.places[group];
        &blocks[block_start[sequence]..block_start[sequence + 1]]
    }

    /// Rows of the flat batch whose logits are wanted, ascending.
    pub fn rows_to_sample(&self) -> &[usize] {
        &self.rows_to_sample
    }
}

impl Places {
    fn clear(&mut self, most_blocks: usize) {
        self.slots.clear();
        self.blocks.clear();
        self.blocks.reserve(most_blocks);
        self.block_start.truncate(1);
    }

    fn push(&mut self, table: &[BlockId], positions: Range<usize>, block_size: usize) {
        self.blocks.extend_from_slice(&table[..positions.end.div_ceil(block_size)]);
        self.block_start.push(self.blocks.len());
        self.slots.extend(
            positions.map(|position| {
                Slot(table[position / block_size].0 * block_size as u32 + (position % block_size) as u32)
            }),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_SIZE: usize = 4;

    fn tables(first: u32) -> [Vec<BlockId>; 2] {
        [0, 10].map(|group| (0..3).map(|block| BlockId(first + group + block)).collect())
    }

    #[test]
    fn an_input_that_is_filled_again_is_as_a_new_one_also_after_a_sequence_that_it_refused() {
        let (a, b, c) = (tables(0), tables(20), tables(40));
        let long = SequenceInput { tokens: &[5; 9], num_computed: 2, block_tables: &a, sample: &[0, 8] };
        let short = SequenceInput { tokens: &[6], num_computed: 7, block_tables: &b, sample: &[0] };
        let other = SequenceInput { tokens: &[7, 8], num_computed: 3, block_tables: &c, sample: &[1] };
        let mut input = ModelInput::new(BLOCK_SIZE, &[long.clone(), short.clone()]).unwrap();
        input.clear(6);
        input.push(&short).unwrap();
        for refused in [
            SequenceInput { tokens: &[], ..long.clone() },
            SequenceInput { num_computed: 4, ..long.clone() },
            SequenceInput { block_tables: &a[..1], ..long.clone() },
            SequenceInput { sample: &[9], ..long.clone() },
            SequenceInput { sample: &[1, 1], ..long },
        ] {
            assert!(matches!(input.push(&refused), Err(ModelError::Input(_))), "{refused:?}");
        }
        input.push(&other).unwrap();
        let anew = ModelInput::new(BLOCK_SIZE, &[short, other]).unwrap();
        assert_eq!(format!("{input:?}"), format!("{anew:?}"));
    }

    #[test]
    fn block_tables_that_grow_as_far_as_was_said_take_no_memory() {
        let mut input = ModelInput::empty(BLOCK_SIZE, 1);
        let table: [Vec<BlockId>; 1] = [(0..100).map(BlockId).collect()];
        input.clear(200);
        let memory = input.places[0].blocks.as_ptr();
        for num_computed in (0..400).step_by(BLOCK_SIZE) {
            input.clear(200);
            let sequence = SequenceInput { tokens: &[5], num_computed, block_tables: &table, sample: &[0] };
            (0..2).for_each(|_| input.push(&sequence).unwrap());
            assert_eq!(input.places[0].blocks.as_ptr(), memory, "{num_computed}");
        }
    }
}
