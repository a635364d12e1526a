//! Batch -> input -> logits. The only file of the engine that calls the model, and the one that survives it.
//!
//! A step is transactional: the model writes K/V only past what a sequence has computed, so a step that failed can be
//! run again. When one does fail, it is run again in parts, first without the sequences that have never answered, then by
//! halves: those that fail alone are the culprits, and the others have the same logits as if nothing had happened, because
//! on CPUs a row never depends on its batch. On a GPU they are close to those, not equal.

use std::mem;

use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{OnProcessors, RowQuestion};
use passerelle_models::{BlockCopy, BlockId, KvCache, LogitRows, Logits, ModelError, ModelInput};

use crate::batch::StepSequences;
use crate::event::RequestError;
use crate::sampler::questions;
use crate::sequence::Sequence;
use crate::shared_model::SharedModel;
use crate::step_logits::{RunLogits, StepLogits};
use crate::survival::survive;

pub(crate) struct ModelRunner {
    model: SharedModel,
    cache: KvCache,
    /// Of the last run. Kept for its memory, as the lists are.
    input: ModelInput,
    /// Of the sequences that run.
    places: Vec<usize>,
    /// Of the sequence that goes into the input.
    sample: Vec<usize>,
    /// About each row of the last run; none where all are needed whole.
    questions: Vec<Option<RowQuestion>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Well,
    /// Whoever failed alone has an error, and the others logits.
    Failed,
}

/// A block that could not be filled with what another holds.
struct LostBlock {
    block: BlockId,
    error: RequestError,
}

impl LostBlock {
    /// Whether the sequence is about to write to it. What a table says of blocks behind a window may be anybody's.
    fn is_of(&self, sequence: &Sequence, block_size: usize) -> bool {
        let written_next = sequence.num_computed / block_size;
        sequence.block_tables.iter().any(|table| table.get(written_next) == Some(&self.block))
    }
}

impl ModelRunner {
    pub(crate) fn new(model: SharedModel, num_blocks: usize) -> Result<Self, ModelError> {
        let cache = model.get().new_kv_cache(num_blocks)?;
        let input = ModelInput::empty(cache.spec().block_size, cache.spec().groups.len());
        Ok(Self { model, cache, input, places: Vec::new(), sample: Vec::new(), questions: Vec::new() })
    }

    /// Copies blocks, then runs what is scheduled of each sequence. `logits` then says something of each place.
    pub(crate) fn run(&mut self, step: StepSequences<'_>, copies: &[BlockCopy], logits: &mut StepLogits) {
        let lost = self.copy_blocks(copies);
        let block_size = self.cache.spec().block_size;
        logits.begin(step.len());
        let mut places = mem::take(&mut self.places);
        places.clear();
        for place in 0..step.len() {
            match lost.iter().find(|lost| lost.is_of(step.at(place), block_size)) {
                Some(lost) => logits.put_error(place, lost.error.clone()),
                None => places.push(place),
            }
        }
        if !places.is_empty() {
            self.run_places(step, &mut places, logits);
        }
        self.places = places;
    }

    /// Together, or where that fails, apart.
    fn run_places(&mut self, step: StepSequences<'_>, places: &mut [usize], logits: &mut StepLogits) -> Outcome {
        match self.run_together(step, places, logits) {
            Ok(()) => return Outcome::Well,
            Err(error) if places.len() == 1 => logits.put_error(places[0], error),
            Err(error) => {
                tracing::error!(sequences = places.len(), %error, "a step failed; it is run again in parts");
                self.run_apart(step, places, logits);
            }
        }
        Outcome::Failed
    }

    /// They fail together: finds those that fail alone. Whoever has answered has run before, and is hardly at fault, so the
    /// first part is of those, if there are any, and of half of them otherwise.
    fn run_apart(&mut self, step: StepSequences<'_>, places: &mut [usize], logits: &mut StepLogits) {
        let is_suspect = |place: usize| step.at(place).num_generated() == 0;
        places.sort_by_key(|&place| is_suspect(place));
        let unsuspected = places.partition_point(|&place| !is_suspect(place));
        let middle = if (1..places.len()).contains(&unsuspected) { unsuspected } else { places.len() / 2 };
        let (first, second) = places.split_at_mut(middle);
        match self.run_places(step, first, logits) {
            // Then it is the second part that fails, and nothing is learnt by running all of it once more.
            Outcome::Well if second.len() > 1 => self.run_apart(step, second, logits),
            _ => _ = self.run_places(step, second, logits),
        }
    }

