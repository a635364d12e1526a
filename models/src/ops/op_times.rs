//! Where the time of steps goes, by op.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// An op, as a profile names it. Sums of two matrices and copies have no name of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Embedding,
    Norm,
    Linear,
    Rope,
    StoreKv,
    PrepareQkv,
    Attention,
    /// Where it is an op of its own: a product whose outputs are gates has it in its time.
    GateMul,
    Activation,
    GatherRows,
    PoolRows,
    Choose,
}

impl Op {
    pub const ALL: [Self; 12] = [
        Self::Embedding,
        Self::Norm,
        Self::Linear,
        Self::Rope,
        Self::StoreKv,
        Self::PrepareQkv,
        Self::Attention,
        Self::GateMul,
        Self::Activation,
        Self::GatherRows,
        Self::PoolRows,
        Self::Choose,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Norm => "norm",
            Self::Linear => "linear",
            Self::Rope => "rope",
            Self::StoreKv => "store_kv",
            Self::PrepareQkv => "prepare_qkv",
            Self::Attention => "attention",
            Self::GateMul => "gate_mul",
            Self::Activation => "activation",
            Self::GatherRows => "gather_rows",
            Self::PoolRows => "pool_rows",
            Self::Choose => "choose",
        }
    }
}

/// Adds up what each op takes from its call to its return, by a clock that the caller brings.
pub struct OpTimes {
    now: Box<dyn Fn() -> Duration + Send + Sync>,
    nanoseconds: [AtomicU64; Op::ALL.len()],
}

impl OpTimes {
    /// `now` never goes back.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { now: Box::new(now), nanoseconds: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Of all calls so far.
    pub fn total(&self, op: Op) -> Duration {
        Duration::from_nanos(self.nanoseconds[op as usize].load(Ordering::Relaxed))
    }

    pub(super) fn start(&self, op: Op) -> OpTimer<'_> {
        OpTimer { times: self, op, began: (self.now)() }
    }
}

impl fmt::Debug for OpTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(Op::ALL.map(|op| (op.name(), self.total(op)))).finish()
    }
}

/// A call under way, added to its op when it is dropped.
pub(super) struct OpTimer<'a> {
    times: &'a OpTimes,
    op: Op,
    began: Duration,
}

impl Drop for OpTimer<'_> {
    fn drop(&mut self) {
        let spent = (self.times.now)().saturating_sub(self.began);
        self.times.nanoseconds[self.op as usize].fetch_add(spent.as_nanos() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{DType, Device, Tensor};

    use super::*;
    use crate::ops::{Compute, Gate, gate_mul, rms_norm};

    #[test]
    fn each_call_is_added_to_its_own_op() {
        let reads = AtomicU64::new(0);
        let times = Arc::new(OpTimes::new(move || Duration::from_millis(reads.fetch_add(1, Ordering::Relaxed))));
        let compute = Compute::cpu(1).timed(Arc::clone(&times));
        let ones = |shape: &[usize]| Tensor::ones(shape, DType::F32, &Device::Cpu).expect("memory for ones");
        rms_norm(&compute, &ones(&[2, 8]), &ones(&[8]), 1e-5).expect("shapes fit");
        rms_norm(&compute, &ones(&[1, 8]), &ones(&[8]), 1e-5).expect("shapes fit");
        gate_mul(&compute, &ones(&[1, 8]), Gate::Silu).expect("shapes fit");
        let spent = Op::ALL.map(|op| times.total(op).as_millis());
        let expected = Op::ALL.map(|op| match op {
            Op::Norm => 2,
            Op::GateMul => 1,
            _ => 0,
        });
        assert_eq!(spent, expected);
    }
}
