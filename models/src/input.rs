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
    /// Blocks in sequence order, covering at least `num_computed + tokens.len()` tokens.
    pub block_table: &'a [BlockId],
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
    slots: Vec<Slot>,
    query_start: Vec<usize>,
    /// The block tables of all sequences, one after the other, so that a step makes one list and not one a sequence.
    blocks: Vec<BlockId>,
    block_start: Vec<usize>,
    rows_to_sample: Vec<usize>,
}

impl ModelInput {
    /// Errors when a sequence is empty, its blocks do not cover its tokens, or its sampled indexes are out of range or not
    /// ascending.
    pub fn new(block_size: usize, sequences: &[SequenceInput<'_>]) -> Result<Self, ModelError> {
        let num_tokens = sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let num_blocks = sequences.iter().map(|sequence| sequence.block_table.len()).sum();
        let num_rows = sequences.iter().map(|sequence| sequence.sample.len()).sum();
        let mut input = Self {
            block_size,
            tokens: Vec::with_capacity(num_tokens),
            positions: Vec::with_capacity(num_tokens),
            slots: Vec::with_capacity(num_tokens),
            query_start: Vec::with_capacity(sequences.len() + 1),
            blocks: Vec::with_capacity(num_blocks),
            block_start: Vec::with_capacity(sequences.len() + 1),
            rows_to_sample: Vec::with_capacity(num_rows),
        };
        input.query_start.push(0);
        input.block_start.push(0);
        for sequence in sequences {
            input.push(sequence)?;
        }
        Ok(input)
    }

    fn push(&mut self, sequence: &SequenceInput<'_>) -> Result<(), ModelError> {
        let end = sequence.num_computed + sequence.tokens.len();
        if sequence.tokens.is_empty() {
            return Err(ModelError::Input("a sequence without tokens".into()));
        }
        if sequence.block_table.len() * self.block_size < end {
            return Err(ModelError::Input(format!(
                "{} blocks of {} do not hold {end} tokens",
                sequence.block_table.len(),
                self.block_size
            )));
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
        for position in sequence.num_computed..end {
            let block = sequence.block_table[position / self.block_size];
            self.positions.push(position as u32);
            self.slots.push(Slot(block.0 * self.block_size as u32 + (position % self.block_size) as u32));
        }
        self.blocks.extend_from_slice(&sequence.block_table[..end.div_ceil(self.block_size)]);
        self.block_start.push(self.blocks.len());
        self.query_start.push(self.tokens.len());
        Ok(())
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

    /// `[num_tokens]`, where each token's K/V is written.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// `[num_sequences + 1]`, ascending; sequence `i` owns rows `query_start[i]..query_start[i + 1]`.
    pub fn query_start(&self) -> &[usize] {
        &self.query_start
    }

    /// Keys of sequence `i` once this step's are stored: its tokens up to the last one of this step.
    pub fn num_keys(&self, sequence: usize) -> usize {
        self.positions[self.query_start[sequence + 1] - 1] as usize + 1
    }

    /// The blocks of sequence `i`, exactly covering its tokens up to the last one of this step.
    pub fn block_table(&self, sequence: usize) -> &[BlockId] {
        &self.blocks[self.block_start[sequence]..self.block_start[sequence + 1]]
    }

    /// Rows of the flat batch whose logits are wanted, ascending.
    pub fn rows_to_sample(&self) -> &[usize] {
        &self.rows_to_sample
    }
}
