//! Listens to an engine's steps for the stream to the gateway.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use passerelle_engine::{StepObserver, StepReport};
use tokio::sync::Notify;

/// Steps that are told one by one. While the gateway does not listen, further ones are told as one.
pub(super) const MAX_REPORTS: usize = 256;

/// Of one engine.
#[derive(Debug)]
pub struct StepTap {
    reports: Mutex<Vec<StepReport>>,
    bell: Arc<Notify>,
}

impl StepTap {
    /// `bell` is rung after each step, when its tokens are with their readers.
    pub fn new(bell: Arc<Notify>) -> Self {
        Self { reports: Mutex::default(), bell }
    }

    /// Since the last time.
    pub(super) fn take(&self) -> Vec<StepReport> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StepReport>> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StepObserver for StepTap {
    fn step(&self, report: &StepReport) {
        let mut reports = self.lock();
        if reports.len() < MAX_REPORTS {
            reports.push(report.clone());
        } else if let Some(last) = reports.last_mut() {
            *last = together(last, report);
        }
    }

    fn concluded(&self) {
        self.bell.notify_one();
    }
}

/// What was done adds up; what stands is as it is after the later one.
fn together(first: &StepReport, then: &StepReport) -> StepReport {
    StepReport {
        duration: first.duration + then.duration,
        num_sequences: first.num_sequences.max(then.num_sequences),
        prompt_tokens: first.prompt_tokens + then.prompt_tokens,
        generated_tokens: first.generated_tokens + then.generated_tokens,
        preemptions: first.preemptions + then.preemptions,
        failures: first.failures + then.failures,
        prefix_query_tokens: first.prefix_query_tokens + then.prefix_query_tokens,
        prefix_hit_tokens: first.prefix_hit_tokens + then.prefix_hit_tokens,
        ..then.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_lost_to_the_count_while_the_gateway_does_not_listen() {
        let tap = StepTap::new(Arc::default());
        let steps = MAX_REPORTS + 50;
        for step in 0..steps {
            tap.step(&StepReport { generated_tokens: 2, free_blocks: step, ..StepReport::default() });
        }
        let reports = tap.take();
        assert_eq!(reports.len(), MAX_REPORTS);
        assert_eq!(reports.iter().map(|report| report.generated_tokens).sum::<usize>(), 2 * steps);
        assert_eq!(reports.last().map(|report| report.free_blocks), Some(steps - 1));
        assert!(tap.take().is_empty());
    }
}
