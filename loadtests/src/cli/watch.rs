//! The line that tells how far a run is.

use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use passerelle_loadtests::clock::now;
use passerelle_loadtests::progress::Progress;
use tokio::task::JoinHandle;

const REFRESH_EVERY: Duration = Duration::from_millis(250);

/// On standard error, and only where that is a terminal.
#[derive(Debug)]
pub(super) struct ProgressLine {
    bar: ProgressBar,
    task: JoinHandle<()>,
}

impl ProgressLine {
    pub(super) fn show(progress: Arc<Progress>, planned: usize) -> Self {
        let bar = ProgressBar::new(planned as u64);
        let style = ProgressStyle::with_template("{elapsed_precise} {bar:24} {pos}/{len} sent{msg}");
        bar.set_style(style.expect("the template above is well formed"));
        let task = tokio::spawn({
            let bar = bar.clone();
            async move {
                let start = now();
                loop {
                    let counts = progress.counts();
                    let rate = counts.tokens as f64 / start.elapsed().as_secs_f64().max(f64::EPSILON);
                    bar.set_position(counts.sent);
                    bar.set_message(format!(
                        ", {} in flight, {} refused, {} failed, {rate:.0} tokens/s",
                        counts.in_flight, counts.refused, counts.failed
                    ));
                    tokio::time::sleep(REFRESH_EVERY).await;
                }
            }
        });
        Self { bar, task }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.task.abort();
        self.bar.finish_and_clear();
    }
}
