use super::weights::{Shape, qkv_width};
use crate::config::{FfnSpec, LayerSpec, NormPlacement, PositionSpec, RopeSpec};
use crate::ops::blocks::UNIT;
use crate::ops::{PANEL, RoundedUnit, row_stride};

/// What a step holds at its peak beside weights and KV cache, and what of it stays at hand for the next one.
///
/// Ops take their outputs from a workspace, which gives each the smallest piece that it has and that is large enough, and
/// asks the allocator where none is. So what a step holds is what comes of asking for the same pieces in the same order,
/// which is done here. What threads hold for a tile at a time is reckoned for one of them, which is much of a short step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activations {
    hidden: usize,
    /// The layer that holds most.
    layer: LayerWidths,
    /// Cosines and sines of a token.
    angles: usize,
    /// 0 where no logits are computed.
    vocab_size: usize,
    rounded: RoundedUnit,
}

/// Of a token, in numbers of f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LayerWidths {
    norms_first: bool,
    /// The norm before the feed-forward network.
    ffn_norm_first: bool,
    qkv: usize,
    queries: usize,
    /// Of the queries, weights and sums of one head of keys.
    attended_at_once: usize,
    /// Of the feed-forward network's first product, and of what its activation makes of it.
    up: usize,
    activated: usize,
}

const F32_BYTES: u64 = 4;
/// Tokens that one thread attends at a time, and keys.
const ATTENDED_ROWS: usize = 16;
const ATTENDED_KEYS: usize = 64;
/// Gates, and what they let through, that one thread has at a time where rows are many.
const GATED_WIDTH: usize = 2 * 4 * PANEL;
const GATED_ROWS: usize = 80;
/// After the first two layers, nothing new is asked for.
const LAYERS: usize = 3;

impl Activations {
    /// `vocab_size` is 0 where no logits are computed.
    pub(crate) fn of_layers(layers: &[LayerSpec], hidden: usize, vocab_size: usize) -> Self {
        let widest = layers.iter().map(LayerWidths::of).max_by_key(|layer| layer.qkv + layer.queries + layer.up);
        let layer = widest.unwrap_or(LayerWidths {
            norms_first: true,
            ffn_norm_first: true,
            qkv: 0,
            queries: 0,
            attended_at_once: 0,
            up: 0,
            activated: 0,
        });
        Self { hidden, layer, angles: angles(layers), vocab_size, rounded: RoundedUnit::default() }
    }

    /// The same where products take activations that are rounded first.
    pub(crate) fn rounded_to(self, rounded: RoundedUnit) -> Self {
        Self { rounded, ..self }
    }

    /// Bytes of a step of `tokens` tokens that gives `rows` rows of logits.
    pub fn bytes(&self, tokens: usize, rows: usize) -> u64 {
        let mut pieces = Pieces::default();
        let angles = pieces.take(tokens, self.angles);
        let mut stream = (pieces.take(tokens, self.hidden), None);
        for _ in 0..LAYERS {
            stream = self.run_layer(&mut pieces, tokens, stream);
        }
        if self.vocab_size > 0 {
            self.run_head(&mut pieces, tokens, rows, stream);
        } else {
            self.hand_out(&mut pieces, tokens);
        }
        pieces.give_back(angles);
        (pieces.held as u64).saturating_mul(F32_BYTES)
    }

    /// As [`crate::layers`] run one that norms first, and most of the others do: what is taken, in order, and what nobody needs
    /// any longer. Weights of several dtypes in one product are reckoned as if they were of one.
    fn run_layer(&self, pieces: &mut Pieces, tokens: usize, (residual, addend): Stream) -> Stream {
        let LayerWidths { norms_first, ffn_norm_first, qkv, queries, .. } = self.layer;
        let take = |pieces: &mut Pieces, width| pieces.take(tokens, width);
        let sum = addend.is_some().then(|| take(pieces, self.hidden));
        let normed = norms_first.then(|| take(pieces, self.handed_on(self.hidden)));
        let stream = pieces.replaced(residual, addend, sum);
        let product = self.multiply(pieces, [tokens, self.hidden], qkv, norms_first);
        let attended = take(pieces, self.handed_on(queries));
        let at_once = if self.rounded.gates_stay { tokens.min(ATTENDED_ROWS) } else { 0 };
        let scratch = pieces.take(at_once, self.layer.attended_at_once);
        [scratch, product].into_iter().for_each(|piece| pieces.give_back(piece));
        let output = self.multiply(pieces, [tokens, queries], self.hidden, true);
        pieces.give_back(attended);
        normed.into_iter().for_each(|normed| pieces.give_back(normed));
        let of_norm = if ffn_norm_first { self.handed_on(self.hidden) } else { self.hidden };
        let (sum, normed) = (take(pieces, self.hidden), take(pieces, of_norm));
        let stream = pieces.replaced(stream, None, Some(sum));
        let addend = self.run_ffn(pieces, tokens);
        [normed, output].into_iter().for_each(|piece| pieces.give_back(piece));
        (stream, Some(addend))
    }

    fn run_ffn(&self, pieces: &mut Pieces, tokens: usize) -> Piece {
        let LayerWidths { ffn_norm_first, up, activated, .. } = self.layer;
        if up > activated && self.rounded.gates_stay && activated.is_multiple_of(PANEL) {
            let gated = pieces.take(tokens, self.handed_on(activated));
            self.round(pieces, [tokens, self.hidden], ffn_norm_first);
            let scratch = pieces.take(tokens.min(GATED_ROWS), GATED_WIDTH);
            pieces.give_back(scratch);
            let output = self.multiply(pieces, [tokens, activated], self.hidden, true);
            pieces.give_back(gated);
            return output;
        }
        let product = self.multiply(pieces, [tokens, self.hidden], up, ffn_norm_first);
        let activation = pieces.take(tokens, activated);
        pieces.give_back(product);
        let output = self.multiply(pieces, [tokens, activated], self.hidden, false);
        pieces.give_back(activation);
        output
    }

