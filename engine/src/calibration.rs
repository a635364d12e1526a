//! What the real model costs on this machine: a few short steps before the first request.
//!
//! They write into blocks that nobody holds, which is why they may leave anything there.

use std::time::Duration;

use passerelle_models::input::SequenceInput;
use passerelle_models::{BlockId, TokenId};

use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::cost::{CostModel, Measurements};
use crate::event::RequestError;
use crate::model_runner::ModelRunner;

/// Each shape runs this often; the fastest counts, because everything that disturbs a step makes it longer.
const RUNS: usize = 3;
/// No more runs of a shape that has taken this long.
const ENOUGH: Duration = Duration::from_millis(300);
const CHUNK_TOKENS: usize = 64;
const BATCH_SEQUENCES: usize = 8;
const CONTEXT_TOKENS: usize = 513;
/// Every vocabulary has it.
const TOKEN: TokenId = 0;

struct Probe<'a> {
    runner: &'a mut ModelRunner,
    clock: &'a dyn Clock,
}

/// Errors when the model fails a step that any request could bring.
pub(crate) fn calibrate(
    runner: &mut ModelRunner,
    clock: &dyn Clock,
    config: &EngineConfig,
) -> Result<CostModel, RequestError> {
    let spec = runner.cache().spec();
    let longest = spec.longest_sequence(config.num_kv_blocks, config.max_num_batched_tokens, config.max_model_len);
    let block_size = spec.block_size;
    let mut probe = Probe { runner, clock };
    // The first step also pays for memory that later ones find.
    probe.run(1, 0, 1)?;
    let one_token = probe.fastest(1, 0, 1)?;
    // At the slowest, a token of a chunk takes as long as one alone.
    let in_time = (ENOUGH.as_nanos() / one_token.as_nanos().max(1)).min(CHUNK_TOKENS as u128) as usize;
    let chunk = in_time.clamp(2, CHUNK_TOKENS).min(longest);
    let batch = BATCH_SEQUENCES.min(config.max_num_seqs).min(config.num_kv_blocks);
    let context = CONTEXT_TOKENS.min(longest);
    // Blocks that nothing was written to stand in no memory yet, and would be read in no time.
    probe.runner.clear_blocks(context.div_ceil(block_size).min(config.num_kv_blocks))?;
    let measurements = Measurements {
        one_token,
        chunk: (chunk, probe.fastest(1, 0, chunk)?),
        batch: (batch, probe.fastest(batch, 0, 1)?),
        context: (context, probe.fastest(1, context - 1, 1)?),
    };
    Ok(measurements.model())
}

impl Probe<'_> {
    /// How long a step takes over so many sequences that each run `num_tokens` after `num_computed`.
    fn fastest(&mut self, sequences: usize, num_computed: usize, num_tokens: usize) -> Result<Duration, RequestError> {
        let start = self.clock.now();
        let mut fastest = Duration::MAX;
        for _ in 0..RUNS {
            fastest = fastest.min(self.run(sequences, num_computed, num_tokens)?);
            if self.clock.now().saturating_sub(start) >= ENOUGH {
                break;
            }
        }
        Ok(fastest)
    }

    fn run(&mut self, sequences: usize, num_computed: usize, num_tokens: usize) -> Result<Duration, RequestError> {
        let tokens = vec![TOKEN; num_tokens];
        // Any block will do, also one that stands in several tables.
        let (spec, num_blocks) = (self.runner.cache().spec(), self.runner.cache().num_blocks());
        let blocks_each = (num_computed + num_tokens).div_ceil(spec.block_size);
        let block = |index: usize| BlockId((index % num_blocks) as u32);
        let table = |sequence: usize| (sequence * blocks_each..(sequence + 1) * blocks_each).map(block).collect();
        let tables: Vec<Vec<Vec<BlockId>>> =
            (0..sequences).map(|sequence| vec![table(sequence); spec.groups.len()]).collect();
        let sample = [num_tokens - 1];
        let inputs: Vec<_> = tables
            .iter()
            .map(|block_tables| SequenceInput { tokens: &tokens, num_computed, block_tables, sample: &sample })
            .collect();
        let start = self.clock.now();
        self.runner.probe(&inputs)?;
        Ok(self.clock.now().saturating_sub(start))
    }
}
