//! Rotary position embeddings, Su et al. 2021, arXiv:2104.09864: what a configuration says, and the frequencies it means.
//!
//! The configuration is read in both key styles: `rope_theta` beside a `rope_scaling` object, and the newer
//! `rope_parameters` object that holds everything.

use super::fields::Fields;
use super::limits;
use super::spec::TemperatureSpec;
use crate::ModelError;

#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// How many leading elements of a head are rotated; even.
    pub dim: usize,
    pub style: RopeStyle,
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Element `i` turns with element `i + dim / 2`.
    Half,
}

/// How the frequencies were changed to reach further than the model was first trained for.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Plain frequencies. Dynamic NTK scaling is read as this too: it is plain up to `max_position_embeddings`, and no
    /// longer sequence is admitted.
    Default,
    /// Positions divided by `factor`, Chen et al. 2023, arXiv:2306.15595.
    Linear { factor: f64 },
    /// Long wavelengths divided by `factor`, short ones kept, a ramp between (the Llama 3.1 model card).
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position: usize },
    /// Peng et al. 2023, arXiv:2309.00071.
    Yarn(YarnSpec),
    /// Each frequency divided by its own number, as GGUF files store the scaling of Llama 3.
    Divided { factors: Vec<f32> },
}

#[derive(Debug, Clone, PartialEq)]
pub struct YarnSpec {
    pub factor: f64,
    pub beta_fast: f64,
    pub beta_slow: f64,
    pub original_max_position: usize,
    /// What cosine and sine are multiplied with.
    pub attention_factor: f64,
    /// Whether the ramp's ends are rounded outwards to whole dimensions.
    pub truncate: bool,
}

/// What of the rest of the configuration the rotary embedding depends on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeContext {
    pub(crate) head_dim: usize,
    pub(crate) max_position: usize,
    pub(crate) dialect: RopeDialect,
}

/// How a family's own implementation reads the same fields.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeDialect {
    /// The base where the file gives none.
    pub(crate) theta: f64,
    pub(crate) partial: PartialRotary,
    pub(crate) temperature: Temperature,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PartialRotary {
    /// Whole heads turn, whatever the file says; so a file that says something else is refused.
    WholeHeads,
    /// The share of a head that turns where the file gives none.
    Honoured(f64),
}

/// Whether the family's attention has a temperature, which is written among the rotary parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Temperature {
    Unknown,
    Honoured,
}

impl RopeDialect {
    pub(crate) const LLAMA: Self =
        Self { theta: 10_000.0, partial: PartialRotary::WholeHeads, temperature: Temperature::Unknown };
}

/// Reads `rope_theta`, `rope_scaling`, `rope_parameters` and `partial_rotary_factor` of `fields`.
pub(crate) fn read_rope(
    fields: &mut Fields<'_>,
    context: RopeContext,
) -> Result<(RopeSpec, Option<TemperatureSpec>), ModelError> {
    let outer_theta = fields.optional_number("rope_theta", limits::ROPE_THETA)?;
    let outer_partial = fields.optional_number("partial_rotary_factor", 0.0..=1.0)?;
    let outer_original = fields.optional_count("original_max_position_embeddings", limits::MAX_POSITION)?;
    let old_style = fields.object("rope_scaling")?;
    let new_style = fields.object("rope_parameters")?;
    if old_style.is_some() && new_style.is_some() {
        return Err(fields.refuse("rope_scaling", "given beside rope_parameters; keep one of the two"));
    }
    let (mut theta, mut partial) = (outer_theta, outer_partial);
    let (mut scaling, mut temperature) = (RopeScaling::Default, None);
    if let Some(mut inner) = new_style.or(old_style) {
        theta = inner.optional_number("rope_theta", limits::ROPE_THETA)?.or(theta);
        partial = inner.optional_number("partial_rotary_factor", 0.0..=1.0)?.or(partial);
        scaling = read_scaling(&mut inner, outer_original, context)?;
        temperature = read_temperature(&mut inner, context)?;
        inner.finish()?;
    }
    let dim = rotated_dim(fields, partial, context)?;
    let theta = theta.unwrap_or(context.dialect.theta);
    Ok((RopeSpec { dim, style: RopeStyle::Half, theta, scaling }, temperature))
}

/// The rotary parameters of one kind of layer, where a family has an object for each kind inside of `outer`.
pub(crate) fn read_rope_object(
    outer: &Fields<'_>,
    inner: Option<Fields<'_>>,
    context: RopeContext,
) -> Result<RopeSpec, ModelError> {
    let dim = rotated_dim(outer, None, context)?;
    let (style, mut theta, mut scaling) = (RopeStyle::Half, context.dialect.theta, RopeScaling::Default);
    if let Some(mut inner) = inner {
        theta = inner.optional_number("rope_theta", limits::ROPE_THETA)?.unwrap_or(theta);
        scaling = read_scaling(&mut inner, None, context)?;
        inner.finish()?;
    }
    Ok(RopeSpec { dim, style, theta, scaling })
}

