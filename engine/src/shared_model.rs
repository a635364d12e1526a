use std::fmt;
use std::sync::{Arc, Weak};

use passerelle_models::CausalLm;

use crate::event::RequestError;
use crate::fault::FaultCounts;
use crate::stats::{StepObserver, StepReport};

/// A model that several run in turn, each with a cache of its own. Clones share the weights, which are freed with the last.
#[derive(Clone)]
pub struct SharedModel {
    model: Arc<dyn CausalLm>,
    /// Of the engine that has lent it.
    observer: Option<Arc<dyn StepObserver>>,
}

/// A way to a model that somebody else keeps.
pub(crate) struct LentModel {
    model: Weak<dyn CausalLm>,
    observer: Arc<dyn StepObserver>,
}

impl SharedModel {
    pub(crate) fn get(&self) -> &dyn CausalLm {
        self.model.as_ref()
    }

    /// `observer` hears what fails by the model wherever it is lent to.
    pub(crate) fn lend(&self, observer: Arc<dyn StepObserver>) -> LentModel {
        LentModel { model: Arc::downgrade(&self.model), observer }
    }

    /// A request that the model was lent for failed by it.
    pub(crate) fn note_failure(&self, error: &RequestError) {
        if let (Some(observer), Some(fault)) = (&self.observer, error.fault()) {
            observer.step(&StepReport { failures: FaultCounts::of(fault, 1), ..StepReport::default() });
        }
    }
}

impl LentModel {
    /// `None` once its owner has dropped it.
    pub(crate) fn get(&self) -> Option<SharedModel> {
        Some(SharedModel { model: self.model.upgrade()?, observer: Some(Arc::clone(&self.observer)) })
    }
}

impl From<Box<dyn CausalLm>> for SharedModel {
    fn from(model: Box<dyn CausalLm>) -> Self {
        Self { model: model.into(), observer: None }
    }
}

impl fmt::Debug for SharedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedModel")
    }
}

impl fmt::Debug for LentModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LentModel")
    }
}
