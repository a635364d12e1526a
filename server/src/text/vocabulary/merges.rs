//! Sentencepiece vocabularies have scores, not merges: the pieces of the best score are made first. A merge for each way to
//! make a piece from two others, in the order of the scores, comes to the same.

use std::collections::HashMap;

use super::{TOKENS, fault};
use crate::text::TextError;

/// The longest piece that is cut in all ways. Published ones have at most some fifty characters.
const MAX_PIECE_CHARS: usize = 256;

/// The merges that make every piece of `pieces`, best first. Pieces come in the order of `tokens`, which decides between
/// equal scores; of one piece the cuts whose left part has the lower id come first.
pub(super) fn by_score<'t>(tokens: &'t [String], pieces: &HashMap<&str, f64>) -> Result<Vec<[&'t str; 2]>, TextError> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges: Vec<(f64, [&str; 2])> = Vec::new();
    for token in tokens {
        let Some(score) = pieces.get(token.as_str()) else { continue };
        if token.chars().nth(MAX_PIECE_CHARS).is_some() {
            return Err(fault(TOKENS, format!("a piece of more than {MAX_PIECE_CHARS} characters")));
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut cuts: Vec<_> =
            cuts.filter(|(left, right)| pieces.contains_key(left) && pieces.contains_key(right)).collect();
        cuts.sort_by_key(|(left, right)| (ids[left], ids[right]));
        merges.extend(cuts.into_iter().map(|(left, right)| (*score, [left, right])));
    }
    merges.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    Ok(merges.into_iter().map(|(_, pair)| pair).collect())
}
