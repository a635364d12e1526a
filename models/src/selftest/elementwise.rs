use candle_core::DType;

use super::numbers::Random;
use super::tables::{ACTIVATED, GATES, GATHERED, NORMS, NormCase};
use super::trial::{Trial, placed, values};
use crate::ModelError;
use crate::ops::{self, Activation, Float, LayerNormParams, RowPool};

const EPS: f32 = 1e-3;
/// Where sequences of pooled rows begin and end.
const POOLED: [usize; 4] = [0, 1, 3, 7];

pub(super) fn check(trial: &mut Trial) -> Result<(), ModelError> {
    NORMS.iter().for_each(|case| norm(trial, *case));
    for float in floats(trial) {
        ACTIVATED.iter().try_for_each(|shape| activations(trial, float, *shape))?;
        let (shape, rows) = GATHERED;
        let x = Random(1).tensor(&shape, float);
        trial.compare("gathered rows", format!("{float:?}, {rows:?} of {shape:?}"), 0.0, &|compute| {
            values(&ops::gather_rows(compute, &placed(compute, &x, float)?, &rows)?)
        });
    }
    let x = Random(2).tensor(&[POOLED[3], 67], Float::F32);
    for (what, pool) in [("mean of rows", RowPool::Mean), ("largest of rows", RowPool::Max)] {
        let allowed = trial.tolerance(Float::F32);
        trial.compare(what, format!("[{}, 67] cut at {POOLED:?}", POOLED[3]), allowed, &|compute| {
            values(&ops::pool_rows(compute, &placed(compute, &x, Float::F32)?, &POOLED, pool)?)
        });
    }
    Ok(())
}

/// What activations may be held in.
fn floats(trial: &Trial) -> Vec<Float> {
    trial.subject().activations().to_vec()
}

fn norm(trial: &mut Trial, case: NormCase) {
    let NormCase { float, rows, width, has_bias, has_residual } = case;
    let mut random = Random(width as u64);
    let [x, residual] = [(); 2].map(|()| random.tensor(&[rows, width], float));
    let [weight, bias] = [(); 2].map(|()| random.tensor(&[width], Float::F32));
    let what = match (has_bias, has_residual) {
        (false, false) => "rms norm",
        (false, true) => "sum and rms norm",
        (true, false) => "layer norm",
        (true, true) => "sum and layer norm",
    };
    let allowed = trial.tolerance(float);
    trial.compare(what, format!("{float:?} [{rows}, {width}]"), allowed, &|compute| {
        let [x, residual] = [placed(compute, &x, float)?, placed(compute, &residual, float)?];
        let [weight, bias] = [weight.to_device(compute.device())?, bias.to_device(compute.device())?];
        let params = LayerNormParams { weight: &weight, bias: &bias, eps: EPS };
        let (sum, normed) = match (has_bias, has_residual) {
            (false, false) => (None, ops::rms_norm(compute, &x, &weight, EPS)?),
            (true, false) => (None, ops::layer_norm(compute, &x, params)?),
            (false, true) => {
                let (sum, normed) = ops::add_rms_norm(compute, &residual, &x, &weight, EPS)?;
                (Some(sum), normed)
            }
            (true, true) => {
                let (sum, normed) = ops::add_layer_norm(compute, &residual, &x, params)?;
                (Some(sum), normed)
            }
        };
        let sum = sum.map_or(Ok(Vec::new()), |sum| values(&sum))?;
        Ok([sum, values(&normed)?].concat())
    });
}

fn activations(trial: &mut Trial, float: Float, shape: [usize; 2]) -> Result<(), ModelError> {
    let x = (Random(3).tensor(&shape, Float::F32) * 6.0)?.to_dtype(float.dtype())?.to_dtype(DType::F32)?;
    let allowed = trial.tolerance(float);
    for activation in Activation::EACH {
        trial.compare("activation", format!("{activation:?}, {float:?} {shape:?}"), allowed, &|compute| {
            values(&ops::activate(compute, &placed(compute, &x, float)?, activation)?)
        });
    }
    for gate in GATES {
        trial.compare("gate", format!("{gate:?}, {float:?} {shape:?}"), allowed, &|compute| {
            values(&ops::gate_mul(compute, &placed(compute, &x, float)?, gate)?)
        });
    }
    Ok(())
}
