//! BERT: Devlin et al. 2018, arXiv:1810.04805. RoBERTa: Liu et al. 2019, arXiv:1907.11692, whose positions come after the
//! padding token's id; XLM-RoBERTa (Conneau et al. 2019, arXiv:1911.02116) and CamemBERT (Martin et al. 2019,
//! arXiv:1911.03894) are RoBERTa with other vocabularies.

use super::common::{self, NAMES};
use crate::ModelError;
use crate::config::{
    Activation, AttentionSpec, Bias, ClassifierSpec, Direction, EncoderSpec, FfnSpec, Fields, LayerSpec, MixerSpec,
    NormKind, NormPlacement, NormSpec, NormWeight, Pooling, PositionSpec, PositionTable, limits, read_labels,
    read_score_activation,
};
use crate::layers::{ClassifierNames, EncoderNames, QkvNames, WeightNames};

pub(super) const BERT_NAMES: EncoderNames = EncoderNames {
    block: BERT_BLOCK,
    position: "bert.embeddings.position_embeddings",
    token_type: "bert.embeddings.token_type_embeddings",
    classifier: ClassifierNames { dense: "bert.pooler.dense", norm: "", output: "classifier" },
    unused: &["pooler.", "cls.", "embeddings.position_ids"],
};

pub(super) const ROBERTA_NAMES: EncoderNames = EncoderNames {
    block: WeightNames {
        base_prefix: "roberta.",
        embedding: "roberta.embeddings.word_embeddings",
        embedding_norm: "roberta.embeddings.LayerNorm",
        layers: "roberta.encoder.layer",
        ..BERT_BLOCK
    },
    position: "roberta.embeddings.position_embeddings",
    token_type: "roberta.embeddings.token_type_embeddings",
    classifier: ClassifierNames { dense: "classifier.dense", norm: "", output: "classifier.out_proj" },
    unused: &["pooler.", "lm_head.", "embeddings.position_ids"],
};

const BERT_BLOCK: WeightNames = WeightNames {
    base_prefix: "bert.",
    embedding: "bert.embeddings.word_embeddings",
    embedding_norm: "bert.embeddings.LayerNorm",
    layers: "bert.encoder.layer",
    mixer_norm: "attention.output.LayerNorm",
    qkv: QkvNames::Separate { query: "attention.self.query", key: "attention.self.key", value: "attention.self.value" },
    attention_output: "attention.output.dense",
    ffn_norm: "output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    derived: &[],
    ..NAMES
};

pub(super) fn read(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    read_with(fields, FirstPosition::Zero)
}

pub(super) fn read_classifier(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    with_classifier(fields, read)
}

pub(super) fn read_roberta(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    read_with(fields, FirstPosition::AfterPadding)
}

pub(super) fn read_roberta_classifier(fields: &mut Fields<'_>) -> Result<EncoderSpec, ModelError> {
    with_classifier(fields, read_roberta)
}

/// Where the positions of a text begin in their table.
#[derive(Debug, Clone, Copy)]
enum FirstPosition {
    Zero,
    AfterPadding,
}

fn read_with(fields: &mut Fields<'_>, first: FirstPosition) -> Result<EncoderSpec, ModelError> {
    let vocab_size = fields.count("vocab_size", limits::VOCAB_SIZE)?;
    let hidden_size = fields.count("hidden_size", limits::HIDDEN_SIZE)?;
    let num_layers = fields.count("num_hidden_layers", limits::NUM_LAYERS)?;
    let eps = fields.optional_number("layer_norm_eps", limits::NORM_EPS)?.unwrap_or(1e-12) as f32;
    let norm = NormSpec { kind: NormKind::Layer, weight: NormWeight::Stored, eps };
    let layer = LayerSpec {
        mixer: MixerSpec::Attention(read_attention(fields, hidden_size)?),
        ffn: FfnSpec::Plain {
            intermediate_size: fields.count("intermediate_size", limits::INTERMEDIATE_SIZE)?,
            activation: common::read_activation(fields, "hidden_act")?,
            bias: Bias::Present,
        },
        norm,
        placement: NormPlacement::OnSum,
    };
    let positions = read_positions(fields, vocab_size, first)?;
    let token_types = fields.optional_count("type_vocab_size", limits::TOKEN_TYPES)?.unwrap_or(2);
    refuse_variants(fields)?;
    Ok(EncoderSpec {
        vocab_size,
        hidden_size,
        max_position: positions.rows - positions.first,
        position_table: Some(positions),
        token_types,
        embedding_norm: Some(norm),
        layers: vec![layer; num_layers],
        final_norm: None,
        classifier: None,
    })
}

fn read_attention(fields: &mut Fields<'_>, hidden_size: usize) -> Result<AttentionSpec, ModelError> {
    let num_heads = fields.count("num_attention_heads", limits::NUM_HEADS)?;
    let head_dim = common::split_into_heads(fields, "num_attention_heads", hidden_size, num_heads)?;
    Ok(AttentionSpec {
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        qkv_bias: Bias::Present,
        output_bias: Bias::Present,
        qk_norm: None,
        scale: common::default_scale(head_dim),
        direction: Direction::Both,
        window: None,
        position: PositionSpec::Unencoded,
        temperature: None,
    })
}

fn read_positions(
    fields: &mut Fields<'_>,
    vocab_size: usize,
    first: FirstPosition,
) -> Result<PositionTable, ModelError> {
    let rows = fields.count("max_position_embeddings", limits::MAX_POSITION)?;
    let padding = fields.token_ids("pad_token_id", vocab_size, 1)?.first().copied();
    let first = match (first, padding) {
        (FirstPosition::Zero, _) => 0,
        (FirstPosition::AfterPadding, Some(padding)) => padding as usize + 1,
        // The implementations' own default.
        (FirstPosition::AfterPadding, None) => 2,
    };
    if first >= rows {
        let problem = format!("the {rows} positions begin at {first}, after the padding token, so that none is left");
        return Err(fields.refuse("max_position_embeddings", problem));
    }
    Ok(PositionTable { rows, first })
}

fn refuse_variants(fields: &mut Fields<'_>) -> Result<(), ModelError> {
    let absolute = ["absolute".into()];
    fields.neutral("position_embedding_type", &absolute, "only learned absolute positions are served")?;
    fields.neutral("is_decoder", &[false.into()], "this architecture is served as an encoder")?;
    // Heads that embeddings do without, and the shape of a pooler that is as wide as the model.
    fields.ignore(&["classifier_dropout", "directionality", "output_past", "pooler_fc_size"]);
    fields.ignore(&["pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"]);
    fields.ignore(&["bos_token_id", "eos_token_id", "tie_word_embeddings"]);
    Ok(())
}

fn with_classifier(
    fields: &mut Fields<'_>,
    read: fn(&mut Fields<'_>) -> Result<EncoderSpec, ModelError>,
) -> Result<EncoderSpec, ModelError> {
    let labels = read_labels(fields)?;
    let scores = read_score_activation(fields, labels.len())?;
    let classifier = ClassifierSpec {
        labels,
        pooling: Pooling::First,
        dense: Bias::Present,
        activation: Activation::Tanh,
        norm: None,
        scores,
    };
    Ok(EncoderSpec { classifier: Some(classifier), ..read(fields)? })
}
