use candle_core::{DType, Tensor};

use super::Check;
use super::tables::tolerance;
use crate::ModelError;
use crate::ops::{Compute, Float, KernelSet};

/// Bodies that are held against others.
pub(super) struct Trial {
    /// The fastest last.
    subjects: Vec<Compute>,
    reference: Compute,
    factor: f32,
    checks: Vec<Check>,
}

/// How far one result is from another, as [`Check`] has it, and how far it may be before the trial's factor.
pub(super) struct Measured {
    pub(super) worst: Result<f32, String>,
    pub(super) allowed: f32,
}

/// An op on the bodies that it is given.
pub(super) type Run<'a> = &'a dyn Fn(&Compute) -> Result<Vec<f32>, ModelError>;

impl Trial {
    /// Of the CPU all bodies that it runs, of another device its own.
    pub(super) fn new(compute: &Compute, factor: f32) -> Result<Self, ModelError> {
        let mut subjects = vec![compute.clone()];
        if compute.kernels().keeps_rows_equal() && compute.kernels() != KernelSet::Portable {
            subjects.insert(0, Compute::cpu_with_kernels(compute.num_threads(), KernelSet::Portable)?);
        }
        let reference = Compute::cpu_with_kernels(compute.num_threads(), KernelSet::Reference)?;
        Ok(Self { subjects, reference, factor, checks: Vec::new() })
    }

    pub(super) fn into_checks(self) -> Vec<Check> {
        self.checks
    }

    /// The fastest bodies.
    pub(super) fn subject(&self) -> &Compute {
        &self.subjects[self.subjects.len() - 1]
    }

    pub(super) fn reference(&self) -> &Compute {
        &self.reference
    }

    /// What activations are held in where `float` is asked for.
    pub(super) fn held(&self, float: Float) -> Float {
        held(self.subject(), float)
    }

    pub(super) fn tolerance(&self, float: Float) -> f32 {
        tolerance(self.held(float))
    }

    /// The first bodies against the reference; where rows are equal bits, the others against the first.
    pub(super) fn compare(&mut self, what: &'static str, at: String, allowed: f32, run: Run<'_>) {
        let expected = run(&self.reference);
        let first = run(&self.subjects[0]);
        let worst = between(&first, &expected, furthest);
        self.note(what, at.clone(), [name(&self.subjects[0]), name(&self.reference)], Measured { worst, allowed });
        for index in 1..self.subjects.len() {
            let worst = between(&run(&self.subjects[index]), &first, unequal);
            let bodies = [name(&self.subjects[index]), name(&self.subjects[0])];
            self.note(what, at.clone(), bodies, Measured { worst, allowed: 0.0 });
        }
    }

