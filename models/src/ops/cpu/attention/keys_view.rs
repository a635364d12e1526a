use std::ops::Range;

use crate::ops::AttentionParams;

/// Which of a chunk's tokens see some neighbouring keys, and how much of them. Drawn for causal attention; else the window
/// reaches to both sides, and whoever sees nothing of them is as far away on the one side as on the other.
///
/// ```text
///              key                        the keys start at position 16, the window is 24, the chunk starts at 12
/// position     16 17 .. 30 31
/// 12 .. 15      . .      .  .            not in `tokens`
/// 16            x .      .  .            first of `tokens`
/// 31 .. 39      x x      x  x            `whole`
/// 40            . x      x  x            the window has moved on
/// ```
#[derive(Clone)]
pub(super) struct KeysView<'a> {
    params: &'a AttentionParams,
    /// Positions of the keys.
    keys: Range<usize>,
    /// Position of the chunk's first token, and how many they are.
    chunk: (usize, usize),
    /// Of the whole sequence.
    num_keys: usize,
    /// The chunk's tokens that see some of the keys.
    pub(super) tokens: Range<usize>,
    /// Those that see all of them.
    pub(super) whole: Range<usize>,
}

impl<'a> KeysView<'a> {
    /// `keys` is not empty, and starts within the sequence.
    #[inline(always)]
    pub(super) fn new(keys: Range<usize>, chunk: (usize, usize), num_keys: usize, params: &'a AttentionParams) -> Self {
        let (first_position, num_rows) = chunk;
        let token_at = |position: usize| position.saturating_sub(first_position).min(num_rows);
        let (seen_until, whole_until) = match params.window {
            Some(window) => (token_at(keys.end - 1 + window), token_at(keys.start + window)),
            None => (num_rows, num_rows),
        };
        let first_of = |key: usize| token_at(params.first_query_of(key, num_keys)).min(seen_until);
        let whole = if keys.end <= num_keys { first_of(keys.end - 1)..whole_until } else { 0..0 };
        let tokens = first_of(keys.start)..seen_until;
        Self { params, keys, chunk, num_keys, tokens, whole }
    }

    /// The same of some of the keys, counted from the first.
    #[inline(always)]
    pub(super) fn part(&self, keys: Range<usize>) -> Self {
        let keys = self.keys.start + keys.start..self.keys.start + keys.end;
        Self::new(keys, self.chunk, self.num_keys, self.params)
    }

    /// Position of the first key.
    pub(super) fn start(&self) -> usize {
        self.keys.start
    }

    pub(super) fn num_keys(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn position(&self, token: usize) -> usize {
        self.chunk.0 + token
    }

    /// The keys that a token sees, counted from the first.
    #[inline(always)]
    pub(super) fn keys(&self, token: usize) -> Range<usize> {
        let position = self.position(token);
        self.params.first_key(position).saturating_sub(self.keys.start)
            ..self.keys.len().min(self.params.keys_end(position, self.num_keys) - self.keys.start)
    }
}