fn rotated_dim(fields: &Fields<'_>, partial: Option<f64>, context: RopeContext) -> Result<usize, ModelError> {
    let default = match context.dialect.partial {
        PartialRotary::WholeHeads => 1.0,
        PartialRotary::Honoured(share) => share,
    };
    let dim = (context.head_dim as f64 * partial.unwrap_or(default)) as usize;
    if dim < 2 || !dim.is_multiple_of(2) {
        let problem = format!("{dim} rotated elements of {} must be an even number above 0", context.head_dim);
        return Err(fields.refuse(if partial.is_some() { "partial_rotary_factor" } else { "head_dim" }, problem));
    }
    if dim < context.head_dim && context.dialect.partial == PartialRotary::WholeHeads {
        // The reference implementation of these families rotates whole heads, whatever the factor says.
        return Err(fields.refuse("partial_rotary_factor", "only 1.0 is supported for this architecture"));
    }
    Ok(dim)
}

fn read_temperature(fields: &mut Fields<'_>, context: RopeContext) -> Result<Option<TemperatureSpec>, ModelError> {
    if context.dialect.temperature == Temperature::Unknown {
        return Ok(None);
    }
    fields.neutral("max_position_embeddings", &[context.max_position.into()], "it contradicts the outer one")?;
    let Some(beta) = fields.optional_number("llama_4_scaling_beta", limits::TEMPERATURE_BETA)? else { return Ok(None) };
    let original_max_position = fields.count("original_max_position_embeddings", limits::MAX_POSITION)?;
    Ok(Some(TemperatureSpec { beta, original_max_position }))
}

impl RopeSpec {
    /// `[dim / 2]` angles per position, f32, each step rounded as the reference implementation rounds it.
    pub fn inv_freq(&self) -> Vec<f32> {
        let plain = self.plain_inv_freq();
        match &self.scaling {
            RopeScaling::Default => plain,
            RopeScaling::Linear { factor } => plain.into_iter().map(|freq| freq / *factor as f32).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let context = *original_max_position as f64;
                let (low, high) = (*low_freq_factor, *high_freq_factor);
                plain.into_iter().map(|freq| llama3_frequency(freq, *factor, low, high, context)).collect()
            }
            RopeScaling::Yarn(yarn) => self.yarn_inv_freq(yarn, &plain),
            RopeScaling::Divided { factors } => plain.iter().zip(factors).map(|(freq, factor)| freq / factor).collect(),
        }
    }

    /// What cosine and sine are multiplied with.
    pub fn attention_scaling(&self) -> f32 {
        match &self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
            _ => 1.0,
        }
    }

    fn plain_inv_freq(&self) -> Vec<f32> {
        (0..self.dim).step_by(2).map(|i| 1.0 / self.wavelength(i)).collect()
    }

    /// `theta ^ (i / dim)`
    fn wavelength(&self, i: usize) -> f32 {
        let exponent = i as f32 / self.dim as f32;
        f64::from(self.theta as f32).powf(f64::from(exponent)) as f32
    }

    /// Equation 23 of the paper: per dimension, a mix of the interpolated and the plain frequency.
    fn yarn_inv_freq(&self, yarn: &YarnSpec, plain: &[f32]) -> Vec<f32> {
        let (low, high) = self.yarn_range(yarn);
        let width = if low == high { 0.001 } else { high - low };
        let ramp = |i: usize| ((i as f32 - low as f32) / width as f32).clamp(0.0, 1.0);
        let interpolated = |i: usize| 1.0 / (yarn.factor as f32 * self.wavelength(2 * i));
        plain.iter().enumerate().map(|(i, freq)| interpolated(i) * ramp(i) + freq * (1.0 - ramp(i))).collect()
    }

    /// The dimensions between which the ramp runs.
    fn yarn_range(&self, yarn: &YarnSpec) -> (f64, f64) {
        let dim = self.dim as f64;
        let turns = |rotations: f64| {
            let context = yarn.original_max_position as f64;
            dim * (context / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * self.theta.ln())
        };
        let (low, high) = (turns(yarn.beta_fast), turns(yarn.beta_slow));
        let (low, high) = if yarn.truncate { (low.floor(), high.ceil()) } else { (low, high) };
        (low.max(0.0), high.min(dim - 1.0))
    }
}

