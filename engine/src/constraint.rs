//! What the tokens of an answer must look like together: a grammar, as the engine sees it.
//!
//! The engine knows neither the grammar nor the text. At each position it asks which tokens may come, and afterwards says
//! which one came. A constraint belongs to one sequence and stays with it through preemption, because tokens that were
//! generated once are computed again but never chosen again.

use std::fmt;

use passerelle_models::TokenId;

/// Follows one answer. Errors fail its request alone.
pub trait Constraint: Send + fmt::Debug {
    /// What may come at the present position. Stays the same until [`Constraint::accept`].
    fn allowed(&self) -> Allowed<'_>;

    /// Moves past `token`, which was allowed. Not called for a token that ends the answer.
    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError>;

    /// The same constraint at the same position, on its own from here on: for another choice of the same request.
    fn fork(&self) -> Box<dyn Constraint>;

    /// What another process can make the same constraint of, at its start. `None` for one that is bound to this process.
    fn recipe(&self) -> Option<Vec<u8>> {
        None
    }
}

/// What may come at a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed<'a> {
    /// Bit `t % 32` of word `t / 32` allows token `t`; a token beyond the last word is not allowed.
    pub tokens: &'a [u32],
    /// Whether the answer may end instead.
    pub end: AnswerEnd,
}

/// Whether what was generated is a whole answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// Something is missing: a token that only ends the answer is not allowed.
    NotHere,
    /// It may end here, or go on.
    Here,
    /// Nothing can follow: the engine ends the answer without another token.
    Reached,
}

/// Why a constraint cannot be followed further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The work for one token would exceed its bound.
    #[error("the grammar takes more work for one token than is allowed")]
    TooComplex,
    /// It was told of a token that it had not allowed, or is at fault itself.
    #[error("the grammar cannot be followed past this token")]
    Lost,
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

impl Allowed<'_> {
    /// Whether `token` may come, other than to end the answer.
    pub fn allows(&self, token: TokenId) -> bool {
        let word = self.tokens.get((token / u32::BITS) as usize).copied().unwrap_or(0);
        word >> (token % u32::BITS) & 1 == 1
    }

    /// Forbids, in a row of logits, every token that may not come. `stops`, in ascending order, end the answer, so they are
    /// kept where it may end.
    pub(crate) fn apply(&self, row: &mut [f32], stops: &[TokenId]) {
        debug_assert!(stops.is_sorted(), "one pass over the row meets every stop");
        let stops: &[TokenId] = if self.end == AnswerEnd::NotHere { &[] } else { stops };
        let mut stops = stops.iter().copied().peekable();
        let words = self.tokens.iter().copied().chain(std::iter::repeat(0));
        for ((logits, word), first) in row.chunks_mut(u32::BITS as usize).zip(words).zip((0..).step_by(32)) {
            let ends = std::iter::from_fn(|| stops.next_if(|&stop| stop - first < u32::BITS));
            match ends.fold(word, |word, stop| word | 1 << (stop - first)) {
                u32::MAX => {}
                // Most words are one of these two.
                0 => logits.fill(f32::NEG_INFINITY),
                word => {
                    let forbidden = (0..).zip(logits).filter(|(bit, _)| word >> bit & 1 == 0);
                    forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 70 logits of their own ids, with only tokens 33 and 64 allowed.
    fn masked(end: AnswerEnd, stops: &[TokenId]) -> Vec<usize> {
        let mut row: Vec<f32> = (0..70_u8).map(f32::from).collect();
        Allowed { tokens: &[0, 2, 1], end }.apply(&mut row, stops);
        (0..row.len()).filter(|&id| row[id] > f32::NEG_INFINITY).collect()
    }

    #[test]
    fn only_allowed_tokens_keep_their_logit() {
        assert_eq!(masked(AnswerEnd::NotHere, &[]), [33, 64]);
        assert!(Allowed { tokens: &[0, 2, 1], end: AnswerEnd::NotHere }.allows(64));
        assert!(!Allowed { tokens: &[0, 2, 1], end: AnswerEnd::NotHere }.allows(96));
    }

    #[test]
    fn a_stop_token_is_kept_where_the_answer_may_end_and_nowhere_else() {
        assert_eq!(masked(AnswerEnd::NotHere, &[69]), [33, 64]);
        assert_eq!(masked(AnswerEnd::Here, &[5, 64, 69, 69, 4096]), [5, 33, 64, 69]);
    }

    #[test]
    fn tokens_beyond_the_mask_are_not_allowed() {
        let mut row = [0.0; 64];
        Allowed { tokens: &[u32::MAX], end: AnswerEnd::NotHere }.apply(&mut row, &[]);
        assert_eq!(row.iter().filter(|logit| **logit == 0.0).count(), 32);
    }
}
