//! How a decoder's steps are run: as they are, or, on a GPU, as what was recorded of a step like it.

use super::{AttentionPlan, Compute, Matrix};
use crate::{KvCache, ModelError, ModelInput};

/// What was recorded of a model's steps.
#[derive(Debug, Default)]
pub(crate) struct Replays {
    #[cfg(feature = "cuda")]
    graphs: std::sync::Mutex<super::cuda::graphs::Graphs>,
    #[cfg(feature = "cuda")]
    count: std::sync::atomic::AtomicU64,
}

/// A whole step: its K/V into the cache, and the logits of the rows that are wanted, `[rows, vocab_size]`.
///
/// It gives the same for the same input and cache, and tells no host what it computes.
pub(crate) type Forward<'a> = &'a dyn Fn(&AttentionPlan<'_>, &mut KvCache) -> Result<Matrix, ModelError>;

impl Replays {
    /// What `forward` returns.
    pub(crate) fn run(
        &self,
        compute: &Compute,
        input: &ModelInput,
        cache: &mut KvCache,
        forward: Forward<'_>,
    ) -> Result<Matrix, ModelError> {
        #[cfg(feature = "cuda")]
        if compute.kernels() == super::KernelSet::Cuda {
            // After a panic, what was recorded is as good as before.
            let mut graphs = self.graphs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let (logits, is_replay) = graphs.run(compute, input, cache, forward)?;
            self.count.fetch_add(u64::from(is_replay), std::sync::atomic::Ordering::Relaxed);
            return Ok(logits.into());
        }
        forward(&AttentionPlan::of_step(compute, input), cache)
    }

    /// Steps that were replayed.
    pub(crate) fn count(&self) -> u64 {
        #[cfg(feature = "cuda")]
        return self.count.load(std::sync::atomic::Ordering::Relaxed);
        #[cfg(not(feature = "cuda"))]
        0
    }
}
