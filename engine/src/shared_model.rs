use std::fmt;
use std::sync::{Arc, Weak};

use passerelle_models::CausalLm;

/// A model that several run in turn, each with a cache of its own. Clones share the weights, which are freed with the last.
#[derive(Clone)]
pub struct SharedModel(Arc<dyn CausalLm>);

/// A way to a model that somebody else keeps.
pub(crate) struct LentModel(Weak<dyn CausalLm>);

impl SharedModel {
    pub(crate) fn get(&self) -> &dyn CausalLm {
        self.0.as_ref()
    }

    pub(crate) fn lend(&self) -> LentModel {
        LentModel(Arc::downgrade(&self.0))
    }
}

impl LentModel {
    /// `None` once its owner has dropped it.
    pub(crate) fn get(&self) -> Option<SharedModel> {
        self.0.upgrade().map(SharedModel)
    }
}

impl From<Box<dyn CausalLm>> for SharedModel {
    fn from(model: Box<dyn CausalLm>) -> Self {
        Self(model.into())
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
