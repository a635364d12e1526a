use std::str::FromStr;

use serde::Deserialize;

use super::{Backend, ListedDevice, ListedSlice};
use crate::units::ByteSize;

/// What is known of cards before one is at hand.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cards {
    /// When it was written down.
    pub dated: String,
    pub cards: Vec<Card>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    pub name: String,
    pub backend: Backend,
    /// Any of these stands in the name that a driver lists it under.
    pub listed: Vec<String>,
    /// What a process gets of it.
    pub memory: ByteSize,
    pub source: String,
    pub slices: Vec<Slice>,
}

/// A part of a card that a process sees as a device of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    pub name: String,
    pub memory: ByteSize,
}

/// A card or a slice of one as somebody wrote it: `h100`, `h100:3g.40gb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardName {
    card: String,
    slice: Option<String>,
}

/// Its memory is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CardError {
    #[error("no card `{name}` is listed; those that are: {}", .known.join(", "))]
    NoCard { name: String, known: Vec<String> },
    #[error("a card {card} has no slice `{name}`; it has {}", if .known.is_empty() { "none".into() } else { .known.join(", ") })]
    NoSlice { card: String, name: String, known: Vec<String> },
}

const CARDS: &str = include_str!("../../../configs/placement/cards.toml");

impl Cards {
    /// Those of `configs/placement/cards.toml`.
    pub fn known() -> Self {
        toml::from_str(CARDS).expect("the file is compiled in, and a test reads it")
    }

    /// The backend and the memory of what was named.
    pub fn find(&self, CardName { card: name, slice }: &CardName) -> Result<(Backend, ByteSize), CardError> {
        let known = || self.cards.iter().map(|card| card.name.clone()).collect();
        let card = self.cards.iter().find(|card| card.name == *name);
        let card = card.ok_or_else(|| CardError::NoCard { name: name.clone(), known: known() })?;
        let memory = match slice {
            None => card.memory,
            Some(slice) => card.slice(slice)?,
        };
        Ok((card.backend, memory))
    }

    /// The memory of a device that a driver lists, or of a slice of it; `None` for a card that is not known here.
    pub fn of_listed(&self, device: &ListedDevice, slice: Option<&ListedSlice>) -> Option<ByteSize> {
        let is = |card: &&Card| card.listed.iter().any(|name| device.name.contains(name.as_str()));
        let card = self.cards.iter().find(is)?;
        match slice {
            None => Some(card.memory),
            Some(slice) => card.slice(&slice.profile).ok(),
        }
    }
}

impl Card {
    fn slice(&self, name: &str) -> Result<ByteSize, CardError> {
        // With media engines (`1g.10gb+me`) it is of the same size.
        let plain = name.split('+').next().unwrap_or(name);
        self.slices.iter().find(|slice| slice.name == plain).map(|slice| slice.memory).ok_or_else(|| {
            CardError::NoSlice {
                card: self.name.clone(),
                name: name.to_owned(),
                known: self.slices.iter().map(|slice| slice.name.clone()).collect(),
            }
        })
    }
}

impl FromStr for CardName {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_lowercase();
        Ok(match lower.split_once(':') {
            Some((card, slice)) => Self { card: card.to_owned(), slice: Some(slice.to_owned()) },
            None => Self { card: lower, slice: None },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(text: &str) -> Result<(Backend, ByteSize), CardError> {
        let Ok(name) = text.parse();
        Cards::known().find(&name)
    }

    #[test]
    fn every_card_of_the_file_is_found_by_name_and_its_slices_are_smaller() {
        let cards = Cards::known();
        assert!(cards.cards.len() >= 7 && cards.dated.starts_with("20"));
        for card in &cards.cards {
            assert_eq!(find(&card.name.to_uppercase()), Ok((card.backend, card.memory)));
            assert!(!card.source.is_empty());
            for slice in &card.slices {
                let (_, memory) = find(&format!("{}:{}", card.name, slice.name)).expect("it is listed");
                assert!(memory < card.memory, "{} of {}", slice.name, card.name);
                let halves = slice.name.starts_with("3g") || slice.name.starts_with("4g");
                assert!(!halves || memory.0 * 2 <= card.memory.0, "two halves fit: {} of {}", slice.name, card.name);
            }
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_with_what_is() {
        let no_card = find("h900").expect_err("no such card").to_string();
        assert!(no_card.contains("h900") && no_card.contains("mi430x"), "{no_card}");
        let no_slice = find("h100:2g.10gb").expect_err("that of an A100").to_string();
        assert!(no_slice.contains("2g.10gb") && no_slice.contains("2g.20gb"), "{no_slice}");
        assert!(find("l40s:1g.10gb").expect_err("it has none").to_string().contains("none"));
    }
}
