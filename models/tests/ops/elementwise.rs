use candle_core::Tensor;
use passerelle_models::ops::{
    Activation, Gate, LayerNormParams, RotaryEmbedding, activate, add_layer_norm, add_rms_norm, gate_mul, layer_norm,
    rms_norm, rope,
};

use super::{Random, assert_same_bits, check, fast, values};

const ROWS: [usize; 5] = [1, 2, 7, 33, 130];

#[test]
fn rms_norm_equals_the_reference() {
    for m in ROWS {
        for width in [1, 7, 8, 24, 64, 129, 576] {
            let mut random = Random(width as u64);
            let (x, residual, weight) =
                (random.tensor(&[m, width]), random.tensor(&[m, width]), random.tensor(&[width]));
            let what = format!("[{m}, {width}]");
            check(&what, 1e-6, |compute| rms_norm(compute, &x, &weight, 1e-5).unwrap());
            check(&what, 0.0, |compute| add_rms_norm(compute, &residual, &x, &weight, 1e-5).unwrap().0);
            check(&what, 1e-6, |compute| add_rms_norm(compute, &residual, &x, &weight, 1e-5).unwrap().1);
        }
    }
}

#[test]
fn layer_norm_equals_the_reference() {
    for m in ROWS {
        for width in [1, 7, 8, 24, 64, 129, 576] {
            let mut random = Random(width as u64);
            // Far from zero, where a variance taken from sums of squares would have no digits left.
            let x = (random.tensor(&[m, width]) + 30.0).unwrap();
            let (residual, weight, bias) =
                (random.tensor(&[m, width]), random.tensor(&[width]), random.tensor(&[width]));
            let params = LayerNormParams { weight: &weight, bias: &bias, eps: 1e-3 };
            let what = format!("[{m}, {width}]");
            check(&what, 2e-4, |compute| layer_norm(compute, &x, params).unwrap());
            check(&what, 0.0, |compute| add_layer_norm(compute, &residual, &x, params).unwrap().0);
            check(&what, 2e-4, |compute| add_layer_norm(compute, &residual, &x, params).unwrap().1);
        }
    }
}

/// Heads of a slice of a merged product's columns, each normed alone.
#[test]
fn rms_norm_of_heads_equals_each_head_alone() {
    for m in ROWS {
        for (heads, head_dim) in [(1, 8), (3, 24), (4, 7), (2, 128)] {
            let mut random = Random(head_dim as u64);
            let wide = random.tensor(&[m, heads * head_dim + 10]);
            let (x, weight) = (wide.narrow(1, 3, heads * head_dim).unwrap(), random.tensor(&[head_dim]));
            let normed = check(&format!("{m} rows of {heads} x {head_dim}"), 1e-6, |compute| {
                rms_norm(compute, &x, &weight, 1e-3).unwrap()
            });
            for compute in fast() {
                for head in 0..heads {
                    let part = x.narrow(1, head * head_dim, head_dim).unwrap();
                    let alone = rms_norm(&compute, &part, &weight, 1e-3).unwrap();
                    assert_same_bits("a head", &normed.narrow(1, head * head_dim, head_dim).unwrap(), &alone);
                }
            }
        }
    }
}

#[test]
fn activations_equal_the_reference() {
    for activation in Activation::EACH {
        for m in ROWS {
            for width in [1, 5, 8, 23, 64, 173] {
                let x = (Random(width as u64).tensor(&[m, width]) * 6.0).unwrap();
                let what = format!("{activation:?} [{m}, {width}]");
                check(&what, 2e-6, |compute| activate(compute, &x, activation).unwrap());
            }
        }
    }
}

/// By hand, at the points where the formulas change.
#[test]
fn activations_are_those_of_their_papers() {
    let x = Tensor::new(&[[-1e30f32, -2.0, -0.0, 0.0, 2.0, 1e15]], &candle_core::Device::Cpu).unwrap();
    let expected = [
        [0.0, 0.0, 0.0, 0.0, 4.0, 1e30],
        [0.0, -0.045_402_3, 0.0, 0.0, 1.954_597_7, 1e15],
        [0.0, -0.045_500_26, 0.0, 0.0, 1.954_499_7, 1e15],
        [0.0, 0.0, 0.0, 0.0, 2.0, 1e15],
        [0.0, -0.238_405_84, 0.0, 0.0, 1.761_594_2, 1e15],
        [-1.0, -0.964_027_6, 0.0, 0.0, 0.964_027_6, 1.0],
        [0.8e30, 1.3 * (-2f32).exp_m1() + 1.6, -1.3e-6, -1.3e-6, 4.2, 0.8e30],
    ];
    for compute in fast() {
        for (activation, expected) in Activation::EACH.into_iter().zip(expected) {
            let got = values(&activate(&compute, &x, activation).unwrap());
            for (got, want) in got.into_iter().zip(expected) {
                assert!((got - want).abs() <= 1e-6 * want.abs().max(1.0), "{activation:?}: {got} instead of {want}");
            }
        }
    }
}

