use std::ops::Range;

use safetensors::SafeTensors;

use super::trial::{Measured, Trial, first_line, furthest, name, unequal};
use crate::input::SequenceInput;
use crate::ops::{Compute, Float};
use crate::{
    BlockId, CausalLm, CheckpointFiles, Decoder, KvCache, KvDtype, KvFormat, LoadOptions, ModelError, ModelInput,
    TokenId, WeightDtype, demo_checkpoint, load_decoder, unwatched,
};

/// Tokens of each sequence.
const LENGTHS: [usize; 3] = [7, 33, 70];
const CHUNK: usize = 16;

/// Of logits, where all is f32.
const F32: f32 = 1e-3;
/// Of the log-probabilities of the reference's five likeliest tokens, where weights, keys and values are bf16.
const TOP_LOGPROBS: f32 = 0.08;
/// The same where activations are bf16 throughout, as on a GPU: transformers in bf16 throughout moves them by up to 0.23 from
/// its own in f32 over these tokens (bloom).
const TOP_LOGPROBS_OF_BF16: f32 = 0.25;
/// The same of the demo where products, or all ops, take bf16 activations. Its logits are steep: transformers in bf16 throughout
/// moves them by 0.42 from its own in f32 over these tokens, and by 0.08 where it rounds what products take alone, with
/// keys in f32.
const TOP_LOGPROBS_OF_DEMO: f32 = 0.4;
const TOP: usize = 5;
/// Mean Kullback-Leibler divergence from the reference, over all tokens, in nats.
const DIVERGENCE: f32 = 2e-3;

/// A model, and what it should say.
pub(super) struct Candidate<'a> {
    pub(super) name: &'static str,
    what: &'static str,
    files: CheckpointFiles,
    /// Token ids and logits of the reference implementation; without them the reference bodies say what they should be.
    golden: Option<&'a [u8]>,
    pub(super) formats: &'static [Format],
}

/// How a model is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    /// Weights as stored, keys and values in bf16.
    Bf16,
    /// Weights quantised as they are loaded, keys and values in bf16.
    Q8_0,
}

/// Logits, a row for each token.
pub(super) type Rows = Vec<Vec<f32>>;

macro_rules! fixture {
    ($name:literal, $formats:expr) => {
        Candidate {
            name: $name,
            what: concat!("parity, ", $name),
            files: CheckpointFiles::embedded(
                concat!("the fixture ", $name),
                &[
                    ("config.json", include_bytes!(concat!("../../tests/fixtures/", $name, "/config.json"))),
                    (
                        "model.safetensors",
                        include_bytes!(concat!("../../tests/fixtures/", $name, "/model.safetensors")),
                    ),
                ],
            ),
            golden: Some(include_bytes!(concat!("../../tests/fixtures/", $name, "/golden.safetensors"))),
            formats: $formats,
        }
    };
}

/// Small models whose logits a reference implementation computed (`models/tests/fixtures/make.py`), and the demo.
pub(super) fn candidates() -> [Candidate<'static>; 6] {
    const BOTH: &[Format] = &[Format::F32, Format::Bf16];
    const ALL: &[Format] = &[Format::F32, Format::Bf16, Format::Q8_0];
    [
        fixture!("plain", &[Format::F32]),
        fixture!("qwen3_windows", BOTH),
        fixture!("olmo2", BOTH),
        // Its activation squares, so that keys and values in bf16 alone move a log-probability by 0.11, on the CPU too.
        fixture!("apertus", &[Format::F32]),
        fixture!("bloom", BOTH),
        Candidate { name: "demo", what: "parity, demo", files: demo_checkpoint(), golden: None, formats: ALL },
    ]
}

pub(super) fn check(trial: &mut Trial) -> Result<(), ModelError> {
    for candidate in candidates() {
        check_candidate(trial, &candidate);
    }
    Ok(())
}

fn check_candidate(trial: &mut Trial, candidate: &Candidate<'_>) {
    for &format in candidate.formats {
        if let Err(error) = check_format(trial, candidate, format) {
            let bodies = [name(trial.subject()), candidate.reference().to_owned()];
            let measured = Measured { worst: Err(first_line(&error)), allowed: 0.0 };
            trial.note(candidate.what, format!("{format:?}"), bodies, measured);
        }
    }
}

