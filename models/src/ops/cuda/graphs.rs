#![expect(unsafe_code, reason = "recorded launches are queued again")]

//! Steps that generate, as CUDA graphs: hundreds of launches are queued as one.
//!
//! A step is filled up to one of a few shapes ([`PaddedShape`]), each of which is recorded when it first comes. The recording
//! holds addresses: of the weights, of the step's integers, of the cache, and of the memory that its tensors had, which
//! belongs to it. So only the integers are copied before a replay, and only the logits after it.
//!
//! What is recorded is not what is run: the input of the recording is nobody's rows. If a number of the host's went into it,
//! the replay that is compared with the step itself, bit for bit, before the recording is used shows it; the step's own
//! keys and values are spoilt before, so that one that stores them elsewhere shows, too. A shape whose recording fails, is
//! not equal, or is refused later, is run launch by launch from then on.

use std::sync::{Arc, Weak};

use candle_core::{DType, Tensor};

use super::args::unequal::UnequalArgs;
use super::device_step::DeviceStep;
use super::padded::{MOST_ROWS, PaddedShape};
use super::recording::Recording;
use super::tensors::{address, float_of, unwritten};
use crate::ops::replays::Forward;
use crate::ops::{AttentionPlan, Compute};
use crate::{KvCache, ModelError, ModelInput};

/// The recordings of one model. They are used by one step at a time.
#[derive(Debug, Default)]
pub(crate) struct Graphs {
    /// The least recently used first.
    shapes: Vec<Known>,
    /// `[MOST_ROWS, vocab_size]`: where every recording leaves its logits.
    logits: Option<Tensor>,
}

/// A shape that has come before, over one cache.
#[derive(Debug)]
struct Known {
    shape: PaddedShape,
    cache: Weak<()>,
    integers: Arc<DeviceStep>,
    /// `None` where launches are not replayed.
    recording: Option<Recording>,
}

/// Recordings that are kept. All shapes of sequences of up to 65,536 tokens are fewer.
const MOST_RECORDINGS: usize = 96;

impl Graphs {
    /// The logits of the step, as `forward` computes them, and whether they are a replay's.
    pub(crate) fn run(
        &mut self,
        compute: &Compute,
        input: &ModelInput,
        cache: &mut KvCache,
        forward: Forward<'_>,
    ) -> Result<(Tensor, bool), ModelError> {
        self.shapes.retain(|known| known.cache.strong_count() > 0);
        let Some(shape) = PaddedShape::of(input) else {
            return Ok((forward(&AttentionPlan::new(input), cache)?.into_tensor()?, false));
        };
        let Some(index) = self.shapes.iter().position(|known| known.shape == shape && known.is_over(cache)) else {
            return Ok((self.first(compute, shape, (input, cache), forward)?, false));
        };
        // Before the recording is at stake: a step that the cache has no blocks for says nothing against it.
        cache.check(input)?;
        let mut known = self.shapes.remove(index);
        let replayed = match (&known.recording, &self.logits) {
            (Some(recording), Some(logits)) => Some(known.replay(compute, recording, input, logits)),
            _ => None,
        };
        if let Some(Err(error)) = &replayed {
            is_not_replayed(shape, error);
            known.recording = None;
        }
        self.shapes.push(known);
        match replayed {
            Some(Ok(logits)) => Ok((logits, true)),
            // What a replay may have stored, this stores again.
            Some(Err(_)) | None => Ok((forward(&AttentionPlan::new(input), cache)?.into_tensor()?, false)),
        }
    }

