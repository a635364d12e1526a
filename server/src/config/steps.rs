//! How large the steps of an engine are: what was written, else what suits the kind of device.

use std::num::NonZeroUsize;

use super::checked::count;
use super::{ConfigError, WrittenEngine};
use crate::placement::Backend;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSizes {
    pub max_num_seqs: usize,
    pub max_num_batched_tokens: usize,
    pub max_prefill_chunk_tokens: usize,
}

/// Each takes room in every step that all of them run in: more of them than any machine has K/V for.
const MOST_SEQUENCES: usize = 1 << 16;
/// A step holds the activations of all its tokens at once.
const MOST_STEP_TOKENS: usize = 1 << 20;
/// What suits a few cores.
const OF_CPU: StepSizes = StepSizes { max_num_seqs: 64, max_num_batched_tokens: 512, max_prefill_chunk_tokens: 256 };
/// What an H200 was measured with (`loadtests/results/2026-11-26-gpu-h200.md`).
const OF_ACCELERATOR: StepSizes =
    StepSizes { max_num_seqs: 256, max_num_batched_tokens: 8192, max_prefill_chunk_tokens: 8192 };

/// What was written of them. It fits together on every kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatedSteps {
    max_num_seqs: Option<NonZeroUsize>,
    max_num_batched_tokens: Option<NonZeroUsize>,
    max_prefill_chunk_tokens: Option<NonZeroUsize>,
}

impl StatedSteps {
    pub(super) fn check(written: &WrittenEngine) -> Result<Self, ConfigError> {
        let &WrittenEngine { max_num_seqs, max_num_batched_tokens, max_prefill_chunk_tokens, .. } = written;
        for (stated, most, key) in [
            (max_num_seqs, MOST_SEQUENCES, "engine.max_num_seqs (--max-num-seqs)"),
            (max_num_batched_tokens, MOST_STEP_TOKENS, "engine.max_num_batched_tokens (--max-num-batched-tokens)"),
        ] {
            if let Some(stated) = stated.filter(|stated| stated.get() > most) {
                return Err(ConfigError::value(key, format!("{stated} are more than {most}")));
            }
        }
        if let (Some(seqs), Some(tokens)) = (max_num_seqs, max_num_batched_tokens)
            && tokens < seqs
        {
            let problem = format!(
                "{tokens} is less than engine.max_num_seqs = {seqs}; every running sequence needs one token a step, so \
                 raise the one or lower the other"
            );
            return Err(ConfigError::value("engine.max_num_batched_tokens", problem));
        }
        Ok(Self { max_num_seqs, max_num_batched_tokens, max_prefill_chunk_tokens })
    }

    /// `None`: a CPU. What was not written makes room for what was.
    pub fn on(self, backend: Option<Backend>) -> StepSizes {
        let default = if backend.is_some() { OF_ACCELERATOR } else { OF_CPU };
        let least_tokens = count(self.max_num_seqs, 0);
        let tokens = count(self.max_num_batched_tokens, default.max_num_batched_tokens.max(least_tokens));
        StepSizes {
            max_num_seqs: count(self.max_num_seqs, default.max_num_seqs.min(tokens)),
            max_num_batched_tokens: tokens,
            max_prefill_chunk_tokens: count(self.max_prefill_chunk_tokens, default.max_prefill_chunk_tokens)
                .min(tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stated(seqs: usize, tokens: usize) -> Result<StatedSteps, ConfigError> {
        let (max_num_seqs, max_num_batched_tokens) = (NonZeroUsize::new(seqs), NonZeroUsize::new(tokens));
        StatedSteps::check(&WrittenEngine { max_num_seqs, max_num_batched_tokens, ..WrittenEngine::default() })
    }

    #[test]
    fn what_is_not_written_suits_the_device_and_makes_room_for_what_is() {
        let on = |stated: &StatedSteps, backend| {
            let StepSizes { max_num_seqs, max_num_batched_tokens, max_prefill_chunk_tokens } = stated.on(backend);
            (max_num_seqs, max_num_batched_tokens, max_prefill_chunk_tokens)
        };
        let gpu = Some(Backend::Cuda);
        let nothing = stated(0, 0).unwrap();
        assert_eq!((on(&nothing, None), on(&nothing, gpu)), ((64, 512, 256), (256, 8192, 8192)));
        let few_tokens = stated(0, 32).unwrap();
        assert_eq!((on(&few_tokens, None), on(&few_tokens, gpu)), ((32, 32, 32), (32, 32, 32)));
        let many_sequences = stated(1000, 0).unwrap();
        assert_eq!((on(&many_sequences, None), on(&many_sequences, gpu)), ((1000, 1000, 256), (1000, 8192, 8192)));
        assert!(stated(64, 32).unwrap_err().to_string().contains("less than engine.max_num_seqs"));
    }

    #[test]
    fn sizes_that_no_step_could_have_are_refused_with_the_largest() {
        stated(1 << 16, 1 << 20).unwrap();
        for (seqs, tokens, said) in [
            (100_000_000, 0, "engine.max_num_seqs (--max-num-seqs): 100000000 are more than 65536"),
            (
                0,
                (1 << 20) + 1,
                "engine.max_num_batched_tokens (--max-num-batched-tokens): 1048577 are more than 1048576",
            ),
        ] {
            assert_eq!(stated(seqs, tokens).unwrap_err().to_string(), said);
        }
    }
}
