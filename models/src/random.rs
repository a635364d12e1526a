//! Repeatable numbers, for what must be spread and not secret: SplitMix64 (Steele, Lea and Flood 2014).

const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The next number of a sequence that `state` begins.
#[inline]
pub fn draw(state: &mut u64) -> u64 {
    let drawn = mix(*state);
    *state = state.wrapping_add(GOLDEN_GAMMA);
    drawn
}

/// One step: a bijection that scatters neighbouring inputs.
#[inline]
pub fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(GOLDEN_GAMMA);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As its authors' program begins from 0.
    #[test]
    fn the_numbers_are_those_of_the_published_generator() {
        let mut state = 0;
        let drawn = [0; 3].map(|_| draw(&mut state));
        assert_eq!(drawn, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
    }
}
