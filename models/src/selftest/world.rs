use std::ops::Range;

use candle_core::{Device, Tensor};

use super::numbers::Random;
use crate::input::SequenceInput;
use crate::kv_cache::KvLayer;
use crate::ops::{Compute, Float, store_kv};
use crate::{BlockId, KvCache, KvCacheSpec, KvGroup, ModelError, ModelInput, Slot};

/// Sizes of one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) num_kv_heads: usize,
    pub(crate) group: usize,
    pub(crate) head_dim: usize,
    pub(crate) block_size: usize,
    pub(crate) activations: Float,
    pub(crate) cache: Float,
}

/// A step over sequences whose blocks lie in no order, in a cache whose other slots are not numbers.
pub(crate) struct World {
    pub(crate) shape: Shape,
    pub(crate) input: ModelInput,
    layer: KvLayer,
}

impl Shape {
    pub(crate) fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    pub(crate) fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Of dot products.
    pub(crate) fn scale(&self) -> f32 {
        (self.head_dim as f32).sqrt().recip()
    }
}

impl World {
    /// In the CPU's memory. Each sequence runs the tokens at `positions`; those before are in the cache.
    pub(crate) fn new(shape: Shape, sequences: &[Range<usize>]) -> Result<Self, ModelError> {
        let num_blocks = sequences.iter().map(|positions| positions.end.div_ceil(shape.block_size)).sum::<usize>() + 2;
        let spec = KvCacheSpec {
            groups: vec![KvGroup::full(1)],
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            format: shape.cache.kv_format(),
            block_size: shape.block_size,
        };
        let mut layer = KvCache::new(spec, num_blocks, &Device::Cpu)?.layer_mut(0).clone();
        let all: Vec<Slot> = (0..num_blocks * shape.block_size).map(|slot| Slot(slot as u32)).collect();
        let stale = Tensor::full(f32::NAN, (all.len(), shape.kv_width()), &Device::Cpu)?;
        store_kv(&Compute::cpu(1), &stale, &stale, &all, &mut layer)?;
        // Neighbours in a sequence are far from each other, and the first block is nobody's.
        let mut free = (1..num_blocks as u32).rev().map(BlockId);
        let tables: Vec<Vec<Vec<BlockId>>> = sequences
            .iter()
            .map(|positions| vec![free.by_ref().take(positions.end.div_ceil(shape.block_size)).collect()])
            .collect();
        let tokens = vec![0; sequences.iter().map(Range::len).max().unwrap_or(0)];
        let inputs = sequences.iter().zip(&tables).map(|(positions, block_tables)| SequenceInput {
            tokens: &tokens[..positions.len()],
            num_computed: positions.start,
            block_tables,
            sample: &[],
        });
        let input = ModelInput::new(shape.block_size, &inputs.collect::<Vec<_>>())?;
        Ok(Self { shape, input, layer })
    }

    /// Fills the slots of every key that the step's tokens can see.
    pub(crate) fn with_keys(mut self, random: &mut Random) -> Result<Self, ModelError> {
        for sequence in 0..self.input.num_sequences() {
            let table = self.input.block_table(0, sequence);
            let slot_of = |key: usize| {
                let size = self.shape.block_size;
                Slot(table[key / size].0 * size as u32 + (key % size) as u32)
            };
            let slots: Vec<_> = (0..self.input.num_keys(sequence)).map(slot_of).collect();
            let [k, v] = [(); 2].map(|()| random.tensor(&[slots.len(), self.shape.kv_width()], Float::F32));
            store_kv(&Compute::cpu(1), &k, &v, &slots, &mut self.layer)?;
        }
        Ok(self)
    }

    /// In the memory of `device`.
    pub(crate) fn on(mut self, device: &Device) -> Result<Self, ModelError> {
        self.layer = self.layer.on(device)?;
        Ok(self)
    }

    pub(crate) fn layer(&mut self) -> &mut KvLayer {
        &mut self.layer
    }
}
