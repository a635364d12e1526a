//! Two models in front of one text, each with its own cache.

use std::ops::Range;

use passerelle_models::input::SequenceInput;
use passerelle_models::{BlockId, LogitRows, TokenId};

use super::{ComparedPosition, ComparisonRequest};
use crate::event::{RequestError, TokenLogprobs};
use crate::logprobs::{kl_divergence, token_logprobs};
use crate::model_runner::ModelRunner;
use crate::shared_model::SharedModel;

/// Shown beside the text's own token.
const LIKELIEST: u8 = 1;

pub(super) struct Pair {
    pub(super) first: Side,
    pub(super) second: Side,
}

/// One model and the keys and values of the text. What fails by the model counts with its owner.
pub(super) struct Side {
    model: SharedModel,
    runner: ModelRunner,
    block_tables: Vec<Vec<BlockId>>,
}

impl Pair {
    /// Errors when there is no memory for the caches.
    pub(super) fn new(request: &ComparisonRequest) -> Result<Self, RequestError> {
        let num_tokens = request.tokens.len();
        Ok(Self { first: Side::new(&request.first, num_tokens)?, second: Side::new(&request.second, num_tokens)? })
    }

    /// `successors`: for each row, the token that follows in the text.
    pub(super) fn compare(
        &self,
        first: &LogitRows,
        second: &LogitRows,
        successors: &[TokenId],
    ) -> Result<Vec<Option<ComparedPosition>>, RequestError> {
        let compare = |(row, &token): (usize, &TokenId)| {
            let (first, second) = (first.row(row), second.row(row));
            Ok(Some(ComparedPosition {
                first: self.first.logprobs(first, token)?,
                second: self.second.logprobs(second, token)?,
                kl: kl_divergence(first, second)?,
            }))
        };
        successors.iter().enumerate().map(compare).collect()
    }
}

impl Side {
    /// Each group of layers has room for every token, also behind its window: there is one text, and not for long.
    fn new(model: &SharedModel, num_tokens: usize) -> Result<Self, RequestError> {
        let spec = model.get().kv_cache_spec();
        let blocks_each = num_tokens.div_ceil(spec.block_size);
        let num_groups = spec.groups.len();
        let runner = ModelRunner::new(model.clone(), blocks_each * num_groups).map_err(RequestError::from);
        let runner = runner.inspect_err(|error| model.note_failure(error))?;
        let table = |group| (group * blocks_each..(group + 1) * blocks_each).map(|block| BlockId(block as u32));
        let block_tables = (0..num_groups).map(|group| table(group).collect()).collect();
        Ok(Self { model: model.clone(), runner, block_tables })
    }

    /// Runs `chunk`, which follows what ran before. A row for each of its tokens that has a successor.
    pub(super) fn run(&mut self, tokens: &[TokenId], chunk: Range<usize>) -> Result<LogitRows, RequestError> {
        let _here = self.runner.enter();
        let sample: Vec<usize> = (0..chunk.end.min(tokens.len() - 1).saturating_sub(chunk.start)).collect();
        let rows = self.runner.rows(&[SequenceInput {
            tokens: &tokens[chunk.clone()],
            num_computed: chunk.start,
            block_tables: &self.block_tables,
            sample: &sample,
        }]);
        rows.inspect_err(|error| self.model.note_failure(error))
    }

    fn logprobs(&self, row: &[f32], token: TokenId) -> Result<TokenLogprobs, RequestError> {
        token_logprobs(row, token, LIKELIEST).inspect_err(|error| self.model.note_failure(error))
    }
}
