//! How far apart rows stand that a product reads side by side.

pub(super) const CACHE_LINE: usize = 64;

/// In elements, for rows of `width`: an odd number of cache lines. Rows that are 4 KB apart would share eight places of a
/// first-level cache, or twelve, and a tile reads as many rows at once: each would push out another one.
pub(crate) const fn row_stride<T>(width: usize) -> usize {
    ((width * size_of::<T>()).div_ceil(CACHE_LINE) | 1) * (CACHE_LINE / size_of::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_dozen_of_rows_shares_a_place_of_the_first_level_cache() {
        const PLACES: usize = 4096;
        for width in (2..9000).step_by(2) {
            let stride = row_stride::<u16>(width);
            assert!((width..width + 64).contains(&stride), "{width}: {stride}");
            let mut places: Vec<_> = (0..12).map(|row| row * stride * 2 % PLACES / CACHE_LINE).collect();
            places.sort_unstable();
            places.dedup();
            assert_eq!(places.len(), 12, "{width}");
        }
    }
}
