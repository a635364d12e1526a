//! Llama: Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783.

use super::common::{self, Biases, Dialect};
use crate::ModelError;
use crate::config::{DecoderSpec, Fields};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let biases = Biases::read(fields)?;
    fields.neutral("pretraining_tp", &[1.into()], "merge the slices into a checkpoint with 1")?;
    fields.neutral("sliding_window", &[], "this architecture attends to everything")?;
    let mut spec = common::read(fields, &Dialect::LLAMA, biases)?;
    common::read_windows(fields, &mut spec, None, |_| false)?;
    Ok(spec)
}
