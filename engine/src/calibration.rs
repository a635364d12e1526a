//! What the real model costs on this machine: a step of each kind but the longest before the first request, and all of them again
//! when nobody asks for anything.
//!
//! A server starts with as few steps as tell a price, because somebody waits for it, or with none where it is told what the
//! model cost before. But whatever disturbs a step makes it longer, so the fastest of several tells the truth, and those are
//! run in idle moments. All of them write into blocks that nobody holds and no prefix needs, which is why they may leave
//! anything there.

use std::time::Duration;

use passerelle_models::input::SequenceInput;
use passerelle_models::{BlockId, TokenId};

use crate::clock::Clock;
use crate::config::EngineConfig;
use crate::cost::{CostModel, Measurements, STREAMS_OF_PRICE};
use crate::event::RequestError;
use crate::model_runner::ModelRunner;

/// Each kind of step runs this often at least; the fastest counts.
const RUNS: usize = 3;
/// And more often until it has taken [`ENOUGH`], at most so often: what holds up a short step is long beside it.
const MOST_RUNS: usize = 16;
/// A step that takes so long runs twice: others would wait for it.
const LONG: Duration = Duration::from_millis(300);
/// Before the first request, a kind that has taken this long is not run again.
const ENOUGH: Duration = Duration::from_millis(30);
/// Then the chunk, the longest step of all, takes less than this at the pace of a batch, which is several times its own,
/// unless it has few tokens.
const LONG_AT_START: Duration = Duration::from_millis(250);
/// Enough to take longer than one.
const FEW_TOKENS: usize = 8;
const CHUNK_TOKENS: usize = 64;
const CONTEXT_TOKENS: usize = 513;
/// Every vocabulary has it.
const TOKEN: TokenId = 0;

/// The kinds of steps that tell prices, and what was seen of them.
#[derive(Debug)]
pub(crate) struct Calibration {
    one_token: StepKind,
    chunk: StepKind,
    batch: StepKind,
    context: StepKind,
    /// As the chunk, behind what the context has, or as much as there are positions for. Longer than any other: the first look
    /// at it is in an idle moment.
    behind: StepKind,
    longest_chunk: usize,
    num_blocks: usize,
    /// Prices of before are better than those of single runs.
    has_former: bool,
}

/// What the steps of a calibration run with.
pub(crate) struct Probe<'a> {
    pub(crate) runner: &'a mut ModelRunner,
    pub(crate) clock: &'a dyn Clock,
    /// Free, and found by no prefix. Any will do, also one that stands in several tables.
    pub(crate) blocks: &'a [BlockId],
}

/// Each of `sequences` runs `num_tokens` after `num_computed`.
#[derive(Debug, Clone, Copy)]
struct Shape {
    sequences: usize,
    num_computed: usize,
    num_tokens: usize,
}

/// A kind of step, and how long those of it took.
#[derive(Debug)]
struct StepKind {
    shape: Shape,
    runs: usize,
    fastest: Duration,
    in_all: Duration,
}

impl Calibration {
    /// Runs each kind of step but the longest once, and those that take no time a few times; and what work costs by them.
    /// Errors when the model fails a step that any request could bring.
    pub(crate) fn begin(
        runner: &mut ModelRunner,
        clock: &dyn Clock,
        config: &EngineConfig,
    ) -> Result<(Self, CostModel), RequestError> {
        let mut calibration = Self::of(runner, config);
        let blocks = calibration.blocks();
        let mut probe = Probe { runner, clock, blocks: &blocks };
        // The first step also pays for memory that later ones find.
        probe.run(calibration.one_token.shape)?;
        calibration.one_token.look_at_start(&mut probe)?;
        // Blocks that nothing was written to stand in no memory yet, and would be read in no time.
        probe.runner.clear_blocks(&blocks)?;
        calibration.batch.look_at_start(&mut probe)?;
        calibration.fit_chunk(LONG_AT_START);
        calibration.chunk.look_at_start(&mut probe)?;
        calibration.context.look_at_start(&mut probe)?;
        if calibration.context.runs == 1 {
            // A small price, which a step that is held up a little makes many times as large. It is looked at in idle moments
            // as often as the others.
            calibration.context.look(&mut probe)?;
            calibration.context.runs = 1;
        }
        let costs = calibration.measurements().model();
        Ok((calibration, costs))
    }

    /// Where prices of before are known. Runs a single step, which shows that the model runs here and pays for the memory
    /// that the first request finds. Errors as [`Calibration::begin`].
    pub(crate) fn resume(
        runner: &mut ModelRunner,
        clock: &dyn Clock,
        config: &EngineConfig,
    ) -> Result<Self, RequestError> {
        let calibration = Self { has_former: true, ..Self::of(runner, config) };
        let blocks = calibration.blocks();
        Probe { runner, clock, blocks: &blocks }.run(calibration.one_token.shape)?;
        Ok(calibration)
    }

