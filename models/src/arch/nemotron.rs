//! Nemotron: Parmar et al. 2024, arXiv:2402.16819; also Luciole 1B and 23B. Layer norms that store their weights less 1,
//! squared ReLU without a gate, and rotation of half of each head.

use super::common::{self, Biases, Dialect, FfnDialect};
use crate::ModelError;
use crate::config::{Activation, DecoderSpec, Fields, NormKind, NormWeight, PartialRotary, RopeDialect};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<DecoderSpec, ModelError> {
    let biases = Biases::read(fields)?;
    let dialect = Dialect {
        norm_eps: ("norm_eps", 1e-5),
        norm_kind: NormKind::Layer,
        norm_weight: NormWeight::OnePlusStored,
        ffn: FfnDialect::Plain(Activation::Relu2, "relu2"),
        rope: RopeDialect { partial: PartialRotary::Honoured(0.5), ..RopeDialect::LLAMA },
        ..Dialect::LLAMA
    };
    let mut spec = common::read(fields, &dialect, biases)?;
    common::read_windows(fields, &mut spec, None, |_| false)?;
    Ok(spec)
}
