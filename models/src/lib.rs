//! Tokens to logits, and texts' tokens to vectors.
//!
//! This crate knows candle, checkpoints and kernels. It knows no request, tenant, async runtime or HTTP.

pub mod config;
pub mod input;
pub mod kv_cache;
pub mod logits;
pub mod ops;
pub mod random;
pub mod selftest;

mod arch;
mod demo;
mod encoder_input;
mod error;
mod footprint;
mod kv_cache_spec;
mod kv_format;
mod layers;
mod load;
mod load_encoder;
mod manifest;
mod pulse;
mod stored_dtype;
mod vectors;
mod weights;

pub use candle_core::DType;
pub use config::{LayerRun, ScoreActivation};
pub use demo::demo_checkpoint;
pub use encoder_input::{EncoderInput, EncoderSequence};
pub use error::ModelError;
pub use footprint::{Activations, Footprint, WeightLayout, footprint};
pub use input::{BlockCopy, BlockId, ModelInput, Slot, TokenId};
pub use kv_cache::KvCache;
pub use kv_cache_spec::{KvCacheSpec, KvGroup, KvReach};
pub use kv_format::KvFormat;
pub use layers::{Decoder, LayerObserver, TextEncoder};
pub use load::{
    ActivationDtype, KvDtype, LoadOptions, LoadProgress, LoadWatch, LoadedModel, ModelDescription, WeightDtype,
    describe, load, load_decoder, unwatched,
};
pub use load_encoder::{
    CheckpointKind, EmbeddingDescription, EncoderDescription, EncoderOutput, LoadedEncoder, ScoresDescription,
    checkpoint_kind, describe_encoder, load_encoder, load_text_encoder,
};
pub use logits::{DistantLogits, LogitRows, Logits};
pub use manifest::{
    FileHash, FileStamp, InvalidDigest, InvalidManifest, KnownHashes, MAX_MANIFEST_BYTES, Manifest, ManifestFile,
    Mismatch, ModelDigest, NothingKnown, copy_hashed, copy_part, is_description,
};
pub use pulse::Pulse;
pub use stored_dtype::StoredDtype;
pub use vectors::{Vectors, scale_to_unit_length};
pub use weights::{CheckpointFiles, GgufMetadata};

/// The generation of the numerics: raised whenever a body of any kernel, or what a layer computes, comes to other bits than
/// before. Scores of different generations do not stand in one file, and answers of different ones have other fingerprints.
pub const NUMERICS: u32 = 5;

/// A causal language model over a paged KV cache.
///
/// One call runs one *step*: a flat batch of tokens from any number of sequences, each sequence contributing the next
/// `query_len` tokens after those whose K/V already stand in the cache. There is no prefill and no decode: a chunk of a
/// prompt and a single generated token differ only in `query_len`.
///
/// What a step leaves behind is in the cache, so several may run one model, each with a cache of its own.
pub trait CausalLm: Send + Sync {
    /// Tokens that logits rows range over (the output head's rows, which may be fewer than the input vocabulary).
    fn vocab_size(&self) -> usize;

    /// Ids below this may be fed as input.
    fn input_vocab_size(&self) -> usize;

    /// The longest sequence, prompt and answer together, that the checkpoint's positions allow.
    fn max_position(&self) -> usize;

    /// What its cache is made of, and so what a sequence takes of it.
    fn kv_cache_spec(&self) -> KvCacheSpec;

    /// An empty cache of `num_blocks` blocks on the model's device.
    fn new_kv_cache(&self, num_blocks: usize) -> Result<KvCache, ModelError>;

    /// Beats while [`CausalLm::forward`] gets on, so that a long step is told from one that hangs. Models of one
    /// [`ops::Compute`] share its pulse. A model without one must be quick.
    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    /// Called by a thread that is about to run the model, which keeps what it gets while it does: it then runs on the
    /// processors that the model's [`ops::Compute`] was given, if any.
    fn enter(&self) -> Option<ops::OnProcessors> {
        None
    }

    /// Copies whole blocks, in order. A step that writes to them comes after.
    fn copy_blocks(&self, copies: &[BlockCopy], cache: &mut KvCache) -> Result<(), ModelError> {
        cache.copy_blocks(copies)
    }

    /// Writes the K/V of every input token into `cache`, then returns the logits of `input.rows_to_sample()`, in that
    /// order. A device may still be at work on what it left there; what goes wrong then shows where the logits are asked about.
    ///
    /// On CPUs a row's logits are bit-identical whatever else is in the batch and however its sequence was cut into steps. On
    /// a GPU they are close to those of other batches, not equal.
    fn forward(&self, input: &ModelInput, cache: &mut KvCache) -> Result<Logits, ModelError>;

    /// The same, told what will be asked of each sampled row, if anything, in their order: a model may then keep no more of it
    /// ([`Logits::Asked`]).
    fn forward_asked(
        &self,
        input: &ModelInput,
        cache: &mut KvCache,
        _questions: &[Option<ops::RowQuestion>],
    ) -> Result<Logits, ModelError> {
        self.forward(input, cache)
    }
}

/// A model that gives one vector for each text: an embedding, or the logits of a classifier.
pub trait Encoder: Send {
    /// Ids below this may be fed as input.
    fn vocab_size(&self) -> usize;

    /// The longest sequence.
    fn max_tokens(&self) -> usize;

    /// Elements of a vector.
    fn width(&self) -> usize;

    /// See [`CausalLm::pulse`].
    fn pulse(&self) -> Pulse {
        Pulse::default()
    }

    /// See [`CausalLm::enter`].
    fn enter(&self) -> Option<ops::OnProcessors> {
        None
    }

    /// One vector for each sequence of `input`, in its order.
    ///
    /// On CPUs a sequence's vector is bit-identical whatever else is in the batch; on a GPU it is close to that of other
    /// batches, not equal.
    fn forward(&mut self, input: &EncoderInput) -> Result<Vectors, ModelError>;
}