fn check_format(trial: &mut Trial, candidate: &Candidate<'_>, format: Format) -> Result<(), ModelError> {
    let model = candidate.load_on(trial.subject(), format)?;
    let mut alone = Vec::new();
    for len in LENGTHS {
        let found = forward_alone(&model, &candidate.tokens(&model, len)?)?;
        let expected = candidate.expected(trial, format, len)?;
        for (measure, worst, allowed) in format.differences(&found, &expected, candidate.top_logprobs(trial.subject()))
        {
            let bodies = [name(trial.subject()), candidate.reference().to_owned()];
            let measured = Measured { worst: Ok(worst), allowed };
            trial.note(candidate.what, format!("{format:?}, {measure}, {len} tokens"), bodies, measured);
        }
        alone.push(found);
    }
    let sequences = LENGTHS.map(|len| candidate.tokens(&model, len));
    let sequences = sequences.into_iter().collect::<Result<Vec<_>, _>>()?;
    let whole: Vec<Part<'_>> = sequences.iter().map(|tokens| (&tokens[..], 0..tokens.len())).collect();
    let together = forward(&model, &mut new_cache(&model)?, &whole)?;
    let expected = alone.concat();
    let longest = &sequences[sequences.len() - 1];
    let chunked = in_chunks(&model, longest)?;
    for (how, found, expected) in
        [("in a batch", &together, &expected[..]), ("in chunks", &chunked, &expected[expected.len() - longest.len()..])]
    {
        let is_equal = trial.subject().kernels().keeps_rows_equal();
        let top_logprobs = candidate.top_logprobs(trial.subject());
        for (measure, worst, allowed) in format.against_alone(found, expected, is_equal, top_logprobs) {
            let bodies = [name(trial.subject()), "itself alone".to_owned()];
            let measured = Measured { worst: Ok(worst), allowed };
            trial.note(candidate.what, format!("{format:?}, {measure}, {how}"), bodies, measured);
        }
    }
    Ok(())
}

impl Candidate<'_> {
    fn reference(&self) -> &'static str {
        if self.golden.is_some() { "transformers" } else { "reference" }
    }

    /// How far those of likely tokens may be off where weights, keys and values are bf16.
    pub(super) fn top_logprobs(&self, compute: &Compute) -> f32 {
        let is_bf16 = compute.activations().contains(&Float::Bf16);
        let rounds = is_bf16 || compute.for_kv_of(KvFormat::Bf16).factors() == Float::Bf16;
        match self.golden {
            None if rounds => TOP_LOGPROBS_OF_DEMO,
            Some(_) if is_bf16 => TOP_LOGPROBS_OF_BF16,
            _ => TOP_LOGPROBS,
        }
    }

    pub(super) fn load_on(&self, compute: &Compute, format: Format) -> Result<Decoder, ModelError> {
        let (dtype, kv_dtype) = match format {
            Format::F32 => (WeightDtype::F32, KvDtype::F32),
            Format::Bf16 => (WeightDtype::Auto, KvDtype::Bf16),
            Format::Q8_0 => (WeightDtype::Q8_0, KvDtype::Bf16),
        };
        let options = LoadOptions { dtype, kv_dtype, ..LoadOptions::default() };
        Ok(load_decoder(&self.files, compute, &options, &mut unwatched)?.0)
    }

    fn tokens(&self, model: &dyn CausalLm, len: usize) -> Result<Vec<TokenId>, ModelError> {
        match self.golden {
            Some(golden) => Ok(words(golden, &format!("input_{len}"))?.map(u32::from_le_bytes).collect()),
            None => Ok((0..len).map(|at| ((at * 131 + len * 17) % model.input_vocab_size()) as TokenId).collect()),
        }
    }

    fn expected(&self, trial: &Trial, format: Format, len: usize) -> Result<Rows, ModelError> {
        match self.golden {
            Some(golden) => {
                let logits: Vec<f32> = words(golden, &format!("logits_{len}"))?.map(f32::from_le_bytes).collect();
                Ok(logits.chunks((logits.len() / len).max(1)).map(<[f32]>::to_vec).collect())
            }
            None => {
                let twin = self.load_on(trial.reference(), format)?;
                forward_alone(&twin, &self.tokens(&twin, len)?)
            }
        }
    }
}