#[test]
fn gate_mul_equals_the_reference() {
    for m in ROWS {
        for width in [1, 5, 8, 23, 64, 173] {
            let gate_up = (Random(width as u64).tensor(&[m, 2 * width]) * 20.0).unwrap();
            for gate in [Gate::Silu, Gate::GeluErf, Gate::GeluTanh] {
                let what = format!("{gate:?} [{m}, {width}]");
                check(&what, 2e-6, |compute| gate_mul(compute, &gate_up, gate).unwrap());
            }
        }
    }
}

#[test]
fn rope_equals_the_reference_on_strided_rows_and_partial_dims() {
    for m in ROWS {
        for (heads, head_dim, rotary_dim) in [(1, 8, 8), (3, 24, 24), (2, 64, 16), (4, 128, 128), (5, 6, 4)] {
            let frequencies = (0..rotary_dim / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / rotary_dim as f32));
            let rotary = RotaryEmbedding::new(frequencies.collect(), 1.25);
            assert_eq!(rotary.rotary_dim(), rotary_dim);
            let mut random = Random(m as u64);
            let positions: Vec<u32> = (0..m).map(|_| (random.next() % 5000) as u32).collect();
            let wide = random.tensor(&[m, heads * head_dim + 10]);
            let x = wide.narrow(1, 3, heads * head_dim).unwrap();
            let turned = check(&format!("{m} rows of {heads} x {head_dim}, {rotary_dim} turned"), 0.0, |compute| {
                rope(compute, &x, head_dim, &rotary.angles(compute, &positions).unwrap()).unwrap()
            });
            assert_eq!(turned.dims(), [m, heads, head_dim]);
        }
    }
}

/// By hand: one head of four, turned by a right angle and by half of it.
#[test]
fn rope_turns_the_first_half_against_the_second() {
    let rotary = RotaryEmbedding::new(vec![std::f32::consts::FRAC_PI_2, std::f32::consts::FRAC_PI_4], 1.0);
    let x = candle_core::Tensor::new(&[[1f32, 1.0, 0.0, 0.0]], &candle_core::Device::Cpu).unwrap();
    for compute in fast() {
        let turned = values(&rope(&compute, &x, 4, &rotary.angles(&compute, &[1]).unwrap()).unwrap());
        let half = 0.5f32.sqrt();
        for (got, want) in turned.into_iter().zip([0.0, half, 1.0, half]) {
            assert!((got - want).abs() < 1e-6, "{got} instead of {want}");
        }
    }
}

#[test]
fn a_row_is_bit_identical_alone_and_in_any_batch() {
    let mut random = Random(11);
    let (x, weight) = (random.tensor(&[200, 344]), random.tensor(&[344]));
    for compute in fast() {
        let normed = rms_norm(&compute, &x, &weight, 1e-6).unwrap();
        let gated = gate_mul(&compute, &x, Gate::Silu).unwrap();
        let params = LayerNormParams { weight: &weight, bias: &weight, eps: 1e-6 };
        let layer_normed = layer_norm(&compute, &x, params).unwrap();
        for (start, len) in [(0, 1), (199, 1), (5, 2), (100, 57)] {
            let part = x.narrow(0, start, len).unwrap();
            let (want_normed, want_gated) =
                (normed.narrow(0, start, len).unwrap(), gated.narrow(0, start, len).unwrap());
            assert_same_bits("norm", &rms_norm(&compute, &part, &weight, 1e-6).unwrap(), &want_normed);
            let want = layer_normed.narrow(0, start, len).unwrap();
            assert_same_bits("layer norm", &layer_norm(&compute, &part, params).unwrap(), &want);
            for activation in Activation::EACH {
                let want = activate(&compute, &x, activation).unwrap().narrow(0, start, len).unwrap();
                assert_same_bits("activation", &activate(&compute, &part, activation).unwrap(), &want);
            }
            assert_same_bits("gate", &gate_mul(&compute, &part, Gate::Silu).unwrap(), &want_gated);
        }
    }
}

#[test]
fn extreme_gates_stay_finite() {
    let gate_up = candle_core::Tensor::new(
        &[[-1e30f32, -100.0, 0.0, 100.0, 1e30, 2.0, 2.0, 2.0, 2.0, 2.0]],
        &candle_core::Device::Cpu,
    );
    for compute in fast() {
        let out = values(&gate_mul(&compute, gate_up.as_ref().unwrap(), Gate::Silu).unwrap());
        assert_eq!(&out[2..], [0.0, 200.0, 2e30]);
        assert!(out[1].abs() < 1e-30, "silu(-100) is {}", out[1]);
        assert!(out[0].is_finite() && out[0].abs() < 1e-5, "silu(-1e30) is {}", out[0]);
    }
}
