//! How long a line of a batch waits before it asks again.

use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::response::Response;

/// Where a refusal names no instant; each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// A limit may be raised meanwhile, or the key revoked, and nobody tells the line.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Of one line.
#[derive(Debug)]
pub(super) struct Waits {
    /// After the next refusal that names no instant.
    untold: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { untold: FIRST_WAIT }
    }
}

impl Waits {
    /// Until the instant at which the request would fit, if the refusal names one, and at most [`LONGEST_WAIT`].
    pub(super) fn before_next(&mut self, refusal: &Response) -> Duration {
        told(refusal).unwrap_or_else(|| self.one_longer()).min(LONGEST_WAIT)
    }

    fn one_longer(&mut self) -> Duration {
        let next = LONGEST_WAIT.min(self.untold * 2);
        std::mem::replace(&mut self.untold, next)
    }
}

fn told(refusal: &Response) -> Option<Duration> {
    let seconds = refusal.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;
    use crate::api::errors::ApiError;
    use crate::gateway::ledger::Retry;
    use crate::gateway::{LimitName, Refusal};

    fn refused(retry: Retry) -> Response {
        let (limit, scope) = (LimitName::ConcurrentRequests, "lab".parse().expect("a path"));
        let (model, window) = (None, None);
        ApiError::from(Refusal { limit, scope, model, limit_value: 20, current_value: 20, asked: 1, window, retry })
            .into_response()
    }

    #[test]
    fn a_line_waits_until_it_would_fit_and_looks_again_now_and_then() {
        let mut waits = Waits::default();
        for (needed, waited) in [(1, 1), (45, 45), (299, 299), (3_600, 300), (2_000_000, 300), (2, 2)] {
            let refusal = refused(Retry::After(Duration::from_secs(needed)));
            assert_eq!(waits.before_next(&refusal), Duration::from_secs(waited));
        }
    }

    #[test]
    fn a_line_whose_grant_is_used_up_asks_less_and_less_often() {
        let mut waits = Waits::default();
        let waited: Vec<u64> = (0..11).map(|_| waits.before_next(&refused(Retry::Spent)).as_secs()).collect();
        assert_eq!(waited, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    }
}
