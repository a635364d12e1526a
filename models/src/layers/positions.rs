use crate::ModelError;
use crate::config::{PositionSpec, RopeSpec};
use crate::ops::{AttentionPlan, Compute, RotaryAngles, RotaryEmbedding};

/// The rotary embeddings of a model: each distinct one once, however many layers share it.
#[derive(Debug, Default)]
pub(super) struct Positions {
    ropes: Vec<(RopeSpec, RotaryEmbedding)>,
}

/// Every rotary embedding's angles for the tokens of one step.
#[derive(Debug)]
pub(super) struct Angles(Vec<RotaryAngles>);

impl Positions {
    /// Which of the rotary embeddings a layer uses, `None` where it uses none.
    pub(super) fn index_of(&mut self, position: &PositionSpec) -> Option<usize> {
        let PositionSpec::Rope(spec) = position else { return None };
        let known = self.ropes.iter().position(|(known, _)| known == spec);
        Some(known.unwrap_or_else(|| {
            self.ropes.push((spec.clone(), RotaryEmbedding::new(spec.inv_freq(), spec.attention_scaling())));
            self.ropes.len() - 1
        }))
    }

    pub(super) fn angles(&self, compute: &Compute, plan: &AttentionPlan<'_>) -> Result<Angles, ModelError> {
        let angles = self.ropes.iter().map(|(_, rope)| rope.angles_of_step(compute, plan));
        Ok(Angles(angles.collect::<Result<_, _>>()?))
    }
}

impl Angles {
    /// `index` is what [`Positions::index_of`] returned.
    pub(super) fn get(&self, index: usize) -> &RotaryAngles {
        &self.0[index]
    }
}
