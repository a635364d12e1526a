//! The way from whoever asks for the configuration to be read again to whoever does it.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::errors::{ApiError, ErrorKind};

/// Clones lead to the same place.
#[derive(Debug, Clone)]
pub struct Reloader {
    orders: mpsc::Sender<ReloadOrder>,
}

/// Answered once, with what came of it.
#[derive(Debug)]
pub struct ReloadOrder {
    /// Who asks, as the audit log names them.
    pub actor: Arc<str>,
    pub outcome: oneshot::Sender<ReloadOutcome>,
}

/// The text says what is wrong with the configuration, of which nothing was taken over.
pub type ReloadOutcome = Result<Reloaded, String>;

/// What a configuration that was read again changed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Reloaded {
    /// What is in force now.
    pub changed: Vec<&'static str>,
    /// What differs from what is in force, and stays as it was until the server is started again.
    pub needs_restart: Vec<&'static str>,
}

impl Reloaded {
    /// What is not written in the configuration itself.
    pub fn note(&mut self, is_changed: bool, name: &'static str) {
        if is_changed && !self.changed.contains(&name) {
            self.changed.push(name);
        }
    }
}

/// One order waits while one is carried out.
const WAITING_ORDERS: usize = 1;

impl Reloader {
    pub fn new() -> (Self, mpsc::Receiver<ReloadOrder>) {
        let (orders, received) = mpsc::channel(WAITING_ORDERS);
        (Self { orders }, received)
    }

    /// `None`: the server is ending.
    pub async fn reload(&self, actor: &str) -> Option<ReloadOutcome> {
        let (answer, outcome) = oneshot::channel();
        self.orders.send(ReloadOrder { actor: actor.into(), outcome: answer }).await.ok()?;
        outcome.await.ok()
    }
}

/// As an answer.
pub(crate) async fn reload(reloader: Option<&Reloader>, actor: &str) -> Result<Reloaded, ApiError> {
    let nothing = || ApiError::new(ErrorKind::NoServer, "No server runs that could read its configuration again.");
    let outcome = reloader.ok_or_else(nothing)?.reload(actor).await;
    let outcome = outcome.ok_or_else(|| ApiError::new(ErrorKind::Draining, "The server is shutting down."))?;
    outcome.map_err(|why| ApiError::new(ErrorKind::InvalidValue, format!("The configuration stays as it was: {why}.")))
}
