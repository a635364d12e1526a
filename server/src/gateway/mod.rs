//! Who may run what, how much of it, and where.
//!
//! A request passes [`auth`] (bearer key to [`account`]), then [`ledger`] (all limits or none), then [`router`] (a
//! ready replica of its model), and leaves as a [`generation`] on an engine, as a [`relay`] to an [`upstream`], or for an
//! encoder as an [`encoding`]: what comes out, and a reservation that settles itself. This room sees token counts, never
//! text, and knows no status code.

pub mod account;
pub mod attempts;
pub mod auth;
pub mod breaker;
mod chance;
pub mod encoding;
pub mod generation;
pub mod health;
pub mod keys;
pub mod ledger;
pub mod quota;
pub mod relay;
pub mod replica;
pub mod router;
pub mod upstream;

pub use account::{Account, AccountId};
pub use attempts::{Attempts, RetryBounds, Verdict};
pub use auth::{AuthError, Authenticator};
pub use encoding::Encoding;
pub use generation::{Generation, NotStarted};
pub use ledger::{Ask, Ledger, LedgerTotals, RateLimitState, Refusal, Reservation, Retry, WindowState};
pub use quota::{Limit, LimitName, Quota, QuotaError};
pub use relay::{CallSize, NotRelayed, Relay};
pub use replica::{Load, Replica, ReplicaDoor, ReplicaId, SubmitError};
pub use router::{PrefixHint, RouteError, Router};
pub use upstream::{Call, CallRoute, Failure, Objection, UpstreamDoor};
