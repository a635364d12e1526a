#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::{DType, Tensor};

use super::args::choose::ChooseWords;
use super::tensors::{address, float_of, unwritten};
use crate::ModelError;
use crate::ops::{Compute, RowAnswer, RowQuestion};

/// One launch and one copy for all questions, which the caller has checked.
pub(crate) fn choose(
    compute: &Compute,
    logits: &Tensor,
    questions: &[(usize, RowQuestion)],
) -> Result<Vec<RowAnswer>, ModelError> {
    let (gpu, logits) = (compute.gpu(), logits.contiguous()?);
    let words = ChooseWords::new(questions, logits.dim(1)?);
    let asked = Tensor::from_slice(&words.questions, words.questions.len(), compute.device())?;
    let answers = unwritten(&[1, words.answers_len()], DType::U32, &logits)?;
    let args = words.args(address(gpu, &logits)?, address(gpu, &asked)?, address(gpu, &answers)?);
    // SAFETY: rows of `logits`, as the caller says; answers and lists have the lengths that `words` says.
    unsafe { gpu.launch(args.launch(questions.len(), float_of(&logits)?)) }?;
    let mut found = Vec::with_capacity(words.answers_len());
    gpu.read(&answers, |bytes| found.extend(bytes.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word))))?;
    Ok(words.answers(&found))
}
