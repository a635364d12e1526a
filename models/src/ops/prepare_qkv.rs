//! What stands between the merged product of queries, keys and values and attention: the product's bias, norms of
//! queries and keys, rotary positions, and the keys and values written to the paged cache. One op on a CPU and on a GPU; the
//! reference is the ops that it is made of, one after the other, each as its own file has it.

use candle_core::Tensor;

use super::cpu::norm::NormWeights;
use super::{
    AttentionPlan, Compute, KernelSet, LayerNormParams, Matrix, Op, Operand, Queries, RotaryAngles, cpu, layer_norm,
    rms_norm, rope, store_kv,
};
use crate::ModelError;
use crate::kv_cache::KvLayer;

/// What a layer does to its queries and keys.
#[derive(Debug, Clone, Copy)]
pub struct QkvPreparation<'a> {
    pub num_heads: usize,
    /// Of the merged product, where it is still to be added ([`super::linear_before_bias`]).
    pub bias: Option<&'a Tensor>,
    /// Of queries and of keys.
    pub norms: Option<(QkNorm<'a>, QkNorm<'a>)>,
    pub angles: Option<&'a RotaryAngles>,
}

/// A norm over each head, or over all heads of a token: `weight` says which, `[head_dim]` or `[heads * head_dim]` f32.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm<'a> {
    pub weight: &'a Tensor,
    /// Of a layer norm, which takes all heads of a token; without it the norm is a root-mean-square norm.
    pub bias: Option<&'a Tensor>,
    pub eps: f32,
}

/// `qkv [m, (num_heads + 2 * num_kv_heads) * head_dim] f32`, queries first, then keys, then values. Writes keys and
/// values to the slots of the plan's step in `layer` and returns the queries.
///
/// Errors when shapes do not fit, or a slot is outside the layer.
pub fn prepare_qkv(
    compute: &Compute,
    qkv: Matrix,
    preparation: &QkvPreparation<'_>,
    plan: &AttentionPlan<'_>,
    layer: &mut KvLayer,
) -> Result<Queries, ModelError> {
    preparation.check(&qkv, plan, layer)?;
    match compute.kernels() {
        KernelSet::Reference => {
            Queries::of_tensor(one_by_one(compute, qkv.view().tensor()?, preparation, plan, layer)?)
        }
        #[cfg(feature = "cuda")]
        KernelSet::Cuda => {
            let _timer = compute.time(Op::PrepareQkv);
            let qkv = qkv.view().tensor()?;
            Queries::of_tensor(super::cuda::qkv::prepare_qkv(compute, qkv, preparation, plan, layer)?)
        }
        _ => {
            let _timer = compute.time(Op::PrepareQkv);
            cpu::prepare_qkv::prepare_qkv(compute, qkv, preparation, plan, layer)
        }
    }
}

impl<'a> QkNorm<'a> {
    pub(super) fn weights(&self) -> NormWeights<'a> {
        NormWeights { weight: self.weight, bias: self.bias, eps: self.eps }
    }
}

impl QkvPreparation<'_> {
    fn check(&self, qkv: &Matrix, plan: &AttentionPlan<'_>, layer: &KvLayer) -> Result<(), ModelError> {
        let (m, width) = (qkv.num_rows(), qkv.width());
        let expected = (self.num_heads + 2 * layer.num_kv_heads()) * layer.head_dim();
        if m != plan.input().num_tokens() || width != expected {
            let tokens = plan.input().num_tokens();
            return Err(ModelError::Input(format!("{m} rows of {width} for {tokens} tokens of {expected}")));
        }
        if let Some(slot) = plan.input().slots(layer.group()).iter().find(|slot| slot.0 as usize >= layer.num_slots()) {
            return Err(ModelError::Input(format!("slot {} of {}", slot.0, layer.num_slots())));
        }
        let fits = |norm: &QkNorm<'_>, heads: usize| {
            let width = norm.weight.dims1()?;
            let is_layer_norm_of_a_head = norm.bias.is_some() && width != heads * layer.head_dim();
            let is_bias_of_another = norm.bias.is_some_and(|bias| bias.dims() != norm.weight.dims());
            let fits = width == layer.head_dim() || width == heads * layer.head_dim();
            if is_layer_norm_of_a_head || is_bias_of_another || !fits {
                return Err(ModelError::Input(format!("a norm of {width} for {heads} heads of {}", layer.head_dim())));
            }
            Ok(())
        };
        if let Some(bias) = self.bias.filter(|bias| bias.dims() != [expected]) {
            return Err(ModelError::Input(format!("a bias of {:?} for {expected} outputs", bias.dims())));
        }
        if let Some((q, k)) = &self.norms {
            fits(q, self.num_heads)?;
            fits(k, layer.num_kv_heads())?;
        }
        match self.angles.map(RotaryAngles::dims) {
            Some((rows, half)) if rows != m || 2 * half > layer.head_dim() => {
                Err(ModelError::Input(format!("{rows} rows of {half} angles for {m} heads of {}", layer.head_dim())))
            }
            _ => Ok(()),
        }
    }
}

fn one_by_one(
    compute: &Compute,
    qkv: &Tensor,
    preparation: &QkvPreparation<'_>,
    plan: &AttentionPlan<'_>,
    layer: &mut KvLayer,
) -> Result<Tensor, ModelError> {
    let head_dim = layer.head_dim();
    let (query_width, kv_width) = (preparation.num_heads * head_dim, layer.num_kv_heads() * head_dim);
    let qkv = match preparation.bias {
        Some(bias) => &qkv.broadcast_add(bias)?,
        None => qkv,
    };
    let placed = |x: Tensor, norm: Option<QkNorm<'_>>| {
        let x = match norm {
            Some(QkNorm { weight, bias: None, eps }) => rms_norm(compute, &x, weight, eps)?,
            Some(QkNorm { weight, bias: Some(bias), eps }) => {
                layer_norm(compute, &x, LayerNormParams { weight, bias, eps })?
            }
            None => x,
        };
        match preparation.angles {
            Some(angles) => rope(compute, &x, head_dim, angles),
            None => {
                let (m, width) = x.dims2()?;
                Ok(x.contiguous()?.reshape((m, width / head_dim, head_dim))?)
            }
        }
    };
    let (q_norm, k_norm) = preparation.norms.unzip();
    let q = placed(qkv.narrow(1, 0, query_width)?, q_norm)?;
    let k = placed(qkv.narrow(1, query_width, kv_width)?, k_norm)?;
    let v = qkv.narrow(1, query_width + kv_width, kv_width)?;
    store_kv(compute, &k, &v, plan.input().slots(layer.group()), layer)?;
    Ok(q)
}
