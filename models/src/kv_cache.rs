use std::hint::black_box;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;

use crate::ops::cpu::populate::{Populating, memory_of, populate};
use crate::ops::cpu::system::Memory;
use crate::ops::{HostPlacement, MemoryPlacement, int8_row};
use crate::{BlockCopy, BlockId, KvCacheSpec, KvFormat, ModelError, Pulse};

/// Consecutive keys that attention visits together. Tiles start at absolute positions 0, 16, 32 ..., whatever the block
/// size, so that a row's sums do not depend on how the cache is cut.
pub const KV_TILE: usize = 16;

/// The physical cache: one [`KvLayer`] per layer of the model. The first layer of each group lies in the same memory, and so
/// do the second ones: whose a block is, its group says.
#[derive(Debug)]
pub struct KvCache {
    spec: KvCacheSpec,
    num_blocks: usize,
    /// As many as a block has layers, see [`KvCacheSpec`].
    planes: Vec<KvLayer>,
    layers: Vec<KvLayer>,
    host: HostPlacement,
    populating: Option<Populating>,
    /// Nobody else's.
    #[cfg(feature = "cuda")]
    identity: std::sync::Arc<()>,
}

/// One layer's blocks, laid out for the two products of attention. Both read 16 numbers at a time.
///
/// ```text
/// k   [num_blocks, num_kv_heads, block_size / 16, head_dim, 16]   16 keys side by side: one load per d
/// v   [num_blocks, num_kv_heads, block_size, padded_head_dim]     16 elements of one value; padding is zero
/// ```
///
/// Of [`KvFormat::Int8`], the elements of a tile lie in the same order, and its 16 scales, f32, behind them:
///
/// ```text
/// k   [num_blocks, num_kv_heads, block_size / 16, head_dim * 16 + 64] u8
/// v   [num_blocks, num_kv_heads, block_size / 16, 16 * padded_head_dim + 64] u8
/// ```
#[derive(Debug, Clone)]
pub struct KvLayer {
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    /// The first element of each, for bodies that write to the whole memory behind it: candle lists the dimensions of what
    /// is written to, at each call, and these have none.
    pub(crate) first: [Tensor; 2],
    format: KvFormat,
    group: usize,
    num_blocks: usize,
    block_size: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

/// One of a layer's two tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KvSide {
    Keys,
    Values,
}

/// Where the key or value of one token and head stands, in elements of its tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KvPlace {
    /// Its first element.
    pub(crate) first: usize,
    /// From one element to the next.
    pub(crate) stride: usize,
    /// The first byte of its scale, where it has one.
    pub(crate) scale: usize,
}

impl KvCache {
    /// Errors when the spec's groups, block size or head sizes cannot be served, or its heads or format not on `device`, when
    /// a [`crate::Slot`] cannot name every token, or when memory is short.
    pub fn new(spec: KvCacheSpec, num_blocks: usize, device: &Device) -> Result<Self, ModelError> {
        if num_blocks.checked_mul(spec.block_size).is_none_or(|slots| u32::try_from(slots).is_err()) {
            let block_size = spec.block_size;
            return Err(ModelError::Input(format!(
                "{num_blocks} KV blocks of {block_size} tokens are above 2^32 tokens"
            )));
        }
        let planes = (0..spec.layers_per_block()).map(|_| KvLayer::new(&spec, num_blocks, device));
        let planes = planes.collect::<Result<Vec<_>, ModelError>>()?;
        let in_group = |(group, layers): (usize, &[usize])| -> Vec<_> {
            layers.iter().zip(&planes).map(|(&layer, plane)| (layer, KvLayer { group, ..plane.clone() })).collect()
        };
        let groups = spec.groups.iter().map(|group| group.layers.as_slice()).enumerate();
        let mut layers: Vec<_> = groups.flat_map(in_group).collect();
        layers.sort_by_key(|(layer, _)| *layer);
        let layers = layers.into_iter().map(|(_, layer)| layer).collect();
        Ok(Self {
            spec,
            num_blocks,
            planes,
            layers,
            host: HostPlacement::default(),
            populating: None,
            #[cfg(feature = "cuda")]
            identity: std::sync::Arc::default(),
        })
    }