    /// Runs a step of a new shape, and records it.
    fn first(
        &mut self,
        compute: &Compute,
        shape: PaddedShape,
        (input, cache): (&ModelInput, &mut KvCache),
        forward: Forward<'_>,
    ) -> Result<Tensor, ModelError> {
        let padded = input.padded(shape.rows)?;
        let (_, len) = shape.layout(input.num_groups(), input.block_size());
        let integers = Arc::new(DeviceStep::with_room(compute.gpu(), &shape.words(input), len)?);
        let step = |cache: &mut KvCache| {
            integers.write(compute.gpu(), &shape.words(input).words)?;
            forward(&AttentionPlan::with_integers(&padded, Arc::clone(&integers)), cache)?.into_tensor()
        };
        let logits = step(cache)?;
        // What the device has against the step is said of the step.
        compute.device().synchronize()?;
        let recording = match self.record(compute, (shape, &logits, &integers), (input, cache), forward) {
            Ok(recording) => Some(recording),
            Err(error) => {
                is_not_replayed(shape, &error);
                // Its keys and values may be spoilt.
                step(cache)?;
                None
            }
        };
        if self.shapes.len() == MOST_RECORDINGS {
            self.shapes.remove(0);
        }
        self.shapes.push(Known { shape, cache: Arc::downgrade(cache.identity()), integers, recording });
        Ok(logits.narrow(0, 0, input.num_tokens())?)
    }

    /// A recording whose replay has given the `logits` that were computed just before, from the same integers.
    fn record(
        &mut self,
        compute: &Compute,
        (shape, logits, integers): (PaddedShape, &Tensor, &Arc<DeviceStep>),
        (input, cache): (&ModelInput, &mut KvCache),
        forward: Forward<'_>,
    ) -> Result<Recording, ModelError> {
        let vocab_size = logits.dim(1)?;
        let shared = match self.logits.take() {
            Some(shared) => shared,
            None => unwritten(&[MOST_ROWS, vocab_size], logits.dtype(), logits)?,
        };
        let shared = self.logits.insert(shared);
        // Also so that the copy's kernel is loaded when the copy is recorded.
        shared.slice_set(&logits.zeros_like()?, 0, 0)?;
        let nobodys = input.nobodys(shape.rows)?;
        let mut step = || forward(&AttentionPlan::with_integers(&nobodys, Arc::clone(integers)), cache)?.into_tensor();
        let recording = Recording::of(compute, || Ok(shared.slice_set(&step()?, 0, 0)?))?;
        integers.write(compute.gpu(), &shape.spoilt_words(input).words)?;
        step()?;
        integers.write(compute.gpu(), &shape.words(input).words)?;
        // SAFETY: nothing has moved since.
        unsafe { recording.replay(compute.gpu()) }?;
        let num_rows = input.num_tokens();
        if differ(compute, &of_rows(shared, num_rows)?, &of_rows(logits, num_rows)?)? {
            return Err(ModelError::device("a replayed step gave other logits"));
        }
        Ok(recording)
    }
}

impl Known {
    /// The logits of the step, in memory of their own. The caller checks `input` against the cache.
    fn replay(
        &self,
        compute: &Compute,
        recording: &Recording,
        input: &ModelInput,
        logits: &Tensor,
    ) -> Result<Tensor, ModelError> {
        self.integers.write(compute.gpu(), &self.shape.words(input).words)?;
        // SAFETY: the cache lies where it lay and has the input's blocks; weights, integers and logits are this model's.
        unsafe { recording.replay(compute.gpu()) }?;
        of_rows(logits, input.num_tokens())
    }

    fn is_over(&self, cache: &KvCache) -> bool {
        self.cache.as_ptr() == Arc::as_ptr(cache.identity())
    }
}

fn is_not_replayed(shape: PaddedShape, error: &ModelError) {
    let PaddedShape { rows, most_keys } = shape;
    tracing::warn!(rows, most_keys, %error, "steps of this shape are not replayed, and so slower");
}

/// The first rows, in memory of their own.
fn of_rows(logits: &Tensor, num_rows: usize) -> Result<Tensor, ModelError> {
    Ok(logits.narrow(0, 0, num_rows)?.force_contiguous()?)
}

/// Whether two tensors of one shape and dtype differ in a bit.
fn differ(compute: &Compute, one: &Tensor, other: &Tensor) -> Result<bool, ModelError> {
    let (gpu, differ) = (compute.gpu(), Tensor::zeros(1, DType::U32, one.device())?);
    let args = UnequalArgs {
        one: address(gpu, one)?,
        other: address(gpu, other)?,
        differ: address(gpu, &differ)?,
        num_elements: one.elem_count() as u64,
    };
    // SAFETY: both have as many elements.
    unsafe { gpu.launch(args.launch(float_of(one)?)) }?;
    Ok(differ.to_vec1::<u32>()? != [0])
}
