//! OLMo 2: Walsh et al. 2025, arXiv:2501.00656. Norms follow the mixer and the feed-forward network, and queries and keys
//! are normed across all heads.

use super::common::{self, Biases, Dialect, NAMES};
use crate::ModelError;
use crate::config::{DecoderSpec, Fields, NormPlacement, QkNormScope};
use crate::layers::WeightNames;

pub(super) const OLMO2_NAMES: WeightNames =
    WeightNames { mixer_norm: "post_attention_layernorm", ffn_norm: "post_feedforward_layernorm", ..NAMES };

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let biases = Biases::read_attention(fields)?;
    let dialect = Dialect {
        norm_eps: ("rms_norm_eps", 1e-5),
        placement: NormPlacement::Post,
        qk_norm: Some(QkNormScope::Token),
        ..Dialect::LLAMA
    };
    let mut spec = common::read(fields, &dialect, biases)?;
    common::read_windows(fields, &mut spec, None, |_| false)?;
    Ok(spec)
}