    /// The same, whose memory lies where `host` says. Errors when the system refuses that.
    pub(crate) fn on_host(self, host: &HostPlacement) -> Result<Self, ModelError> {
        let lie_in_turn = |memory: Memory| {
            memory.interleave().map_err(|error| ModelError::Input(format!("a KV cache cannot be interleaved: {error}")))
        };
        if host.memory == MemoryPlacement::Interleaved {
            self.tensors().filter_map(memory_of).try_for_each(lie_in_turn)?;
        }
        Ok(Self { host: host.clone(), ..self })
    }

    /// Takes from the system the memory that blocks will need, while others go on, slowly while `pulse` says that a
    /// model computes. Where that cannot be, each page is taken when it is first written.
    pub fn take_memory(&mut self, pulse: Pulse) {
        match populate(self.tensors().cloned().collect(), self.host.processors.clone(), pulse) {
            Ok(populating) => self.populating = Some(populating),
            Err(error) => tracing::debug!(%error, "the KV cache takes its memory when it is used"),
        }
    }

    pub fn spec(&self) -> &KvCacheSpec {
        &self.spec
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Copies whole blocks, in order. Errors when the cache has no such block.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<(), ModelError> {
        for copy in copies {
            if let Some(block) = [copy.from, copy.to].into_iter().find(|block| block.0 as usize >= self.num_blocks) {
                return Err(ModelError::Input(format!("block {} of {}", block.0, self.num_blocks)));
            }
            for plane in &self.planes {
                for tensor in [&plane.k, &plane.v] {
                    let block = tensor.narrow(0, copy.from.0 as usize, 1)?.force_contiguous()?;
                    tensor.slice_set(&block, 0, copy.to.0 as usize)?;
                }
            }
        }
        Ok(())
    }

    /// Fills one block with `value`, whatever it held.
    pub fn fill_block(&mut self, block: BlockId, value: f32) -> Result<(), ModelError> {
        for tensor in self.tensors() {
            let shape: Vec<usize> = std::iter::once(1).chain(tensor.dims()[1..].iter().copied()).collect();
            let filling = match (self.spec.format, tensor.dims().last()) {
                (KvFormat::Int8, Some(&tile_len)) => {
                    let num_tiles = shape.iter().product::<usize>() / tile_len;
                    Tensor::from_vec(int8_row::filled(value, tile_len, num_tiles), shape, tensor.device())?
                }
                _ => Tensor::full(value, shape, tensor.device())?.to_dtype(tensor.dtype())?,
            };
            tensor.slice_set(&filling, 0, block.0 as usize)?;
        }
        Ok(())
    }

    /// What tells this cache, whose memory stays where it is, from every other.
    #[cfg(feature = "cuda")]
    pub(crate) fn identity(&self) -> &std::sync::Arc<()> {
        &self.identity
    }

    /// Errors when the step names a block that the cache does not have.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn check(&self, input: &crate::ModelInput) -> Result<(), ModelError> {
        for group in 0..input.num_groups() {
            let mut blocks = (0..input.num_sequences()).flat_map(|sequence| input.block_table(group, sequence));
            if let Some(block) = blocks.find(|block| block.0 as usize >= self.num_blocks) {
                return Err(ModelError::Input(format!("block {} of {}", block.0, self.num_blocks)));
            }
        }
        Ok(())
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.planes.iter().flat_map(|plane| [&plane.k, &plane.v])
    }

    pub fn layer_mut(&mut self, layer: usize) -> &mut KvLayer {
        &mut self.layers[layer]
    }
}

impl KvLayer {
    fn new(spec: &KvCacheSpec, num_blocks: usize, device: &Device) -> Result<Self, ModelError> {
        spec.check()?;
        spec.check_on(device.location())?;
        let KvCacheSpec { block_size, num_kv_heads, head_dim, format, .. } = *spec;
        let (tiles, width) = (block_size / KV_TILE, padded(head_dim));
        let (k_shape, v_shape) = match format {
            KvFormat::F32 | KvFormat::Bf16 => (
                vec![num_blocks, num_kv_heads, tiles, head_dim, KV_TILE],
                vec![num_blocks, num_kv_heads, block_size, width],
            ),
            KvFormat::Int8 => {
                let of_tiles = |width| vec![num_blocks, num_kv_heads, tiles, format.tile_len(width)];
                (of_tiles(head_dim), of_tiles(width))
            }
        };
        let [k, v] = [k_shape, v_shape].map(|shape| zeros(&shape, format.dtype(), device));
        let (k, v) = (k?, v?);
        let first = first_elements(&k, &v)?;
        Ok(Self { k, v, first, format, group: 0, num_blocks, block_size, num_kv_heads, head_dim })
    }

