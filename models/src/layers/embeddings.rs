use super::names::EncoderNames;
use super::norm::Norm;
use crate::config::EncoderSpec;
use crate::ops::{self, AttentionPlan, Compute, Matrix, PackedWeight};
use crate::weights::{MatrixPart, WeightLoader};
use crate::{EncoderInput, ModelError};

/// What an encoder's first layer reads: `norm(word + position + text of the pair)`.
#[derive(Debug)]
pub(super) struct Embeddings {
    word: PackedWeight,
    /// And the row of a text's first token.
    position: Option<(PackedWeight, usize)>,
    token_type: Option<PackedWeight>,
    norm: Option<Norm>,
}

impl Embeddings {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &EncoderNames,
        spec: &EncoderSpec,
    ) -> Result<Self, ModelError> {
        let width = spec.hidden_size;
        let mut table = |name: &str, rows| loader.matrix(width, &[MatrixPart::whole(format!("{name}.weight"), rows)]);
        let word = table(names.block.embedding, spec.vocab_size)?;
        let position = match spec.position_table {
            Some(positions) => Some((table(names.position, positions.rows)?, positions.first)),
            None => None,
        };
        let token_type = match spec.token_types {
            0 => None,
            rows => Some(table(names.token_type, rows)?),
        };
        let norm = spec.embedding_norm.map(|norm| Norm::load(loader, names.block.embedding_norm, width, norm));
        Ok(Self { word, position, token_type, norm: norm.transpose()? })
    }

    /// `[num_tokens, hidden_size]`
    pub(super) fn forward(
        &self,
        compute: &Compute,
        input: &EncoderInput,
        plan: &AttentionPlan<'_>,
    ) -> Result<Matrix, ModelError> {
        let mut sum = ops::embedding_of_step(compute, &self.word, plan)?;
        if let Some(table) = &self.token_type {
            // A model with one row does not tell the texts apart.
            let last = table.out_features() as u32 - 1;
            let rows: Vec<u32> = input.token_types().iter().map(|&token_type| token_type.min(last)).collect();
            sum = ops::add(compute, &sum, &ops::embedding(compute, table, &rows)?)?;
        }
        if let Some((table, first)) = &self.position {
            let rows: Vec<u32> = input.step().positions().iter().map(|position| position + *first as u32).collect();
            sum = ops::add(compute, &sum, &ops::embedding(compute, table, &rows)?)?;
        }
        match &self.norm {
            Some(norm) => norm.apply(compute, &sum),
            None => Ok(sum),
        }
    }

    pub(super) fn size_bytes(&self) -> usize {
        let position = self.position.as_ref().map_or(0, |(table, _)| table.size_bytes());
        let token_type = self.token_type.as_ref().map_or(0, PackedWeight::size_bytes);
        self.word.size_bytes() + position + token_type + self.norm.as_ref().map_or(0, Norm::size_bytes)
    }
}