fn read_scaling(
    fields: &mut Fields<'_>,
    outer_original: Option<usize>,
    context: RopeContext,
) -> Result<RopeScaling, ModelError> {
    let kind = match (fields.text("rope_type")?, fields.text("type")?) {
        (Some(new), Some(old)) if new != old => {
            return Err(fields.refuse("type", format!("{old} contradicts rope_type {new}; keep one of the two")));
        }
        (new, old) => new.or(old).unwrap_or("default"),
    };
    if kind == "default" {
        // Written by some exporters beside kind "default", where it means nothing.
        fields.ignore(&["factor", "original_max_position_embeddings"]);
        return Ok(RopeScaling::Default);
    }
    let original = fields.optional_count("original_max_position_embeddings", limits::MAX_POSITION)?;
    let original = outer_original.or(original);
    let original_max_position = original.unwrap_or(context.max_position);
    match kind {
        "linear" => Ok(RopeScaling::Linear { factor: fields.number("factor", limits::ROPE_FACTOR)? }),
        "dynamic" => {
            fields.number("factor", limits::ROPE_FACTOR)?;
            Ok(RopeScaling::Default)
        }
        "llama3" => read_llama3(fields, original),
        "yarn" => read_yarn(fields, original_max_position, context).map(RopeScaling::Yarn),
        other => {
            let key = if fields.text("rope_type")?.is_some() { "rope_type" } else { "type" };
            let supported = "default, linear, dynamic, llama3, yarn";
            Err(fields.refuse(key, format!("{other:.80} is not supported; supported: {supported}")))
        }
    }
}

fn read_llama3(fields: &mut Fields<'_>, original: Option<usize>) -> Result<RopeScaling, ModelError> {
    let factor = fields.number("factor", limits::ROPE_FACTOR)?;
    let low_freq_factor = fields.number("low_freq_factor", limits::ROPE_FACTOR)?;
    let high_freq_factor = fields.number("high_freq_factor", limits::ROPE_FACTOR)?;
    if high_freq_factor <= low_freq_factor {
        return Err(fields.refuse("high_freq_factor", "must be above low_freq_factor"));
    }
    let Some(original_max_position) = original else {
        let problem = "missing; the frequencies of kind llama3 depend on it";
        return Err(fields.refuse("original_max_position_embeddings", problem));
    };
    Ok(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position })
}

fn read_yarn(
    fields: &mut Fields<'_>,
    original_max_position: usize,
    context: RopeContext,
) -> Result<YarnSpec, ModelError> {
    const BETA: std::ops::RangeInclusive<f64> = 0.0..=1e6;
    let written = fields.optional_number("factor", limits::ROPE_FACTOR)?;
    let factor = written.unwrap_or(context.max_position as f64 / original_max_position as f64);
    let mscale = fields.optional_number("mscale", 0.0..=1e3)?.filter(|&scale| scale != 0.0);
    let mscale_all_dim = fields.optional_number("mscale_all_dim", 0.0..=1e3)?.filter(|&scale| scale != 0.0);
    let inferred = match (mscale, mscale_all_dim) {
        (Some(mscale), Some(all_dim)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim),
        _ => yarn_mscale(factor, 1.0),
    };
    let attention_factor = fields.optional_number("attention_factor", limits::ROPE_FACTOR)?.unwrap_or(inferred);
    let beta = |written: Option<f64>, default| written.filter(|&beta| beta != 0.0).unwrap_or(default);
    Ok(YarnSpec {
        factor,
        beta_fast: beta(fields.optional_number("beta_fast", BETA)?, 32.0),
        beta_slow: beta(fields.optional_number("beta_slow", BETA)?, 1.0),
        original_max_position,
        attention_factor,
        truncate: fields.flag("truncate", true)?,
    })
}

pub(crate) fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

fn llama3_frequency(freq: f32, factor: f64, low: f64, high: f64, context: f64) -> f32 {
    let wavelength = 2.0 * std::f32::consts::PI / freq;
    let divided = freq / factor as f32;
    if wavelength > (context / low) as f32 {
        return divided;
    }
    if wavelength < (context / high) as f32 {
        return freq;
    }
    let smooth = (context as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * freq / factor as f32 + smooth * freq
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;

    /// `tests/fixtures/make.py` writes the cases.
    #[test]
    fn frequencies_are_those_of_the_reference_implementation() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/fixtures/rope.json")).unwrap();
        assert!(cases.len() >= 9);
        for case in cases {
            let mut fields = Fields::new(Path::new("config.json"), case["config"].as_object().unwrap());
            let head_dim = fields.count("head_dim", limits::HEAD_DIM).unwrap();
            let max_position = fields.count("max_position_embeddings", limits::MAX_POSITION).unwrap();
            let context = RopeContext { head_dim, max_position, dialect: RopeDialect::LLAMA };
            let (rope, _) = read_rope(&mut fields, context).unwrap();
            fields.finish().unwrap();
            let expected: Vec<f64> =
                case["inv_freq"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            let found = rope.inv_freq();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!((f64::from(*found) / expected - 1.0).abs() < 3e-7, "{found} {expected}: {}", case["config"]);
            }
            let scaling = case["attention_scaling"].as_f64().unwrap();
            assert!((f64::from(rope.attention_scaling()) - scaling).abs() < 1e-6, "{}", case["config"]);
        }
    }
}
