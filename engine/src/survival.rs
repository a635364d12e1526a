//! Calls into a model. A panic in it is an error like any other, and fails only the request that it runs.

use std::panic::{AssertUnwindSafe, catch_unwind};

use passerelle_models::ModelError;

use crate::event::RequestError;

/// The caller must be able to go on with what `run` has left half done. What a panic said is not repeated, because it may
/// quote the request; whoever hears of panics, such as the server's log, knows where it was.
pub(crate) fn survive<T>(run: impl FnOnce() -> Result<T, ModelError>) -> Result<T, RequestError> {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => Ok(result?),
        Err(_) => Err(RequestError::Panic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_fails_the_request_and_what_it_said_is_not_repeated() {
        let failed = survive::<()>(|| panic!("the secret")).expect_err("it panicked");
        assert!(failed == RequestError::Panic && !failed.to_string().contains("secret"), "{failed}");
    }
}
