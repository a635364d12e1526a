//! What the routes of encoders read alike: texts, and how they are cut.

use std::collections::BTreeMap;

use passerelle_models::TokenId;
use serde_json::Value;

use super::sampling::token_ids;
use crate::api::errors::{ApiError, ErrorKind};
use crate::api::fields::{Field, Fields, honoured, invalid, required, too_many, wrong_type};
use crate::gateway::Attribution;

pub(crate) const TEXT_FIELDS: &[Field] =
    &[honoured("model"), honoured("user"), honoured("truncate_prompt_tokens"), honoured("add_special_tokens")];

/// Every text of a request, and what is done to it.
#[derive(Debug)]
pub(crate) struct Texts {
    /// The field that they came in.
    pub(crate) field: &'static str,
    /// What holds the first text of each pair; `None`: there are no pairs.
    pub(crate) beside: Option<Beside>,
    pub(crate) items: Vec<TextItem>,
    /// What is put before each text, by its name in the checkpoint.
    pub(crate) prompt_name: Option<String>,
    pub(crate) add_special_tokens: bool,
    pub(crate) truncate: Truncate,
    /// The second text of each pair is cut to this many tokens, its frame not counted.
    pub(crate) max_document_tokens: Option<usize>,
    /// Whom they are read for; written down with what that takes.
    pub(crate) attribution: Attribution,
}

/// A field of first texts of pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Beside {
    /// One for all of them.
    One(&'static str),
    /// One for each.
    Each(&'static str),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum TextItem {
    Text(String),
    /// Used as they are.
    Tokens(Vec<TokenId>),
    Pair(String, String),
    /// The second text of a pair that is read apart from the first.
    Document(String),
}

/// What happens to a text that is longer than the model reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Truncate {
    /// It is refused.
    Never,
    /// Its end is cut off.
    ToModel,
    /// Its end is cut off so that this many tokens are left, its frame included.
    To(usize),
}

impl Texts {
    pub(crate) fn read(fields: &mut Fields, field: &'static str, items: Vec<TextItem>) -> Result<Self, ApiError> {
        let attribution = Attribution::new(fields.string("user")?.as_deref(), &BTreeMap::new());
        let truncate = Truncate::read(fields)?;
        let add_special_tokens = fields.boolean("add_special_tokens")?.unwrap_or(true);
        let (beside, prompt_name, max_document_tokens) = (None, None, None);
        Ok(Self { field, beside, items, prompt_name, add_special_tokens, truncate, max_document_tokens, attribution })
    }

    /// What the caller calls each of the items, in their order; one of several is told by its place.
    pub(crate) fn names(&self) -> Vec<String> {
        let is_apart = self.items.iter().any(|item| matches!(item, TextItem::Document(_)));
        let items_per_entry = if is_apart { 2 } else { 1 };
        let of_entry = |entry: usize| match self.items.len() > items_per_entry {
            true => format!("{}[{entry}]", self.field),
            false => self.field.to_owned(),
        };
        let name = |(index, item): (usize, &TextItem)| match (item, self.beside) {
            (TextItem::Text(_), Some(Beside::One(field))) => field.to_owned(),
            (TextItem::Text(_), Some(Beside::Each(field))) => format!("{field}[{}]", index / items_per_entry),
            _ => of_entry(index / items_per_entry),
        };
        self.items.iter().enumerate().map(name).collect()
    }
}

impl Truncate {
    fn read(fields: &mut Fields) -> Result<Self, ApiError> {
        const NAME: &str = "truncate_prompt_tokens";
        let most = i64::from(u32::MAX);
        let beyond = || invalid(NAME, format!("must be between 1 and {most}, or -1 for the model's own length"));
        let told = |error: ApiError| if error.kind() == ErrorKind::InvalidValue { beyond() } else { error };
        match fields.integer(NAME, -1..=most).map_err(told)? {
            None => Ok(Self::Never),
            Some(-1) => Ok(Self::ToModel),
            Some(0) => Err(beyond()),
            Some(tokens) => Ok(Self::To(usize::try_from(tokens).unwrap_or(usize::MAX))),
        }
    }
}

pub(crate) fn read_model(fields: &mut Fields) -> Result<String, ApiError> {
    required(fields.string("model")?, "model")
}

