//! `n` and `best_of`: how many answers one prompt gets.

use std::num::NonZeroU32;

use super::request::{Output, RequestBounds};
use crate::api::errors::ApiError;
use crate::api::fields::{Fields, invalid, unsupported};

/// Answers to each prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Choices {
    /// `n`.
    pub(crate) shown: NonZeroU32,
    /// `best_of`: as many as are shown, or more, of which the likeliest are shown.
    pub(crate) drawn: NonZeroU32,
}

impl Choices {
    pub(crate) const ONE: Self = Self { shown: NonZeroU32::MIN, drawn: NonZeroU32::MIN };

    pub(crate) fn are_ranked(self) -> bool {
        self.drawn > self.shown
    }

    /// The field that asks for so many.
    pub(crate) fn field(self) -> &'static str {
        if self.are_ranked() { "best_of" } else { "n" }
    }
}

/// `n` of chat; a list of choices is streamed side by side.
pub(crate) fn read_choices(fields: &mut Fields, bounds: &RequestBounds) -> Result<Choices, ApiError> {
    let shown = read_count(fields, "n", bounds)?.unwrap_or(NonZeroU32::MIN);
    Ok(Choices { shown, drawn: shown })
}

/// `n` and `best_of` of completions. Which are the best is known when all are over, so that none can be streamed.
pub(crate) fn read_ranked_choices(
    fields: &mut Fields,
    output: &Output,
    bounds: &RequestBounds,
) -> Result<Choices, ApiError> {
    let Choices { shown, .. } = read_choices(fields, bounds)?;
    let drawn = read_count(fields, "best_of", bounds)?.unwrap_or(shown);
    let choices = Choices { shown, drawn };
    if drawn < shown {
        return Err(invalid("best_of", format!("must not be below `n` ({shown})")));
    }
    if choices.are_ranked() && output.stream.is_some() {
        return Err(unsupported("best_of", "above `n`, the best are known only when all are over: do not stream"));
    }
    Ok(choices)
}

fn read_count(fields: &mut Fields, name: &str, bounds: &RequestBounds) -> Result<Option<NonZeroU32>, ApiError> {
    let most = i64::from(bounds.max_choices.get());
    let count = fields.integer(name, 1..=most)?;
    Ok(count.and_then(|count| NonZeroU32::new(u32::try_from(count).ok()?)))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::errors::ErrorKind;
    use crate::api::fields::{Field, Reader, UnknownFields, honoured};
    use crate::api::wire::request::StreamOptions;

    const TABLE: &[Field] = &[honoured("n"), honoured("best_of")];

    fn read(body: Value, is_streamed: bool) -> Result<(u32, u32), (ErrorKind, Option<String>)> {
        let mut reader = Reader::new(UnknownFields::Error);
        let mut fields = reader.open(body, "", &[TABLE]).unwrap();
        let output = Output { stream: is_streamed.then(StreamOptions::default), ..Output::default() };
        let choices = read_ranked_choices(&mut fields, &output, &RequestBounds::default());
        let refused = |error: ApiError| (error.kind(), error.body()["error"]["param"].as_str().map(str::to_owned));
        choices.map(|choices| (choices.shown.get(), choices.drawn.get())).map_err(refused)
    }

    #[test]
    fn as_many_are_drawn_as_are_shown_unless_more_are_asked_for() {
        assert_eq!(read(json!({}), true), Ok((1, 1)));
        assert_eq!(read(json!({"n": 3}), true), Ok((3, 3)));
        assert_eq!(read(json!({"n": 2, "best_of": 2}), true), Ok((2, 2)));
        assert_eq!(read(json!({"n": 2, "best_of": 5}), false), Ok((2, 5)));
    }

    #[test]
    fn the_field_that_asks_for_so_many_was_sent() {
        let field = |shown, drawn| {
            let [shown, drawn] = [shown, drawn].map(|count| NonZeroU32::new(count).unwrap());
            Choices { shown, drawn }.field()
        };
        assert_eq!((field(1, 2), field(2, 5), field(2, 2)), ("best_of", "best_of", "n"));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let refused = |kind, name: &str| Err((kind, Some(name.to_owned())));
        assert_eq!(read(json!({"n": 0}), false), refused(ErrorKind::InvalidValue, "n"));
        assert_eq!(read(json!({"n": 17}), false), refused(ErrorKind::InvalidValue, "n"));
        assert_eq!(read(json!({"n": 3, "best_of": 2}), false), refused(ErrorKind::InvalidValue, "best_of"));
        assert_eq!(read(json!({"best_of": 2}), true), refused(ErrorKind::UnsupportedParameter, "best_of"));
    }
}
