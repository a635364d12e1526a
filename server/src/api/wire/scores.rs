//! `/rerank`, `/score` and `/classify`, as Jina, Cohere, vLLM and TEI shape them: their fields, and their answers.

use passerelle_engine::Usage;
use serde::Serialize;
use serde_json::Value;

use super::embeddings::EncoderUsage;
use super::texts::{Beside, TEXT_FIELDS, TextItem, Texts, Truncate, read_inputs, read_model, read_strings};
use crate::api::errors::ApiError;
use crate::api::fields::{Field, Fields, Reader, honoured, invalid, neutral, required, required_either};

pub(crate) const RERANK_FIELDS: &[Field] = &[
    honoured("query"),
    honoured("documents"),
    honoured("top_n"),
    honoured("return_documents"),
    honoured("raw_scores"),
    honoured("use_activation"),
    honoured("max_tokens_per_doc"),
    honoured("texts"),
    honoured("return_text"),
    honoured("truncate"),
    neutral("truncation_direction", r#"["right", "Right"]"#),
];
pub(crate) const SCORE_FIELDS: &[Field] =
    &[honoured("text_1"), honoured("text_2"), honoured("raw_scores"), honoured("use_activation")];
pub(crate) const CLASSIFY_FIELDS: &[Field] = &[honoured("input"), honoured("raw_scores"), honoured("use_activation")];

/// A query beside each of its documents, or any pairs of texts.
#[derive(Debug)]
pub(crate) struct ReadPairs {
    pub(crate) model: String,
    pub(crate) texts: Texts,
    pub(crate) raw: RawScores,
    pub(crate) ignored: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct ReadRerank {
    pub(crate) pairs: ReadPairs,
    pub(crate) top_n: usize,
    pub(crate) shape: RankingShape,
}

/// Whose answer a ranking looks like, and whether the documents stand in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RankingShape {
    /// Jina's and Cohere's.
    Jina { returns_documents: bool },
    /// TEI's, for those who ask as TEI is asked.
    Tei { returns_texts: bool },
}

impl RankingShape {
    pub(crate) fn returns_documents(self) -> bool {
        match self {
            Self::Jina { returns_documents } => returns_documents,
            Self::Tei { returns_texts } => returns_texts,
        }
    }
}

/// Logits instead of what the model makes of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RawScores {
    Yes,
    No,
}

pub(crate) fn read_rerank(body: Value, mut reader: Reader, most: usize) -> Result<ReadRerank, ApiError> {
    let mut fields = reader.open(body, "", &[TEXT_FIELDS, RERANK_FIELDS])?;
    let model = read_model(&mut fields)?;
    let query = required(fields.string("query")?, "query")?;
    let field = if fields.has("texts") { "texts" } else { "documents" };
    let documents = required_either(fields.value(field), ["documents", "texts"])?;
    let documents = read_strings(field, documents, most)?;
    let count = documents.len();
    let pairs = documents.into_iter().map(|document| TextItem::Pair(query.clone(), document)).collect();
    let mut texts = Texts { beside: Some(Beside::One("query")), ..Texts::read(&mut fields, field, pairs)? };
    texts.max_document_tokens = read_tokens_per_doc(&mut fields)?;
    let top_n = fields.integer("top_n", 1..=i64::from(u32::MAX))?;
    let top_n = top_n.and_then(|top_n| usize::try_from(top_n).ok()).map_or(count, |top_n| top_n.min(count));
    let shape = match field {
        "texts" => {
            if fields.boolean("truncate")?.unwrap_or(false) {
                texts.truncate = Truncate::ToModel;
            }
            RankingShape::Tei { returns_texts: fields.boolean("return_text")?.unwrap_or(false) }
        }
        _ => RankingShape::Jina { returns_documents: fields.boolean("return_documents")?.unwrap_or(true) },
    };
    let raw = read_raw(&mut fields)?;
    reader.finish(fields)?;
    let pairs = ReadPairs { model, texts, raw, ignored: reader.into_ignored() };
    Ok(ReadRerank { pairs, top_n, shape })
}

/// Cohere's. A document that is longer is cut.
fn read_tokens_per_doc(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let most = fields.integer("max_tokens_per_doc", 1..=i64::from(u32::MAX))?;
    Ok(most.and_then(|most| usize::try_from(most).ok()))
}

/// One text beside each of the others, or as many beside as many.
pub(crate) fn read_score(body: Value, mut reader: Reader, most: usize) -> Result<ReadPairs, ApiError> {
    let mut fields = reader.open(body, "", &[TEXT_FIELDS, SCORE_FIELDS])?;
    let model = read_model(&mut fields)?;
    let first = read_strings("text_1", required(fields.value("text_1"), "text_1")?, most)?;
    let second = read_strings("text_2", required(fields.value("text_2"), "text_2")?, most)?;
    let (ones, others) = (first.len(), second.len());
    if ones != 1 && ones != others {
        let why = format!("holds {others} texts beside {ones} of `text_1`: give one text first, or as many as here");
        return Err(invalid("text_2", why));
    }
    let pairs = first.into_iter().cycle().zip(second).map(|(first, second)| TextItem::Pair(first, second)).collect();
    let beside = if ones == 1 { Beside::One("text_1") } else { Beside::Each("text_1") };
    let texts = Texts { beside: Some(beside), ..Texts::read(&mut fields, "text_2", pairs)? };
    let raw = read_raw(&mut fields)?;
    reader.finish(fields)?;
    Ok(ReadPairs { model, texts, raw, ignored: reader.into_ignored() })
}

