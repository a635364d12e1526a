//! What the outputs of a classifier stand for.

use super::encoder_spec::ScoreActivation;
use super::{Fields, limits};
use crate::ModelError;

/// The labels in the order of the outputs, from `id2label`, or as many unnamed ones as `num_labels` says.
pub(crate) fn read_labels(fields: &mut Fields<'_>) -> Result<Vec<String>, ModelError> {
    const DEFAULT_LABELS: usize = 2;
    let stated = fields.optional_count("num_labels", 1..=limits::MAX_LABELS)?;
    let Some(mut names) = fields.object("id2label")? else {
        let count = stated.unwrap_or(DEFAULT_LABELS);
        return Ok((0..count).map(|index| format!("LABEL_{index}")).collect());
    };
    let mut labels = Vec::new();
    while let Some(label) = names.text(&labels.len().to_string())? {
        labels.push(label.to_owned());
        if labels.len() > limits::MAX_LABELS {
            return Err(fields.refuse("id2label", format!("more than {} labels", limits::MAX_LABELS)));
        }
    }
    names.finish()?;
    match stated {
        _ if labels.is_empty() => Err(fields.refuse("id2label", "no label; give one for each output, from \"0\" on")),
        Some(stated) if stated != labels.len() => {
            Err(fields.refuse("num_labels", format!("{stated} contradicts the {} of id2label", labels.len())))
        }
        _ => Ok(labels),
    }
}

/// From the function that the cross-encoder library wrote down, else from the kind of problem: one label and several
/// independent ones are each a probability of their own, several exclusive ones are a distribution.
pub(crate) fn read_score_activation(fields: &mut Fields<'_>, num_labels: usize) -> Result<ScoreActivation, ModelError> {
    let problem = fields.text("problem_type")?;
    let old = fields.text("sbert_ce_default_activation_function")?;
    let mut named = old.map(|function| ("sbert_ce_default_activation_function", function));
    if let Some(mut inner) = fields.object("sentence_transformers")? {
        inner.ignore(&["version"]);
        named = inner.text("activation_fn")?.map(|function| ("sentence_transformers", function)).or(named);
        inner.finish()?;
    }
    if let Some((key, function)) = named {
        return match function.rsplit('.').next() {
            Some("Identity") => Ok(ScoreActivation::Identity),
            Some("Sigmoid") => Ok(ScoreActivation::Sigmoid),
            Some("Softmax") => Ok(ScoreActivation::Softmax),
            _ => {
                let refusal = format!("{function:.80} is not supported; supported: Identity, Sigmoid, Softmax");
                Err(fields.refuse(key, refusal))
            }
        };
    }
    Ok(match problem {
        _ if num_labels == 1 => ScoreActivation::Sigmoid,
        Some("multi_label_classification") => ScoreActivation::Sigmoid,
        Some("regression") => ScoreActivation::Identity,
        _ => ScoreActivation::Softmax,
    })
}
