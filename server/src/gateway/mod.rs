//! Who may run what, how much of it, and where.
//!
//! A name that stands for several models is one of them first ([`alias`]), and a candidate may be asked too ([`shadow`]).
//! Models that lie on the disk come from the [`shelf`] into memory and go again.
//! A request passes [`auth`] (bearer key to [`account`]), then [`ledger`] (all limits or none), then [`router`] (a
//! ready replica of its model), and leaves as a [`generation`] on an engine, as a [`relay`] to an [`upstream`], or for an
//! encoder as an [`encoding`]: what comes out, and a reservation that settles itself. Accounts
//! and keys are kept by the [`directory`], in the [`data`] directory, where the [`journal`] writes down what the ledger
//! admits and settles; what tokens cost in GPU time says the [`tariff`].
//! This room sees token counts, never text, and knows no status code.

pub mod account;
pub mod administration;
pub mod alias;
pub mod attempts;
pub mod attribution;
pub mod auth;
pub mod breaker;
mod chance;
pub mod comparison;
pub mod data;
pub mod directory;
pub mod encoding;
pub mod generation;
pub mod health;
pub mod journal;
pub mod keys;
pub mod ledger;
pub mod quota;
pub mod relay;
pub mod replica;
pub mod router;
pub mod shadow;
pub mod shelf;
pub mod tariff;
pub mod upstream;

pub use account::{Account, AccountPath, Caller, PrefixSharing, Scope};
pub use administration::Administration;
pub use alias::Alias;
pub use attempts::{Attempts, RetryBounds, Verdict};
pub use attribution::{Asker, Attribution};
pub use auth::{AuthError, Authenticator};
pub use comparison::ComparedPrompt;
pub use data::{DataDir, DataError, Restored};
pub use directory::{Directory, DirectoryError};
pub use encoding::Encoding;
pub use generation::{Generation, NotStarted};
pub use ledger::{
    Ask, Ledger, LedgerFigures, LedgerParts, LedgerTotals, PartBounds, PeerReservation, RateLimitState, Refusal,
    Reservation, Reserve, Retry, WindowState,
};
pub use quota::{Limit, LimitName, Quota, QuotaError};
pub use relay::{CallSize, NotRelayed, Relay};
pub use replica::{Load, Replica, ReplicaDoor, ReplicaId, ReplicaRefusal};
pub use router::{PrefixHint, RouteError, Router};
pub use shadow::Shadow;
pub use shelf::Shelf;
pub use tariff::Tariff;
pub use upstream::{Call, CallRoute, Failure, Objection, OnBehalf, UpstreamDoor};
