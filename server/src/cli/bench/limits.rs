//! What this machine can do in a second: the limits of reading prompts and of generating.

use std::time::Duration;

use anyhow::Result;
use passerelle_engine::clock::Clock;
use passerelle_models::ops::{Compute, LimitProbe};
use passerelle_models::selftest::Work;
use passerelle_models::{KvCacheSpec, ModelDescription};

const ROUNDS: usize = 5;

/// Measured with the threads and the instructions that run the model, or on its GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Read from memory; of a GPU read and written by copies.
    pub(crate) bytes_per_s: f64,
    /// Of multiply-adds between registers, two operations each, of f32 or, where the model's products are, of bf16 or integers
    /// of 16 or 8 bits; of a GPU by products of large matrices in bf16.
    pub(crate) operations_per_s: f64,
}

/// What steps cost at least. The products of attention come on top, and are left out.
#[derive(Debug, Clone)]
pub(super) struct ModelCost {
    /// Read once by every step.
    pub(super) weight_bytes: u64,
    /// Keys and values are read by every token that looks at them.
    pub(super) kv_cache: KvCacheSpec,
    /// Multiplied with every token.
    pub(super) layer_parameters: u64,
    /// Multiplied with every token that is sampled from.
    pub(super) head_parameters: u64,
}

/// What some steps did together.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Steps {
    pub(super) count: usize,
    /// That ran through the layers.
    pub(super) tokens: usize,
    pub(super) sampled: usize,
    /// Of keys and values.
    pub(super) kv_bytes: u64,
}

impl Limits {
    /// The best of a few rounds each.
    pub(crate) fn measure(compute: &Compute, is_quantised: bool, clock: &dyn Clock) -> Result<Self> {
        let probe = LimitProbe::new(compute)?;
        let (read_time, bytes) = quickest(clock, || Ok(probe.move_memory()?))?;
        let (time, operations) = quickest(clock, || Ok(probe.multiply(is_quantised)?))?;
        Ok(Self { bytes_per_s: rate(bytes, read_time), operations_per_s: rate(operations, time) })
    }

    /// Seconds that `work` takes at least.
    pub(crate) fn least(&self, work: Work) -> f64 {
        (work.bytes as f64 / self.bytes_per_s).max(work.operations as f64 / self.operations_per_s)
    }

    /// Seconds of `steps`.
    pub(super) fn seconds(&self, cost: &ModelCost, steps: Steps) -> f64 {
        let bytes = steps.count as f64 * cost.weight_bytes as f64 + steps.kv_bytes as f64;
        let products =
            steps.tokens as f64 * cost.layer_parameters as f64 + steps.sampled as f64 * cost.head_parameters as f64;
        (bytes / self.bytes_per_s).max(2.0 * products / self.operations_per_s)
    }
}

impl ModelCost {
    pub(super) fn of(model: &ModelDescription, kv_cache: KvCacheSpec) -> Self {
        let table = (model.vocab_size * model.hidden_size) as u64;
        let num_tables = if model.tied_embeddings { 1 } else { 2 };
        Self {
            weight_bytes: model.resident_bytes.unwrap_or(model.stored_bytes) - model.scratch_bytes,
            kv_cache,
            layer_parameters: model.num_parameters.saturating_sub(num_tables * table),
            head_parameters: table,
        }
    }
}

/// The quickest of a few rounds, and what it gave.
pub(crate) fn quickest<T>(clock: &dyn Clock, mut run: impl FnMut() -> Result<T>) -> Result<(Duration, T)> {
    let mut timed = || {
        let began = clock.now();
        let result = run()?;
        Ok::<_, anyhow::Error>((clock.now() - began, result))
    };
    let mut best = timed()?;
    for _ in 1..ROUNDS {
        let next = timed()?;
        if next.0 < best.0 {
            best = next;
        }
    }
    Ok(best)
}

fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(f64::EPSILON)
}

#[cfg(test)]
mod tests {
    use passerelle_models::{KvFormat, KvGroup};

    use super::*;

    #[test]
    fn a_step_takes_as_long_as_its_reads_or_its_products_whichever_is_more() {
        let limits = Limits { bytes_per_s: 100.0, operations_per_s: 1000.0 };
        let kv_cache = KvCacheSpec {
            groups: vec![KvGroup::full(1)],
            num_kv_heads: 1,
            head_dim: 16,
            format: KvFormat::F32,
            block_size: 16,
        };
        let cost = ModelCost { weight_bytes: 50, kv_cache, layer_parameters: 10, head_parameters: 5 };
        let one = Steps { count: 1, tokens: 1, sampled: 1, kv_bytes: 0 };
        assert_eq!(limits.seconds(&cost, one), 0.5);
        assert_eq!(limits.seconds(&cost, Steps { kv_bytes: 25, ..one }), 0.75);
        assert_eq!(limits.seconds(&cost, Steps { tokens: 100, sampled: 100, ..one }), 3.0);
        assert_eq!(limits.seconds(&cost, Steps { tokens: 100, sampled: 0, ..one }), 2.0);
        assert_eq!(limits.least(Work { bytes: 50, operations: 100 }), 0.5);
        assert_eq!(limits.least(Work { bytes: 50, operations: 4000 }), 4.0);
    }
}
