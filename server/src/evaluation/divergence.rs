//! Where two checkpoints part ways on the same items.

use serde::Serialize;

use super::scored::{Answer, Continuation};

/// Tokens shown before one that differs.
const CONTEXT_TOKENS: usize = 8;

/// A text beside itself: a document, or a reference after its prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TextPair {
    pub id: String,
    pub bytes: u64,
    /// Bits per byte of the first checkpoint and of the second.
    pub first: f64,
    pub second: f64,
}

/// A token that one checkpoint finds likelier than the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenPair {
    pub item: String,
    /// From 0.
    pub position: usize,
    pub before: String,
    pub token: String,
    /// Log-probabilities.
    pub first: f64,
    pub second: f64,
}

/// A text's tokens with how they differ.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeatMap {
    pub item: String,
    pub cells: Vec<HeatCell>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HeatCell {
    pub token: String,
    /// `None`: not scored.
    pub scores: Option<CellScores>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CellScores {
    pub first: f64,
    pub second: f64,
    pub first_rank: u32,
    pub second_rank: u32,
}

/// Two greedy answers to one prompt.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AnswerPair {
    pub id: String,
    pub wanted: String,
    /// What both say first.
    pub common: String,
    /// The token, from 0, at which they part.
    pub position: usize,
    /// What each goes on with.
    pub first: String,
    pub second: String,
    pub first_is_right: bool,
    pub second_is_right: bool,
}

impl TextPair {
    pub fn new(id: &str, first: &Continuation, second: &Continuation) -> Self {
        let (one, other) = (first.bits_per_byte(), second.bits_per_byte());
        Self { id: id.to_owned(), bytes: first.bytes, first: one, second: other }
    }

    /// Above 0 where the first is better.
    pub fn gain(&self) -> f64 {
        self.second - self.first
    }
}

impl TokenPair {
    pub fn gain(&self) -> f64 {
        self.first - self.second
    }
}

impl CellScores {
    pub fn gain(&self) -> f64 {
        self.first - self.second
    }
}

impl AnswerPair {
    /// `None` for equal answers.
    pub fn new(id: &str, wanted: &str, first: &Answer, second: &Answer) -> Option<Self> {
        let position = first.ids.iter().zip(&second.ids).take_while(|(one, other)| one == other).count();
        if position == first.ids.len() && position == second.ids.len() {
            return None;
        }
        let rest = |answer: &Answer| answer.texts.get(position..).unwrap_or_default().concat();
        let is_right = |answer: &Answer| answer.text.trim() == wanted.trim();
        Some(Self {
            id: id.to_owned(),
            wanted: wanted.to_owned(),
            common: first.texts.get(..position).unwrap_or_default().concat(),
            position,
            first: rest(first),
            second: rest(second),
            first_is_right: is_right(first),
            second_is_right: is_right(second),
        })
    }

    /// Those where one is right and the other is not come first, then those that part early.
    pub fn order(&self) -> (bool, usize) {
        (self.first_is_right == self.second_is_right, self.position)
    }
}

/// `None` where the two tokenizers cut the text differently.
pub fn heat_map(id: &str, first: &Continuation, second: &Continuation) -> Option<HeatMap> {
    let (one, other) = (&first.tokens, &second.tokens);
    if one.ids != other.ids {
        return None;
    }
    let cell = |at: usize| {
        let scores = || {
            let (first, second) = (one.logprobs.get(at).copied()??, other.logprobs.get(at).copied()??);
            let (first_rank, second_rank) = (one.ranks.get(at).copied()??, other.ranks.get(at).copied()??);
            Some(CellScores { first, second, first_rank, second_rank })
        };
        HeatCell { token: one.texts.get(at).cloned().unwrap_or_default(), scores: scores() }
    };
    Some(HeatMap { item: id.to_owned(), cells: (0..one.ids.len()).map(cell).collect() })
}

