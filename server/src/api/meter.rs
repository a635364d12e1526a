//! What is measured of one prompt and its choices, on the server's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::Usage;

use super::state::AppState;
use crate::gateway::replica::UpstreamSide;
use crate::gateway::{Failure, Replica};
use crate::metrics::ModelMetrics;

#[derive(Debug)]
pub(crate) struct PromptMeter {
    state: AppState,
    /// `None` for a model that is not served.
    metrics: Option<Arc<ModelMetrics>>,
    arrived: Duration,
    /// Of each choice that has one.
    last_tokens: BTreeMap<usize, Duration>,
}

impl PromptMeter {
    /// `arrived`: when the request's head was there.
    pub(crate) fn new(state: AppState, model: &str, arrived: Duration) -> Self {
        let metrics = state.metrics().model(model);
        Self { metrics, state, arrived, last_tokens: BTreeMap::new() }
    }

    /// The first token of all is what somebody waited for; between two of a choice lies a step of the model.
    pub(crate) fn token(&mut self, choice: usize) {
        let now = self.state.clock().now();
        let is_first = self.last_tokens.is_empty();
        let last = self.last_tokens.insert(choice, now);
        let Some(metrics) = &self.metrics else { return };
        match last {
            None if is_first => metrics.first_token(now.saturating_sub(self.arrived)),
            None => {}
            Some(last) => metrics.next_token(now.saturating_sub(last)),
        }
    }

    /// An upstream had begun to answer.
    pub(crate) fn broke_off(&self, replica: &Replica, failure: &Failure) {
        let (model, upstream) = (replica.model(), replica.as_upstream().map_or("", UpstreamSide::name));
        tracing::warn!(upstream, model, %failure, "an upstream broke off in an answer");
        self.state.metrics().upstream_tried(model, upstream, "broke_off");
    }

    /// An upstream said more than it was asked for, and was cut off.
    pub(crate) fn ran_on(&self, replica: &Replica) {
        let (model, upstream) = (replica.model(), replica.as_upstream().map_or("", UpstreamSide::name));
        tracing::warn!(upstream, model, "an upstream goes on past the max_tokens it was sent: the answer was cut off");
        self.state.metrics().upstream_tried(model, upstream, "ran_on");
    }

    /// `used`: what was settled.
    pub(crate) fn ended(&self, used: Usage) {
        let took = self.state.clock().now().saturating_sub(self.arrived);
        if let Some(metrics) = &self.metrics {
            metrics.ended(used, took);
        }
    }
}