    /// Nothing was seen yet.
    fn of(runner: &ModelRunner, config: &EngineConfig) -> Self {
        let spec = runner.cache().spec();
        let longest = spec.longest_sequence(config.num_kv_blocks, config.max_num_batched_tokens, config.max_model_len);
        let context = CONTEXT_TOKENS.min(longest);
        let behind = (CONTEXT_TOKENS - 1).min(longest.saturating_sub(CHUNK_TOKENS));
        let batch = STREAMS_OF_PRICE.min(config.max_num_seqs).min(config.num_kv_blocks);
        Self {
            one_token: StepKind::nothing_of(1, 0, 1),
            chunk: StepKind::nothing_of(1, 0, 1),
            batch: StepKind::nothing_of(batch, 0, 1),
            context: StepKind::nothing_of(1, context.saturating_sub(1), 1),
            behind: StepKind::nothing_of(1, behind, 1),
            longest_chunk: CHUNK_TOKENS.min(longest),
            num_blocks: context
                .max(behind + longest.min(CHUNK_TOKENS))
                .div_ceil(spec.block_size)
                .max(batch)
                .min(config.num_kv_blocks),
            has_former: false,
        }
    }

    /// Any, while nothing else runs.
    fn blocks(&self) -> Vec<BlockId> {
        (0..self.num_blocks as u32).map(BlockId).collect()
    }

    /// By all that was seen so far. `None` while prices of before are better, or a kind of step is yet to be seen.
    pub(crate) fn costs(&self) -> Option<CostModel> {
        let is_seen = self.kinds().into_iter().all(|kind| kind.runs > 0);
        (is_seen && (!self.has_former || self.is_done())).then(|| self.measurements().model())
    }

    fn kinds(&self) -> [&StepKind; 5] {
        let Self { one_token, chunk, batch, context, behind, .. } = self;
        [one_token, chunk, batch, context, behind]
    }

    fn measurements(&self) -> Measurements {
        let Self { one_token, chunk, batch, context, behind, .. } = self;
        Measurements {
            one_token: one_token.fastest,
            chunk: (chunk.shape.num_tokens, chunk.fastest),
            batch: (batch.shape.sequences, batch.fastest),
            context: (context.shape.num_computed + 1, context.fastest),
            behind: (behind.runs > 0).then_some((behind.shape.num_computed, behind.fastest)),
        }
    }

    /// Whether another look would be worth somebody's time.
    pub(crate) fn is_done(&self) -> bool {
        self.kinds().into_iter().all(StepKind::is_done)
    }

    /// Blocks that a [`Probe`] needs.
    pub(crate) fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// One more step of the kind that was run least. Errors as [`Calibration::begin`].
    pub(crate) fn look_again(&mut self, probe: &mut Probe<'_>) -> Result<(), RequestError> {
        self.fit_chunk(LONG);
        let Self { one_token, chunk, batch, context, behind, .. } = self;
        let unfinished = [one_token, chunk, batch, context, behind].into_iter().filter(|kind| !kind.is_done());
        unfinished.min_by_key(|kind| kind.runs).map_or(Ok(()), |kind| kind.look(probe))
    }

    /// As many tokens as surely take less than `longest`, or [`FEW_TOKENS`] in less than [`LONG`], if at the slowest each takes
    /// as long as one of a batch: fewer would take hardly longer than one alone, for which all weights are read too, and seem
    /// to cost nothing. Where the first steps were held up, that is known only when others were not.
    fn fit_chunk(&mut self, longest: Duration) {
        let of_batch = self.batch.fastest / self.batch.shape.sequences.max(1) as u32;
        let token_ns = self.one_token.fastest.min(of_batch).as_nanos().max(1);
        let within = |longest: Duration| (longest.as_nanos() / token_ns).min(CHUNK_TOKENS as u128) as usize;
        let tokens = within(longest).max(within(LONG).min(FEW_TOKENS)).max(2).min(self.longest_chunk);
        if tokens > self.chunk.shape.num_tokens {
            self.chunk = StepKind::nothing_of(1, 0, tokens);
            self.behind = StepKind::nothing_of(1, self.behind.shape.num_computed, tokens);
        }
    }
}

impl StepKind {
    fn nothing_of(sequences: usize, num_computed: usize, num_tokens: usize) -> Self {
        Self {
            shape: Shape { sequences, num_computed, num_tokens },
            runs: 0,
            fastest: Duration::MAX,
            in_all: Duration::ZERO,
        }
    }

    fn is_done(&self) -> bool {
        let least = if self.fastest >= LONG { RUNS - 1 } else { RUNS };
        self.runs >= least && (self.in_all >= ENOUGH || self.runs >= MOST_RUNS)
    }

    fn look_at_start(&mut self, probe: &mut Probe<'_>) -> Result<(), RequestError> {
        let start = probe.clock.now();
        while self.runs < MOST_RUNS && (self.runs == 0 || probe.clock.now().saturating_sub(start) < ENOUGH) {
            self.look(probe)?;
        }
        Ok(())
    }

    fn look(&mut self, probe: &mut Probe<'_>) -> Result<(), RequestError> {
        let took = probe.run(self.shape)?;
        self.fastest = self.fastest.min(took);
        self.in_all += took;
        self.runs += 1;
        Ok(())
    }
}

impl Probe<'_> {
    fn run(&mut self, shape: Shape) -> Result<Duration, RequestError> {
        let Shape { sequences, num_computed, num_tokens } = shape;
        let tokens = vec![TOKEN; num_tokens];
        let spec = self.runner.cache().spec();
        let blocks_each = (num_computed + num_tokens).div_ceil(spec.block_size);
        let block = |index: usize| self.blocks[index % self.blocks.len()];
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
