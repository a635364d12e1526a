//! Steps that are replayed, against the same steps launch by launch.

use candle_core::{DType, Tensor};

use super::parity::{Candidate, Format, Rows, candidates};
use super::trial::{Measured, Trial, first_line, name, unequal};
use crate::input::SequenceInput;
use crate::{BlockId, CausalLm, Decoder, ModelError, ModelInput, TokenId};

/// Sequences of a step. Powers of two are replayed as they are, so their bits are the same; 11 are filled up to 16, where cuBLAS
/// may pick another kernel.
const BATCHES: [usize; 4] = [1, 2, 8, 11];
const FILLED_UP: usize = 11;
/// The first is recorded, the others are replayed.
const STEPS: usize = 4;
/// Tokens before a step; each sequence has some more than the one before.
const PROMPT: usize = 5;
const MORE: usize = 7;

pub(super) fn check(trial: &mut Trial) {
    for candidate in candidates() {
        for &format in candidate.formats {
            if let Err(error) = check_candidate(trial, &candidate, format) {
                note(trial, &candidate, format!("{format:?}"), Err(first_line(&error)), 0.0);
            }
        }
    }
}

fn check_candidate(trial: &mut Trial, candidate: &Candidate<'_>, format: Format) -> Result<(), ModelError> {
    let model = candidate.load_on(trial.subject(), format)?;
    for batch in BATCHES {
        let replays = model.num_replays();
        let (found, expected) = both_ways(&model, batch)?;
        let differences = match batch {
            FILLED_UP => format.differences(&found, &expected, candidate.top_logprobs(trial.subject())),
            _ => vec![("bits", unequal(&found.concat(), &expected.concat()), 0.0)],
        };
        for (measure, worst, allowed) in differences {
            note(trial, candidate, format!("{format:?}, {measure}, {batch} sequences"), Ok(worst), allowed);
        }
        let missing = (STEPS - 1) as f32 - (model.num_replays() - replays) as f32;
        note(trial, candidate, format!("{format:?}, steps not replayed, {batch} sequences"), Ok(missing), 0.0);
    }
    Ok(())
}

fn note(trial: &mut Trial, candidate: &Candidate<'_>, at: String, worst: Result<f32, String>, allowed: f32) {
    let bodies = [name(trial.subject()), "launch by launch".to_owned()];
    trial.note("replayed steps", format!("{}, {at}", candidate.name), bodies, Measured { worst, allowed });
}

/// The logits of every step that generates, as they are served and launch by launch.
fn both_ways(model: &Decoder, batch: usize) -> Result<(Rows, Rows), ModelError> {
    let spec = model.kv_cache_spec();
    let len = |sequence: usize| PROMPT + MORE * sequence;
    let blocks = |sequence: usize| (len(sequence) + STEPS).div_ceil(spec.block_size);
    let total: usize = (0..batch).map(blocks).sum();
    // One each, so that a step finds the keys and values that the steps before it left in the same way.
    let new_cache = || model.new_kv_cache(total * spec.groups.len());
    let mut caches = (new_cache()?, new_cache()?);
    let mut free = (0..).map(BlockId);
    let mut own =
        |sequence: usize| spec.groups.iter().map(|_| free.by_ref().take(blocks(sequence)).collect()).collect();
    let tables: Vec<Vec<Vec<BlockId>>> = (0..batch).map(&mut own).collect();
    let vocabulary = model.input_vocab_size();
    let tokens = |sequence: usize| {
        (0..len(sequence) + STEPS).map(move |at| ((at * 131 + sequence * 17) % vocabulary) as TokenId)
    };
    let tokens: Vec<Vec<TokenId>> = (0..batch).map(|sequence| tokens(sequence).collect()).collect();
    let mut logits = (Rows::new(), Rows::new());
    for step in 0..=STEPS {
        let inputs = tokens.iter().zip(&tables).enumerate().map(|(sequence, (tokens, block_tables))| {
            let range = if step == 0 { 0..len(sequence) } else { len(sequence) + step - 1..len(sequence) + step };
            let sample: &[usize] = if step == 0 { &[] } else { &[0] };
            SequenceInput { tokens: &tokens[range.clone()], num_computed: range.start, block_tables, sample }
        });
        let input = ModelInput::new(spec.block_size, &inputs.collect::<Vec<_>>())?;
        logits.1.extend(rows(&model.launched(&input, &mut caches.1)?.into_tensor()?)?);
        logits.0.extend(rows(&model.replayed(&input, &mut caches.0)?.into_tensor()?)?);
    }
    Ok(logits)
}

/// `[num_rows, vocab_size]` as rows.
fn rows(logits: &Tensor) -> Result<Rows, ModelError> {
    Ok(logits.to_dtype(DType::F32)?.to_vec2()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Compute;

    /// On the CPU, where nothing is replayed.
    #[test]
    fn steps_that_are_not_replayed_fail_and_equal_ones_pass() {
        let mut trial = Trial::new(&Compute::cpu(1), 1.0).unwrap();
        let candidate = candidates().into_iter().next().unwrap();
        check_candidate(&mut trial, &candidate, Format::F32).unwrap();
        let checks = trial.into_checks();
        assert_eq!(checks.len(), 2 * BATCHES.len());
        for check in checks {
            assert_eq!(check.passes(), !check.at.contains("not replayed"), "{check:?}");
        }
    }
}