    /// Errors leave no logits behind.
    fn run_together(
        &mut self,
        step: StepSequences<'_>,
        places: &[usize],
        logits: &mut StepLogits,
    ) -> Result<(), RequestError> {
        let sequences = || places.iter().map(|&place| step.at(place));
        self.fill_with_step(sequences())?;
        let vocab_size = self.model.get().vocab_size();
        self.questions.clear();
        self.questions.extend(sequences().flat_map(|one| questions(one, vocab_size)));
        let run = self.read()?;
        logits.put(run, places.iter().copied().zip(sequences().map(|one| one.sampled().count())));
        Ok(())
    }

    fn fill_with_step<'a>(
        &mut self,
        sequences: impl Iterator<Item = &'a Sequence> + Clone,
    ) -> Result<(), RequestError> {
        let block_size = self.cache.spec().block_size;
        // Their tables grow to this many, so that none of their tokens takes memory.
        self.input.clear(sequences.clone().map(|one| one.most_tokens().div_ceil(block_size)).sum());
        for sequence in sequences {
            self.sample.clear();
            self.sample.extend(sequence.sampled());
            self.input.push(&input_of(sequence, &self.sample))?;
        }
        Ok(())
    }

    fn fill(&mut self, inputs: &[SequenceInput<'_>]) -> Result<(), ModelError> {
        self.input.clear(0);
        inputs.iter().try_for_each(|input| self.input.push(input))
    }

    /// Before the step, and never again: once it has run, a copy would cover what it has written. One by one, since a later
    /// one may fill a block that an earlier one was made from. Tells which blocks were not filled.
    fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Vec<LostBlock> {
        let (model, cache) = (self.model.get(), &mut self.cache);
        // Sound to go on with: a block that is half filled belongs to a sequence that fails with this step.
        let lost = |copy: &BlockCopy| {
            let error = survive(|| model.copy_blocks(std::slice::from_ref(copy), cache)).err()?;
            Some(LostBlock { block: copy.to, error })
        };
        copies.iter().filter_map(lost).collect()
    }

    /// See [`passerelle_models::CausalLm::enter`].
    pub(crate) fn enter(&self) -> Option<OnProcessors> {
        self.model.get().enter()
    }

    /// After whatever measures how fast it is.
    pub(crate) fn take_memory(&mut self) {
        self.cache.take_memory(self.model.get().pulse());
    }

    pub(crate) fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// Writes zeros to these blocks, in every group.
    pub(crate) fn clear_blocks(&mut self, blocks: &[BlockId]) -> Result<(), RequestError> {
        blocks.iter().try_for_each(|block| self.cache.fill_block(*block, 0.0)).map_err(RequestError::from)
    }

    /// All rows of one step of the model.
    pub(crate) fn rows(&mut self, inputs: &[SequenceInput<'_>]) -> Result<LogitRows, RequestError> {
        self.fill(inputs)?;
        self.questions.clear();
        let logits = self.forward()?;
        survive(|| logits.into_rows())
    }

    /// One step of the model, and a look at what each row's likeliest token is: as a step of short answers takes.
    pub(crate) fn probe(&mut self, inputs: &[SequenceInput<'_>]) -> Result<(), RequestError> {
        self.fill(inputs)?;
        let num_rows = self.input.rows_to_sample().len();
        self.questions.clear();
        self.questions.resize(num_rows, Some(RowQuestion::BEST));
        self.read().map(|_| ())
    }

    /// One step of the model over what it was filled with, and what the questions ask of its rows.
    fn read(&mut self) -> Result<RunLogits, RequestError> {
        let logits = self.forward()?;
        // What a device has still to compute may fail as well.
        survive(|| RunLogits::read(logits, &self.questions))
    }

    /// One step of the model. A panic is an error like any other.
    fn forward(&mut self) -> Result<Logits, RequestError> {
        let (model, input, cache) = (self.model.get(), &self.input, &mut self.cache);
        // Sound to go on with: after a panic, only K/V past `num_computed` can be half written.
        let logits = survive(|| match &self.questions[..] {
            [] => model.forward(input, cache),
            questions => model.forward_asked(input, cache, questions),
        })?;
        let expected = input.rows_to_sample().len();
        if logits.num_rows() != expected {
            let message = format!("the model returned {} rows of logits instead of {expected}", logits.num_rows());
            return Err(RequestError::Step(message));
        }
        Ok(logits)
    }
}

impl std::fmt::Debug for ModelRunner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelRunner").field("cache", self.cache.spec()).finish_non_exhaustive()
    }
}

fn input_of<'a>(sequence: &'a Sequence, sample: &'a [usize]) -> SequenceInput<'a> {
    let num_computed = sequence.num_computed;
    SequenceInput {
        tokens: &sequence.tokens()[num_computed..num_computed + sequence.num_scheduled],
        num_computed,
        block_tables: &sequence.block_tables,
        sample,
    }
}
