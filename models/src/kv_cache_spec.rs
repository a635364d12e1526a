//! What the cache of one model looks like, and how much of it a sequence takes.

use std::num::NonZeroUsize;

use candle_core::DeviceLocation;

use crate::kv_cache::{KV_TILE, padded};
use crate::{KvFormat, ModelError};

/// Elements of the longest head that the kernels for GPUs take.
pub(crate) const MOST_GPU_HEAD_DIM: usize = 256;

/// What the cache of one model looks like.
///
/// Its layers form groups, and a sequence has a block table in each of them. All groups have one size, that of the rarest
/// kind of layer; so a block of any group takes the same memory, and one pool of blocks serves them all.
///
/// ```text
/// layer   0     1       2       3       4     5       6       7        one of four looks at everything
/// reach   full  window  window  window  full  window  window  window
/// group   0     1       1       2       0     2       3       3        a block: 16 tokens of two layers
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCacheSpec {
    /// Each layer of the model is in one of them.
    pub groups: Vec<KvGroup>,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub format: KvFormat,
    /// Tokens per block. A multiple of [`KV_TILE`], so that a tile never spans two blocks.
    pub block_size: usize,
}

/// Layers whose keys and values share blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvGroup {
    /// By index.
    pub layers: Vec<usize>,
    pub reach: KvReach,
}

/// How far back the layers of a group look. Recurrent state would be a further kind, which needs what the token before
/// left and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvReach {
    /// At every key.
    Full,
    /// At the keys less than so many positions away, the token's own included.
    Window(NonZeroUsize),
}

impl KvCacheSpec {
    /// Bytes of K and V that one block takes, scales included. A group of fewer layers than the largest leaves some of
    /// them unused.
    pub fn block_bytes(&self) -> usize {
        let [keys, values] = [self.head_dim, padded(self.head_dim)].map(|width| self.format.tile_bytes(width));
        self.layers_per_block() * self.num_kv_heads * (self.block_size / KV_TILE) * (keys + values)
    }

    /// Blocks that a sequence of `num_tokens` holds at once, at most, where a step runs up to `step_tokens` of it.
    pub fn most_blocks(&self, num_tokens: usize, step_tokens: usize) -> usize {
        let of_group = |group: &KvGroup| group.reach.most_blocks(num_tokens, step_tokens, self.block_size);
        self.groups.iter().map(of_group).sum()
    }

    /// Bytes of K and V that a token at `position` looks at.
    pub fn bytes_seen(&self, position: usize) -> usize {
        let of_group = |group: &KvGroup| (position + 1 - group.reach.first_key(position)) * group.layers.len();
        let keys: usize = self.groups.iter().map(of_group).sum();
        keys * self.block_bytes() / (self.block_size * self.layers_per_block()).max(1)
    }

    /// The longest sequence that fits in `num_blocks`, up to `limit` tokens.
    pub fn longest_sequence(&self, num_blocks: usize, step_tokens: usize, limit: usize) -> usize {
        let fits = |&tokens: &usize| self.most_blocks(tokens, step_tokens) <= num_blocks;
        let in_blocks = (0..=limit.div_ceil(self.block_size)).map(|blocks| blocks * self.block_size);
        in_blocks.rev().find(fits).unwrap_or(0).min(limit)
    }

    pub(crate) fn layers_per_block(&self) -> usize {
        self.groups.iter().map(|group| group.layers.len()).max().unwrap_or(0)
    }

    /// Errors where no body reads it.
    pub(crate) fn check_on(&self, location: DeviceLocation) -> Result<(), ModelError> {
        self.format.check_on(location)?;
        let head_dim = self.head_dim;
        if head_dim > MOST_GPU_HEAD_DIM && location != DeviceLocation::Cpu {
            let problem = format!(
                "heads of {head_dim} elements are for models on a CPU; on a GPU there are at most {MOST_GPU_HEAD_DIM}"
            );
            return Err(ModelError::Input(problem));
        }
        Ok(())
    }

    pub(crate) fn check(&self) -> Result<(), ModelError> {
        let refuse = |problem: String| Err(ModelError::Input(problem));
        if self.block_size == 0 || !self.block_size.is_multiple_of(KV_TILE) {
            return refuse(format!("KV blocks of {} tokens, which is no multiple of {KV_TILE}", self.block_size));
        }
        if self.num_kv_heads == 0 || self.head_dim == 0 {
            return refuse("a KV cache without heads".into());
        }
        let mut layers: Vec<usize> = self.groups.iter().flat_map(|group| &group.layers).copied().collect();
        layers.sort_unstable();
        if !layers.iter().copied().eq(0..layers.len()) {
            return refuse(format!("a KV cache whose groups hold the layers {layers:?}"));
        }
        Ok(())
    }
}

impl KvGroup {
    /// Every layer of a model whose layers all look at everything.
    pub fn full(num_layers: usize) -> Self {
        Self { layers: (0..num_layers).collect(), reach: KvReach::Full }
    }

