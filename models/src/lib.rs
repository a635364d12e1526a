//! Tokens to logits.
//!
//! This crate knows candle, checkpoints and kernels. It knows no request, tenant, async runtime or HTTP.

pub mod config;
pub mod input;
pub mod kv_cache;
pub mod logits;
pub mod ops;

mod arch;
mod demo;
mod error;
mod layers;
mod load;
mod pulse;
mod weights;

pub use demo::demo_checkpoint;
pub use error::ModelError;
pub use input::{BlockCopy, BlockId, ModelInput, Slot, TokenId};
pub use kv_cache::{KvCache, KvCacheSpec};
pub use layers::{Decoder, LayerObserver};
pub use load::{
    KvDtype, LoadOptions, LoadProgress, LoadedModel, ModelDescription, WeightDtype, describe, load, load_decoder,
};
pub use logits::Logits;
pub use pulse::Pulse;
pub use weights::{CheckpointFiles, StoredDtype};

/// A causal language model over a paged KV cache.
///
/// One call runs one *step*: a flat batch of tokens from any number of sequences, each sequence contributing the next
/// `query_len` tokens after those whose K/V already stand in the cache. There is no prefill and no decode: a chunk of a
/// prompt and a single generated token differ only in `query_len`.
pub trait CausalLm: Send {
    /// Tokens that logits rows range over (the output head's rows, which may be fewer than the input vocabulary).
    fn vocab_size(&self) -> usize;

    /// Ids below this may be fed as input.
    fn input_vocab_size(&self) -> usize;

    /// The longest sequence, prompt and answer together, that the checkpoint's positions allow.
    fn max_position(&self) -> usize;

    /// What one token costs in the cache, for sizing a [`KvCache`].
    fn kv_cache_spec(&self) -> KvCacheSpec;

    /// An empty cache of `num_blocks` blocks on the model's device.
    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError>;

    /// Beats while [`CausalLm::forward`] gets on, so that a long step is told from one that hangs. Models of one
    /// [`ops::Compute`] share its pulse. A model without one must be quick.
    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    /// Copies whole blocks, in order. A step that writes to them comes after.
    fn copy_blocks(&mut self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        cache.copy_blocks(copies)
    }

    /// Writes the K/V of every input token into `cache`, then returns the logits of `input.rows_to_sample()`, in that
    /// order, as f32.
    ///
    /// A row's logits are bit-identical whatever else is in the batch and however its sequence was cut into steps.
    fn forward(&mut self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError>;
}
