//! What this machine can read from memory in a second: the limit of decoding on a CPU.

use std::hint::black_box;
use std::time::Duration;

use passerelle_engine::clock::Clock;

/// Far larger than any cache; each thread reads its share.
const BUFFER_BYTES: usize = 512 << 20;
const ROUNDS: usize = 5;

/// Bytes a second, the best of a few rounds in which `num_threads` threads read a buffer once.
pub(super) fn measure(num_threads: usize, clock: &dyn Clock) -> f64 {
    let buffer = vec![1_u64; BUFFER_BYTES / size_of::<u64>()];
    let share = buffer.len().div_ceil(num_threads.max(1));
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = clock.now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(share) {
                scope.spawn(move || black_box(sum(part)));
            }
        });
        best = best.min(clock.now() - began);
    }
    BUFFER_BYTES as f64 / best.as_secs_f64().max(f64::EPSILON)
}

/// Independent sums, so that the additions do not wait for each other and memory is what limits.
fn sum(part: &[u64]) -> u64 {
    const LANES: usize = 16;
    let mut sums = [0_u64; LANES];
    for chunk in part.chunks_exact(LANES) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |all, sum| all.wrapping_add(*sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_read() {
        assert_eq!(sum(&vec![3; 1600]), 4800);
    }
}