    /// The groups of a model whose layers look so far, in order.
    pub fn of_layers(reaches: impl Iterator<Item = KvReach>) -> Vec<Self> {
        let mut kinds: Vec<Self> = Vec::new();
        for (layer, reach) in reaches.enumerate() {
            match kinds.iter_mut().find(|kind| kind.reach == reach) {
                Some(kind) => kind.layers.push(layer),
                None => kinds.push(Self { layers: vec![layer], reach }),
            }
        }
        let size = kinds.iter().map(|kind| kind.layers.len()).min().unwrap_or(1);
        let parts = |kind: Self| {
            let parts: Vec<_> = kind.layers.chunks(size).map(<[usize]>::to_vec).collect();
            parts.into_iter().map(move |layers| Self { layers, reach: kind.reach })
        };
        kinds.into_iter().flat_map(parts).collect()
    }
}

impl KvReach {
    /// The first key that a token at `position` looks at.
    pub fn first_key(self, position: usize) -> usize {
        match self {
            Self::Full => 0,
            Self::Window(window) => (position + 1).saturating_sub(window.get()),
        }
    }

    fn most_blocks(self, num_tokens: usize, step_tokens: usize, block_size: usize) -> usize {
        let all = num_tokens.div_ceil(block_size);
        match self {
            Self::Full => all,
            // What the step's first token sees, and the step; the first of them may be the last of its block.
            Self::Window(window) => {
                let tokens = (window.get() - 1).saturating_add(step_tokens);
                all.min(tokens.saturating_sub(1).div_ceil(block_size) + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(tokens: usize) -> KvReach {
        KvReach::Window(NonZeroUsize::new(tokens).unwrap())
    }

    fn spec(groups: Vec<KvGroup>) -> KvCacheSpec {
        KvCacheSpec { groups, num_kv_heads: 1, head_dim: 16, format: KvFormat::F32, block_size: 16 }
    }

    fn layers(groups: &[KvGroup]) -> Vec<&[usize]> {
        groups.iter().map(|group| group.layers.as_slice()).collect()
    }

    #[test]
    fn layers_form_groups_of_one_reach_as_large_as_the_rarest_kind() {
        let reaches = (0..8).map(|layer| if layer % 4 == 0 { KvReach::Full } else { window(9) });
        let groups = KvGroup::of_layers(reaches);
        assert_eq!(layers(&groups), [&[0, 4], &[1, 2], &[3, 5], &[6, 7]]);
        assert_eq!(groups.iter().filter(|group| group.reach == window(9)).count(), 3);
        assert_eq!(KvGroup::of_layers((0..3).map(|_| KvReach::Full)), [KvGroup::full(3)]);
        let uneven = KvGroup::of_layers([KvReach::Full, KvReach::Full, window(9), window(9), window(9)].into_iter());
        assert_eq!(layers(&uneven), [&[0, 1][..], &[2, 3], &[4]]);
        assert!(spec(uneven).check().is_ok());
        assert!(spec(vec![KvGroup::full(2), KvGroup::full(1)]).check().is_err(), "a layer in two groups");
    }

    #[test]
    fn only_a_cpu_reads_heads_that_are_longer_than_kernels_for_gpus_take() {
        let gpu = DeviceLocation::Cuda { gpu_id: 0 };
        let of = |head_dim: usize| KvCacheSpec { head_dim, ..spec(vec![KvGroup::full(1)]) };
        assert!(of(256).check_on(gpu).is_ok() && of(257).check_on(DeviceLocation::Cpu).is_ok());
        let refusal = of(257).check_on(gpu).unwrap_err().to_string();
        assert!(refusal.contains("heads of 257") && refusal.contains("at most 256"), "{refusal}");
        assert!(KvCacheSpec { format: KvFormat::Int8, ..of(256) }.check_on(gpu).is_err());
    }

    #[test]
    fn a_window_takes_no_more_than_itself_and_a_step_however_long_the_sequence() {
        let full = spec(vec![KvGroup::full(1)]);
        assert_eq!([0, 16, 17].map(|tokens| full.most_blocks(tokens, 8)), [0, 1, 2]);
        // Of 20 tokens before the step's first one and 8 of the step, the first may stand at the end of a block.
        let windowed = spec(vec![KvGroup { layers: vec![0], reach: window(21) }]);
        assert_eq!([16, 33, 1000].map(|tokens| windowed.most_blocks(tokens, 8)), [1, 3, 3]);
        let both = spec(KvGroup::of_layers([KvReach::Full, window(21)].into_iter()));
        assert_eq!(both.most_blocks(1000, 8), 63 + 3);
    }

    #[test]
    fn a_token_looks_at_itself_and_at_what_is_before_it_as_far_as_its_layers_look() {
        let both = spec(KvGroup::of_layers([KvReach::Full, window(21)].into_iter()));
        let of_token = 2 * 16 * size_of::<f32>();
        assert_eq!([0, 20, 99].map(|position| both.bytes_seen(position) / of_token), [2, 42, 121]);
        let uneven = KvGroup::of_layers([KvReach::Full, KvReach::Full, window(21), window(21), window(21)].into_iter());
        assert_eq!(spec(uneven).bytes_seen(99) / of_token, 2 * 100 + 3 * 21);
    }

    #[test]
    fn the_longest_sequence_is_bounded_by_blocks_or_by_the_limit() {
        let full = spec(vec![KvGroup::full(1)]);
        assert_eq!((full.longest_sequence(3, 8, 1000), full.longest_sequence(3, 8, 20)), (48, 20));
        let windowed = spec(vec![KvGroup { layers: vec![0], reach: window(21) }]);
        assert_eq!((windowed.longest_sequence(3, 8, 1000), windowed.longest_sequence(2, 8, 1000)), (1000, 32));
    }
}