/// A string, a list of strings, a list of token ids, or a list of such lists.
pub(crate) fn read_inputs(name: &str, value: Value, most: usize) -> Result<Vec<TextItem>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![TextItem::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string, token ids, or a list of these", &other)),
    };
    match items.first() {
        None => Err(invalid(name, "must not be empty")),
        Some(Value::Number(_)) => Ok(vec![read_tokens(name, &items)?]),
        Some(_) if items.len() > most => Err(too_many(name, most, items.len())),
        Some(_) => {
            let read = |(index, item)| match item {
                Value::String(text) => Ok(TextItem::Text(text)),
                Value::Array(ids) => read_tokens(&format!("{name}[{index}]"), &ids),
                other => Err(wrong_type(&format!("{name}[{index}]"), "a string or an array of token ids", &other)),
            };
            items.into_iter().enumerate().map(read).collect()
        }
    }
}

/// A string or a list of strings, or of objects that hold one as `text`.
pub(crate) fn read_strings(name: &str, value: Value, most: usize) -> Result<Vec<String>, ApiError> {
    let items = match value {
        Value::String(text) => return Ok(vec![text]),
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string or a list of strings", &other)),
    };
    if items.is_empty() {
        return Err(invalid(name, "must not be empty"));
    }
    if items.len() > most {
        return Err(too_many(name, most, items.len()));
    }
    let read = |(index, item)| match item {
        Value::String(text) => Ok(text),
        Value::Object(mut object) => match (object.shift_remove("text"), object.is_empty()) {
            (Some(Value::String(text)), true) => Ok(text),
            _ => Err(invalid(&format!("{name}[{index}]"), "an object holds `text`, a string, and nothing else")),
        },
        other => Err(wrong_type(&format!("{name}[{index}]"), "a string, or an object with `text`", &other)),
    };
    items.into_iter().enumerate().map(read).collect()
}

fn read_tokens(name: &str, items: &[Value]) -> Result<TextItem, ApiError> {
    if items.is_empty() {
        return Err(invalid(name, "must hold at least one token"));
    }
    Ok(TextItem::Tokens(token_ids(name, items)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::fields::{Reader, UnknownFields};

    fn read(extra: Value, items: Vec<TextItem>) -> Result<Texts, ApiError> {
        let mut fields = Reader::new(UnknownFields::Error).open(extra, "", &[TEXT_FIELDS]).unwrap();
        Texts::read(&mut fields, "documents", items)
    }

    #[test]
    fn the_range_of_a_texts_length_is_the_one_that_is_taken() {
        for beyond in [json!(0), json!(-2), json!(4_294_967_296_u64), json!(1e300)] {
            let error = read(json!({"truncate_prompt_tokens": beyond}), Vec::new()).unwrap_err();
            let expected = "Invalid value for `truncate_prompt_tokens`: must be between 1 and 4294967295, or -1 for \
                            the model's own length.";
            assert_eq!(error.message(), expected);
        }
        let cut = |to: Value| read(json!({"truncate_prompt_tokens": to}), Vec::new()).unwrap().truncate;
        let expected = [Truncate::ToModel, Truncate::To(1), Truncate::Never];
        assert_eq!([cut(json!(-1)), cut(json!(1)), cut(Value::Null)], expected);
        let odd = read(json!({"truncate_prompt_tokens": "4"}), Vec::new()).unwrap_err();
        assert_eq!(odd.kind(), ErrorKind::InvalidType);
    }

    #[test]
    fn texts_that_are_read_apart_are_named_by_what_they_came_in() {
        let text = |written: &str| TextItem::Text(written.to_owned());
        let document = |written: &str| TextItem::Document(written.to_owned());
        let names =
            |beside: Option<Beside>, items: Vec<TextItem>| Texts { beside, ..read(json!({}), items).unwrap() }.names();
        assert_eq!(names(None, vec![text("a")]), ["documents"]);
        assert_eq!(names(None, vec![text("a"), text("b")]), ["documents[0]", "documents[1]"]);
        let pair = |second: &str| TextItem::Pair("q".to_owned(), second.to_owned());
        let query = Some(Beside::One("query"));
        assert_eq!(names(query, vec![pair("a"), pair("b")]), ["documents[0]", "documents[1]"]);
        let apart = vec![text("q"), document("a"), text("q"), document("b")];
        assert_eq!(names(query, apart.clone()), ["query", "documents[0]", "query", "documents[1]"]);
        let each = names(Some(Beside::Each("text_1")), apart);
        assert_eq!(each, ["text_1[0]", "documents[0]", "text_1[1]", "documents[1]"]);
        assert_eq!(names(query, vec![text("q"), document("a")]), ["query", "documents"]);
    }
}