impl Format {
    /// What is measured, how much it is, and how much it may be.
    pub(super) fn differences(
        self,
        found: &[Vec<f32>],
        expected: &[Vec<f32>],
        top_logprobs: f32,
    ) -> Vec<(&'static str, f32, f32)> {
        if self == Self::F32 {
            return vec![("logits", furthest(&found.concat(), &expected.concat()), F32)];
        }
        let log = |rows: &[Vec<f32>]| rows.iter().map(|row| log_probabilities(row)).collect::<Rows>();
        let (found, expected) = (log(found), log(expected));
        let rows = || found.iter().zip(&expected);
        let worst = if found.len() == expected.len() { 0.0 } else { f32::NAN };
        let top = rows().fold(worst, |worst, (found, expected)| greater(worst, top_difference(found, expected)));
        let divergence =
            rows().map(|(found, expected)| divergence(found, expected)).sum::<f32>() / expected.len() as f32;
        vec![("top log-probabilities", top, top_logprobs), ("divergence", divergence, DIVERGENCE)]
    }

    /// The same where bodies do not promise equal bits.
    fn against_alone(
        self,
        found: &[Vec<f32>],
        alone: &[Vec<f32>],
        is_equal: bool,
        top_logprobs: f32,
    ) -> Vec<(&'static str, f32, f32)> {
        if is_equal {
            vec![("bits", unequal(&found.concat(), &alone.concat()), 0.0)]
        } else {
            self.differences(found, alone, top_logprobs)
        }
    }
}

/// A sequence, and which of its tokens run.
type Part<'a> = (&'a [TokenId], Range<usize>);

fn forward_alone(model: &dyn CausalLm, tokens: &[TokenId]) -> Result<Rows, ModelError> {
    forward(model, &mut new_cache(model)?, &[(tokens, 0..tokens.len())])
}

fn in_chunks(model: &dyn CausalLm, tokens: &[TokenId]) -> Result<Rows, ModelError> {
    let (mut cache, mut rows) = (new_cache(model)?, Vec::new());
    for start in (0..tokens.len()).step_by(CHUNK) {
        rows.extend(forward(model, &mut cache, &[(tokens, start..(start + CHUNK).min(tokens.len()))])?);
    }
    Ok(rows)
}

/// For one sequence of each length.
fn new_cache(model: &dyn CausalLm) -> Result<KvCache, ModelError> {
    let spec = model.kv_cache_spec();
    model.new_kv_cache(LENGTHS.iter().map(|len| len.div_ceil(spec.block_size) * spec.groups.len()).sum())
}

/// Each sequence has blocks of its own, by its place in `parts`, in each group.
fn forward(model: &dyn CausalLm, cache: &mut KvCache, parts: &[Part<'_>]) -> Result<Rows, ModelError> {
    let spec = model.kv_cache_spec();
    let mut free = (0..).map(BlockId);
    let mut own =
        |tokens: &[TokenId]| -> Vec<BlockId> { free.by_ref().take(tokens.len().div_ceil(spec.block_size)).collect() };
    let tables: Vec<Vec<Vec<BlockId>>> =
        parts.iter().map(|(tokens, _)| spec.groups.iter().map(|_| own(tokens)).collect()).collect();
    let samples: Vec<Vec<usize>> = parts.iter().map(|(_, range)| (0..range.len()).collect()).collect();
    let inputs = parts.iter().zip(tables.iter().zip(&samples)).map(|((tokens, range), (block_tables, sample))| {
        SequenceInput { tokens: &tokens[range.clone()], num_computed: range.start, block_tables, sample }
    });
    let input = ModelInput::new(spec.block_size, &inputs.collect::<Vec<_>>())?;
    let logits = model.forward(&input, cache)?.into_rows()?;
    Ok((0..logits.num_rows()).map(|row| logits.row(row).to_vec()).collect())
}

fn words<'a>(golden: &'a [u8], name: &str) -> Result<impl Iterator<Item = [u8; 4]> + use<'a>, ModelError> {
    let missing = |error| ModelError::Input(format!("{name} of a compiled-in fixture: {error}"));
    let tensor = SafeTensors::deserialize(golden).and_then(|golden| golden.tensor(name)).map_err(missing)?;
    Ok(tensor.data().as_chunks::<4>().0.iter().copied())
}

