//! A real decoder some of whose steps fail, by the tokens that they run.

use std::ops::Range;

use passerelle_models::ops::RowQuestion;
use passerelle_models::{BlockCopy, CausalLm, Decoder, KvCache, KvCacheSpec, Logits, ModelError, ModelInput};

/// A step that runs one of these returns an error.
pub(crate) const BRING_AN_ERROR: Range<u32> = 180..190;
pub(crate) const BRING_A_PANIC: Range<u32> = 190..200;

/// Fails some steps after they have written what they write.
pub(crate) struct Sick {
    pub(crate) decoder: Decoder,
    pub(crate) new_blocks: NewBlocks,
}

/// What a block holds in the moment that it is handed out: whatever somebody left there, nobody reads it.
#[derive(PartialEq)]
pub(crate) enum NewBlocks {
    AsTheyWere,
    FullOfNan,
}

impl Sick {
    fn spoil_new_blocks(&self, input: &ModelInput, cache: &mut KvCache) -> Result<(), ModelError> {
        for sequence in 0..input.num_sequences() {
            let num_computed = input.positions()[input.query_start()[sequence]] as usize;
            let new_blocks = num_computed.div_ceil(input.block_size())..;
            for group in 0..input.num_groups() {
                for &block in &input.block_table(group, sequence)[new_blocks.clone()] {
                    cache.fill_block(block, f32::NAN)?;
                }
            }
        }
        Ok(())
    }

    fn ail(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        forward: &dyn Fn(&mut KvCache) -> Result<Logits, ModelError>,
    ) -> Result<Logits, ModelError> {
        if self.new_blocks == NewBlocks::FullOfNan {
            self.spoil_new_blocks(input, cache)?;
        }
        let logits = forward(cache)?;
        let runs_any = |of: Range<u32>| input.tokens().iter().any(|token| of.contains(token));
        assert!(!runs_any(BRING_A_PANIC), "a token that brings a panic");
        match runs_any(BRING_AN_ERROR) {
            true => Err(ModelError::Input("a token that brings an error".into())),
            false => Ok(logits),
        }
    }
}

impl CausalLm for Sick {
    fn vocab_size(&self) -> usize {
        self.decoder.vocab_size()
    }

    fn input_vocab_size(&self) -> usize {
        self.decoder.input_vocab_size()
    }

    fn max_position(&self) -> usize {
        self.decoder.max_position()
    }

    fn kv_cache_spec(&self) -> KvCacheSpec {
        self.decoder.kv_cache_spec()
    }

    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError> {
        self.decoder.new_kv_cache(num_blocks)
    }

    fn copy_blocks(&self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        for copy in copies {
            if self.new_blocks == NewBlocks::FullOfNan {
                cache.fill_block(copy.to, f32::NAN)?;
            }
            self.decoder.copy_blocks(std::slice::from_ref(copy), cache)?;
        }
        Ok(())
    }

    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError> {
        self.ail(input, cache, &|cache| self.decoder.forward(input, cache))
    }

    /// Where blocks are as they were, rows of logits are kept whole, whatever is asked of them: what is chosen of them must be
    /// the same.
    fn forward_asked(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        questions: &[Option<RowQuestion>],
    ) -> Result<Logits, ModelError> {
        match self.new_blocks {
            NewBlocks::AsTheyWere => self.forward(input, cache),
            NewBlocks::FullOfNan => {
                self.ail(input, cache, &|cache| self.decoder.forward_asked(input, cache, questions))
            }
        }
    }
}
