use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A sign of life: a count that moves while a model computes, many times in each step. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    pub fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
