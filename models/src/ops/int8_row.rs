//! A key or value of one head in 8 bits: integers from -127 to 127, times a scale. Symmetric, so that nothing but the scale
//! is kept beside them. Of a finite row, each element is at most half a scale away from what it was.

use crate::kv_cache::KV_TILE;

const LARGEST: f32 = 127.0;

/// A small number added to it stands in its lowest bits, rounded to nearest even.
const ROUNDING: f32 = (3 << 22) as f32;

/// How one row is rounded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Int8Row {
    scale: f32,
    inverse: f32,
}

impl Int8Row {
    /// A row with an element that is not finite becomes one without a number in it.
    #[inline(always)]
    pub(crate) fn of(row: &[f32]) -> Self {
        // As integers, magnitudes are in their order, and whatever is no number comes after them.
        let largest = row.iter().map(|value| value.abs().to_bits()).fold(0, u32::max);
        let scale = f32::from_bits(largest) / LARGEST;
        // The inverse of a smaller one would be infinite: such a row is all zeros.
        let inverse = if scale < f32::MIN_POSITIVE { 0.0 } else { 1.0 / scale };
        Self { scale: if scale.is_infinite() { f32::NAN } else { scale }, inverse }
    }

    #[inline(always)]
    pub(crate) fn scale(self) -> f32 {
        self.scale
    }

    #[inline(always)]
    pub(crate) fn element(self, value: f32) -> i8 {
        (value * self.inverse + ROUNDING).to_bits().to_le_bytes()[0].cast_signed()
    }
}

/// The numbers of whole tiles of `KV_TILE` rows of `width`, as [`crate::KvFormat::Int8`] lays them out. `row_of` says of which
/// row an element of a tile is.
pub(crate) fn dequantised(tiles: &[u8], width: usize, row_of: impl Fn(usize) -> usize) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(tiles.len());
    for tile in tiles.chunks_exact(crate::KvFormat::Int8.tile_len(width)) {
        let (elements, scales) = tile.split_at(KV_TILE * width);
        let scales = scales_of(scales);
        let number = |(at, element): (usize, &u8)| f32::from(element.cast_signed()) * scales[row_of(at)];
        numbers.extend(elements.iter().enumerate().map(number));
    }
    numbers
}

/// From the bytes behind a tile.
#[inline(always)]
pub(crate) fn scales_of(bytes: &[u8]) -> [f32; KV_TILE] {
    let mut scales = [0.0; KV_TILE];
    for (scale, bytes) in scales.iter_mut().zip(bytes.as_chunks().0) {
        *scale = f32::from_ne_bytes(*bytes);
    }
    scales
}

/// A tensor's bytes of whole tiles of `tile_len`, every element of which stands for `value`.
pub(crate) fn filled(value: f32, tile_len: usize, num_tiles: usize) -> Vec<u8> {
    let row = Int8Row::of(&[value]);
    let scales = row.scale().to_ne_bytes().repeat(KV_TILE);
    let mut tile = vec![row.element(value).cast_unsigned(); tile_len - scales.len()];
    tile.extend(scales);
    tile.repeat(num_tiles)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(row: &[f32]) -> Vec<f32> {
        let is = Int8Row::of(row);
        row.iter().map(|value| f32::from(is.element(*value)) * is.scale()).collect()
    }

    #[test]
    fn no_element_moves_by_more_than_half_a_scale() {
        for magnitude in [1e-30, 1e-3, 1.0, 700.0, 1e30] {
            let row: Vec<f32> = (0..1000).map(|i| ((i * 37 % 1000) as f32 / 499.5 - 1.0) * magnitude).collect();
            let half = Int8Row::of(&row).scale() / 2.0;
            for (value, rounded) in row.iter().zip(rounded(&row)) {
                // What the inverse and two products round is a thousandth of it, and less.
                assert!((value - rounded).abs() <= half * 1.001, "{value} became {rounded}");
            }
        }
    }

    #[test]
    fn the_largest_element_stays_and_a_half_goes_to_the_even_neighbour() {
        let is = Int8Row::of(&[-127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.6]);
        assert_eq!(is.scale(), 1.0);
        let elements = [-127.0, 127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.6].map(|value| is.element(value));
        assert_eq!(elements, [-127, 127, 0, 2, 2, 0, -2, 127]);
    }

    #[test]
    fn what_is_not_finite_leaves_no_number_in_its_row() {
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            assert!(rounded(&[1.0, odd, 0.0]).iter().all(|value| value.is_nan()), "{odd}");
        }
    }

    #[test]
    fn rows_of_zeros_and_of_numbers_next_to_zero_are_zeros() {
        for row in [[0.0, -0.0], [1e-40, -1e-38], [f32::MIN_POSITIVE, 0.0]] {
            assert!(rounded(&row).iter().all(|value| *value == 0.0), "{row:?}");
        }
    }

    #[test]
    fn a_tile_of_one_value_is_that_value() {
        let len = crate::KvFormat::Int8.tile_len(24);
        let tiles = filled(-2.0, len, 3);
        assert_eq!(tiles.len(), 3 * len);
        let numbers = dequantised(&tiles, 24, |at| at / 24);
        assert!(numbers.len() == 3 * 16 * 24 && numbers.iter().all(|number| (number + 2.0).abs() < 1e-6));
        assert!(dequantised(&filled(f32::NAN, len, 1), 24, |at| at % 16).iter().all(|number| number.is_nan()));
        assert!(filled(0.0, len, 1).iter().all(|byte| *byte == 0));
    }
}
