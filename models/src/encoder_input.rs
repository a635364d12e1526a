use crate::input::SequenceInput;
use crate::{BlockId, ModelError, ModelInput, TokenId};

/// One sequence for an encoder.
#[derive(Debug, Clone, Copy)]
pub struct EncoderSequence<'a> {
    pub tokens: &'a [TokenId],
    /// The first token of the second text of a pair, for models that tell the two apart; `None` for one text.
    pub second_text: Option<usize>,
}

/// A flat, ragged batch of whole sequences, checked when it is built. Nothing is padded.
///
/// ```text
/// tokens      a a a a | b | c c          sequence a is a pair, its second text begins at its third token
/// positions   0 1 2 3 | 0 | 0 1
/// types       0 0 1 1 | 0 | 0 0
/// query_start 0       4   5   7
/// ```
#[derive(Debug, Clone)]
pub struct EncoderInput {
    step: ModelInput,
    token_types: Vec<u32>,
}

/// Keys and values of one layer are kept in blocks of this many tokens while the layer runs: a tile of attention each.
pub(crate) const SCRATCH_BLOCK: usize = crate::kv_cache::KV_TILE;

impl EncoderInput {
    /// Errors when there is no sequence, a sequence is empty, or its second text begins outside it.
    pub fn new(sequences: &[EncoderSequence<'_>]) -> Result<Self, ModelError> {
        if sequences.is_empty() {
            return Err(ModelError::Input("a batch without sequences".into()));
        }
        let mut tables = Vec::with_capacity(sequences.len());
        let mut next_block = 0;
        let mut token_types = Vec::new();
        for sequence in sequences {
            let num_tokens = sequence.tokens.len();
            let second_text = sequence.second_text.unwrap_or(num_tokens);
            if second_text > num_tokens {
                return Err(ModelError::Input(format!("a second text at token {second_text} of {num_tokens}")));
            }
            token_types.extend((0..num_tokens).map(|index| u32::from(index >= second_text)));
            let end = next_block + num_tokens.div_ceil(SCRATCH_BLOCK) as u32;
            tables.push([(next_block..end).map(BlockId).collect::<Vec<_>>()]);
            next_block = end;
        }
        let inputs: Vec<_> = sequences
            .iter()
            .zip(&tables)
            .map(|(sequence, table)| SequenceInput {
                tokens: sequence.tokens,
                num_computed: 0,
                block_tables: table,
                sample: &[],
            })
            .collect();
        Ok(Self { step: ModelInput::new(SCRATCH_BLOCK, &inputs)?, token_types })
    }

    pub fn num_tokens(&self) -> usize {
        self.step.num_tokens()
    }

    pub fn num_sequences(&self) -> usize {
        self.step.num_sequences()
    }

    /// `[num_tokens]`: 1 in the second text of a pair, else 0.
    pub fn token_types(&self) -> &[u32] {
        &self.token_types
    }

    /// The same batch as a step over a cache that holds this batch alone.
    pub fn step(&self) -> &ModelInput {
        &self.step
    }

    /// Rows of the flat batch that belong to sequence `i`.
    pub fn rows(&self, sequence: usize) -> std::ops::Range<usize> {
        let start = self.step.query_start();
        start[sequence]..start[sequence + 1]
    }

    /// Blocks of [`SCRATCH_BLOCK`] tokens that hold the keys and values of one layer.
    pub(crate) fn num_blocks(&self) -> usize {
        (0..self.num_sequences()).map(|sequence| self.rows(sequence).len().div_ceil(SCRATCH_BLOCK)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_flat_and_every_sequence_starts_at_position_0_in_blocks_of_its_own() {
        let pair = EncoderSequence { tokens: &[5, 6, 7, 8], second_text: Some(2) };
        let single = EncoderSequence { tokens: &[9; 17], second_text: None };
        let input = EncoderInput::new(&[pair, single]).unwrap();
        assert_eq!(input.token_types()[..5], [0, 0, 1, 1, 0]);
        assert_eq!(input.step().positions()[..6], [0, 1, 2, 3, 0, 1]);
        assert_eq!((input.rows(0), input.rows(1), input.num_blocks()), (0..4, 4..21, 3));
        assert_eq!(input.step().block_table(0, 1), [BlockId(1), BlockId(2)]);
    }

    #[test]
    fn what_is_no_batch_is_refused() {
        let empty = EncoderSequence { tokens: &[], second_text: None };
        let beyond = EncoderSequence { tokens: &[1], second_text: Some(2) };
        assert!(EncoderInput::new(&[]).is_err());
        assert!(EncoderInput::new(&[empty]).is_err());
        assert!(EncoderInput::new(&[beyond]).is_err());
    }
}
