//! Signals that ask this program to end: what it has is shown, and what it started is ended, before it goes.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{self, SignalKind};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Asked {
    /// SIGINT, as by Ctrl-C.
    Interrupt,
    /// SIGTERM.
    Terminate,
}

/// Those that come from now on.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
}

/// Ends a run at the first signal, and the program at the second.
#[derive(Debug)]
pub(super) struct Stopper {
    asked: Arc<Mutex<Option<Asked>>>,
    task: JoinHandle<()>,
}

impl Asked {
    /// As shells show an end by this signal.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

impl Signals {
    pub(super) fn listen() -> std::io::Result<Self> {
        let listen = unix::signal;
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::Interrupt,
            _ = self.terminate.recv() => Asked::Terminate,
        }
    }
}

impl Stopper {
    pub(super) fn listen(stop: Arc<Notify>) -> std::io::Result<Self> {
        let mut signals = Signals::listen()?;
        let asked = Arc::new(Mutex::new(None));
        let task = tokio::spawn({
            let asked = Arc::clone(&asked);
            async move {
                let first = signals.next().await;
                *asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
                eprintln!("stopping: what there is is reported");
                stop.notify_one();
                let second = signals.next().await;
                std::process::exit(second.exit_code().into());
            }
        });
        Ok(Self { asked, task })
    }

    /// What was asked, if anything.
    pub(super) fn asked(&self) -> Option<Asked> {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.task.abort();
    }
}
