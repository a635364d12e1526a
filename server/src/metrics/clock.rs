use std::thread;

use metrics_exporter_prometheus::PrometheusBuilder;

/// The exporter's clock compares itself with the system's, once in a process, which keeps a thread busy for a tenth of a
/// second or two. Metrics that are made after this do not wait for it.
pub fn set_clock_beside() {
    // Whoever cannot spawn waits for it later.
    drop(thread::Builder::new().name("clock".into()).spawn(|| drop(PrometheusBuilder::new().build_recorder())));
}
