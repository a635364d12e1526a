use super::weights::qkv_width;
use crate::config::{FfnSpec, LayerSpec, NormPlacement, PositionSpec, RopeSpec};

/// What a step holds at its peak beside weights and KV cache, in numbers of f32.
///
/// The peak is one of four moments. Of a layer, a token holds then, with `h` the width of the stream, `q`, `k` and `v`
/// those of a token's queries, keys and values, and `f` that of the feed-forward network:
///
/// ```text
/// output projection of attention   stream and its norm 2 h | qkv q+k+v | placed q, k | attended q | output h
/// down projection                  stream before and after attention, its norms 4 h | gate and up 2 f | product f | output h
/// logits                           stream h a token | stream and norm of its rows 2 h a row | logits
/// copy of the logits               logits, twice
/// ```
///
/// A layer that norms what it adds (`NormPlacement::Post`, `OnSum`) holds one stream less. What threads hold for a tile at a
/// time, and the integers that activations are rounded to before a quantised matrix, are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Activations {
    /// Of a token, in the layer that holds most.
    token_layer: usize,
    /// Of a token, while logits are computed.
    token_stream: usize,
    /// Of a row of logits, while they are computed.
    row: usize,
    /// The same, while they are copied.
    copied_row: usize,
}

const F32_BYTES: u64 = 4;

impl Activations {
    /// `vocab_size` is 0 where no logits are computed.
    pub(crate) fn of_layers(layers: &[LayerSpec], hidden: usize, vocab_size: usize) -> Self {
        let angles = angles(layers);
        let widest = layers.iter().map(|layer| of_layer(layer, hidden)).max().unwrap_or(0);
        let row = if vocab_size == 0 { 0 } else { 2 * hidden + vocab_size };
        Self { token_layer: widest + angles, token_stream: hidden + angles, row, copied_row: 2 * vocab_size }
    }

    /// Bytes of a step of `tokens` tokens that gives `rows` rows of logits.
    pub fn bytes(&self, tokens: usize, rows: usize) -> u64 {
        let layer = tokens.saturating_mul(self.token_layer);
        let logits = tokens.saturating_mul(self.token_stream).saturating_add(rows.saturating_mul(self.row));
        let copy = rows.saturating_mul(self.copied_row);
        (layer.max(logits).max(copy) as u64).saturating_mul(F32_BYTES)
    }
}

fn of_layer(layer: &LayerSpec, hidden: usize) -> usize {
    let streams = match layer.placement {
        NormPlacement::Pre | NormPlacement::PreFfnOnly => 2,
        NormPlacement::Post | NormPlacement::OnSum => 1,
    };
    let attention = layer.attention().map_or(0, |is| {
        let (queries, keys) = (is.num_heads * is.head_dim, is.num_kv_heads * is.head_dim);
        streams * hidden + qkv_width(is) + (queries + keys) + queries + hidden
    });
    let inner = match layer.ffn {
        FfnSpec::Gated { intermediate_size, .. } => 3 * intermediate_size,
        FfnSpec::Plain { intermediate_size, .. } => 2 * intermediate_size,
    };
    attention.max((streams + 2) * hidden + inner + hidden)
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
