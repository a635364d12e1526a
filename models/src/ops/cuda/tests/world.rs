use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{Random, dtype};
use crate::input::SequenceInput;
use crate::kv_cache::KvLayer;
use crate::ops::cuda::launch::Float;
use crate::ops::{Compute, store_kv};
use crate::{BlockId, KvCache, KvCacheSpec, KvGroup, ModelInput, Slot};

/// Sizes of one layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) num_kv_heads: usize,
    pub(super) group: usize,
    pub(super) head_dim: usize,
    pub(super) block_size: usize,
    pub(super) activations: Float,
    pub(super) cache: Float,
}

/// A step over sequences whose blocks lie in no order, in a cache whose other slots are not numbers.
pub(super) struct World {
    pub(super) shape: Shape,
    pub(super) input: ModelInput,
    cache: KvCache,
}

impl Shape {
    pub(super) fn num_heads(&self) -> usize {
        self.num_kv_heads * self.group
    }

    pub(super) fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

impl World {
    /// Each sequence runs the tokens at `positions`; those before are in the cache.
    pub(super) fn new(shape: Shape, sequences: &[Range<usize>]) -> Self {
        let num_blocks = sequences.iter().map(|positions| positions.end.div_ceil(shape.block_size)).sum::<usize>() + 2;
        let spec = KvCacheSpec {
            groups: vec![KvGroup::full(1)],
            num_kv_heads: shape.num_kv_heads,
            head_dim: shape.head_dim,
            dtype: dtype(shape.cache),
            block_size: shape.block_size,
        };
        let mut cache = KvCache::new(spec, num_blocks, &Device::Cpu).unwrap();
        let all: Vec<Slot> = (0..num_blocks * shape.block_size).map(|slot| Slot(slot as u32)).collect();
        let stale = Tensor::full(f32::NAN, (all.len(), shape.kv_width()), &Device::Cpu).unwrap();
        store_kv(&Compute::cpu(1), &stale, &stale, &all, cache.layer_mut(0)).unwrap();
        // Neighbours in a sequence are far from each other, and the first block is nobody's.
        let mut free = (1..num_blocks as u32).rev().map(BlockId);
        let tables: Vec<Vec<Vec<BlockId>>> = sequences
            .iter()
            .map(|positions| vec![free.by_ref().take(positions.end.div_ceil(shape.block_size)).collect()])
            .collect();
        let tokens = vec![0; sequences.iter().map(Range::len).max().unwrap()];
        let inputs = sequences.iter().zip(&tables).map(|(positions, block_tables)| SequenceInput {
            tokens: &tokens[..positions.len()],
            num_computed: positions.start,
            block_tables,
            sample: &[],
        });
        let input = ModelInput::new(shape.block_size, &inputs.collect::<Vec<_>>()).unwrap();
        Self { shape, input, cache }
    }

    /// Fills the slots of every key that the step's tokens can see.
    pub(super) fn with_keys(mut self, random: &mut Random) -> Self {
        for sequence in 0..self.input.num_sequences() {
            let table = self.input.block_table(0, sequence);
            let slot_of = |key: usize| {
                let size = self.shape.block_size;
                Slot(table[key / size].0 * size as u32 + (key % size) as u32)
            };
            let slots: Vec<_> = (0..self.input.num_keys(sequence)).map(slot_of).collect();
            let [k, v] = [(); 2].map(|()| random.tensor(&[slots.len(), self.shape.kv_width()], Float::F32));
            store_kv(&Compute::cpu(1), &k, &v, &slots, self.cache.layer_mut(0)).unwrap();
        }
        self
    }

    pub(super) fn layer(&mut self) -> &mut KvLayer {
        self.cache.layer_mut(0)
    }
}
