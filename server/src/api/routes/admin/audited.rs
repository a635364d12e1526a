//! Acts that change nothing of what is kept. The audit log says that one was asked for before it begins, and what came of it
//! when it is over, also where nobody waited for its end.

use std::fmt::Display;

use tokio::task::{JoinHandle, spawn_blocking};

use super::blocking;
use crate::api::errors::ApiError;
use crate::gateway::directory::Noted;
use crate::gateway::{Directory, DirectoryError};

/// An act that has begun. Dropping it without an end says that it was given up.
#[derive(Debug)]
#[must_use = "dropping it says that the act was given up"]
pub(super) struct Audited {
    directory: Directory,
    act: &'static str,
    subject: String,
    /// Of its beginning.
    noted: Noted,
    is_over: bool,
}

impl Audited {
    /// What cannot be written down is not begun. `subject`: what it is done to.
    pub(super) async fn begin(directory: Directory, act: &'static str, subject: &str) -> Result<Self, ApiError> {
        Self::new(directory, act, subject)
            .noted_by(|log, act, of| log.note(act, of, "asked").map(|()| Noted::Written))
            .await
    }

    /// For what only reads, which begins also where there is no room to write it down: what lies on a full disk must be
    /// had from there. It is owed to the log, and [`Self::noted`] says so.
    pub(super) async fn begin_reading(
        directory: Directory,
        act: &'static str,
        subject: &str,
    ) -> Result<Self, ApiError> {
        Self::new(directory, act, subject).noted_by(|log, act, of| log.note_when_it_can(act, of, "asked")).await
    }

    fn new(directory: Directory, act: &'static str, subject: &str) -> Self {
        Self { directory, act, subject: subject.to_owned(), noted: Noted::Written, is_over: false }
    }

    /// Whoever leaves meanwhile has given up.
    async fn noted_by(
        mut self,
        note: impl FnOnce(&Directory, &'static str, &str) -> Result<Noted, DirectoryError> + Send + 'static,
    ) -> Result<Self, ApiError> {
        let (log, act, subject) = (self.directory.clone(), self.act, self.subject.clone());
        match blocking(move || note(&log, act, &subject)).await {
            Ok(noted) => {
                self.noted = noted;
                Ok(self)
            }
            Err(error) => {
                self.leave();
                Err(error)
            }
        }
    }

    pub(super) fn noted(&self) -> Noted {
        self.noted
    }

    pub(super) async fn end(self, how: &Result<(), ApiError>) {
        let said = match how {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("failed: {}", error.message()),
        };
        let written = self.write(said);
        self.leave();
        // A panic there is in the log.
        let _ = written.await;
    }

    /// The same on a thread that may wait. `how`: what there is to say of it.
    pub(super) fn end_here<E: Display>(self, how: &Result<String, E>) {
        let said = match how {
            Ok(said) => format!("done{said}"),
            Err(error) => format!("failed: {error}"),
        };
        write_down(&self.directory, self.act, &self.subject, &said);
        self.leave();
    }

    fn write(&self, how: String) -> JoinHandle<()> {
        let (directory, act, subject) = (self.directory.clone(), self.act, self.subject.clone());
        spawn_blocking(move || write_down(&directory, act, &subject, &how))
    }

    fn leave(mut self) {
        self.is_over = true;
    }
}

/// It happened, whether that can be written down or not.
fn write_down(directory: &Directory, act: &'static str, subject: &str, how: &str) {
    if let Err(error) = directory.note_when_it_can(act, subject, how) {
        tracing::error!(%error, "what came of an administrative act is missing in the audit log");
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        if !self.is_over {
            drop(self.write("given up".to_owned()));
        }
    }
}
