//! Models that cost nothing because nobody said what they cost. Under a limit of GPU time nothing of them would be counted, and
//! so nothing refused.

use std::sync::Arc;

use super::{Ask, Ledger};
use crate::gateway::account::{AccountPath, Caller};
use crate::gateway::quota::{Enforcement, Limit, LimitName, Unit};

/// A limit of GPU time that cannot be kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit {limit} of {scope} cannot be kept for `{model}`, because no tariff says what it costs: an operator states a price in \
     `ledger.tariff`"
)]
pub struct Unpriced {
    pub limit: LimitName,
    pub scope: AccountPath,
    pub model: Arc<str>,
}

impl Ledger {
    /// Whether the limits of GPU time on this caller can be kept for what is asked. One on trial refuses nobody.
    pub fn can_price(&self, caller: &Caller, ask: &Ask) -> Result<(), Unpriced> {
        let Some(model) = ask.model.as_ref().filter(|model| self.tariff().price(model).is_none()) else {
            return Ok(());
        };
        let is_bound = |limit: &Limit| {
            limit.enforcement == Enforcement::Refuse && limit.counts(Unit::GpuMicros) && limit.covers(Some(model))
        };
        let bound = caller.account.limits().find(|(_, limit)| is_bound(limit));
        bound.map_or(Ok(()), |(node, limit)| {
            Err(Unpriced { limit: limit.name(), scope: node.path.clone(), model: Arc::clone(model) })
        })
    }
}
