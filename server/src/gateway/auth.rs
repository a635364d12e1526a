//! Bearer key to caller. Why a key was refused is for the log; the caller is told one thing whatever the cause.

use std::sync::Arc;

use super::account::{Account, AccountPath, Caller};
use super::keys::KeyRing;
use super::quota::UnixSeconds;

#[derive(Debug)]
pub enum Authenticator {
    /// A loopback listener without keys: everyone is this caller.
    Open {
        caller: Arc<Caller>,
        /// Administration needs a key all the same.
        keys: Option<KeyRing>,
    },
    Keys(KeyRing),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    #[error("no key was given")]
    Missing,
    #[error("the key is mistyped")]
    Malformed,
    #[error("the key is not known")]
    Unknown,
    #[error("the key was revoked")]
    Revoked,
    #[error("the key has expired")]
    Expired,
}

impl AuthError {
    /// For logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl Authenticator {
    pub fn open(account: Account, keys: Option<KeyRing>) -> Self {
        Self::Open { caller: Arc::new(Caller::at_open_door(account)), keys }
    }

    /// The keys of a door that asks for them.
    pub fn ring(&self) -> Option<&KeyRing> {
        match self {
            Self::Open { .. } => None,
            Self::Keys(ring) => Some(ring),
        }
    }

    /// Knows from now on what the directory holds; see [`KeyRing::look`].
    pub fn look(&self) {
        if let Self::Open { keys: Some(ring), .. } | Self::Keys(ring) = self {
            ring.look();
        }
    }

    /// Whoever needs a key even at an open door. `today`: by the clock that budgets follow, which no key outlives.
    pub fn authenticate_key(&self, bearer: Option<&str>, today: UnixSeconds) -> Result<Arc<Caller>, AuthError> {
        let bearer = bearer.ok_or(AuthError::Missing)?;
        match self {
            Self::Open { keys: None, .. } => Err(AuthError::Unknown),
            Self::Open { keys: Some(ring), .. } | Self::Keys(ring) => ring.authenticate(bearer, today),
        }
    }

    /// `bearer` is what follows `Bearer ` in the request. An open listener ignores it: SDKs always send something.
    pub fn authenticate(&self, bearer: Option<&str>, today: UnixSeconds) -> Result<Arc<Caller>, AuthError> {
        match self {
            Self::Open { caller, .. } => Ok(Arc::clone(caller)),
            Self::Keys(ring) => ring.authenticate(bearer.ok_or(AuthError::Missing)?, today),
        }
    }

    /// Who came in by this key of this account, if they still could: what they began is finished in their name.
    pub fn caller(&self, (account, via): (&str, &str), today: UnixSeconds) -> Option<Arc<Caller>> {
        match self {
            Self::Open { caller, .. } => Some(caller).filter(|caller| caller.account.path.as_str() == account).cloned(),
            Self::Keys(ring) => ring.caller(account, via, today),
        }
    }

    /// An account as it is now, with what is above it; an open door has only one. `None`: nobody made it.
    pub fn account(&self, path: &AccountPath) -> Option<Arc<Account>> {
        match self {
            Self::Open { caller, .. } => Some(Arc::clone(&caller.account)),
            Self::Keys(ring) => ring.account(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::quota::Quota;

    #[test]
    fn an_open_listener_answers_with_its_one_account_whatever_the_key() {
        let open = Authenticator::open(Account::local(Quota::unlimited()), None);
        let today = UnixSeconds(0);
        assert_eq!(open.authenticate(None, today).unwrap().account.path.as_str(), "local");
        assert_eq!(open.authenticate_key(None, today).unwrap_err(), AuthError::Missing);
        assert_eq!(open.authenticate_key(Some("sk-anything"), today).unwrap_err(), AuthError::Unknown);
        assert_eq!(open.authenticate(Some("sk-anything"), today).unwrap().account.path.as_str(), "local");
    }
}
