use candle_core::{DType, Device, Tensor};

use crate::ops::{
    self, AttentionContext, AttentionParams, AttentionPlan, Compute, Float, KernelSet, Matrix, QueryRows,
};
use crate::ops::{LayerNormParams, Operand, RmsNormParams};
use crate::selftest::numbers::Random;
use crate::selftest::world::{Shape, World};

const EPS: f32 = 1e-5;

/// Every body that this CPU has, on one thread and on three.
fn bodies() -> Vec<Compute> {
    KernelSet::of_this_cpu()
        .flat_map(|kernels| [1, 3].map(|threads| Compute::cpu_with_kernels(threads, kernels).unwrap()))
        .map(Compute::with_bf16_products)
        .collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// `make` gives rows in both forms.
fn check(what: &str, make: impl Fn(Float) -> Matrix) {
    let [floats, rounded] = [Float::F32, Float::Bf16].map(|form| make(form).into_tensor().unwrap());
    assert_eq!(floats.dims(), rounded.dims(), "{what}");
    let expected = floats.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
    assert_eq!(bits(&expected), bits(&rounded), "{what}");
    assert_ne!(bits(&floats), bits(&rounded), "{what}: numbers that are rounded");
}

#[test]
fn norms_that_are_handed_on_in_bf16_are_those_in_f32_rounded() {
    for compute in bodies() {
        for (rows, width) in [(1, 10), (3, 64), (40, 96), (7, 1024), (5, 200)] {
            let mut random = Random((rows * width) as u64);
            let [x, residual] = [(); 2].map(|()| random.tensor(&[rows, width], Float::F32));
            let [weight, bias] = [(); 2].map(|()| random.tensor(&[width], Float::F32));
            let layer = LayerNormParams { weight: &weight, bias: &bias, eps: EPS };
            let rms = RmsNormParams { weight: &weight, eps: EPS };
            let (x, residual, what) = (x.view(), residual.view(), format!("{compute:?} [{rows}, {width}]"));
            check(&what, |form| ops::rms_normed(&compute, x, rms, form).unwrap());
            check(&what, |form| ops::layer_normed(&compute, x, layer, form).unwrap());
            check(&what, |form| ops::rms_summed(&compute, residual, x, rms, form).unwrap().1);
            check(&what, |form| ops::layer_summed(&compute, residual, x, layer, form).unwrap().1);
        }
    }
}

#[test]
fn what_is_attended_and_handed_on_in_bf16_is_that_in_f32_rounded() {
    for compute in bodies() {
        for (head_dim, cache) in [(64, Float::Bf16), (20, Float::F32), (128, Float::Bf16)] {
            let shape = Shape { num_kv_heads: 3, group: 2, head_dim, block_size: 32, activations: Float::F32, cache };
            let mut random = Random(head_dim as u64);
            // A prompt, a token alone, and one whose keys are several spans.
            let world = World::new(shape, &[3..40, 17..18, 1599..1600]).unwrap();
            let mut world = world.with_keys(&mut random).unwrap();
            let tokens = world.input.num_tokens();
            let q = random.tensor(&[tokens, shape.num_heads(), head_dim], Float::F32);
            let (layer, input) = (world.layer().clone(), &world.input);
            let plan = AttentionPlan::new(input);
            let params = AttentionParams::causal(shape.scale());
            check(&format!("{compute:?} heads of {head_dim}"), |form| {
                let context = AttentionContext { layer: &layer, plan: &plan, params: &params };
                ops::attended(&compute, q.queries().unwrap(), context, form).unwrap()
            });
        }
    }
}

#[test]
fn rows_in_bf16_are_for_products_alone() {
    let compute = Compute::cpu_with_kernels(1, KernelSet::Portable).unwrap();
    let weight = Tensor::ones(64, DType::F32, &Device::Cpu).unwrap();
    let x = Tensor::ones((2, 64), DType::F32, &Device::Cpu).unwrap();
    let params = RmsNormParams { weight: &weight, eps: EPS };
    let normed = ops::rms_normed(&compute, x.view(), params, Float::Bf16).unwrap();
    let error = ops::rms_normed(&compute, normed.view(), params, Float::F32).unwrap_err();
    assert!(error.to_string().contains("bf16"), "{error}");
}
