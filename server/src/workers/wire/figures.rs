//! What an engine tells of itself.

use std::time::Duration;

use passerelle_engine::{FaultCounts, StepReport};

use super::Report;

impl From<StepReport> for Report {
    fn from(report: StepReport) -> Self {
        Self {
            duration_ns: nanoseconds(report.duration),
            num_sequences: report.num_sequences as u64,
            prompt_tokens: report.prompt_tokens as u64,
            generated_tokens: report.generated_tokens as u64,
            preemptions: report.preemptions as u64,
            failures: report.failures.each().to_vec(),
            running: report.running as u64,
            waiting: report.waiting as u64,
            fair_share_gap_ns: nanoseconds(report.fair_share_gap),
            fair_share_bound_ns: nanoseconds(report.fair_share_bound),
            free_blocks: report.free_blocks as u64,
            total_blocks: report.total_blocks as u64,
            prefix_query_tokens: report.prefix_query_tokens,
            prefix_hit_tokens: report.prefix_hit_tokens,
        }
    }
}

impl From<Report> for StepReport {
    fn from(sent: Report) -> Self {
        Self {
            duration: Duration::from_nanos(sent.duration_ns),
            num_sequences: count(sent.num_sequences),
            prompt_tokens: count(sent.prompt_tokens),
            generated_tokens: count(sent.generated_tokens),
            preemptions: count(sent.preemptions),
            failures: FaultCounts::from_each(sent.failures),
            running: count(sent.running),
            waiting: count(sent.waiting),
            fair_share_gap: Duration::from_nanos(sent.fair_share_gap_ns),
            fair_share_bound: Duration::from_nanos(sent.fair_share_bound_ns),
            free_blocks: count(sent.free_blocks),
            total_blocks: count(sent.total_blocks),
            prefix_query_tokens: sent.prefix_query_tokens,
            prefix_hit_tokens: sent.prefix_hit_tokens,
        }
    }
}

pub(in crate::workers) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(in crate::workers) fn count(sent: u64) -> usize {
    usize::try_from(sent).unwrap_or(usize::MAX)
}