pub(crate) fn read_classify(body: Value, mut reader: Reader, most: usize) -> Result<ReadPairs, ApiError> {
    let mut fields = reader.open(body, "", &[TEXT_FIELDS, CLASSIFY_FIELDS])?;
    let model = read_model(&mut fields)?;
    let items = read_inputs("input", required(fields.value("input"), "input")?, most)?;
    let texts = Texts::read(&mut fields, "input", items)?;
    let raw = read_raw(&mut fields)?;
    reader.finish(fields)?;
    Ok(ReadPairs { model, texts, raw, ignored: reader.into_ignored() })
}

/// TEI asks for raw scores, vLLM for no activation.
fn read_raw(fields: &mut Fields) -> Result<RawScores, ApiError> {
    let (raw, activated) = (fields.boolean("raw_scores")?, fields.boolean("use_activation")?);
    match (raw, activated) {
        (Some(raw), Some(activated)) if raw == activated => {
            Err(invalid("use_activation", "contradicts `raw_scores`; give one of the two"))
        }
        (Some(true), _) | (_, Some(false)) => Ok(RawScores::Yes),
        _ => Ok(RawScores::No),
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct RerankAnswer {
    pub(crate) id: String,
    pub(crate) model: String,
    pub(crate) usage: EncoderUsage,
    pub(crate) results: Vec<RerankResult>,
}

#[derive(Debug, Serialize)]
pub(crate) struct RerankResult {
    pub(crate) index: usize,
    pub(crate) relevance_score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) document: Option<Document>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Document {
    pub(crate) text: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct TeiRank {
    index: usize,
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

/// `score` and `classify` answer with one entry for each input.
#[derive(Debug, Serialize)]
pub(crate) struct ListAnswer<T> {
    pub(crate) id: String,
    pub(crate) object: &'static str,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) data: Vec<T>,
    pub(crate) usage: EncoderUsage,
}

#[derive(Debug, Serialize)]
pub(crate) struct Score {
    pub(crate) index: usize,
    pub(crate) object: &'static str,
    pub(crate) score: f32,
}

#[derive(Debug, Serialize)]
pub(crate) struct Classification {
    pub(crate) index: usize,
    /// Of the greatest score.
    pub(crate) label: String,
    /// In the order of the model's labels.
    pub(crate) probs: Vec<f32>,
    pub(crate) num_classes: usize,
}

impl RerankAnswer {
    /// The best first; equal ones in the order in which they came.
    pub(crate) fn new(
        (id, model): (String, String),
        scores: Vec<f32>,
        documents: Option<Vec<String>>,
        (top_n, usage): (usize, Usage),
    ) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(top_n);
        let document = |index: usize| documents.as_ref().map(|texts| Document { text: texts[index].clone() });
        let result = |index| RerankResult { index, relevance_score: scores[index], document: document(index) };
        Self { id, model, usage: usage.into(), results: order.into_iter().map(result).collect() }
    }

    /// The ranking alone.
    pub(crate) fn into_tei(self) -> Vec<TeiRank> {
        let rank = |RerankResult { index, relevance_score: score, document }| TeiRank {
            index,
            score,
            text: document.map(|document| document.text),
        };
        self.results.into_iter().map(rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::UnknownFields;

    #[test]
    fn without_any_document_both_fields_that_may_hold_them_are_named() {
        let read = |body| read_rerank(body, Reader::new(UnknownFields::Error), 8);
        let error = read(json!({"model": "m", "query": "q"})).unwrap_err();
        assert_eq!(error.message(), "Missing required parameter: `documents` or `texts`.");
        assert_eq!(error.body()["error"]["param"], "documents");
        assert!(read(json!({"model": "m", "query": "q", "texts": ["a"]})).is_ok());
    }

    #[test]
    fn the_best_documents_come_first_and_equal_ones_as_they_were_given() {
        let documents = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
        let names = ("rerank-1".to_owned(), "m".to_owned());
        let usage = Usage { prompt_tokens: 9, ..Usage::default() };
        let answer = RerankAnswer::new(names, vec![0.5, 0.9, 0.5, 0.1], Some(documents), (3, usage));
        let shown = serde_json::to_value(answer).unwrap();
        let order: Vec<_> = shown["results"].as_array().unwrap().iter().map(|result| result["index"].clone()).collect();
        assert_eq!(order, [1, 0, 2]);
        assert_eq!(shown["results"][0]["document"]["text"], "b");
        assert_eq!(shown["usage"]["total_tokens"], 9);
    }
}
