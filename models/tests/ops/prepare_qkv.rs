use candle_core::{Device, Tensor};
use passerelle_models::input::SequenceInput;
use passerelle_models::ops::{
    AttentionParams, AttentionPlan, Compute, QkNorm, QkvPreparation, RotaryEmbedding, paged_attention, prepare_qkv,
};
use passerelle_models::{BlockId, KvCache, KvCacheSpec, KvFormat, KvGroup, ModelInput};

use super::{Random, check};

const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const BLOCK: usize = 16;
/// Of which the first are computed in a step before the others.
const TOKENS: usize = 75;
const COMPUTED: usize = 20;

/// What a layer may have between its product and attention.
struct Parts {
    bias: Option<Tensor>,
    /// Weights and biases of queries and keys.
    norms: Option<[(Tensor, Option<Tensor>); 2]>,
    rotary: Option<RotaryEmbedding>,
}

/// The queries of the second step, and what they get of the keys and values that both steps have stored.
fn prepared(compute: &Compute, qkv: &Tensor, parts: &Parts, head_dim: usize) -> Tensor {
    let spec = KvCacheSpec {
        groups: vec![KvGroup::full(1)],
        num_kv_heads: KV_HEADS,
        head_dim,
        format: KvFormat::F32,
        block_size: BLOCK,
    };
    let table = [[3, 0, 4, 1, 2].map(BlockId).to_vec()];
    let mut cache = KvCache::new(spec, table[0].len(), &Device::Cpu).unwrap();
    let mut queries = None;
    for tokens in [0..COMPUTED, COMPUTED..TOKENS] {
        let ids = vec![0; tokens.len()];
        let sequence = SequenceInput { tokens: &ids, num_computed: tokens.start, block_tables: &table, sample: &[] };
        let input = ModelInput::new(BLOCK, &[sequence]).unwrap();
        let plan = AttentionPlan::new(&input);
        let angles = parts.rotary.as_ref().map(|rotary| rotary.angles(compute, input.positions()).unwrap());
        let preparation = QkvPreparation {
            num_heads: HEADS,
            bias: parts.bias.as_ref(),
            norms: parts.norms.as_ref().map(|[q, k]| (norm(q), norm(k))),
            angles: angles.as_ref(),
        };
        let rows = qkv.narrow(0, tokens.start, tokens.len()).unwrap();
        let layer = cache.layer_mut(0);
        let q = prepare_qkv(compute, rows.into(), &preparation, &plan, layer).unwrap();
        let attended = paged_attention(compute, &q, layer, &plan, &AttentionParams::causal(0.3)).unwrap();
        queries = Some((q.into_tensor().unwrap(), attended.into_tensor().unwrap()));
    }
    let (q, attended) = queries.unwrap();
    Tensor::cat(&[q.flatten_from(1).unwrap(), attended], 1).unwrap()
}

fn norm((weight, bias): &(Tensor, Option<Tensor>)) -> QkNorm<'_> {
    QkNorm { weight, bias: bias.as_ref(), eps: 1e-5 }
}

#[test]
fn what_stands_before_attention_equals_the_ops_that_it_is_made_of() {
    for head_dim in [8, 24, 64] {
        let (q_width, kv_width) = (HEADS * head_dim, KV_HEADS * head_dim);
        let mut random = Random(head_dim as u64);
        let qkv = random.tensor(&[TOKENS, q_width + 2 * kv_width]);
        let bias = random.tensor(&[q_width + 2 * kv_width]);
        let mut vectors = |widths: [usize; 2]| widths.map(|width| random.tensor(&[width]));
        let of_heads = vectors([head_dim; 2]).map(|weight| (weight, None));
        let of_tokens = vectors([q_width, kv_width]).map(|weight| (weight, None));
        let with_biases = vectors([q_width, kv_width]).map(|weight| (weight.clone(), Some(weight)));
        for turned in [0, head_dim / 2, head_dim] {
            let frequencies = (0..turned / 2).map(|i| 10_000f32.powf(-2.0 * i as f32 / turned as f32));
            let rotary = (turned > 0).then(|| RotaryEmbedding::new(frequencies.collect(), 1.0));
            for (index, norms) in [None, Some(&of_heads), Some(&of_tokens), Some(&with_biases)].into_iter().enumerate()
            {
                for bias in [None, Some(&bias)] {
                    let parts = Parts { bias: bias.cloned(), norms: norms.cloned(), rotary: rotary.clone() };
                    let case = format!("heads of {head_dim}, {turned} turned, norms {index}, bias {}", bias.is_some());
                    check(&case, 2e-5, |compute| prepared(compute, &qkv, &parts, head_dim));
                }
            }
        }
    }
}
