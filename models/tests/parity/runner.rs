use std::ops::ControlFlow;

use passerelle_models::input::SequenceInput;
use passerelle_models::ops::Compute;
use passerelle_models::{
    BlockId, CausalLm, CheckpointFiles, Decoder, KvCache, KvDtype, KvGroup, LoadOptions, Logits, ModelInput, TokenId,
    load_decoder,
};

use crate::support::Fixture;

pub(crate) const BLOCK_SIZE: usize = 16;
/// Enough for every sequence of a test side by side, in each group of layers.
const NUM_BLOCKS: usize = 64;

/// A loaded model with a cache.
pub(crate) struct Runner {
    pub(crate) decoder: Decoder,
    pub(crate) cache: KvCache,
}

/// Tokens, how many of the sequence came before them, the sequence's blocks.
pub(crate) type Share<'a> = (&'a [TokenId], usize, &'a Vec<BlockId>);

impl Runner {
    pub(crate) fn load(fixture: &Fixture, kv_dtype: KvDtype) -> Self {
        Self::load_on(&Compute::cpu(2), fixture, &options(kv_dtype))
    }

    pub(crate) fn load_on(compute: &Compute, fixture: &Fixture, options: &LoadOptions) -> Self {
        Self::of_files(compute, &fixture.files(), options)
    }

    pub(crate) fn of_files(compute: &Compute, files: &CheckpointFiles, options: &LoadOptions) -> Self {
        let mut last = None;
        let (decoder, _) = load_decoder(files, compute, options, &mut |progress| {
            last = Some(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
        let last = last.expect("progress is reported");
        assert_eq!(last.bytes_done, last.bytes_total);
        let behind_windows = NUM_BLOCKS * decoder.kv_cache_spec().groups.len();
        let mut cache = decoder.new_kv_cache(behind_windows + 1).unwrap();
        cache.fill_block(BlockId(behind_windows as u32), f32::NAN).unwrap();
        Self { decoder, cache }
    }

    /// The logits of every token of every sequence, a row each.
    pub(crate) fn step(&mut self, batch: &[Share<'_>]) -> Vec<Vec<f32>> {
        let input = self.input(batch);
        rows(self.decoder.forward(&input, &mut self.cache).unwrap())
    }

    pub(crate) fn input(&self, batch: &[Share<'_>]) -> ModelInput {
        let samples: Vec<Vec<usize>> = batch.iter().map(|(tokens, ..)| (0..tokens.len()).collect()).collect();
        let tables: Vec<_> = batch.iter().map(|share| self.tables(share)).collect();
        let sequences: Vec<_> = batch
            .iter()
            .zip(samples.iter().zip(&tables))
            .map(|((tokens, num_computed, _), (sample, block_tables))| SequenceInput {
                tokens,
                num_computed: *num_computed,
                block_tables,
                sample,
            })
            .collect();
        ModelInput::new(BLOCK_SIZE, &sequences).unwrap()
    }

    /// Each group has blocks of its own, and behind its window a block without a number in it.
    fn tables(&self, (_, num_computed, table): &Share<'_>) -> Vec<Vec<BlockId>> {
        let spec = self.decoder.kv_cache_spec();
        let behind_window = BlockId((NUM_BLOCKS * spec.groups.len()) as u32);
        let of_group = |(group, is): (usize, &KvGroup)| -> Vec<_> {
            let num_behind = is.reach.first_key(*num_computed) / BLOCK_SIZE;
            let own = table[num_behind..].iter().map(|block| BlockId(block.0 + (group * NUM_BLOCKS) as u32));
            std::iter::repeat_n(behind_window, num_behind).chain(own).collect()
        };
        spec.groups.iter().enumerate().map(of_group).collect()
    }

    pub(crate) fn alone(&mut self, ids: &[TokenId]) -> Vec<Vec<f32>> {
        self.step(&[(ids, 0, &table(50))])
    }

    pub(crate) fn in_chunks(&mut self, ids: &[TokenId], chunk: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        for (index, tokens) in ids.chunks(chunk).enumerate() {
            logits.extend(self.step(&[(tokens, index * chunk, &table(5))]));
        }
        logits
    }

    pub(crate) fn greedy(&mut self, prompt: &[TokenId], num_tokens: usize) -> Vec<TokenId> {
        let mut answer = Vec::new();
        let mut next = prompt.to_vec();
        let mut num_computed = 0;
        while answer.len() < num_tokens {
            let logits = self.step(&[(&next, num_computed, &table(10))]);
            num_computed += next.len();
            let last = logits.last().expect("a step has rows");
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a row has logits");
            answer.push(best as TokenId);
            next = vec![best as TokenId];
        }
        answer
    }
}

pub(crate) fn options(kv_dtype: KvDtype) -> LoadOptions {
    LoadOptions { kv_dtype, block_size: BLOCK_SIZE, ..LoadOptions::default() }
}

/// Eight blocks from `first` on, in descending order, so that a block's number says nothing about its place.
pub(crate) fn table(first: usize) -> Vec<BlockId> {
    (first..first + 8).rev().map(|block| BlockId(block as u32)).collect()
}

pub(crate) fn rows(logits: Logits) -> Vec<Vec<f32>> {
    let logits = logits.into_rows().unwrap();
    (0..logits.num_rows()).map(|row| logits.row(row).to_vec()).collect()
}

#[derive(Debug)]
pub(crate) struct Worst {
    pub(crate) index: usize,
    /// The difference as a multiple of the tolerance.
    pub(crate) excess: f32,
}

pub(crate) fn worst_excess(found: &[f32], expected: &[f32]) -> Worst {
    assert_eq!(found.len(), expected.len());
    let mut worst = Worst { index: 0, excess: 0.0 };
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let excess = (found - expected).abs() / (2e-4 + 1e-3 * expected.abs());
        if excess > worst.excess || excess.is_nan() {
            worst = Worst { index, excess };
        }
    }
    worst
}

pub(crate) fn compare(logits: &[Vec<f32>], expected: &[f32]) -> Result<(), String> {
    let found = logits.concat();
    let worst = worst_excess(&found, expected);
    if worst.excess <= 1.0 {
        return Ok(());
    }
    let (found, expected) = (found[worst.index], expected[worst.index]);
    Err(format!("{worst:?}: {found} where the reference has {expected}"))
}
