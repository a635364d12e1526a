//! Texts to vectors: the lane of encoders. One OS thread owns one model, as in an [`crate::Engine`]; what waits is taken
//! together, whole text by whole text, up to a budget of tokens.
//!
//! ```text
//! submit -> bounded queue -> [ take commands, wait for the turn, drain cancelled, batch, run, reply ] -> EncodeReply
//! ```
//!
//! There is no cache and no second step: a text is read once, and its vector is its answer. A batch that fails is run again
//! text by text, so that only the one at fault fails.

mod engine;
mod run;

pub use engine::{EncoderConfig, EncoderEngine, EncoderHandle, EncoderParts, EncoderStats};

use passerelle_models::TokenId;

use crate::lane::LaneRequest;
use crate::reply::Reply;
use crate::request::{RequestId, ShareKey};

/// One text for an encoder.
#[derive(Debug, Clone)]
pub struct EncodeRequest {
    /// Of the request that the text came in; several texts may share it.
    pub id: RequestId,
    /// At least one token, each below the model's vocabulary.
    pub tokens: Vec<TokenId>,
    /// The first token of the second text of a pair.
    pub second_text: Option<usize>,
    pub share_key: ShareKey,
}

/// The vector to be.
pub type EncodeReply = Reply<Vec<f32>>;

impl LaneRequest for EncodeRequest {
    fn share_key(&self) -> ShareKey {
        self.share_key
    }

    fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests;
