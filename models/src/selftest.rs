//! Whether a device computes what the reference bodies and the reference implementation compute: for whoever has just
//! built or installed the program, or put a card in. Everything that it needs is compiled in.

mod attention;
pub(crate) mod choose;
mod elementwise;
pub(crate) mod numbers;
mod parity;
pub(crate) mod products;
pub(crate) mod qkv;
mod replays;
mod speed;
pub(crate) mod tables;
pub(crate) mod trial;
pub(crate) mod world;

pub use speed::{Load, Work, loads};

use crate::ModelError;
use crate::ops::Compute;
use trial::Trial;

/// One thing that was compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Such as `product, bf16 weights`.
    pub what: &'static str,
    /// The shape or the lengths that it was compared at.
    pub at: String,
    /// Whose result it is.
    pub bodies: String,
    /// What it was held against.
    pub against: String,
    /// The largest difference of any element, over 1 and the reference's magnitude; of log-probabilities and divergences the
    /// number itself. NaN where only one of both is a number. `Err`: what kept it from running.
    pub worst: Result<f32, String>,
    /// 0 where bits must be equal.
    pub allowed: f32,
}

impl Check {
    pub fn passes(&self) -> bool {
        matches!(self.worst, Ok(worst) if worst <= self.allowed)
    }
}

/// The ops' bodies on this device against the reference bodies, over the shapes of `tables.rs`. On the CPU: all bodies
/// that it has, the second with the bits of the first. `factor` multiplies what may differ.
///
/// Errors when memory is short; what does not run or is wrong is a [`Check`] that does not pass.
pub fn check_kernels(compute: &Compute, factor: f32) -> Result<Vec<Check>, ModelError> {
    let mut trial = Trial::new(compute, factor)?;
    products::check(&mut trial)?;
    elementwise::check(&mut trial)?;
    attention::check(&mut trial)?;
    choose::check(&mut trial)?;
    Ok(trial.into_checks())
}

/// Whole models on this device: small ones against the logits that the reference implementation computed, the bundled demo
/// against the reference bodies, and each in batches and chunks against each sequence alone; where steps are replayed, also
/// each replayed step against the same one launch by launch. `factor` as in [`check_kernels`].
///
/// Errors as [`check_kernels`].
pub fn check_parity(compute: &Compute, factor: f32) -> Result<Vec<Check>, ModelError> {
    let mut trial = Trial::new(compute, factor)?;
    parity::check(&mut trial)?;
    if compute.kernels().replays_steps() {
        replays::check(&mut trial);
    }
    Ok(trial.into_checks())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_passes() {
        let compute = Compute::cpu(2);
        let checks = [check_kernels(&compute, 1.0).unwrap(), check_parity(&compute, 1.0).unwrap()].concat();
        let failed: Vec<_> = checks.iter().filter(|check| !check.passes()).collect();
        assert!(failed.is_empty() && checks.len() > 150, "{} checks, failed: {failed:#?}", checks.len());
    }

    /// Bodies that add in another order are never equal to the reference everywhere.
    #[test]
    fn nothing_allowed_is_a_failure_of_products_attention_and_parity_by_name() {
        let compute = Compute::cpu(2);
        let checks = [check_kernels(&compute, 0.0).unwrap(), check_parity(&compute, 0.0).unwrap()].concat();
        let failed = |what| checks.iter().any(|check| check.what.starts_with(what) && !check.passes());
        for what in ["product, f32", "attention", "parity, qwen3", "parity, demo"] {
            assert!(failed(what), "{what} passes with nothing allowed");
        }
    }
}
