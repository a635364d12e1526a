//! How long prompts and answers are, in tokens: a number, or a distribution.

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// Of one text; beyond any model's context.
pub const MAX_TOKENS: u32 = 1 << 24;

#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Distribution {
    Fixed {
        tokens: u32,
    },
    /// Both ends included.
    Uniform {
        from: u32,
        to: u32,
    },
    /// What lengths of real chats look like: many short, few very long.
    LogNormal {
        median: f64,
        sigma: f64,
        min: u32,
        max: u32,
    },
    /// One of `values`, drawn by `weights`.
    Choice {
        values: Vec<u32>,
        weights: Vec<f64>,
    },
}

/// In TOML: `64`, or a table with a `kind`.
#[derive(Debug, Clone, PartialEq)]
pub struct Lengths(pub Distribution);

impl Lengths {
    pub fn fixed(tokens: u32) -> Self {
        Self(Distribution::Fixed { tokens })
    }

    pub fn draw(&self, rng: &mut Rng) -> u32 {
        match &self.0 {
            Distribution::Fixed { tokens } => *tokens,
            Distribution::Uniform { from, to } => from + rng.below((to - from) as usize + 1) as u32,
            Distribution::LogNormal { median, sigma, min, max } => {
                let drawn = median * (sigma * rng.normal()).exp();
                (drawn.round() as u32).clamp(*min, *max)
            }
            Distribution::Choice { values, weights } => {
                let mut left = rng.unit() * weights.iter().sum::<f64>();
                let drawn = values.iter().zip(weights).find(|(_, weight)| {
                    left -= **weight;
                    left < 0.0
                });
                *drawn.map_or(&values[values.len() - 1], |(value, _)| value)
            }
        }
    }

    /// What is wrong with the numbers, if anything.
    pub fn check(&self) -> Result<(), String> {
        let wrong = match &self.0 {
            Distribution::Fixed { tokens } => *tokens == 0,
            Distribution::Uniform { from, to } => *from == 0 || from > to,
            Distribution::LogNormal { median, sigma, min, max } => {
                !(*median > 0.0 && *sigma >= 0.0) || *min == 0 || min > max
            }
            Distribution::Choice { values, weights } => {
                values.is_empty()
                    || values.len() != weights.len()
                    || values.contains(&0)
                    || !weights.iter().all(|weight| *weight > 0.0)
            }
        };
        let longest = match &self.0 {
            Distribution::Fixed { tokens } => *tokens,
            Distribution::Uniform { to, .. } => *to,
            Distribution::LogNormal { max, .. } => *max,
            Distribution::Choice { values, .. } => values.iter().copied().max().unwrap_or(0),
        };
        if longest > MAX_TOKENS {
            return Err(format!("{longest} tokens are more than {MAX_TOKENS}"));
        }
        if wrong { Err(format!("{:?} is not a distribution of lengths of at least one token", self.0)) } else { Ok(()) }
    }
}

/// As in TOML.
impl std::str::FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Written {
            lengths: Lengths,
        }
        let written: Written = toml::from_str(&format!("lengths = {text}")).map_err(|error| {
            format!(
                "{}; write a number, or a distribution like {{ kind = 'uniform', from = 16, to = 64 }}",
                error.message()
            )
        })?;
        written.lengths.check().map(|()| written.lengths)
    }
}

impl<'de> Deserialize<'de> for Lengths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LengthsVisitor)
    }
}

/// A visitor and not an untagged enum, so that a misspelt key is named.
struct LengthsVisitor;

impl<'de> Visitor<'de> for LengthsVisitor {
    type Value = Lengths;

    fn expecting(&self, formatter: &mut std::fmt::Formatter) -> std::fmt::Result {
        formatter.write_str("a number of tokens, or a table with a `kind`")
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Lengths, E> {
        let tokens = u32::try_from(value).map_err(|_| E::custom(format!("{value} is not a number of tokens")))?;
        Ok(Lengths::fixed(tokens))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Lengths, A::Error> {
        Distribution::deserialize(MapAccessDeserializer::new(map)).map(Lengths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Holder {
        tokens: Lengths,
    }

    fn read(text: &str) -> Result<Lengths, String> {
        toml::from_str::<Holder>(text).map(|holder| holder.tokens).map_err(|error| error.to_string())
    }

    #[test]
    fn a_number_or_a_table_is_read_and_a_misspelt_key_is_named() {
        assert_eq!(read("tokens = 8").unwrap(), Lengths::fixed(8));
        let uniform = read("tokens = { kind = 'uniform', from = 2, to = 4 }").unwrap();
        assert_eq!(uniform.0, Distribution::Uniform { from: 2, to: 4 });
        let error = read("tokens = { kind = 'uniform', form = 2, to = 4 }").unwrap_err();
        assert!(error.contains("form"), "{error}");
    }

    #[test]
    fn an_argument_that_is_no_length_is_refused_with_one_that_is() {
        let error = "16k".parse::<Lengths>().unwrap_err();
        assert!(error.contains("write a number, or a distribution"), "{error}");
    }

    #[test]
    fn draws_stay_in_their_bounds_and_centre_on_the_median() {
        let lengths = Lengths(Distribution::LogNormal { median: 100.0, sigma: 0.8, min: 10, max: 400 });
        let mut rng = Rng::new(3);
        let mut drawn: Vec<u32> = (0..4001).map(|_| lengths.draw(&mut rng)).collect();
        drawn.sort_unstable();
        assert!(drawn[0] >= 10 && drawn[4000] <= 400);
        assert!((90..=110).contains(&drawn[2000]), "median {}", drawn[2000]);
    }

    #[test]
    fn a_choice_follows_its_weights() {
        let lengths = Lengths(Distribution::Choice { values: vec![1, 9], weights: vec![3.0, 1.0] });
        let mut rng = Rng::new(5);
        let ones = (0..4000).filter(|_| lengths.draw(&mut rng) == 1).count();
        assert!((2850..3150).contains(&ones), "{ones}");
    }

    #[test]
    fn a_length_of_nothing_is_refused() {
        assert!(Lengths::fixed(0).check().is_err());
        assert!(Lengths(Distribution::Uniform { from: 5, to: 4 }).check().is_err());
        assert!(Lengths(Distribution::Choice { values: vec![1], weights: vec![] }).check().is_err());
    }
}