/// Of a row of logits.
fn log_probabilities(row: &[f32]) -> Vec<f32> {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = row.iter().map(|value| f64::from(value - most).exp()).sum();
    row.iter().map(|value| value - most - sum.ln() as f32).collect()
}

/// Over the tokens that the reference finds likeliest.
fn top_difference(found: &[f32], expected: &[f32]) -> f32 {
    let mut tokens: Vec<usize> = (0..expected.len()).collect();
    tokens.sort_by(|one, other| expected[*other].total_cmp(&expected[*one]));
    let difference = |token: &usize| found.get(*token).map_or(f32::NAN, |found| (found - expected[*token]).abs());
    tokens.iter().take(TOP).map(difference).fold(0.0, greater)
}

/// Of `found` from `expected`, log-probabilities both.
fn divergence(found: &[f32], expected: &[f32]) -> f32 {
    let terms =
        found.iter().zip(expected).map(|(&found, &expected)| f64::from(expected).exp() * f64::from(expected - found));
    terms.sum::<f64>() as f32
}

/// NaN if one is.
fn greater(one: f32, other: f32) -> f32 {
    if one >= other || one.is_nan() { one } else { other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selftest::Check;

    /// The first fixture, with one logit of 33 tokens off by `error`.
    fn verdict(error: f32, format: Format) -> Vec<Check> {
        let mut candidate = candidates().into_iter().find(|is| is.formats.contains(&format)).unwrap();
        let mut golden = candidate.golden.unwrap().to_vec();
        let start = {
            let tensors = SafeTensors::deserialize(&golden).unwrap();
            tensors.tensor("logits_33").unwrap().data().as_ptr().addr() - golden.as_ptr().addr()
        };
        let logit = f32::from_le_bytes(golden[start..start + 4].try_into().unwrap());
        golden[start..start + 4].copy_from_slice(&(logit + error).to_le_bytes());
        candidate.golden = Some(&golden);
        let mut trial = Trial::new(&Compute::cpu(1), 1.0).unwrap();
        check_candidate(&mut trial, &candidate);
        trial.into_checks()
    }

    #[test]
    fn one_wrong_logit_fails_the_length_that_it_is_in_and_no_other() {
        for (format, error) in [(Format::F32, 0.02), (Format::Bf16, 9.0)] {
            assert!(verdict(0.0, format).iter().all(Check::passes), "{format:?}");
            for check in verdict(error, format) {
                assert_eq!(check.passes(), !check.at.contains("33 tokens"), "{check:?}");
            }
        }
    }

    /// The bands were set before there were any; in plain code where the CPU has no instruction for them.
    #[test]
    fn products_of_bf16_stay_within_the_bands_and_answer_alike_in_any_company() {
        let mut trial = Trial::new(&Compute::cpu(2).with_bf16_products(), 1.0).unwrap();
        check(&mut trial).unwrap();
        let failed: Vec<_> = trial.into_checks().into_iter().filter(|check| !check.passes()).collect();
        assert!(failed.is_empty(), "{failed:#?}");
    }

    #[test]
    fn what_is_no_number_does_not_pass() {
        let rows = [vec![0.5, 1.0, 0.25]];
        for format in [Format::F32, Format::Bf16] {
            for wrong in [vec![f32::NAN, 1.0, 0.25], vec![0.5, f32::INFINITY, 0.25]] {
                let differences = format.differences(&[wrong], &rows, TOP_LOGPROBS);
                let passes = |(_, worst, allowed): &(&str, f32, f32)| worst <= allowed;
                assert!(!differences.iter().any(passes), "{differences:?}");
            }
        }
    }
}
