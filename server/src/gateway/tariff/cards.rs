//! What an hour of a card, or of a slice of one, counts for in normalised GPU hours.

use serde::Deserialize;

/// A dated table.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cards {
    pub dated: String,
    cards: Vec<Card>,
    slices: Slices,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Card {
    name: String,
    factor: f64,
    /// Where the factor is stated.
    source: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Slices {
    /// Of a card's multiprocessors.
    sevenths: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnknownCard {
    #[error("the table of cards does not list `{card}`, only {listed}; state its factor (--factor)")]
    Card { card: String, listed: String },
    #[error("`{0}` is no MIG slice; write one like 2g or 2g.10gb")]
    Slice(String),
}

impl Cards {
    /// Of a whole card, or of a MIG slice of it, written like `2g` or `2g.10gb`.
    pub fn factor(&self, card: &str, slice: Option<&str>) -> Result<f64, UnknownCard> {
        let named = self.cards.iter().find(|listed| listed.name.eq_ignore_ascii_case(card));
        let whole = named.ok_or_else(|| self.does_not_list(card))?.factor;
        Ok(whole * slice.map_or(Ok(1.0), |slice| self.part(slice))?)
    }

    fn does_not_list(&self, card: &str) -> UnknownCard {
        let names: Vec<&str> = self.cards.iter().map(|listed| listed.name.as_str()).collect();
        UnknownCard::Card { card: card.to_owned(), listed: names.join(", ") }
    }

    fn part(&self, slice: &str) -> Result<f64, UnknownCard> {
        let compute = slice.split('.').next().and_then(|compute| compute.strip_suffix('g')?.parse().ok());
        match compute {
            Some(sevenths) if self.slices.sevenths.contains(&sevenths) => Ok(f64::from(sevenths) / 7.0),
            _ => Err(UnknownCard::Slice(slice.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cards() -> Cards {
        let card = |name: &str, factor| Card { name: name.into(), factor, source: "a test".into() };
        let cards = vec![card("v100", 1.0), card("a100", 2.0)];
        Cards { dated: "2026-11-26".into(), cards, slices: Slices { sevenths: vec![1, 2, 3, 4, 7] } }
    }

    #[test]
    fn a_slice_counts_for_its_sevenths_of_its_card() {
        assert_eq!(cards().factor("A100", None), Ok(2.0));
        assert_eq!(cards().factor("a100", Some("7g.80gb")), Ok(2.0));
        assert!((cards().factor("a100", Some("2g.20gb")).unwrap() - 4.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_listed_is_not_guessed() {
        let unlisted = UnknownCard::Card { card: "mi300".into(), listed: "v100, a100".into() };
        assert_eq!(cards().factor("mi300", None), Err(unlisted));
        for odd in ["5g", "g", "", "2", "all"] {
            assert!(matches!(cards().factor("a100", Some(odd)), Err(UnknownCard::Slice(_))), "{odd}");
        }
    }
}
