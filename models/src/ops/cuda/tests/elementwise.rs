use candle_core::{DType, Tensor};

use super::host::{Buffer, Host, in_both_orders};
use super::{Random, assert_close, reference, tolerance, values};
use crate::ops::cuda::args::activation::ActivationArgs;
use crate::ops::cuda::args::angles::AnglesArgs;
use crate::ops::cuda::args::bias::BiasArgs;
use crate::ops::cuda::args::norm::NormArgs;
use crate::ops::cuda::args::rows::GatherArgs;
use crate::ops::cuda::args::unequal::UnequalArgs;
use crate::ops::cuda::launch::{Address, Float};
use crate::ops::{Activation, LayerNormParams, RotaryEmbedding, activate, gate_mul, gather_rows, layer_norm, rms_norm};
use crate::selftest::tables::{ACTIVATED, GATES, GATHERED, NORMS, NormCase};

const BOTH: [Float; 2] = [Float::F32, Float::Bf16];

/// To what `float` holds, as f32.
fn rounded(x: &Tensor, float: Float) -> Tensor {
    x.to_dtype(float.dtype()).unwrap().to_dtype(DType::F32).unwrap()
}

fn output(like: &Tensor, float: Float) -> Buffer {
    Buffer::of_values(&vec![f32::NAN; like.elem_count()], float)
}

#[test]
fn norms_with_and_without_a_residual_equal_the_reference() {
    let Some(host) = Host::get() else { return };
    for NormCase { float, rows: m, width, has_bias, has_residual } in NORMS {
        let mut random = Random(width as u64);
        let [x, residual] = [(); 2].map(|()| random.tensor(&[m, width], float));
        let [weight, bias] = [(); 2].map(|()| random.tensor(&[width], Float::F32));
        let (eps, compute) = (1e-3, reference());
        let sum = if has_residual { rounded(&(&x + &residual).unwrap(), float) } else { x.clone() };
        let want = match has_bias {
            true => layer_norm(&compute, &sum, LayerNormParams { weight: &weight, bias: &bias, eps }).unwrap(),
            false => rms_norm(&compute, &sum, &weight, eps).unwrap(),
        };
        let got = in_both_orders(|order| {
            let [mut x, mut residual] = [&x, &residual].map(|x| Buffer::of(x, float));
            let [mut weight, mut bias] = [&weight, &bias].map(|x| Buffer::of(x, Float::F32));
            let [mut sum_buffer, mut normed] = [(); 2].map(|()| output(&want, float));
            let if_it = |is_there: bool, buffer: &mut Buffer| if is_there { buffer.address() } else { Address::NULL };
            let args = NormArgs {
                x: x.address(),
                residual: if_it(has_residual, &mut residual),
                sum: if_it(has_residual, &mut sum_buffer),
                normed: normed.address(),
                weight: weight.address(),
                bias: if_it(has_bias, &mut bias),
                width: width as i32,
                eps,
            };
            host.run(&args.launch(m, float), order);
            if has_residual {
                assert_eq!(sum_buffer.values(float), values(&sum));
            }
            normed.values(float)
        });
        assert_close(&format!("{float:?} [{m}, {width}]"), &got, &want, tolerance(float));
    }
}

#[test]
fn activations_and_gates_equal_the_reference() {
    let Some(host) = Host::get() else { return };
    for ([m, width], float) in ACTIVATED.into_iter().flat_map(|shape| BOTH.map(|float| (shape, float))) {
        let x = rounded(&(Random(3).tensor(&[m, width], Float::F32) * 6.0).unwrap(), float);
        let run = |args: ActivationArgs, want: Tensor, what: String| {
            let got = in_both_orders(|order| {
                let (mut x, mut out) = (Buffer::of(&x, float), output(&want, float));
                host.run(&ActivationArgs { x: x.address(), out: out.address(), ..args }.launch(m, float), order);
                out.values(float)
            });
            assert_close(&what, &got, &want, tolerance(float));
        };
        for activation in Activation::EACH {
            let want = activate(&reference(), &x, activation).unwrap();
            run(ActivationArgs::plain(activation, width), want, format!("{activation:?}"));
        }
        for gate in GATES {
            let want = gate_mul(&reference(), &x, gate).unwrap();
            run(ActivationArgs::gated(gate, width / 2), want, format!("gate {gate:?}"));
        }
    }
}

