//! `best_of`: more choices are generated than are shown, and the likeliest are.

use std::num::NonZeroU32;

use passerelle_engine::TokenEvent;

use super::delta::ChoiceDelta;

/// Holds every choice back until all are over.
#[derive(Debug)]
pub(crate) struct Ranking {
    num_shown: usize,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Clone, Default)]
struct Candidate {
    num_tokens: u32,
    /// Sum over its tokens.
    logprob: f64,
    pieces: Vec<ChoiceDelta>,
}

impl Ranking {
    pub(crate) fn new(num_shown: NonZeroU32, num_drawn: NonZeroU32) -> Self {
        let candidates = vec![Candidate::default(); num_drawn.get() as usize];
        Self { num_shown: num_shown.get() as usize, candidates }
    }

    /// The engine reports log-probabilities to whoever ranks.
    pub(crate) fn count(&mut self, index: usize, token: &TokenEvent) {
        let candidate = &mut self.candidates[index];
        candidate.num_tokens += 1;
        candidate.logprob += token.logprobs.as_ref().map_or(0.0, |entry| f64::from(entry.logprob));
    }

    pub(crate) fn hold(&mut self, piece: ChoiceDelta) {
        self.candidates[piece.index].pieces.push(piece);
    }

    /// The pieces of those with the highest log-probability a token, as OpenAI defines the best, numbered in that order.
    /// Of equals, the one that was drawn first.
    pub(crate) fn best(mut self) -> impl Iterator<Item = ChoiceDelta> {
        self.candidates.sort_by(|one, other| other.mean().total_cmp(&one.mean()));
        let shown = self.candidates.into_iter().take(self.num_shown).enumerate();
        shown.flat_map(|(index, candidate)| {
            candidate.pieces.into_iter().map(move |piece| ChoiceDelta { index, ..piece })
        })
    }
}

impl Candidate {
    fn mean(&self) -> f64 {
        self.logprob / f64::from(self.num_tokens.max(1))
    }
}

#[cfg(test)]
mod tests {
    use passerelle_engine::TokenLogprobs;

    use super::*;
    use crate::api::delta::{AnswerEnd, Delta};

    fn token(choice: u32, logprob: f32) -> TokenEvent {
        let entry = TokenLogprobs { token: 1, logprob, rank: 1, entropy: 0.0, top: Vec::new() };
        TokenEvent { choice, token: 1, logprobs: Some(entry) }
    }

    /// Summed, the shortest of them would win.
    #[test]
    fn the_likeliest_a_token_come_first_whatever_their_length() {
        let mut ranking = Ranking::new(NonZeroU32::new(2).unwrap(), NonZeroU32::new(3).unwrap());
        for (choice, logprobs) in [(0, vec![-3.0]), (1, vec![-1.0; 9]), (2, vec![-2.0, -0.5])] {
            logprobs.into_iter().for_each(|logprob| ranking.count(choice, &token(0, logprob)));
            let text = Delta::Reasoning(choice.to_string());
            ranking.hold(ChoiceDelta { index: choice, delta: text });
            ranking.hold(ChoiceDelta { index: choice, delta: Delta::Finished(AnswerEnd::Stop) });
        }
        let shown: Vec<_> = ranking.best().map(|piece| (piece.index, piece.delta)).collect();
        let end = Delta::Finished(AnswerEnd::Stop);
        let text = |choice: u32| Delta::Reasoning(choice.to_string());
        assert_eq!(shown, [(0, text(1)), (0, end.clone()), (1, text(2)), (1, end)]);
    }
}
