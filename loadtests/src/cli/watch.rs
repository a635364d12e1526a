//! The line that tells how far a run is.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use passerelle_loadtests::clock::now;
use passerelle_loadtests::progress::{Counts, Progress};
use tokio::task::JoinHandle;

const REFRESH_EVERY: Duration = Duration::from_millis(250);

/// On standard error, and only where that is a terminal.
#[derive(Debug)]
pub(super) struct ProgressLine {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl ProgressLine {
    pub(super) fn show(progress: Arc<Progress>) -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{elapsed_precise} {msg}").expect("the template is well formed"));
        let task = tokio::spawn({
            let bar = bar.clone();
            async move {
                let mut first_sent = None;
                loop {
                    let counts = progress.counts();
                    if counts.sent > 0 {
                        first_sent.get_or_insert_with(now);
                    }
                    bar.set_message(describe(counts, first_sent.map(|at| at.elapsed()).unwrap_or_default()));
                    tokio::time::sleep(REFRESH_EVERY).await;
                }
            }
        });
        Self { bar, task }
    }
}

/// `sending` is the time since the first was sent.
fn describe(counts: Counts, sending: Duration) -> String {
    let Counts { prepared, sent, in_flight, refused, failed, tokens, late: _, out_of_files: _ } = counts;
    let rate = tokens as f64 / sending.as_secs_f64().max(f64::EPSILON);
    match sent {
        0 => format!("{prepared} requests prepared"),
        _ => format!(
            "{sent} of {prepared} sent, {in_flight} in flight, {refused} refused, {failed} failed, {rate:.0} tokens/s"
        ),
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_prepared_and_then_what_is_sent() {
        let counts = Counts { prepared: 40, ..Counts::default() };
        assert_eq!(describe(counts, Duration::ZERO), "40 requests prepared");
        let counts = Counts { sent: 20, in_flight: 3, refused: 2, failed: 1, tokens: 1000, ..counts };
        let line = "20 of 40 sent, 3 in flight, 2 refused, 1 failed, 500 tokens/s";
        assert_eq!(describe(counts, Duration::from_secs(2)), line);
    }
}
