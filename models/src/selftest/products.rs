use candle_core::{Device, Tensor};
use half::{bf16, f16};

use super::numbers::Random;
use super::trial::{Trial, placed, values};
use crate::ops::{self, Compute, FEW_ROWS, Float, PackedWeight, WeightPart};
use crate::{ActivationDtype, ModelError, StoredDtype};

/// Rows, inputs, outputs: one token and many, and widths that are no whole panel.
const SHAPES: [[usize; 3]; 7] =
    [[1, 64, 48], [1, 1032, 35], [5, 96, 211], [33, 257, 130], [70, 1031, 97], [256, 512, 96], [2, 3, 17]];
/// Whole blocks of every kind.
const BLOCK_SHAPES: [[usize; 3]; 6] =
    [[1, 256, 88], [2, 512, 70], [4, 256, 9], [7, 512, 35], [70, 512, 64], [130, 256, 19]];
/// Of two quantised dtypes, one below the other: rows, and outputs of each.
const STACKED: [[usize; 3]; 3] = [[1, 24, 13], [5, 24, 13], [40, 13, 24]];

/// Of products of 512 inputs, each of which is off by at most 1.5e-5 once it is rounded to 16 bits.
const ROUNDED_ROWS: f32 = 1.5e-3;

pub(super) fn check(trial: &mut Trial) -> Result<(), ModelError> {
    for dtype in StoredDtype::ALL {
        let shapes = if dtype.is_quantised() { &BLOCK_SHAPES[..] } else { &SHAPES };
        for &[rows, inputs, outputs] in shapes {
            let mut random = Random((rows + inputs) as u64);
            let float = if dtype == StoredDtype::F32 { Float::F32 } else { Float::Bf16 };
            let (x, bias) = (random.tensor(&[rows, inputs], float), random.tensor(&[outputs], Float::F32));
            let bytes = stored(dtype, outputs * inputs, &mut random);
            let parts = [WeightPart { dtype, bytes: &bytes }];
            let at = format!("[{rows}, {inputs}] x [{outputs}, {inputs}]");
            let allowed = allowed(trial, dtype, [rows, inputs]);
            let run = |compute: &Compute| {
                let weight = PackedWeight::pack(compute, None, inputs, &parts)?;
                let bias = bias.to_device(compute.device())?;
                values(&ops::linear(compute, &placed(compute, &x, float)?, &weight, Some(&bias))?)
            };
            trial.compare(names(dtype)[0], at.clone(), allowed, &run);
            if dtype == StoredDtype::Bf16 && trial.subject().kernels().has_bf16_products() {
                // The activations are bf16 numbers, so that rounding them changes nothing.
                let compute = trial.subject().clone().with_bf16_products();
                trial.compare_one(&compute, ("product, bf16 by bf16", at), allowed, &run);
            }
            if dtype.is_quantised() && trial.subject().is_host() {
                rounded_to_bytes(trial, [rows, inputs, outputs], &parts)?;
            }
            if rows == shapes[0][0] {
                rows_of_a_table(trial, dtype, float, [inputs, outputs], &parts);
            }
        }
    }
    stacked(trial);
    Ok(())
}