    /// `compute` alone against the reference.
    pub(super) fn compare_one(
        &mut self,
        compute: &Compute,
        (what, at): (&'static str, String),
        allowed: f32,
        run: Run<'_>,
    ) {
        let worst = between(&run(compute), &run(&self.reference), furthest);
        self.note(what, at, [name(compute), name(&self.reference)], Measured { worst, allowed });
    }

    /// One thing more that was compared.
    pub(super) fn note(&mut self, what: &'static str, at: String, [bodies, against]: [String; 2], measured: Measured) {
        let Measured { worst, allowed } = measured;
        self.checks.push(Check { what, at, bodies, against, worst, allowed: allowed * self.factor });
    }
}

/// As start-up lines call the bodies.
pub(super) fn name(compute: &Compute) -> String {
    compute.kernels().to_string()
}

fn held(compute: &Compute, float: Float) -> Float {
    if compute.activations().contains(&float) { float } else { Float::F32 }
}

/// `x` as the bodies take it: on their device, in `float` or in f32 where they know nothing else.
pub(super) fn placed(compute: &Compute, x: &Tensor, float: Float) -> Result<Tensor, ModelError> {
    Ok(x.to_device(compute.device())?.to_dtype(held(compute, float).dtype())?)
}

pub(super) fn values(x: &Tensor) -> Result<Vec<f32>, ModelError> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// What both gave, measured; or why one gave nothing.
fn between(
    found: &Result<Vec<f32>, ModelError>,
    expected: &Result<Vec<f32>, ModelError>,
    measure: fn(&[f32], &[f32]) -> f32,
) -> Result<f32, String> {
    match (found, expected) {
        (Ok(found), Ok(expected)) => Ok(measure(found, expected)),
        (Err(error), _) | (_, Err(error)) => Err(first_line(error)),
    }
}

/// A device's errors go on with a backtrace.
pub(super) fn first_line(error: &ModelError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// The largest difference of two elements, over 1 and the expected one's magnitude. Where both are no numbers there is none.
pub(crate) fn furthest(found: &[f32], expected: &[f32]) -> f32 {
    let difference = |found: f32, expected: f32| match (found.is_nan(), expected.is_nan()) {
        (true, true) => 0.0,
        _ if found == expected => 0.0,
        _ => (found - expected).abs() / (1.0 + expected.abs()),
    };
    largest(found, expected, difference)
}

/// 0 where all bits are equal.
pub(super) fn unequal(found: &[f32], expected: &[f32]) -> f32 {
    let difference = |found: f32, expected: f32| {
        if found.to_bits() == expected.to_bits() { 0.0 } else { (found - expected).abs().max(f32::MIN_POSITIVE) }
    };
    largest(found, expected, difference)
}

/// NaN, which nothing allows, where a difference is none, or the lengths differ.
fn largest(found: &[f32], expected: &[f32], difference: impl Fn(f32, f32) -> f32) -> f32 {
    if found.len() != expected.len() {
        return f32::NAN;
    }
    let differences = found.iter().zip(expected).map(|(&found, &expected)| difference(found, expected));
    differences
        .fold(0.0, |worst: f32, difference| if worst >= difference || worst.is_nan() { worst } else { difference })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `run` on the reference bodies, and `spoilt` on all others.
    fn verdict(spoilt: impl Fn() -> Result<Vec<f32>, ModelError>) -> Check {
        let mut trial = Trial::new(&Compute::cpu(1), 1.0).unwrap();
        trial.compare("a sum", "two numbers".into(), 1e-5, &|compute| match compute.kernels() {
            KernelSet::Reference => Ok(vec![1.0, 2.0]),
            _ => spoilt(),
        });
        trial.into_checks().remove(0)
    }

    #[test]
    fn a_wrong_body_fails_and_is_named() {
        assert!(verdict(|| Ok(vec![1.0, 2.0])).passes());
        for wrong in [&[1.0, 2.1][..], &[f32::NAN, 2.0], &[1.0, f32::INFINITY], &[1.0], &[2.0, 1.0]] {
            let check = verdict(|| Ok(wrong.to_vec()));
            assert!(!check.passes(), "{wrong:?}: {check:?}");
            assert_eq!((check.what, &*check.bodies, &*check.against), ("a sum", "portable", "reference"));
        }
        let broken = verdict(|| Err(ModelError::device("the driver is gone")));
        assert!(!broken.passes() && broken.worst.unwrap_err().contains("the driver is gone"));
    }

    #[test]
    fn bodies_of_one_cpu_that_differ_in_a_bit_fail() {
        if KernelSet::detect() == KernelSet::Portable {
            return;
        }
        let mut trial = Trial::new(&Compute::cpu(1), 1.0).unwrap();
        trial.compare("a sum", "one number".into(), 1.0, &|compute| {
            Ok(vec![if compute.kernels() == KernelSet::Portable { 1.0 } else { 1.0 + f32::EPSILON }])
        });
        let passed: Vec<bool> = trial.into_checks().iter().map(Check::passes).collect();
        assert_eq!(passed, [true, false]);
    }

    #[test]
    fn what_was_no_number_and_still_is_none_is_equal() {
        assert_eq!(furthest(&[f32::NAN, 1.0], &[f32::NAN, 1.0]), 0.0);
        assert!(furthest(&[f32::NAN, 1.0], &[0.0, 1.0]).is_nan());
        assert!(furthest(&[0.0, 9.0], &[f32::NAN, 1.0]).is_nan());
    }
}
