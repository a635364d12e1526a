#![expect(unsafe_code, reason = "kernels are launched with the addresses of checked tensors")]

use candle_core::{DType, Tensor};

use super::args::angles::AnglesArgs;
use super::tensors::{address, unwritten};
use crate::ModelError;
use crate::ops::{AttentionPlan, Compute, RotaryAngles, RotaryEmbedding};

/// Of the step's positions.
pub(crate) fn angles(
    compute: &Compute,
    rotary: &RotaryEmbedding,
    plan: &AttentionPlan<'_>,
) -> Result<RotaryAngles, ModelError> {
    let (gpu, step) = (compute.gpu(), plan.on_device(compute)?);
    let inv_freq = match rotary.on_device.get() {
        Some(inv_freq) => inv_freq,
        None => {
            let inv_freq = Tensor::new(rotary.inv_freq.as_slice(), compute.device())?;
            rotary.on_device.get_or_init(|| inv_freq)
        }
    };
    let shape = [plan.input().num_tokens(), rotary.inv_freq.len()];
    let [cos, sin] = [unwritten(&shape, DType::F32, inv_freq)?, unwritten(&shape, DType::F32, inv_freq)?];
    let args = AnglesArgs {
        positions: step.address(gpu, step.layout.positions),
        inv_freq: address(gpu, inv_freq)?,
        cosines: address(gpu, &cos)?,
        sines: address(gpu, &sin)?,
        num_angles: cos.elem_count() as i32,
        half: rotary.inv_freq.len() as i32,
        scaling: rotary.attention_scaling,
    };
    // SAFETY: the step has a position for each token; the tensors have the shapes that the arguments say.
    unsafe { gpu.launch(args.launch()) }?;
    Ok(RotaryAngles { cos: cos.into(), sin: sin.into() })
}
