//! A part of a list: what a query asks for, and what is shown of it.

use axum::extract::Request;
use serde_json::{Value, json};

use crate::api::errors::{ApiError, ErrorKind, echoed};
use crate::api::fields::invalid;

/// Which part of a list is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct ListPage<'a> {
    most: usize,
    limit: usize,
    /// The last entry of the part before.
    after: Option<&'a str>,
}

impl<'a> ListPage<'a> {
    /// As many as `limit` where the query does not say, and never more than `most`.
    pub(super) fn new(limit: usize, most: usize) -> Self {
        Self { most, limit, after: None }
    }

    /// Takes a pair of the query. One that is not about pages is refused by its name: whoever knows it has taken it before.
    pub(super) fn take(&mut self, (name, value): (&str, &'a str)) -> Result<(), ApiError> {
        match name {
            "limit" => {
                let parsed = value.parse().ok().filter(|limit| (1..=self.most).contains(limit));
                self.limit = parsed.ok_or_else(|| invalid("limit", format!("must be between 1 and {}", self.most)))?;
            }
            "after" => self.after = Some(value),
            other => return Err(unknown(other)),
        }
        Ok(())
    }

    /// What is shown of `items`: those behind the one with the id `after`.
    pub(super) fn of<T>(
        self,
        items: &[T],
        id: impl Fn(&T) -> &str,
        show: impl Fn(&T) -> Value,
    ) -> Result<Value, ApiError> {
        let begin = match self.after {
            None => 0,
            Some(after) => {
                let place = items.iter().position(|item| id(item) == after);
                1 + place.ok_or_else(|| invalid("after", "is not in the list"))?
            }
        };
        let shown = &items[begin..items.len().min(begin.saturating_add(self.limit))];
        Ok(json!({
            "object": "list",
            "first_id": shown.first().map(&id),
            "last_id": shown.last().map(&id),
            "has_more": begin + shown.len() < items.len(),
            "data": shown.iter().map(show).collect::<Vec<_>>(),
        }))
    }
}

/// Where a query would be passed over.
pub(super) fn no_query(request: &Request) -> Result<(), ApiError> {
    only(request.uri().query().unwrap_or_default(), &[])
}

/// Errors when the query has a parameter that is none of `known`.
pub(super) fn only(query: &str, known: &[&str]) -> Result<(), ApiError> {
    match pairs(query).find(|(name, _)| !known.contains(name)) {
        Some((name, _)) => Err(unknown(name)),
        None => Ok(()),
    }
}

fn unknown(name: &str) -> ApiError {
    let message = format!("Unknown query parameter: `{}`.", echoed(name));
    ApiError::new(ErrorKind::UnknownParameter, message).param(name)
}

/// A value without its escapes: some clients write `acme%2Fvision`.
pub(super) fn unescaped(value: &str) -> String {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (mut plain, mut rest) = (Vec::with_capacity(value.len()), value.as_bytes());
    while let [first, others @ ..] = rest {
        let escaped = match others {
            [high, low, ..] if *first == b'%' => digit(*high).zip(digit(*low)),
            _ => None,
        };
        let (byte, length) = escaped.map_or((*first, 1), |(high, low)| ((high * 16 + low) as u8, 3));
        plain.push(byte);
        rest = &rest[length..];
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Names and values as they are written: none that is known here needs to be written otherwise.
pub(super) fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

#[cfg(test)]
mod tests {
    use super::unescaped;

    #[test]
    fn a_value_is_read_as_it_was_meant_however_it_is_written() {
        for (written, meant) in [
            ("acme/vision", "acme/vision"),
            ("acme%2Fvision", "acme/vision"),
            ("test%2fparrot%3a1", "test/parrot:1"),
            ("%C3%A9t\u{e9}", "\u{e9}t\u{e9}"),
            ("100%", "100%"),
            ("%2", "%2"),
            ("%zz%+1", "%zz%+1"),
            ("%ff", "\u{fffd}"),
            ("", ""),
        ] {
            assert_eq!(unescaped(written), meant, "{written}");
        }
    }
}
