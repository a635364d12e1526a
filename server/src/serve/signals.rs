//! SIGTERM and SIGINT: the first drains, the second ends at once.

use std::process;

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// What shells report for a process that was interrupted.
const INTERRUPTED: i32 = 130;

/// The signal that asks for the configuration to be read again. Inside the runtime.
pub(super) fn hangups() -> Result<Signal> {
    signal(SignalKind::hangup()).context("cannot listen to SIGHUP")
}

/// From its creation on, no signal is lost.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Inside the runtime, before anybody is told that the server is ready.
    pub(crate) fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen to SIGTERM and SIGINT");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Ready at the next signal.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Waits for another signal, and obeys it without waiting for anything else.
    pub(crate) async fn end_at_once(mut self) {
        self.next().await;
        tracing::warn!("a second signal: ending at once");
        process::exit(INTERRUPTED);
    }
}