    /// Numbers of f32 that rows of `width` take where a product alone reads them.
    fn handed_on(&self, width: usize) -> usize {
        if self.rounded.is_handed_on { self.rounded_width(width) } else { width }
    }

    /// The same of rows that are rounded for a product.
    fn rounded_width(&self, width: usize) -> usize {
        if self.rounded.element_bytes == 0 {
            return 0;
        }
        let bytes = width * self.rounded.element_bytes / UNIT;
        // Integers stand without a gap.
        let stride = if self.rounded.facts_bytes > 0 { bytes } else { row_stride::<u8>(bytes) };
        stride.div_ceil(F32_BYTES as usize)
    }

    /// A product of rows of `width` numbers, which are rounded for as long as it takes, unless they were before.
    fn multiply(&self, pieces: &mut Pieces, [rows, width]: Shape, out_width: usize, may_be_rounded: bool) -> Piece {
        let product = pieces.take(rows, out_width);
        self.round(pieces, [rows, width], may_be_rounded);
        product
    }

    fn round(&self, pieces: &mut Pieces, [rows, width]: Shape, may_be_rounded: bool) {
        if may_be_rounded && self.rounded.is_handed_on {
            return;
        }
        let facts = (width * self.rounded.facts_bytes).div_ceil(UNIT * F32_BYTES as usize);
        let rounded = [self.rounded_width(width), facts].map(|width| pieces.take(rows, width));
        rounded.into_iter().for_each(|rounded| pieces.give_back(rounded));
    }

    /// An encoder keeps the keys and values of one layer while it runs, and what is pooled is a copy.
    fn hand_out(&self, pieces: &mut Pieces, tokens: usize) {
        let (sum, normed) = (pieces.take(tokens, self.hidden), pieces.take(tokens, self.hidden));
        let _copied = pieces.allocate(tokens.saturating_mul(self.hidden));
        let LayerWidths { qkv, queries, .. } = self.layer;
        let _keys_and_values = pieces.allocate(tokens.saturating_mul(qkv - queries));
        [sum, normed].into_iter().for_each(|piece| pieces.give_back(piece));
    }

    fn run_head(&self, pieces: &mut Pieces, tokens: usize, rows: usize, (residual, addend): Stream) {
        let mut stream = vec![residual];
        stream.extend(addend);
        if rows < tokens {
            for whole in &mut stream {
                let sampled = pieces.take(rows, self.hidden);
                pieces.give_back(std::mem::replace(whole, sampled));
            }
        }
        let (sum, normed) = (pieces.take(rows, self.hidden), pieces.take(rows, self.hidden));
        let logits = self.multiply(pieces, [rows, self.hidden], self.vocab_size, false);
        stream.extend([sum, normed, logits]);
        stream.into_iter().for_each(|piece| pieces.give_back(piece));
    }
}

/// The residual stream, and what is to be added to it.
type Stream = (Piece, Option<Piece>);

/// How much one holds.
struct Piece(usize);

#[derive(Default)]
struct Pieces {
    idle: Vec<usize>,
    held: usize,
}

impl Pieces {
    fn take(&mut self, rows: usize, width: usize) -> Piece {
        let len = rows.saturating_mul(width);
        let fitting = self.idle.iter().enumerate().filter(|(_, idle)| **idle >= len);
        match fitting.min_by_key(|(_, idle)| **idle).map(|(index, _)| index) {
            Some(index) => Piece(self.idle.swap_remove(index)),
            None => self.allocate(len),
        }
    }

    fn allocate(&mut self, len: usize) -> Piece {
        self.held = self.held.saturating_add(len);
        Piece(len)
    }

    fn give_back(&mut self, Piece(len): Piece) {
        self.idle.push(len);
    }

    /// `sum` instead of what it is the sum of, if there is one.
    fn replaced(&mut self, residual: Piece, addend: Option<Piece>, sum: Option<Piece>) -> Piece {
        addend.into_iter().for_each(|addend| self.give_back(addend));
        let Some(sum) = sum else { return residual };
        self.give_back(residual);
        sum
    }
}

impl LayerWidths {
    fn of(layer: &LayerSpec) -> Self {
        let (qkv, queries) = layer.attention().map_or((0, 0), |is| (qkv_width(is), is.num_heads * is.head_dim));
        let attended_at_once = layer
            .attention()
            .map_or(0, |is| is.num_heads / is.num_kv_heads.max(1) * (2 * (is.head_dim + 1) + ATTENDED_KEYS));
        let (up, activated) = match layer.ffn {
            FfnSpec::Gated { intermediate_size, .. } => (2 * intermediate_size, intermediate_size),
            FfnSpec::Plain { intermediate_size, .. } => (intermediate_size, intermediate_size),
        };
        let norms_first = matches!(layer.placement, NormPlacement::Pre);
        let ffn_norm_first = norms_first || matches!(layer.placement, NormPlacement::PreFfnOnly);
        Self { norms_first, ffn_norm_first, qkv, queries, attended_at_once, up, activated }
    }
}

/// Sines and cosines of a token's position, for each distinct rotary embedding.
fn angles(layers: &[LayerSpec]) -> usize {
    let mut distinct: Vec<&RopeSpec> = Vec::new();
    for layer in layers {
        if let Some(PositionSpec::Rope(rope)) = layer.attention().map(|attention| &attention.position)
            && !distinct.contains(&rope)
        {
            distinct.push(rope);
        }
    }
    distinct.iter().map(|rope| rope.dim).sum()
}
