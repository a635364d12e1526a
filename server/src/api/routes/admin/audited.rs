//! Acts that change nothing of what is kept. The audit log says that one was asked for before it begins, and what came of it
//! when it is over, also where nobody waited for its end.

use tokio::task::{JoinHandle, spawn_blocking};

use super::blocking;
use crate::api::errors::ApiError;
use crate::gateway::Directory;

/// An act that has begun. Dropping it without an end says that it was given up.
#[derive(Debug)]
#[must_use = "dropping it says that the act was given up"]
pub(super) struct Audited {
    directory: Directory,
    act: &'static str,
    subject: String,
    is_over: bool,
}

impl Audited {
    /// What cannot be written down is not begun. `subject`: what it is done to.
    pub(super) async fn begin(directory: Directory, act: &'static str, subject: &str) -> Result<Self, ApiError> {
        let audited = Self { directory, act, subject: subject.to_owned(), is_over: false };
        let (log, subject) = (audited.directory.clone(), audited.subject.clone());
        match blocking(move || log.note(act, &subject, "asked")).await {
            Ok(()) => Ok(audited),
            Err(error) => {
                audited.leave();
                Err(error)
            }
        }
    }

    pub(super) async fn end(self, how: &Result<(), ApiError>) {
        let said = match how {
            Ok(()) => "done".to_owned(),
            Err(error) => format!("failed: {}", error.message()),
        };
        let written = write(self.directory.clone(), self.act, (self.subject.clone(), said));
        self.leave();
        // A panic there is in the log.
        let _ = written.await;
    }

    fn leave(mut self) {
        self.is_over = true;
    }
}

impl Drop for Audited {
    fn drop(&mut self) {
        if !self.is_over {
            drop(write(self.directory.clone(), self.act, (self.subject.clone(), "given up".to_owned())));
        }
    }
}

/// An act that is done at once, and also where it cannot be written down: a full disk is a reason to take a copy.
pub(super) async fn write_down(directory: Directory, act: &'static str, subject: &str) {
    // A panic there is in the log.
    let _ = write(directory, act, (subject.to_owned(), "begun".to_owned())).await;
}

/// It happened, whether that can be written down or not.
fn write(directory: Directory, act: &'static str, (subject, how): (String, String)) -> JoinHandle<()> {
    spawn_blocking(move || {
        if let Err(error) = directory.note(act, &subject, &how) {
            tracing::error!(%error, "an administrative act is missing in the audit log");
        }
    })
}
