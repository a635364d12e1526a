//! Rows of the embedding table, widened to f32 or dequantised. Exact: widening does not round.

use candle_core::{DType, Tensor};

use super::linear::WeightStorage;
use super::{AttentionPlan, Compute, Matrix, Op, Operand, PackedWeight, cpu};
use crate::{ModelError, TokenId};

/// The rows `tokens` of `table [vocab_size, hidden_size]`: `[tokens.len(), hidden_size] f32`.
///
/// The table is a [`PackedWeight`] so that a model with tied embeddings holds it once, for this op and for its head.
/// Errors when a token is outside the table. On a GPU the rows have the dtype of all activations: the table's, or bf16 where the
/// table is quantised.
pub fn embedding<M: Operand>(compute: &Compute, table: &PackedWeight, tokens: &[TokenId]) -> Result<M, ModelError> {
    M::of(rows(compute, table, tokens)?)
}

fn rows(compute: &Compute, table: &PackedWeight, tokens: &[TokenId]) -> Result<Matrix, ModelError> {
    let _timer = compute.time(Op::Embedding);
    check(table, tokens)?;
    match table.storage() {
        WeightStorage::Packed(parts) => Ok(cpu::embedding::embedding(compute, parts, table.in_features(), tokens)),
        #[cfg(feature = "cuda")]
        WeightStorage::Tensor(table) if compute.kernels() == super::KernelSet::Cuda => {
            Ok(super::cuda::rows::gather(compute, table, tokens)?.into())
        }
        #[cfg(feature = "cuda")]
        WeightStorage::Quantised(table) => Ok(super::cuda::quantised::rows(compute, table, tokens)?.into()),
        WeightStorage::Tensor(table) => {
            let tokens = Tensor::from_slice(tokens, tokens.len(), compute.device())?;
            Ok(table.index_select(&tokens, 0)?.to_dtype(DType::F32)?.into())
        }
    }
}

/// As [`embedding`], of the tokens of a step.
pub fn embedding_of_step(
    compute: &Compute,
    table: &PackedWeight,
    plan: &AttentionPlan<'_>,
) -> Result<Matrix, ModelError> {
    match table.storage() {
        #[cfg(feature = "cuda")]
        WeightStorage::Tensor(rows) if compute.kernels() == super::KernelSet::Cuda => {
            let _timer = compute.time(Op::Embedding);
            check(table, plan.input().tokens())?;
            Ok(super::cuda::rows::gather_tokens(compute, rows, plan)?.into())
        }
        #[cfg(feature = "cuda")]
        WeightStorage::Quantised(rows) => {
            let _timer = compute.time(Op::Embedding);
            check(table, plan.input().tokens())?;
            Ok(super::cuda::quantised::rows_of_step(compute, rows, plan)?.into())
        }
        _ => embedding(compute, table, plan.input().tokens()),
    }
}

fn check(table: &PackedWeight, tokens: &[TokenId]) -> Result<(), ModelError> {
    if tokens.iter().any(|&token| token as usize >= table.out_features()) {
        return Err(ModelError::Input(format!(
            "a token beyond the {} rows of an embedding table",
            table.out_features()
        )));
    }
    Ok(())
}