    /// The same keys and values in the memory of `device`: this layer's own memory if they lie there.
    pub(crate) fn on(&self, device: &Device) -> Result<Self, ModelError> {
        let (k, v) = (self.k.to_device(device)?, self.v.to_device(device)?);
        Ok(Self { first: first_elements(&k, &v)?, k, v, ..self.clone() })
    }

    /// Of a token in `slot` and of one head, in the tensor of `side`.
    #[inline]
    pub(crate) fn place(&self, side: KvSide, slot: usize, head: usize) -> KvPlace {
        let (block, offset) = (slot / self.block_size, slot % self.block_size);
        let tile = (block * self.num_kv_heads + head) * (self.block_size / KV_TILE) + offset / KV_TILE;
        let row = offset % KV_TILE;
        let (width, row_stride, stride) = match side {
            KvSide::Keys => (self.head_dim, 1, KV_TILE),
            KvSide::Values => (self.padded_head_dim(), self.padded_head_dim(), 1),
        };
        let start = tile * self.format.tile_len(width);
        let scale = start + KV_TILE * width + row * size_of::<f32>();
        KvPlace { first: start + row * row_stride, stride, scale }
    }

    pub(crate) fn format(&self) -> KvFormat {
        self.format
    }

    /// Which of a sequence's block tables names this layer's blocks.
    pub fn group(&self) -> usize {
        self.group
    }

    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Tokens that fit in all blocks together.
    pub fn num_slots(&self) -> usize {
        self.num_blocks * self.block_size
    }

    pub fn block_size(&self) -> usize {
        self.block_size
    }

    pub fn num_kv_heads(&self) -> usize {
        self.num_kv_heads
    }

    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(crate) fn padded_head_dim(&self) -> usize {
        padded(self.head_dim)
    }
}

fn first_elements(k: &Tensor, v: &Tensor) -> Result<[Tensor; 2], ModelError> {
    let of = |tensor: &Tensor| tensor.flatten_all()?.narrow(0, 0, tensor.elem_count().min(1));
    Ok([of(k)?, of(v)?])
}