/// Every token of a text that both checkpoints scored.
pub fn token_pairs(map: &HeatMap) -> impl Iterator<Item = TokenPair> + '_ {
    map.cells.iter().enumerate().filter_map(|(position, cell)| {
        let CellScores { first, second, .. } = cell.scores?;
        let before = &map.cells[position.saturating_sub(CONTEXT_TOKENS)..position];
        Some(TokenPair {
            item: map.item.clone(),
            position,
            before: before.iter().map(|cell| cell.token.as_str()).collect(),
            token: cell.token.clone(),
            first,
            second,
        })
    })
}

/// Keeps the `most` with the largest weight, the largest first.
#[derive(Debug)]
pub struct Largest<T> {
    most: usize,
    kept: Vec<(f64, T)>,
}

impl<T> Largest<T> {
    pub fn new(most: usize) -> Self {
        Self { most, kept: Vec::new() }
    }

    pub fn would_keep(&self, weight: f64) -> bool {
        self.kept.len() < self.most || self.kept.last().is_some_and(|(least, _)| weight > *least)
    }

    pub fn push(&mut self, weight: f64, item: T) {
        if !self.would_keep(weight) {
            return;
        }
        let at = self.kept.partition_point(|(kept, _)| *kept >= weight);
        self.kept.insert(at, (weight, item));
        self.kept.truncate(self.most);
    }

    pub fn into_items(self) -> Vec<T> {
        self.kept.into_iter().map(|(_, item)| item).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluation::scored::TokenScores;

    fn answer(words: &[&str]) -> Answer {
        let ids = words.iter().map(|word| word.len() as u32).collect();
        let texts: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Answer { text: texts.concat(), ids, texts, logprobs: vec![0.0; words.len()] }
    }

    #[test]
    fn answers_part_at_their_first_different_token() {
        let pair = AnswerPair::new("1", "a bb", &answer(&["a", " bb"]), &answer(&["a", " ccc", "d"])).unwrap();
        assert_eq!((pair.position, pair.common.as_str()), (1, "a"));
        assert_eq!((pair.first.as_str(), pair.second.as_str()), (" bb", " cccd"));
        assert!(pair.first_is_right && !pair.second_is_right);
    }

    #[test]
    fn an_answer_that_ends_sooner_parts_where_it_ends_and_equal_ones_nowhere() {
        let (long, short) = (answer(&["a", "bb"]), answer(&["a"]));
        assert_eq!(AnswerPair::new("1", "", &long, &short).unwrap().position, 1);
        assert_eq!(AnswerPair::new("1", "", &long, &long), None);
    }

    fn text(logprobs: &[Option<f64>]) -> Continuation {
        let count = logprobs.len();
        let tokens = TokenScores {
            ids: (0..count as u32).collect(),
            texts: (0..count).map(|at| format!("t{at} ")).collect(),
            logprobs: logprobs.to_vec(),
            ranks: logprobs.iter().map(|logprob| logprob.map(|_| 1)).collect(),
            ..TokenScores::default()
        };
        Continuation { bytes: 10, tokens }
    }

    #[test]
    fn tokens_stand_beside_themselves_and_unscored_ones_are_left_out() {
        let (first, second) = (text(&[None, Some(-1.0), Some(-2.0)]), text(&[None, Some(-3.0), Some(-0.5)]));
        let map = heat_map("d", &first, &second).unwrap();
        let pairs: Vec<_> = token_pairs(&map).map(|pair| (pair.position, pair.gain(), pair.before)).collect();
        assert_eq!(pairs, [(1, 2.0, "t0 ".to_owned()), (2, -1.5, "t0 t1 ".to_owned())]);
        let mut other = second;
        other.tokens.ids[0] = 9;
        assert_eq!(heat_map("d", &first, &other), None);
    }

    #[test]
    fn the_largest_are_kept_in_order() {
        let mut largest = Largest::new(3);
        [2.0, 5.0, 1.0, 4.0, 3.0].iter().for_each(|weight| largest.push(*weight, *weight));
        assert_eq!(largest.into_items(), [5.0, 4.0, 3.0]);
    }
}
