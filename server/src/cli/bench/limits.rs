//! What this machine can do in a second: the limits of reading prompts and of generating.

use std::time::Duration;

use anyhow::Result;
use passerelle_engine::clock::Clock;
use passerelle_models::ModelDescription;
use passerelle_models::ops::{Compute, LimitProbe};
use passerelle_models::selftest::Work;

const ROUNDS: usize = 5;

/// Measured with the threads and the instructions that run the model, or on its GPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Read from memory; of a GPU read and written by copies.
    pub(crate) bytes_per_s: f64,
    /// Of multiply-adds between registers, two operations each, of f32 or, where the model's products are, of bf16 or 16-bit
    /// integers; of a GPU by products of large matrices in bf16.
    pub(crate) operations_per_s: f64,
}

/// What steps cost at least. Attention comes on top, and is left out: it depends on the lengths.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelCost {
    /// Read once by every step.
    pub(super) weight_bytes: u64,
    /// Multiplied with every token.
    pub(super) layer_parameters: u64,
    /// Multiplied with every token that is sampled from.
    pub(super) head_parameters: u64,
}

impl Limits {
    /// The best of a few rounds each.
    pub(crate) fn measure((compute, is_quantised): (&Compute, bool), clock: &dyn Clock) -> Result<Self> {
        let probe = LimitProbe::new(compute)?;
        let (read_time, bytes) = quickest(clock, || Ok(probe.move_memory()?))?;
        let (time, operations) = quickest(clock, || Ok(probe.multiply(is_quantised)?))?;
        Ok(Self { bytes_per_s: rate(bytes, read_time), operations_per_s: rate(operations, time) })
    }

    /// Seconds that `work` takes at least.
    pub(crate) fn least(&self, work: Work) -> f64 {
        (work.bytes as f64 / self.bytes_per_s).max(work.operations as f64 / self.operations_per_s)
    }

    /// Seconds of `steps` steps that run `tokens` tokens through the layers and sample `sampled`.
    pub(super) fn seconds(&self, cost: &ModelCost, steps: usize, (tokens, sampled): (usize, usize)) -> f64 {
        let read = steps as f64 * cost.weight_bytes as f64 / self.bytes_per_s;
        let products = tokens as f64 * cost.layer_parameters as f64 + sampled as f64 * cost.head_parameters as f64;
        read.max(2.0 * products / self.operations_per_s)
    }
}

impl ModelCost {
    pub(super) fn of(model: &ModelDescription) -> Self {
        let table = (model.vocab_size * model.hidden_size) as u64;
        let num_tables = if model.tied_embeddings { 1 } else { 2 };
        Self {
            weight_bytes: model.resident_bytes.unwrap_or(model.stored_bytes) - model.scratch_bytes,
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
    use super::*;

    #[test]
    fn a_step_takes_as_long_as_its_reads_or_its_products_whichever_is_more() {
        let limits = Limits { bytes_per_s: 100.0, operations_per_s: 1000.0 };
        let cost = ModelCost { weight_bytes: 50, layer_parameters: 10, head_parameters: 5 };
        assert_eq!(limits.seconds(&cost, 1, (1, 1)), 0.5);
        assert_eq!(limits.seconds(&cost, 1, (100, 100)), 3.0);
        assert_eq!(limits.seconds(&cost, 1, (100, 0)), 2.0);
        assert_eq!(limits.least(Work { bytes: 50, operations: 100 }), 0.5);
        assert_eq!(limits.least(Work { bytes: 50, operations: 4000 }), 4.0);
    }
}
