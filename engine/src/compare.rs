//! Two models on one text: how likely each finds its tokens, and how far apart their distributions are at each position.
//!
//! One OS thread, the comparison lane, has models lent by whoever keeps them and runs one comparison at a time, chunk by
//! chunk. Each chunk takes a turn for each model, so that the engines whose models they are go on between them:
//!
//! ```text
//! submit -> bounded queue -> [ turn: chunk of the first | turn: chunk of the second | compare rows, drop them ]* -> reply
//! ```
//!
//! Both models have a cache of their own for the one text. It is made when its comparison begins and dropped with it.
//! Rows of logits never leave the chunk. A row does not depend on how its text was cut, so what is said of a position are
//! the very floats of [`crate::Event::PromptLogprobs`].

mod lane;
mod pair;
mod run;

pub use lane::{ComparisonConfig, ComparisonHandle, ComparisonLane, ComparisonParts};

use passerelle_models::TokenId;

use crate::event::TokenLogprobs;
use crate::lane::LaneRequest;
use crate::reply::Reply;
use crate::request::{RequestId, ShareKey};
use crate::shared_model::SharedModel;

/// One text for two models of one vocabulary.
#[derive(Debug, Clone)]
pub struct ComparisonRequest {
    pub id: RequestId,
    /// At least one token, each below the vocabulary of both.
    pub tokens: Vec<TokenId>,
    pub first: SharedModel,
    pub second: SharedModel,
    pub share_key: ShareKey,
}

/// What two models say at one position.
#[derive(Debug, Clone, PartialEq)]
pub struct ComparedPosition {
    /// With the likeliest token.
    pub first: TokenLogprobs,
    pub second: TokenLogprobs,
    /// `KL(first || second)` over the whole vocabulary, in nats, summed in f64. Infinite if the second rules out what the
    /// first does not.
    pub kl: f64,
}

/// One entry per token; the first has no predecessor and is `None`. The tokens count once for each of the two models.
pub type ComparisonReply = Reply<Vec<Option<ComparedPosition>>>;

impl LaneRequest for ComparisonRequest {
    fn share_key(&self) -> ShareKey {
        self.share_key
    }

    fn num_tokens(&self) -> usize {
        self.tokens.len()
    }
}

#[cfg(test)]
mod tests;
