use crate::weights::MatrixPart;

/// What a family calls its tensors. Names below a layer are relative to `{layers}.{index}.`; a linear layer's name is
/// completed with `.weight` and `.bias`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightNames {
    pub(crate) embedding: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) output_head: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) mixer_norm: &'static str,
    pub(crate) query: &'static str,
    pub(crate) key: &'static str,
    pub(crate) value: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) ffn_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Tensors with these endings are computed from config.json, and are left where they are.
    pub(crate) derived: &'static [&'static str],
}

impl WeightNames {
    pub(crate) fn layer(&self, index: usize) -> LayerNames<'_> {
        LayerNames { names: self, prefix: format!("{}.{index}", self.layers) }
    }
}

/// The names of one layer.
#[derive(Debug)]
pub(crate) struct LayerNames<'a> {
    pub(crate) names: &'a WeightNames,
    prefix: String,
}

impl LayerNames<'_> {
    pub(crate) fn weight(&self, name: &str, rows: usize) -> MatrixPart {
        MatrixPart { name: format!("{}.{name}.weight", self.prefix), rows }
    }

    pub(crate) fn bias(&self, name: &str, rows: usize) -> MatrixPart {
        MatrixPart { name: format!("{}.{name}.bias", self.prefix), rows }
    }
}
