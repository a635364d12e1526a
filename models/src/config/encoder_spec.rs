//! An encoder as data: what the `config.json` of a family, and the files of its pooling, are turned into.

use std::collections::BTreeMap;

use super::spec::{Activation, Bias, DecoderSpec, LayerSpec, NormSpec};

/// A whole encoder, every size checked against [`super::limits`]. Its layers are those of decoders; what differs is
/// before them (positions and texts have tables of their own) and after them (one vector for each sequence).
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    /// The longest sequence that the checkpoint's positions allow.
    pub max_position: usize,
    pub position_table: Option<PositionTable>,
    /// Rows of the table that tells the texts of a pair apart; 0 without one.
    pub token_types: usize,
    pub embedding_norm: Option<NormSpec>,
    pub layers: Vec<LayerSpec>,
    pub final_norm: Option<NormSpec>,
    /// `None` for a checkpoint without a classifier, whose vectors are pooled as its [`PipelineSpec`] says.
    pub classifier: Option<ClassifierSpec>,
}

/// Learned positions, one row each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionTable {
    pub rows: usize,
    /// The row of the first token. RoBERTa's positions come after the padding token's id.
    pub first: usize,
}

/// A sequence classification head: `out(norm(activation(dense(pooled))))`.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassifierSpec {
    /// What each output stands for, in order.
    pub labels: Vec<String>,
    pub pooling: Pooling,
    pub dense: Bias,
    pub activation: Activation,
    pub norm: Option<NormSpec>,
    pub scores: ScoreActivation,
}

/// From a classifier's logits to what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoreActivation {
    Identity,
    /// Each label on its own.
    Sigmoid,
    /// All labels together are 1.
    Softmax,
}

/// From the hidden states of a sequence, `[tokens, hidden]`, to one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first token's.
    First,
    /// The last token's.
    Last,
    Mean,
    Max,
    /// The sum over the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean, where the first token counts once, the second twice, and so on.
    WeightedMean,
}

/// `modules.json` and what it names: from hidden states to an embedding (the sentence-transformers library's format).
#[derive(Debug, Clone, PartialEq)]
pub struct PipelineSpec {
    /// One after the other in the vector; never empty.
    pub pooling: Vec<Pooling>,
    pub steps: Vec<PipelineStep>,
    /// The longest text, in tokens, where its authors state one.
    pub max_tokens: Option<usize>,
    /// Text is turned to lower case first.
    pub lower_case: bool,
    /// What is put before a text, by name.
    pub prompts: BTreeMap<String, String>,
    /// The prompt of whoever names none.
    pub default_prompt: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum PipelineStep {
    Dense(DenseSpec),
    /// To length 1.
    Normalize,
}

/// `activation(x W^T + b)`, with weights in a folder of their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DenseSpec {
    pub folder: String,
    pub in_features: usize,
    pub out_features: usize,
    pub bias: Bias,
    /// `None` for the identity.
    pub activation: Option<Activation>,
}

impl PipelineSpec {
    /// Elements of an embedding, for hidden states of `hidden_size`.
    pub fn dimensions(&self, hidden_size: usize) -> usize {
        let dense = self.steps.iter().rev().find_map(|step| match step {
            PipelineStep::Dense(dense) => Some(dense.out_features),
            PipelineStep::Normalize => None,
        });
        dense.unwrap_or(self.pooling.len() * hidden_size)
    }

    pub fn normalizes(&self) -> bool {
        self.steps.last() == Some(&PipelineStep::Normalize)
    }
}

impl Default for PipelineSpec {
    /// Of a checkpoint without `modules.json`: the mean, as it is.
    fn default() -> Self {
        Self {
            pooling: vec![Pooling::Mean],
            steps: Vec::new(),
            max_tokens: None,
            lower_case: false,
            prompts: BTreeMap::new(),
            default_prompt: None,
        }
    }
}

/// A decoder whose last hidden states are wanted, not its logits.
impl From<DecoderSpec> for EncoderSpec {
    fn from(decoder: DecoderSpec) -> Self {
        Self {
            vocab_size: decoder.input_vocab_size,
            hidden_size: decoder.hidden_size,
            max_position: decoder.max_position,
            position_table: None,
            token_types: 0,
            embedding_norm: decoder.embedding_norm,
            layers: decoder.layers,
            final_norm: Some(decoder.final_norm),
            classifier: None,
        }
    }
}
