//! What a request has used, for whoever checks its bill afterwards.

use crate::event::Usage;

/// The engine's own count of one request. It outlives the request and its readers.
pub trait Counted: std::fmt::Debug + Send + Sync {
    /// So far; the same for good once the request was aborted or is over.
    fn counted(&self) -> Usage;
}