#[test]
fn gathered_rows_equal_the_reference() {
    let Some(host) = Host::get() else { return };
    let (shape, rows) = GATHERED;
    for float in BOTH {
        let x = Random(1).tensor(&shape, float);
        let want = gather_rows(&reference(), &x, &rows).unwrap();
        let got = in_both_orders(|order| {
            let mut indexes = Buffer::of_words(&rows.map(|row| row as u32));
            let (mut x, mut out) = (Buffer::of(&x, float), output(&want, float));
            let args =
                GatherArgs { x: x.address(), rows: indexes.address(), out: out.address(), width: shape[1] as u64 };
            host.run(&args.launch(rows.len(), float), order);
            out.values(float)
        });
        assert_close("gathered", &got, &want, 0.0);
    }
}

#[test]
fn a_bias_is_added_to_every_row() {
    let Some(host) = Host::get() else { return };
    let [m, width] = ACTIVATED[0];
    for float in BOTH {
        let (x, bias) = (Random(1).tensor(&[m, width], float), Random(2).tensor(&[width], Float::F32));
        let want = rounded(&x.broadcast_add(&bias).unwrap(), float);
        let got = in_both_orders(|order| {
            let (mut x, mut bias) = (Buffer::of(&x, float), Buffer::of(&bias, Float::F32));
            let args = BiasArgs {
                x: x.address(),
                bias: bias.address(),
                width: width as u64,
                num_elements: (m * width) as u64,
            };
            host.run(&args.launch(float), order);
            x.values(float)
        });
        assert_close("with a bias", &got, &want, 0.0);
    }
}

#[test]
fn angles_of_positions_near_and_far_equal_the_reference() {
    let Some(host) = Host::get() else { return };
    let positions = [0, 1, 7, 4_095, 131_071];
    let inv_freq: Vec<f32> = (0..33).map(|index| 0.75f32.powi(index)).collect();
    let want = RotaryEmbedding::new(inv_freq.clone(), 1.2).angles(&reference(), &positions).unwrap();
    let want = Tensor::cat(&[want.cos.to_tensor().unwrap(), want.sin.to_tensor().unwrap()], 0).unwrap();
    let got = in_both_orders(|order| {
        let (mut positions, mut inv_freq) = (Buffer::of_words(&positions), Buffer::of_values(&inv_freq, Float::F32));
        let [mut cosines, mut sines] = [(); 2].map(|()| Buffer::unwritten(want.elem_count() / 2 * 4));
        let args = AnglesArgs {
            positions: positions.address(),
            inv_freq: inv_freq.address(),
            cosines: cosines.address(),
            sines: sines.address(),
            num_angles: want.elem_count() as i32 / 2,
            half: 33,
            scaling: 1.2,
        };
        host.run(&args.launch(), order);
        [cosines.values(Float::F32), sines.values(Float::F32)].concat()
    });
    assert_close("angles", &got, &want, 1e-6);
}

#[test]
fn one_bit_makes_a_difference() {
    let Some(host) = Host::get() else { return };
    let differ = |one: &[f32], other: &[f32], float: Float| {
        let differ = in_both_orders(|order| {
            let [mut one, mut other] = [one, other].map(|values| Buffer::of_values(values, float));
            let mut differ = Buffer::of_words(&[0]);
            let args =
                UnequalArgs { one: one.address(), other: other.address(), differ: differ.address(), num_elements: 301 };
            host.run(&args.launch(float), order);
            differ.values(Float::F32)
        });
        differ[0].to_bits() == 1
    };
    for float in BOTH {
        let mut values = Random(4).values(301);
        values[7] = f32::NAN;
        assert!(!differ(&values, &values, float));
        for at in [0, 255, 300] {
            let mut other = values.clone();
            other[at] = -other[at];
            assert!(differ(&values, &other, float), "element {at}");
        }
    }
}
