//! Which model goes where, and what it gets there.

mod filled;
mod shortage;

use passerelle_models::{ActivationDtype, KvCacheSpec, KvFormat};

use super::{Backend, KvDemand};
use crate::units::ByteSize;

pub use filled::{FilledPartition, PlacedModel};
pub use shortage::{Fits, Remedy, Shortage};

/// Elements of the longest head that a model may have on an accelerator, which `passerelle_models` refuses to load others on.
const MOST_HEAD_DIM: usize = 256;

/// A model that is to run, and what is asked of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelDemand {
    pub name: String,
    pub weights: HeldBytes,
    /// The same in other dtypes, by their names, from the largest to the smallest: what might help where it does not fit.
    pub smaller: Vec<(&'static str, HeldBytes)>,
    /// An encoder keeps nothing.
    pub kv: Option<KvCacheSpec>,
    /// What activations are rounded to beside quantised weights.
    pub activation_dtype: ActivationDtype,
    /// Tokens of a sequence, prompt and answer together.
    pub context: usize,
    /// Sequences of that length that must have room at once.
    pub sequences: usize,
    /// Sequences that its engine runs at once, at most.
    pub max_sequences: usize,
    /// Tokens that a step computes, at most.
    pub step_tokens: usize,
    /// Of such a step.
    pub activations: u64,
}

/// What weights take: on a CPU their rows are padded, and elsewhere quantised ones need room to be dequantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldBytes {
    pub cpu: u64,
    pub accelerator: u64,
}

/// A partition before anything is on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionRoom {
    pub name: String,
    /// `None`: a CPU.
    pub backend: Option<Backend>,
    pub memory: ByteSize,
    /// Of it, for the driver and its libraries.
    pub reserved: ByteSize,
    pub kv: KvBudget,
}

/// What of a partition is for keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvBudget {
    Stated(ByteSize),
    /// One such part of what weights and activations leave.
    PartOfRest(u64),
    /// What weights leave, or so much of it: the memory is stated for both, and activations come on top of it.
    BesideWeights(Option<ByteSize>),
}

impl KvBudget {
    /// Of the memory, where steps hold so many bytes.
    fn activations_within(self, activations: u64) -> u64 {
        match self {
            Self::Stated(_) | Self::PartOfRest(_) => activations,
            Self::BesideWeights(_) => 0,
        }
    }
}

impl PartitionRoom {
    /// What steps hold whose models' need so much each.
    fn steps(&self, of_models: impl Iterator<Item = u64>) -> u64 {
        if self.backend.is_none() { of_models.sum() } else { of_models.max().unwrap_or(0) }
    }
}

/// Where every model goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// In the order that was given.
    pub partitions: Vec<FilledPartition>,
    pub unplaced: Vec<UnplacedModel>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct UnplacedModel {
    pub name: String,
    pub shortage: Shortage,
}

/// The models that need most are placed first, each on the first partition, in the order given, where it and what is there
/// already fit (first-fit decreasing, Johnson 1973). Models of one need go in the order given, so a plan is always the same.
///
/// A model fits where weights, the activations of steps ([`FilledPartition::activations`]) and a KV cache that holds
/// its sequences do, the KV cache being shared as the server shares it ([`super::share_kv_memory`]).
pub fn plan(models: &[ModelDemand], rooms: &[PartitionRoom]) -> Plan {
    let mut partitions: Vec<FilledPartition> = rooms.iter().map(FilledPartition::empty).collect();
    let mut order: Vec<&ModelDemand> = models.iter().collect();
    order.sort_by_key(|model| std::cmp::Reverse(model.need()));
    let mut refused = Vec::new();
    for model in order {
        let placed = partitions.iter_mut().find_map(|partition| {
            *partition = partition.with(model)?;
            Some(())
        });
        if placed.is_none() {
            refused.push(model);
        }
    }
    let unplaced = refused
        .into_iter()
        .map(|model| UnplacedModel { name: model.name.clone(), shortage: Shortage::of(model, rooms, &partitions) });
    Plan { unplaced: unplaced.collect(), partitions }
}

impl ModelDemand {
    /// Whether there are kernels for how it is to be computed.
    fn runs_on(&self, room: &PartitionRoom) -> bool {
        let is_wide = !self.keeps_int8() && self.activation_dtype == ActivationDtype::Int16;
        room.backend.is_none() || is_wide && self.long_head_dim().is_none()
    }

    /// Elements of its heads, where these are longer than kernels for accelerators take.
    fn long_head_dim(&self) -> Option<usize> {
        self.kv.as_ref().map(|kv| kv.head_dim).filter(|head_dim| *head_dim > MOST_HEAD_DIM)
    }

    fn keeps_int8(&self) -> bool {
        self.kv.as_ref().is_some_and(|kv| kv.format == KvFormat::Int8)
    }

    /// Bytes of a partition that has nothing else, without what its driver takes.
    fn need(&self) -> u64 {
        self.weights.accelerator + self.activations + self.kv_bytes(self.sequences)
    }

    /// Blocks of so many sequences at their longest.
    pub(super) fn kv_blocks(&self, sequences: usize) -> usize {
        let of_one = self.kv.as_ref().map_or(0, |spec| spec.most_blocks(self.context, self.step_tokens));
        sequences.saturating_mul(of_one)
    }

    pub(super) fn kv_bytes(&self, sequences: usize) -> u64 {
        let block = self.kv.as_ref().map_or(0, KvCacheSpec::block_bytes);
        (self.kv_blocks(sequences) as u64).saturating_mul(block as u64)
    }

    /// What it asks of the KV cache as a server does: no less than what is asked for here.
    fn kv_demand(&self) -> Option<KvDemand> {
        let spec = self.kv.clone()?;
        Some(KvDemand { most_blocks: self.kv_blocks(self.max_sequences.max(self.sequences)), spec })
    }
}

impl HeldBytes {
    pub fn on(self, backend: Option<Backend>) -> u64 {
        match backend {
            None => self.cpu,
            Some(_) => self.accelerator,
        }
    }
}

#[cfg(test)]
mod tests;
