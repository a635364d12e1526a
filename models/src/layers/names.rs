/// What a family calls its tensors. Names below a layer are relative to `{layers}.{index}.`; a linear layer's name is
/// completed with `.weight` and `.bias`.
///
/// A family has entries that it does not use, such as the gate of a network without one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WeightNames {
    /// What a checkpoint saved from the model without its head leaves off all names, with the dot.
    pub(crate) base_prefix: &'static str,
    pub(crate) embedding: &'static str,
    pub(crate) embedding_norm: &'static str,
    pub(crate) final_norm: &'static str,
    pub(crate) output_head: &'static str,
    pub(crate) layers: &'static str,
    pub(crate) mixer_norm: &'static str,
    pub(crate) qkv: QkvNames,
    pub(crate) rotary_rows: RotaryRows,
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) attention_output: &'static str,
    pub(crate) ffn_norm: &'static str,
    /// One matrix of the gate's rows and then the up projection's, where they are not apart.
    pub(crate) gate_up: Option<&'static str>,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// Where the learned scalars of an activation are.
    pub(crate) activation: &'static str,
    /// Tensors with these endings are computed from config.json, and are left where they are.
    pub(crate) derived: &'static [&'static str],
    /// Tensors with these beginnings read other inputs than text, and are left where they are.
    pub(crate) other_inputs: &'static [&'static str],
}

/// How the query, key and value projections are stored.
#[derive(Debug, Clone, Copy)]
pub(crate) enum QkvNames {
    Separate {
        query: &'static str,
        key: &'static str,
        value: &'static str,
    },
    /// One matrix: all queries, then all keys, then all values.
    Stacked(&'static str),
    /// One matrix. The query, key and value rows of one head follow each other, then come those of the next head.
    PerHead(&'static str),
}

/// Which rows of a head's queries and keys turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RotaryRows {
    /// As they are turned: the first with the first of the second half.
    Halves,
    /// Neighbours.
    Pairs,
}

/// What a family of encoders calls its tensors; those of its layers as in a decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderNames {
    pub(crate) block: WeightNames,
    /// Of the table of positions.
    pub(crate) position: &'static str,
    /// Of the table that tells the texts of a pair apart.
    pub(crate) token_type: &'static str,
    pub(crate) classifier: ClassifierNames,
    /// What heads that are not served, and tables computed from config.json, are called: beginnings or endings of names.
    pub(crate) unused: &'static [&'static str],
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct ClassifierNames {
    pub(crate) dense: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) output: &'static str,
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
    /// What `.weight` or `.bias` completes.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }
}
