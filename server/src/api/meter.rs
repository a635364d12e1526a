//! What is measured of one choice, on the server's clock.

use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::Usage;

use super::state::AppState;
use crate::metrics::ModelMetrics;

/// Whose time a choice takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// This server's.
    Here,
    /// An upstream's.
    Elsewhere,
}

#[derive(Debug)]
pub(crate) struct ChoiceMeter {
    state: AppState,
    /// `None` for a model that is not served.
    metrics: Option<Arc<ModelMetrics>>,
    model: String,
    place: Place,
    arrived: Duration,
    last_token: Option<Duration>,
}

impl ChoiceMeter {
    /// `arrived`: when the request's head was there.
    pub(crate) fn new(state: AppState, (model, place): (&str, Place), arrived: Duration) -> Self {
        Self { metrics: state.metrics().model(model), state, model: model.to_owned(), place, arrived, last_token: None }
    }

    pub(crate) fn token(&mut self) {
        let now = self.state.clock().now();
        let last = self.last_token.replace(now);
        let Some(metrics) = &self.metrics else { return };
        match last {
            None => metrics.first_token(now.saturating_sub(self.arrived)),
            Some(last) => metrics.next_token(now.saturating_sub(last)),
        }
    }

    /// `used`: what was settled.
    pub(crate) fn ended(&self, used: Usage) {
        let took = self.state.clock().now().saturating_sub(self.arrived);
        if let Some(metrics) = &self.metrics {
            metrics.ended(used, took);
        }
        if self.place == Place::Here {
            let billed = self.state.ledger().tariff().cost_micros(Some(&self.model), used);
            self.state.metrics().hours().billed(billed);
        }
    }
}
