//! Rows of the embedding table, widened to f32 or dequantised. Exact: widening does not round.

use candle_core::{DType, Tensor};

use super::linear::WeightStorage;
use super::{Compute, Op, PackedWeight, cpu};
use crate::{ModelError, TokenId};

/// The rows `tokens` of `table [vocab_size, hidden_size]`: `[tokens.len(), hidden_size] f32`.
///
/// The table is a [`PackedWeight`] so that a model with tied embeddings holds it once, for this op and for its head.
/// Errors when a token is outside the table. On a GPU the rows stay in the table's dtype, which is that of all activations.
pub fn embedding(compute: &Compute, table: &PackedWeight, tokens: &[TokenId]) -> Result<Tensor, ModelError> {
    let _timer = compute.time(Op::Embedding);
    if let Some(token) = tokens.iter().find(|&&token| token as usize >= table.out_features()) {
        return Err(ModelError::Input(format!(
            "token {token} for an embedding table of {} rows",
            table.out_features()
        )));
    }
    match table.storage() {
        WeightStorage::Packed(parts) => cpu::embedding::embedding(compute, (parts, table.in_features()), tokens),
        #[cfg(feature = "cuda")]
        WeightStorage::Tensor(table) if compute.kernels() == super::KernelSet::Cuda => {
            super::cuda::rows::gather(compute, table, tokens)
        }
        WeightStorage::Tensor(table) => {
            let tokens = Tensor::from_slice(tokens, tokens.len(), compute.device())?;
            Ok(table.index_select(&tokens, 0)?.to_dtype(DType::F32)?)
        }
    }
}
