use std::io;
use std::thread::JoinHandle;

/// An OS thread that somebody owns: whoever ends it waits until it is over.
#[derive(Debug)]
pub(crate) struct OwnedThread(Option<JoinHandle<()>>);

impl OwnedThread {
    /// What it logs stands beside its name: the engines of several models say the same things. Errors when the system gives
    /// no thread.
    pub(crate) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        // Not as `name`: JSON has that of the span there.
        let span = tracing::error_span!("in", thread = %name);
        std::thread::Builder::new().name(name).spawn(move || span.in_scope(body)).map(|thread| Self(Some(thread)))
    }

    /// Waits for its end, which somebody has asked for before.
    pub(crate) fn join(&mut self) {
        let Some(thread) = self.0.take() else { return };
        let name = thread.thread().name().unwrap_or_default().to_owned();
        if thread.join().is_err() {
            tracing::error!(thread = name, "the thread had panicked");
        }
    }
}
