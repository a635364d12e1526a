use std::fmt;

use passerelle_models::{ActivationDtype, KvCacheSpec, KvFormat};

use super::{FilledPartition, KvBudget, MOST_HEAD_DIM, ModelDemand, PartitionRoom};
use crate::units::ByteSize;

/// Why a model has no place, on the partition that came nearest.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// The largest of those that were given; `None` where none was.
    pub nearest: Option<String>,
    pub fits: Fits,
    /// What would give it a place, the least first.
    pub remedies: Vec<Remedy>,
}

/// How much of it would fit on that partition if nothing else were there.
#[derive(Debug, Clone, PartialEq)]
pub enum Fits {
    /// All, but others are there.
    Alone { needs: ByteSize, left: ByteSize },
    /// Its weights and a step, with room for so many of its sequences.
    Sequences { found: usize, asked: usize, context: usize },
    /// Not even its weights and a step.
    Nothing { needs: ByteSize, there_is: ByteSize },
    /// Nothing on accelerators, which have no kernels for what is int8 of it; there is nothing else.
    ForCpus,
    /// Nor for heads of so many elements.
    LongHeads(usize),
}

/// One thing that would help.
#[derive(Debug, Clone, PartialEq)]
pub enum Remedy {
    FewerSequences(usize),
    ShorterContext(usize),
    /// Weights of this dtype.
    Dtype(&'static str),
    /// What accelerators compute with, where it is another.
    Wider {
        kv: Option<KvFormat>,
        activations: Option<&'static str>,
    },
    /// A CPU beside what there is.
    Cpu {
        at_least: ByteSize,
    },
    /// Keys and values of this size, where another is stated.
    KvCacheMemory(ByteSize),
    /// One more partition, or a larger one.
    Partition {
        at_least: ByteSize,
    },
}

impl Shortage {
    pub(super) fn of(model: &ModelDemand, rooms: &[PartitionRoom], partitions: &[FilledPartition]) -> Self {
        let possible = rooms.iter().filter(|room| model.runs_on(room));
        let nearest = possible.max_by_key(|room| room.memory.0 - room.reserved.0.min(room.memory.0));
        let needs = ByteSize(model.need());
        if nearest.is_none() && !rooms.is_empty() {
            let fits = model.long_head_dim().map_or(Fits::ForCpus, Fits::LongHeads);
            return Self { nearest: None, fits, remedies: without_a_cpu(model, partitions) };
        }
        let Some(room) = nearest else {
            let fits = Fits::Nothing { needs, there_is: ByteSize(0) };
            return Self { nearest: None, fits, remedies: vec![Remedy::Partition { at_least: needs }] };
        };
        let found = sequences_alone(model, room);
        let fits = match found {
            None => Fits::Nothing { needs: ByteSize(beside_kv(model, room)), there_is: room.memory },
            Some(found) if found < model.sequences => {
                Fits::Sequences { found, asked: model.sequences, context: model.context }
            }
            Some(_) => {
                let possible = partitions.iter().filter(|partition| model.runs_on(&partition.room));
                let left = possible.map(|partition| room_left(partition, model)).max().unwrap_or(0);
                Fits::Alone { needs, left: ByteSize(left) }
            }
        };
        let remedies = remedies(model, room, &fits);
        Self { nearest: Some(room.name.clone()), fits, remedies }
    }
}

/// Sequences of its length that `model` has room for on an empty `room`; `None` where it cannot run at all.
fn sequences_alone(model: &ModelDemand, room: &PartitionRoom) -> Option<usize> {
    let filled = FilledPartition::empty(room);
    let fits = |sequences: usize| filled.with(&ModelDemand { sequences, ..model.clone() }).is_some();
    if !fits(0) {
        return weights_fit(model, room).then_some(0);
    }
    let (mut some, mut too_many) = (0, model.sequences + 1);
    while some + 1 < too_many {
        let middle = some.midpoint(too_many);
        if fits(middle) { some = middle } else { too_many = middle }
    }
    Some(some)
}

fn weights_fit(model: &ModelDemand, room: &PartitionRoom) -> bool {
    beside_kv(model, room) < room.memory.0
}

/// What must be there before any keys and values.
fn beside_kv(model: &ModelDemand, room: &PartitionRoom) -> u64 {
    model.weights.on(room.backend) + room.kv.activations_within(model.activations) + room.reserved.0
}

/// What a further model could have if those that are there kept only what they asked for.
fn room_left(partition: &FilledPartition, model: &ModelDemand) -> u64 {
    let room = &partition.room;
    let steps = room.steps([partition.activations.0, model.activations].into_iter());
    let asked = partition.models.iter().map(|is| is.weights.0 + is.demand.kv_bytes(is.demand.sequences));
    room.memory.0.saturating_sub(room.reserved.0 + steps - model.activations + asked.sum::<u64>())
}

/// For a model of which something is int8, or too long, that no accelerator computes with.
fn without_a_cpu(model: &ModelDemand, partitions: &[FilledPartition]) -> Vec<Remedy> {
    let format = if model.keeps_int8() { Some(KvFormat::Bf16) } else { None };
    let kv = model.kv.clone().map(|kv| KvCacheSpec { format: format.unwrap_or(kv.format), ..kv });
    let activations = (model.activation_dtype != ActivationDtype::Int16).then_some("int16");
    let wider = ModelDemand { kv, activation_dtype: ActivationDtype::Int16, ..model.clone() };
    let fits = partitions.iter().any(|partition| partition.with(&wider).is_some());
    let at_least = ByteSize(model.weights.cpu + model.activations + model.kv_bytes(model.sequences));
    let wider = fits.then_some(Remedy::Wider { kv: format, activations });
    wider.into_iter().chain([Remedy::Cpu { at_least }]).collect()
}

fn remedies(model: &ModelDemand, room: &PartitionRoom, fits: &Fits) -> Vec<Remedy> {
    let filled = FilledPartition::empty(room);
    let is_alone = matches!(fits, Fits::Alone { .. });
    let mut found = Vec::new();
    if let Fits::Sequences { found: sequences, .. } = fits {
        if *sequences > 0 {
            found.push(Remedy::FewerSequences(*sequences));
        }
        let shorter = longest_context(model, &filled);
        found.extend(shorter.map(Remedy::ShorterContext));
    }
    if !is_alone {
        let with = |weights| filled.with(&ModelDemand { weights, ..model.clone() }).is_some();
        // On an accelerator, what quantised weights are dequantised to may be more than they save.
        let mut smaller =
            model.smaller.iter().filter(|(_, held)| held.on(room.backend) < model.weights.on(room.backend));
        found.extend(smaller.find(|(_, held)| with(*held)).map(|(dtype, _)| Remedy::Dtype(dtype)));
    }
    if let Some(memory) = kv_memory_that_fits(model, room).filter(|_| !is_alone) {
        found.push(Remedy::KvCacheMemory(memory));
        return found;
    }
    let part = match room.kv {
        KvBudget::Stated(_) | KvBudget::BesideWeights(_) => 1,
        KvBudget::PartOfRest(part) => part,
    };
    let kv = model.kv_bytes(model.sequences).saturating_mul(part);
    let at_least = model.weights.on(room.backend) + model.activations + room.reserved.0 + kv;
    found.push(Remedy::Partition { at_least: ByteSize(at_least) });
    found
}

/// Of a partition whose cache has a stated size, too large or too small, another with which the model fits.
fn kv_memory_that_fits(model: &ModelDemand, room: &PartitionRoom) -> Option<ByteSize> {
    let KvBudget::Stated(_) = room.kv else { return None };
    let memory = ByteSize(model.kv_bytes(model.sequences).next_multiple_of(1 << 20));
    let stated = PartitionRoom { kv: KvBudget::Stated(memory), ..room.clone() };
    FilledPartition::empty(&stated).with(model).map(|_| memory)
}

/// The longest context, in whole blocks, at which all sequences fit.
fn longest_context(model: &ModelDemand, filled: &FilledPartition) -> Option<usize> {
    let block_size = model.kv.as_ref()?.block_size;
    let fits = |blocks: usize| filled.with(&ModelDemand { context: blocks * block_size, ..model.clone() }).is_some();
    let (mut some, mut too_many) = (0, model.context.div_ceil(block_size));
    while some + 1 < too_many {
        let middle = some.midpoint(too_many);
        if fits(middle) { some = middle } else { too_many = middle }
    }
    (some > 0).then_some(some * block_size)
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = self.nearest.as_deref().unwrap_or("no partition");
        match &self.fits {
            Fits::Alone { needs, left } => {
                write!(f, "it needs {needs} beside what is placed, and no partition has more than {left} left")?;
            }
            Fits::Sequences { found, asked, context } => {
                write!(f, "{place} has room for {found} of {asked} sequences of {context} tokens")?;
            }
            Fits::Nothing { needs, there_is } => {
                write!(f, "its weights and one step take {needs}, and {place} has {there_is}")?;
            }
            Fits::ForCpus => {
                f.write_str("keys, values and activations in int8 are for models on a CPU, and no partition is one")?;
            }
            Fits::LongHeads(head_dim) => write!(
                f,
                "heads of {head_dim} elements are for models on a CPU; on a GPU there are at most {MOST_HEAD_DIM}, and \
                 no partition is a CPU"
            )?,
        }
        let remedies: Vec<String> = self.remedies.iter().map(ToString::to_string).collect();
        write!(f, "; it fits with {}", remedies.join(", or "))
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewerSequences(sequences) => write!(f, "--sequences {sequences}"),
            Self::ShorterContext(tokens) => write!(f, "--max-model-len {tokens}"),
            Self::Dtype(dtype) => write!(f, "--dtype {dtype}"),
            Self::Wider { kv, activations } => {
                let kv = kv.map(|format| format!("--kv-dtype {format}"));
                let activations = activations.map(|dtype| format!("--activation-dtype {dtype}"));
                f.write_str(&kv.into_iter().chain(activations).collect::<Vec<_>>().join(" and "))
            }
            Self::Cpu { at_least } => write!(f, "a CPU with {} for it", at_least.written_up()),
            Self::KvCacheMemory(memory) => write!(f, "--kv-cache-memory {}", memory.written_up()),
            Self::Partition { at_least } => write!(f, "a partition of {} of its own", at_least.written_up()),
        }
    }
}
