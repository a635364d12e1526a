use candle_core::Tensor;
use passerelle_models::KvFormat;

use super::attention::{Sequence, World, shape};
use super::{fast, values};

/// What rounding a number of a row to 8 bits moves it by, at most, as a share of the row's largest: half a step of 127, and
/// what f32 rounds on the way.
const HALF_A_STEP: f32 = 0.5 / 127.0 * 1.001;

/// The largest magnitude of any row of one head.
fn largest(x: &Tensor) -> f32 {
    values(x).into_iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

/// For each row and query head, what its output may differ by. A score moves by at most
/// `d = scale * sum(|q|) * max(|k|) * HALF_A_STEP`, so each weight by a factor of at most `exp(2 d)`, and the weighted mean of
/// values that moved by `max(|v|) * HALF_A_STEP` by that and `(exp(2 d) - 1) * max(|v|)`.
fn bounds(sequence: &Sequence, scale: f32, head_dim: usize) -> Vec<f32> {
    let (largest_key, largest_value) = (largest(&sequence.k), largest(&sequence.v));
    let of_query = |q: &[f32]| {
        let score = scale * q.iter().map(|q| q.abs()).sum::<f32>() * largest_key * HALF_A_STEP;
        largest_value * (HALF_A_STEP + (2.0 * score).exp_m1())
    };
    values(&sequence.q).chunks_exact(head_dim).map(of_query).collect()
}

#[test]
fn attention_over_integers_is_as_near_to_that_over_f32_as_their_rounding_says() {
    for (num_kv_heads, group, head_dim) in [(2, 1, 24), (1, 3, 64), (2, 2, 128)] {
        let [exact, rounded] = [KvFormat::F32, KvFormat::Int8]
            .map(|format| World::new(shape(num_kv_heads, group, head_dim, 16, format), &[90]));
        let bounds = bounds(&exact.sequences[0], exact.params.scale, head_dim);
        for compute in fast() {
            let [exact, rounded] =
                [&exact, &rounded].map(|world| values(&world.step(&compute, &mut world.cache(), &world.whole())));
            assert_ne!(exact, rounded);
            assert_eq!([exact.len(), rounded.len()], [bounds.len() * head_dim; 2]);
            let rows = exact.chunks_exact(head_dim).zip(rounded.chunks_exact(head_dim)).zip(&bounds);
            for (row, ((exact, rounded), bound)) in rows.enumerate() {
                // What is not a number is the largest of all here.
                let moved = exact.iter().zip(rounded).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap();
                assert!(moved <= *bound, "row {row} of heads of {head_dim} moved by {moved}, bound {bound}");
            }
        }
    }
}
