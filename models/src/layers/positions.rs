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
pub(super) struct Angles([Option<RotaryAngles>; MOST_ROPES]);

/// Of one model. Families that are known have one for local layers and one for global ones.
const MOST_ROPES: usize = 4;

impl Positions {
    /// Which of the rotary embeddings a layer uses, `None` where it uses none.
    ///
    /// Errors when they are too many.
    pub(super) fn index_of(&mut self, position: &PositionSpec) -> Result<Option<usize>, ModelError> {
        let PositionSpec::Rope(spec) = position else { return Ok(None) };
        if let Some(known) = self.ropes.iter().position(|(known, _)| known == spec) {
            return Ok(Some(known));
        }
        if self.ropes.len() == MOST_ROPES {
            return Err(ModelError::Input(format!("more than {MOST_ROPES} different rotary embeddings")));
        }
        self.ropes.push((spec.clone(), RotaryEmbedding::new(spec.inv_freq(), spec.attention_scaling())));
        Ok(Some(self.ropes.len() - 1))
    }

    pub(super) fn angles(&self, compute: &Compute, plan: &AttentionPlan<'_>) -> Result<Angles, ModelError> {
        let mut angles = [const { None }; MOST_ROPES];
        for (angles, (_, rope)) in angles.iter_mut().zip(&self.ropes) {
            *angles = Some(rope.angles_of_step(compute, plan)?);
        }
        Ok(Angles(angles))
    }
}

impl Angles {
    /// `index` is what [`Positions::index_of`] returned.
    pub(super) fn get(&self, index: usize) -> &RotaryAngles {
        self.0[index].as_ref().expect("every rotary embedding of a model has angles in each step")
    }
}
