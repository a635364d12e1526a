//! SIGTERM and SIGINT: the first drains, the second ends at once.

use std::process;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What shells report for a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// Ready at the first signal.
pub(crate) async fn first() {
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate()), listen(SignalKind::interrupt()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

/// Waits for another signal, and obeys it without waiting for anything else.
pub(crate) async fn end_at_once() {
    first().await;
    tracing::warn!("a second signal: ending at once");
    process::exit(INTERRUPTED);
}

fn listen(kind: SignalKind) -> Signal {
    signal(kind).expect("SIGTERM and SIGINT may be handled, and this runs inside the runtime")
}
