use std::ops::Range;

use crate::kv_cache::KV_TILE;
use crate::ops::AttentionParams;

/// Which of a chunk's tokens see a tile, and how much of it. Drawn for causal attention; else the window reaches to both
/// sides, and whoever sees nothing of the tile is as far away on the one side as on the other.
///
/// ```text
///              key of the tile            the tile starts at position 16, the window is 24, the chunk starts at 12
/// position     16 17 .. 30 31
/// 12 .. 15      . .      .  .            not in `tokens`
/// 16            x .      .  .            first of `tokens`
/// 31 .. 39      x x      x  x            `whole`
/// 40            . x      x  x            the window has moved on
/// ```
pub(super) struct TileView<'a> {
    params: &'a AttentionParams,
    /// Position of the tile's first key.
    pub(super) start: usize,
    /// Position of the chunk's first token.
    first_position: usize,
    /// Of the whole sequence.
    num_keys: usize,
    /// The chunk's tokens that see something of the tile; never empty.
    pub(super) tokens: Range<usize>,
    /// Those that see all of it.
    pub(super) whole: Range<usize>,
}

impl<'a> TileView<'a> {
    #[inline(always)]
    pub(super) fn new(
        start: usize,
        (first_position, num_rows): (usize, usize),
        num_keys: usize,
        params: &'a AttentionParams,
    ) -> Self {
        let token_at = |position: usize| position.saturating_sub(first_position).min(num_rows);
        let (seen_until, whole_until) = match params.window {
            Some(window) => (token_at(start + KV_TILE - 1 + window), token_at(start + window)),
            None => (num_rows, num_rows),
        };
        let first_of = |key: usize| token_at(params.first_query_of(key, num_keys)).min(seen_until);
        let whole = if start + KV_TILE <= num_keys { first_of(start + KV_TILE - 1)..whole_until } else { 0..0 };
        Self { params, start, first_position, num_keys, tokens: first_of(start)..seen_until, whole }
    }

    pub(super) fn position(&self, token: usize) -> usize {
        self.first_position + token
    }

    /// The keys of the tile that a token sees.
    #[inline(always)]
    pub(super) fn keys(&self, token: usize) -> Range<usize> {
        let position = self.position(token);
        self.params.first_key(position).saturating_sub(self.start)
            ..KV_TILE.min(self.params.keys_end(position, self.num_keys) - self.start)
    }
}
