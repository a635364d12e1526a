//! The encoder families, and the decoders whose hidden states are embeddings. As in [`super`], no arithmetic.

use super::{ARCHITECTURES, bert, modernbert};
use crate::ModelError;
use crate::config::{ConfigFile, EncoderSpec, Fields};
use crate::layers::{ClassifierNames, EncoderNames};

/// A class of checkpoint that gives one vector for each text: an embedding, or the scores of a classifier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderArchitecture {
    /// As in the `architectures` field of `config.json`.
    pub(crate) name: &'static str,
    pub(crate) family: &'static str,
    pub(crate) names: EncoderNames,
    read: ReadEncoder,
}

type ReadEncoder = fn(&mut Fields<'_>) -> Result<EncoderSpec, ModelError>;

pub(super) const ENCODERS: &[EncoderArchitecture] = &[
    encoder("BertModel", "bert", bert::read, bert::BERT_NAMES),
    encoder("BertForMaskedLM", "bert", bert::read, bert::BERT_NAMES),
    encoder("BertForSequenceClassification", "bert", bert::read_classifier, bert::BERT_NAMES),
    encoder("CamembertModel", "camembert", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("CamembertForMaskedLM", "camembert", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("CamembertForSequenceClassification", "camembert", bert::read_roberta_classifier, bert::ROBERTA_NAMES),
    encoder("ModernBertModel", "modernbert", modernbert::read, modernbert::NAMES),
    encoder("ModernBertForMaskedLM", "modernbert", modernbert::read, modernbert::NAMES),
    encoder("ModernBertForSequenceClassification", "modernbert", modernbert::read_classifier, modernbert::NAMES),
    encoder("RobertaModel", "roberta", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("RobertaForMaskedLM", "roberta", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("RobertaForSequenceClassification", "roberta", bert::read_roberta_classifier, bert::ROBERTA_NAMES),
    encoder("XLMRobertaModel", "xlm-roberta", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("XLMRobertaForMaskedLM", "xlm-roberta", bert::read_roberta, bert::ROBERTA_NAMES),
    encoder("XLMRobertaForSequenceClassification", "xlm-roberta", bert::read_roberta_classifier, bert::ROBERTA_NAMES),
];

const fn encoder(
    name: &'static str,
    family: &'static str,
    read: ReadEncoder,
    names: EncoderNames,
) -> EncoderArchitecture {
    EncoderArchitecture { name, family, names, read }
}

impl EncoderArchitecture {
    /// Tensors that a checkpoint may hold without the model using them.
    pub(crate) fn is_expendable(&self, tensor: &str) -> bool {
        let bare = tensor.strip_prefix(self.names.block.base_prefix).unwrap_or(tensor);
        self.names.unused.iter().any(|part| bare.starts_with(part) || bare.ends_with(part))
    }
}

/// Whether `class` names an encoder. Decoders are embedding models only if a `modules.json` says so.
pub(crate) fn is_encoder(class: &str) -> bool {
    ENCODERS.iter().any(|encoder| encoder.name == class)
}

/// The encoder that `config` describes, of an encoder's class or of a decoder's.
pub(crate) fn read_encoder(config: &ConfigFile) -> Result<(EncoderArchitecture, EncoderSpec), ModelError> {
    let wanted = config.architecture()?;
    if let Some(found) = ENCODERS.iter().find(|encoder| encoder.name == wanted) {
        return Ok((*found, config.encoder(found.read)?));
    }
    // Embedding models made of a decoder name the class with its head or the one without.
    let generator = wanted.strip_suffix("Model").map(|family| format!("{family}ForCausalLM"));
    let class = generator.as_deref().unwrap_or(wanted);
    let decoder = ARCHITECTURES.iter().find(|decoder| decoder.name == class);
    let Some(decoder) = decoder.filter(|decoder| decoder.other_inputs.is_empty()) else {
        let supported: Vec<_> = ENCODERS.iter().map(|encoder| encoder.name).collect();
        let problem = format!(
            "{wanted:.80} is not supported for embeddings; supported: {}, and the decoders that generate text",
            supported.join(", ")
        );
        return Err(config.refuse("architectures", problem));
    };
    let spec = EncoderSpec::from(config.decoder(decoder.read, decoder.other_inputs)?);
    let names = EncoderNames {
        block: decoder.names,
        position: "",
        token_type: "",
        classifier: ClassifierNames { dense: "", norm: "", output: "" },
        unused: &["lm_head.", "rotary_emb.inv_freq"],
    };
    let read = |_: &mut Fields<'_>| unreachable!("read above");
    Ok((EncoderArchitecture { name: decoder.name, family: decoder.family, names, read }, spec))
}

#[cfg(test)]
mod tests;
