//! Calls into a model. A panic in it is an error like any other, and fails only the request that it runs.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use passerelle_models::ModelError;

use crate::event::RequestError;

/// The caller must be able to go on with what `run` has left half done.
pub(crate) fn survive<T>(run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, RequestError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Ok(result?),
        Err(panic) => Err(RequestError::Panic(message_of(panic.as_ref()))),
    }
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the model panicked without a message").to_owned()
}