/// As [`Tensor::zeros`], which aborts the process where memory is short.
fn zeros(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor, ModelError> {
    let zeros = match (device, dtype) {
        (Device::Cpu, DType::BF16) => {
            Tensor::from_vec(zeroed::<u16>(shape)?.reinterpret_into::<bf16>(), shape, device)?
        }
        (Device::Cpu, DType::U8) => Tensor::from_vec(zeroed::<u8>(shape)?, shape, device)?,
        (Device::Cpu, _) => Tensor::from_vec(zeroed::<f32>(shape)?, shape, device)?,
        _ => Tensor::zeros(shape, dtype, device)?,
    };
    // A step reads blocks from all over the cache, and the system clears 2 MiB at once faster than page by page.
    if let Some(Err(error)) = memory_of(&zeros).map(Memory::use_huge_pages) {
        tracing::debug!(%error, "a KV cache in small pages");
    }
    Ok(zeros)
}

/// Numbers that the system hands out as zeros: a page takes memory, and time, when it is first written.
fn zeroed<E: Default + Clone>(shape: &[usize]) -> Result<Vec<E>, ModelError> {
    let no_memory =
        || ModelError::device(format!("no memory for a KV cache layer of shape {shape:?}; use fewer blocks"));
    let len = shape.iter().try_fold(1usize, |len, &side| len.checked_mul(side)).ok_or_else(no_memory)?;
    // Only asked for: where there is none, the next line ends the process. Looked at, or a compiler would leave it out.
    let mut asked = Vec::<E>::new();
    asked.try_reserve_exact(len).map_err(|_| no_memory())?;
    drop(black_box(asked));
    Ok(vec![E::default(); len])
}

pub(crate) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{KvGroup, KvReach};

    fn small_cache(groups: Vec<KvGroup>) -> KvCache {
        let spec = KvCacheSpec { groups, num_kv_heads: 1, head_dim: 3, format: KvFormat::F32, block_size: KV_TILE };
        KvCache::new(spec, 3, &Device::Cpu).unwrap()
    }

    /// What each block of a layer's keys adds up to.
    fn sums(cache: &KvCache, layer: usize) -> Vec<f32> {
        cache.layers[layer].k.flatten_from(1).unwrap().sum(1).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn layers_of_two_groups_share_memory_and_a_block_is_filled_in_all_layers_of_its_group() {
        let window = KvReach::Window(5.try_into().unwrap());
        let reaches = [KvReach::Full, window, window, KvReach::Full, window];
        let mut cache = small_cache(KvGroup::of_layers(reaches.into_iter()));
        let groups: Vec<_> = (0..5).map(|layer| cache.layer_mut(layer).group()).collect();
        assert_eq!(groups, [0, 1, 1, 0, 2]);
        assert_eq!(cache.planes.len(), 2);
        cache.fill_block(BlockId(1), 1.0).unwrap();
        assert!((0..5).all(|layer| sums(&cache, layer) == [0.0, 48.0, 0.0]));
    }

    fn refusal(num_layers: usize, head_dim: usize, num_blocks: usize) -> String {
        let groups = vec![KvGroup::full(num_layers)];
        let spec = KvCacheSpec { groups, num_kv_heads: 1024, head_dim, format: KvFormat::F32, block_size: 16 };
        match KvCache::new(spec, num_blocks, &Device::Cpu) {
            Err(ModelError::Input(problem)) => problem,
            Err(ModelError::Device(problem)) => problem.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_cache_that_no_memory_holds_is_an_error() {
        assert!(refusal(1, 1 << 30, 1 << 24).contains("no memory"));
        assert!(refusal(1, 1 << 60, 1 << 24).contains("no memory"));
    }

    /// Of this process, in bytes.
    #[cfg(target_os = "linux")]
    fn resident() -> usize {
        const PAGE: usize = 4096;
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn blocks_take_memory_beside_others_or_when_they_are_written_and_hold_zeros_until_then() {
        for format in [KvFormat::F32, KvFormat::Bf16] {
            let spec = KvCacheSpec {
                groups: vec![KvGroup::full(2)],
                num_kv_heads: 8,
                head_dim: 128,
                format,
                block_size: KV_TILE,
            };
            let before = resident();
            let mut cache = KvCache::new(spec, 2_000, &Device::Cpu).unwrap();
            // 260 MB or more; other tests of this program hold some megabytes meanwhile.
            assert!(resident().saturating_sub(before) < 1 << 27, "{format}");
            cache.fill_block(BlockId(7), 2.0).unwrap();
            cache.take_memory(Pulse::default());
            if cache.populating.take().unwrap().wait().is_ok() {
                assert!(resident().saturating_sub(before) > 1 << 27, "{format}");
            }
            let seventh = cache.layers[1].v.narrow(0, 7, 1).unwrap().to_dtype(DType::F32).unwrap();
            assert!(seventh.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| *value == 2.0));
            let last = cache.layers[1].v.narrow(0, 1_999, 1).unwrap().to_dtype(DType::F32).unwrap();
            assert!(last.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|value| *value == 0.0));
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn blocks_lie_in_huge_pages_where_the_system_has_them() {
        let elsewhere = memmap2::MmapMut::map_anon(4 << 20).unwrap();
        // Some systems are built without them.
        let has_them = Memory::of(&elsewhere[..]).use_huge_pages().is_ok();
        for format in KvFormat::ALL {
            let groups = vec![KvGroup::full(2)];
            let spec = KvCacheSpec { groups, num_kv_heads: 8, head_dim: 128, format, block_size: KV_TILE };
            let cache = KvCache::new(spec, 500, &Device::Cpu).unwrap();
            let memories = || cache.tensors().filter_map(memory_of);
            assert_eq!(memories().count(), 4);
            assert_eq!(memories().all(Memory::is_for_huge_pages), has_them, "{format}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn blocks_are_interleaved_where_that_is_asked_for_and_can_be() {
        if crate::ops::cpu::system::can_interleave().is_err() {
            return;
        }
        for format in KvFormat::ALL {
            let groups = vec![KvGroup::full(2)];
            let spec = KvCacheSpec { groups, num_kv_heads: 8, head_dim: 128, format, block_size: KV_TILE };
            let host = HostPlacement { memory: MemoryPlacement::Interleaved, ..HostPlacement::default() };
            let cache = KvCache::new(spec, 500, &Device::Cpu).unwrap().on_host(&host).unwrap();
            let memories = cache.tensors().filter_map(memory_of);
            // `None` where the system does not tell.
            assert!(memories.map(Memory::is_interleaved).all(|is| is != Some(false)), "{format}");
        }
    }

    #[test]
    fn a_copied_block_holds_what_the_other_held_and_no_other_block_changes() {
        let mut cache = small_cache(vec![KvGroup::full(2)]);
        let shape = cache.layers[1].k.narrow(0, 0, 1).unwrap().dims().to_vec();
        let ones = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        cache.layers[1].k.slice_set(&ones, 0, 0).unwrap();
        cache.copy_blocks(&[BlockCopy { from: BlockId(0), to: BlockId(2) }]).unwrap();
        assert_eq!(sums(&cache, 1), [48.0, 0.0, 48.0]);
        assert!(cache.copy_blocks(&[BlockCopy { from: BlockId(3), to: BlockId(0) }]).is_err());
    }

    #[test]
    fn every_format_takes_what_its_spec_says() {
        for format in KvFormat::ALL {
            let spec =
                KvCacheSpec { groups: vec![KvGroup::full(2)], num_kv_heads: 3, head_dim: 24, format, block_size: 32 };
            let cache = KvCache::new(spec, 5, &Device::Cpu).unwrap();
            let bytes: usize = cache.tensors().map(|x| x.elem_count() * x.dtype().size_in_bytes()).sum();
            assert_eq!(bytes, 5 * cache.spec().block_bytes(), "{format}");
        }
    }

    #[test]
    fn a_block_of_integers_is_filled_and_copied_with_its_scales() {
        let groups = vec![KvGroup::full(2)];
        let spec = KvCacheSpec { groups, num_kv_heads: 2, head_dim: 24, format: KvFormat::Int8, block_size: 32 };
        let mut cache = KvCache::new(spec, 3, &Device::Cpu).unwrap();
        cache.fill_block(BlockId(1), -2.0).unwrap();
        cache.copy_blocks(&[BlockCopy { from: BlockId(1), to: BlockId(2) }]).unwrap();
        for (tensor, width) in cache.tensors().zip([24, 32].into_iter().cycle()) {
            for (block, value) in [(0, 0.0), (1, -2.0), (2, -2.0)] {
                let bytes = tensor.narrow(0, block, 1).unwrap().flatten_all().unwrap().to_vec1::<u8>().unwrap();
                let numbers = int8_row::dequantised(&bytes, width, |at| at % KV_TILE);
                assert_eq!(numbers.len(), 2 * 32 * width);
                assert!(numbers.iter().all(|number| (number - value).abs() < 1e-6), "block {block}");
            }
        }
    }

    #[test]
    fn a_step_over_a_block_that_the_cache_does_not_have_is_an_error() {
        let cache = small_cache(vec![KvGroup::full(2)]);
        let check = |blocks: [u32; 2]| {
            let tables = [blocks.map(BlockId).to_vec()];
            let sequence =
                crate::input::SequenceInput { tokens: &[1], num_computed: 16, block_tables: &tables, sample: &[0] };
            cache.check(&crate::ModelInput::new(KV_TILE, &[sequence]).unwrap())
        };
        assert!(check([0, 2]).is_ok());
        assert!(check([0, 3]).is_err() && check([3, 0]).is_err());
    }

    #[test]
    fn a_cache_with_more_tokens_than_slots_have_names_is_an_error() {
        assert!(refusal(0, 64, 1 << 28).contains("above 2^32"));
        assert!(refusal(0, 64, usize::MAX).contains("above 2^32"));
    }
}
