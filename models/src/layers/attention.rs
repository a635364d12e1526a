use std::ops::Range;

use super::linear::Linear;
use super::names::{LayerNames, QkvNames, RotaryRows};
use super::norm::Norm;
use super::positions::{Angles, Positions};
use crate::ModelError;
use crate::config::{AttentionSpec, PositionSpec, QkNormScope, RopeSpec, alibi_slopes};
use crate::kv_cache::KvLayer;
use crate::ops::{
    self, AttentionContext, AttentionParams, AttentionPlan, Compute, Float, Matrix, PositionTemperature,
    QkvPreparation, QueryRows,
};
use crate::weights::{MatrixPart, WeightLoader};

/// Grouped-query attention over the paged cache.
#[derive(Debug)]
pub(super) struct Attention {
    /// Query, key and value in one product.
    qkv: Linear,
    /// Of queries and of keys.
    qk_norm: Option<(Norm, Norm)>,
    output: Linear,
    num_heads: usize,
    /// Which of the step's rotary angles turn queries and keys; `None` where nothing does.
    rotary: Option<usize>,
    params: AttentionParams,
}

/// What every layer of one step shares.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) compute: &'a Compute,
    pub(super) plan: &'a AttentionPlan<'a>,
    pub(super) angles: Angles,
}

impl Attention {
    pub(super) fn load(
        loader: &mut WeightLoader<'_>,
        names: &LayerNames<'_>,
        hidden_size: usize,
        spec: &AttentionSpec,
        positions: &mut Positions,
    ) -> Result<Self, ModelError> {
        let output = [MatrixPart::whole(names.path(names.names.attention_output), hidden_size)];
        Ok(Self {
            qkv: Linear::load(loader, hidden_size, &qkv_parts(names, spec), spec.qkv_bias)?,
            qk_norm: load_qk_norm(loader, names, spec)?,
            output: Linear::load(loader, spec.num_heads * spec.head_dim, &output, spec.output_bias)?,
            num_heads: spec.num_heads,
            rotary: positions.index_of(&spec.position)?,
            params: params(spec),
        })
    }

    /// `[m, hidden]` to `[m, hidden]`. Keys and values go through the cache, also those of this step.
    pub(super) fn forward(&self, step: &Step<'_>, x: &Matrix, cache: &mut KvLayer) -> Result<Matrix, ModelError> {
        let (qkv, bias) = self.qkv.forward_before_bias(step.compute, x)?;
        let preparation = QkvPreparation {
            num_heads: self.num_heads,
            bias,
            norms: self.qk_norm.as_ref().map(|(q, k)| (q.of_heads(), k.of_heads())),
            angles: self.rotary.map(|index| step.angles.get(index)),
        };
        let q = ops::prepare_qkv(step.compute, qkv, &preparation, step.plan, cache)?;
        let context = AttentionContext { layer: cache, plan: step.plan, params: &self.params };
        let attended = ops::attended(step.compute, q.queries()?, context, self.output.takes())?;
        drop(q);
        self.output.forward(step.compute, &attended)
    }

    /// What it takes its rows as without rounding them first.
    pub(super) fn takes(&self) -> Float {
        self.qkv.takes()
    }

    pub(super) fn size_bytes(&self) -> usize {
        let norms = self.qk_norm.as_ref().map_or(0, |(q, k)| q.size_bytes() + k.size_bytes());
        self.qkv.size_bytes() + norms + self.output.size_bytes()
    }
}

fn params(spec: &AttentionSpec) -> AttentionParams {
    AttentionParams {
        scale: spec.scale,
        direction: spec.direction,
        window: spec.window,
        alibi_slopes: matches!(spec.position, PositionSpec::Alibi).then(|| alibi_slopes(spec.num_heads).into()),
        soft_cap: None,
        sinks: None,
        temperature: spec.temperature.map(|temperature| PositionTemperature {
            beta: temperature.beta as f32,
            interval: temperature.original_max_position,
        }),
    }
}

/// All queries, then all keys, then all values.
fn qkv_parts(names: &LayerNames<'_>, spec: &AttentionSpec) -> Vec<MatrixPart> {
    let (query_size, kv_size) = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim);
    let whole = |name: &str, rows| MatrixPart::whole(names.path(name), rows);
    match names.names.qkv {
        QkvNames::Separate { query, key, value } => vec![
            MatrixPart { pieces: rotary_pieces(names, spec, spec.num_heads), ..whole(query, query_size) },
            MatrixPart { pieces: rotary_pieces(names, spec, spec.num_kv_heads), ..whole(key, kv_size) },
            whole(value, kv_size),
        ],
        QkvNames::Stacked(name) => vec![whole(name, query_size + 2 * kv_size)],
        QkvNames::PerHead(name) => {
            let head = |third: usize, head: usize| {
                let start = (3 * head + third) * spec.head_dim;
                start..start + spec.head_dim
            };
            let pieces = (0..3).flat_map(|third| (0..spec.num_heads).map(move |index| head(third, index))).collect();
            vec![MatrixPart { name: names.path(name), rows: 3 * query_size, pieces }]
        }
    }
}

/// The rows of queries or keys in the order in which they are turned: those that turn together half the turned size apart.
fn rotary_pieces(names: &LayerNames<'_>, spec: &AttentionSpec, num_heads: usize) -> Vec<Range<usize>> {
    let turned = match (&spec.position, names.names.rotary_rows) {
        (PositionSpec::Rope(RopeSpec { dim, .. }), RotaryRows::Pairs) => *dim,
        _ => return std::iter::once(0..num_heads * spec.head_dim).collect(),
    };
    let half = turned / 2;
    let stored = |row: usize| match row {
        row if row < half => 2 * row,
        row if row < turned => 2 * (row - half) + 1,
        row => row,
    };
    let rows = (0..num_heads).flat_map(|head| (0..spec.head_dim).map(move |row| head * spec.head_dim + stored(row)));
    rows.map(|row| row..row + 1).collect()
}

fn load_qk_norm(
    loader: &mut WeightLoader<'_>,
    names: &LayerNames<'_>,
    spec: &AttentionSpec,
) -> Result<Option<(Norm, Norm)>, ModelError> {
    let Some(qk_norm) = spec.qk_norm else { return Ok(None) };
    let (query_width, key_width) = match qk_norm.scope {
        QkNormScope::Head => (spec.head_dim, spec.head_dim),
        QkNormScope::Token => (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim),
    };
    let query = Norm::load(loader, &names.path(names.names.query_norm), query_width, qk_norm.norm)?;
    let key = Norm::load(loader, &names.path(names.names.key_norm), key_width, qk_norm.norm)?;
    Ok(Some((query, key)))
}