/// With activations that 8 bits can hold, so that rounding them changes nothing.
fn rounded_to_bytes(
    trial: &mut Trial,
    [rows, inputs, outputs]: [usize; 3],
    parts: &[WeightPart<'_>],
) -> Result<(), ModelError> {
    const LARGEST: f32 = 127.0;
    /// Of inputs with one scale.
    const UNIT: usize = 32;
    let mut x = Random(inputs as u64).values(rows * inputs);
    for unit in x.as_chunks_mut::<UNIT>().0 {
        unit.iter_mut().for_each(|value| *value = (*value * LARGEST).round() / LARGEST);
        unit[0] = 1.0;
    }
    let x = Tensor::from_vec(x, (rows, inputs), &Device::Cpu)?;
    let compute = trial.subject().with_activations_in(ActivationDtype::Int8)?;
    let at = format!("[{rows}, {inputs}] x [{outputs}, {inputs}], {}", parts[0].dtype);
    trial.compare_one(&compute, ("product, 8-bit activations", at), ROUNDED_ROWS, &|compute| {
        values(&ops::linear(compute, &x, &PackedWeight::pack(compute, None, inputs, parts)?, None)?)
    });
    Ok(())
}

/// As in files that give values more bits than queries.
fn stacked(trial: &mut Trial) {
    const INPUTS: usize = 512;
    let dtypes = [StoredDtype::Q4K, StoredDtype::Q6K];
    for [rows, first, second] in STACKED {
        let mut random = Random(rows as u64);
        let x = random.tensor(&[rows, INPUTS], Float::Bf16);
        let bias = random.tensor(&[first + second], Float::F32);
        let bytes = [(dtypes[0], first), (dtypes[1], second)]
            .map(|(dtype, outputs)| stored(dtype, outputs * INPUTS, &mut random));
        let parts = [0, 1].map(|part| WeightPart { dtype: dtypes[part], bytes: &bytes[part] });
        let at = format!("[{rows}, {INPUTS}] x [{first} + {second}, {INPUTS}]");
        let allowed = allowed(trial, dtypes[0], [rows, INPUTS]);
        trial.compare("product, q4_k above q6_k weights", at, allowed, &|compute| {
            let weight = PackedWeight::pack(compute, None, INPUTS, &parts)?;
            let bias = bias.to_device(compute.device())?;
            values(&ops::linear(compute, &placed(compute, &x, Float::Bf16)?, &weight, Some(&bias))?)
        });
    }
}

/// Every row of `parts`, last first.
fn rows_of_a_table(
    trial: &mut Trial,
    dtype: StoredDtype,
    float: Float,
    [inputs, outputs]: [usize; 2],
    parts: &[WeightPart<'_>],
) {
    let tokens: Vec<u32> = (0..outputs as u32).rev().collect();
    // Rows are widened, which rounds nothing, but for what a GPU holds as bf16.
    let is_rounded = trial.held(Float::Bf16) == Float::Bf16 && !matches!(dtype, StoredDtype::F32 | StoredDtype::Bf16);
    let allowed = if is_rounded { trial.tolerance(float) } else { 0.0 };
    trial.compare(names(dtype)[1], format!("{outputs} of [{outputs}, {inputs}]"), allowed, &|compute| {
        let table = PackedWeight::pack(compute, None, inputs, parts)?;
        values(&ops::embedding(compute, &table, &tokens)?)
    });
}

fn allowed(trial: &Trial, dtype: StoredDtype, [rows, inputs]: [usize; 2]) -> f32 {
    let terms = (inputs as f32).sqrt();
    match (dtype, trial.held(Float::Bf16)) {
        (StoredDtype::F32, _) => trial.tolerance(Float::F32) * terms,
        // Rounded as a product, and again with the bias.
        (StoredDtype::Bf16, Float::Bf16) => 2.0 * trial.tolerance(Float::Bf16),
        // The result alone is rounded.
        (dtype, Float::Bf16) if dtype.is_quantised() && rows <= FEW_ROWS => trial.tolerance(Float::Bf16),
        // Rounded to bf16 as they are loaded, or before they are multiplied: each term is off by up to 2^-9.
        (_, Float::Bf16) => terms / 256.0,
        (dtype, Float::F32) if dtype.is_quantised() => ROUNDED_ROWS,
        (_, Float::F32) => trial.tolerance(Float::F32) * terms,
    }
}

/// Of the product and of the table.
fn names(dtype: StoredDtype) -> [&'static str; 2] {
    match dtype {
        StoredDtype::F32 => ["product, f32 weights", "embedding, f32"],
        StoredDtype::F16 => ["product, f16 weights", "embedding, f16"],
        StoredDtype::Bf16 => ["product, bf16 weights", "embedding, bf16"],
        StoredDtype::Q8_0 => ["product, q8_0 weights", "embedding, q8_0"],
        StoredDtype::Q4_0 => ["product, q4_0 weights", "embedding, q4_0"],
        StoredDtype::Q4K => ["product, q4_k weights", "embedding, q4_k"],
        StoredDtype::Q6K => ["product, q6_k weights", "embedding, q6_k"],
    }
}

/// `len` weights of up to about 1 as a file has them: floats, or blocks of any bits but for their scales.
pub(crate) fn stored(dtype: StoredDtype, len: usize, random: &mut Random) -> Vec<u8> {
    match dtype {
        StoredDtype::F32 => random.values(len).iter().flat_map(|value| value.to_le_bytes()).collect(),
        StoredDtype::F16 => random.values(len).iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
        StoredDtype::Bf16 => random.values(len).iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        _ => {
            let mut bytes: Vec<u8> =
                (0..len / dtype.block_len() * dtype.block_bytes()).map(|_| (random.next() >> 56) as u8).collect();
            for (index, block) in bytes.chunks_exact_mut(dtype.block_bytes()).enumerate() {
                // Not all alike, so that a scale of another block shows.
                let part = 1.0 - (index % 7) as f32 / 8.0;
                for (at, scale) in scales(dtype) {
                    block[*at..*at + 2].copy_from_slice(&f16::from_f32(scale * part).to_le_bytes());
                }
            }
            bytes
        }
    }
}

/// Where a block has its scales, and the largest ones with which no weight is far above 1.
fn scales(dtype: StoredDtype) -> &'static [(usize, f32)] {
    match dtype {
        StoredDtype::Q8_0 => &[(0, 1.0 / 128.0)],
        StoredDtype::Q4_0 => &[(0, 1.0 / 8.0)],
        StoredDtype::Q4K => &[(0, 1.0 / 1024.0), (2, 1.0 / 128.0)],
        StoredDtype::Q6K => &[(208, 1.0 / 4096.0)],
        StoredDtype::F32 | StoredDtype::F16 | StoredDtype::Bf16 => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::widened;

    #[test]
    fn random_blocks_are_weights_of_about_1() {
        for dtype in StoredDtype::ALL {
            let weights = widened(dtype, &stored(dtype, 256 * 40, &mut Random(1)));
            let largest = weights.iter().fold(0.0, |largest: f32, weight| largest.max(weight.abs()));
            assert!((0.5..2.0).contains(&largest), "{dtype}: {largest}");
        }
    }
}
