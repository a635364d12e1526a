use super::{KvBudget, ModelDemand, PartitionRoom};
use crate::placement::share_kv_memory;
use crate::units::ByteSize;

/// A partition and what is on it.
#[derive(Debug, Clone, PartialEq)]
pub struct FilledPartition {
    pub room: PartitionRoom,
    pub models: Vec<PlacedModel>,
    /// Of the model whose steps hold most: engines of a partition take turns. On a CPU of all of them, for each keeps what its
    /// steps compute in.
    pub activations: ByteSize,
}

/// What a model gets of its partition.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacedModel {
    pub demand: ModelDemand,
    pub weights: ByteSize,
    pub kv_blocks: usize,
    pub kv: ByteSize,
    /// Tokens that all groups of layers have room for.
    pub kv_tokens: usize,
    /// Sequences of the asked length at once; `None` for an encoder, which keeps nothing of a text.
    pub sequences: Option<usize>,
}

impl FilledPartition {
    pub(super) fn empty(room: &PartitionRoom) -> Self {
        Self { room: room.clone(), models: Vec::new(), activations: ByteSize(0) }
    }

    /// What is left of its memory.
    pub fn free(&self) -> ByteSize {
        let taken: u64 = self.models.iter().map(|model| model.weights.0 + model.kv.0).sum();
        let activations = self.room.kv.activations_within(self.activations.0);
        ByteSize(self.room.memory.0.saturating_sub(self.room.reserved.0 + activations + taken))
    }

    /// What is gone of its device, also beside the memory that was stated for it.
    pub fn taken(&self) -> ByteSize {
        let models: u64 = self.models.iter().map(|model| model.weights.0 + model.kv.0).sum();
        ByteSize(self.room.reserved.0 + self.activations.0 + models)
    }

    /// With `model` beside those that are there; `None` where not all of them have what they ask for.
    pub(super) fn with(&self, model: &ModelDemand) -> Option<Self> {
        if !model.runs_on(&self.room) {
            return None;
        }
        let demands: Vec<&ModelDemand> = self.models.iter().map(|placed| &placed.demand).chain([model]).collect();
        let weights: u64 = demands.iter().map(|demand| demand.weights.on(self.room.backend)).sum();
        let activations = self.room.steps(demands.iter().map(|demand| demand.activations));
        let within = self.room.kv.activations_within(activations);
        let rest = self.room.memory.0.checked_sub(self.room.reserved.0)?.checked_sub(weights)?.checked_sub(within)?;
        let budget = match self.room.kv {
            KvBudget::Stated(stated) if stated.0 > rest => return None,
            KvBudget::Stated(stated) => stated,
            KvBudget::PartOfRest(part) => ByteSize(rest / part),
            KvBudget::BesideWeights(at_most) => at_most.map_or(ByteSize(rest), |most| ByteSize(most.0.min(rest))),
        };
        let of_cache: Vec<_> = demands.iter().filter_map(|demand| demand.kv_demand()).collect();
        let mut blocks = share_kv_memory(budget, &of_cache).ok()?.into_iter();
        let placed = demands.into_iter().map(|demand| self.placed(demand, &mut blocks));
        let models: Vec<PlacedModel> = placed.collect();
        let is_enough = |model: &PlacedModel| model.sequences.is_none_or(|found| found >= model.demand.sequences);
        let activations = ByteSize(activations);
        models.iter().all(is_enough).then_some(Self { room: self.room.clone(), models, activations })
    }

    fn placed(&self, demand: &ModelDemand, blocks: &mut impl Iterator<Item = usize>) -> PlacedModel {
        let weights = ByteSize(demand.weights.on(self.room.backend));
        let Some(spec) = &demand.kv else {
            let (kv_blocks, kv, kv_tokens, sequences) = (0, ByteSize(0), 0, None);
            return PlacedModel { demand: demand.clone(), weights, kv_blocks, kv, kv_tokens, sequences };
        };
        let kv_blocks = blocks.next().unwrap_or(0);
        PlacedModel {
            demand: demand.clone(),
            weights,
            kv_blocks,
            kv: ByteSize(kv_blocks as u64 * spec.block_bytes() as u64),
            kv_tokens: kv_blocks / spec.groups.len() * spec.block_size,
            sequences: Some(kv_blocks / demand.kv_blocks(1).max(1)),
        }
    }
}
