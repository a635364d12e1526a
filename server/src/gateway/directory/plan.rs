//! From the accounts that are there to those that somebody wrote down.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{AccountRecord, Directory, DirectoryError};
use crate::gateway::account::AccountPath;
use crate::gateway::quota::{Limit, Quota};

/// An account as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedAccount {
    pub path: AccountPath,
    pub weight: NonZeroU32,
    pub limits: Quota,
}

/// One step on the way. Done twice, it changes nothing the second time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Create { path: AccountPath, limits: Quota },
    Weight { path: AccountPath, from: NonZeroU32, to: NonZeroU32 },
    Limits { path: AccountPath, from: Arc<Quota>, to: Quota },
}

impl Change {
    /// What is missing, accounts above before those below. Accounts that are not wanted stay as they are: nothing is taken
    /// from anybody by leaving it out.
    pub fn between(there: &[AccountRecord], wanted: &[WantedAccount]) -> Vec<Self> {
        let mut wanted: Vec<_> = wanted.iter().collect();
        wanted.sort_by_key(|account| account.path.lineage().count());
        let mut changes = Vec::new();
        for WantedAccount { path, weight, limits } in wanted {
            let record = there.iter().find(|record| record.path == *path);
            let is_weight = record.map_or(NonZeroU32::MIN, |record| record.weight);
            match record {
                None => changes.push(Self::Create { path: path.clone(), limits: limits.clone() }),
                Some(record) if !is_same(&record.limits, limits) => {
                    let from = Arc::clone(&record.limits);
                    changes.push(Self::Limits { path: path.clone(), from, to: limits.clone() });
                }
                Some(_) => {}
            }
            if is_weight != *weight {
                changes.push(Self::Weight { path: path.clone(), from: is_weight, to: *weight });
            }
        }
        changes
    }
}

impl Directory {
    /// In their order; what was done before one that fails stays.
    pub fn apply(&self, changes: &[Change]) -> Result<(), DirectoryError> {
        changes.iter().try_for_each(|change| match change {
            Change::Create { path, limits } => self.create_account(path, limits.clone()),
            Change::Weight { path, to, .. } => self.set_weight(path, *to),
            Change::Limits { path, to, .. } => self.set_limits(path, to),
        })
    }
}

/// Whatever the order.
fn is_same(one: &Quota, other: &Quota) -> bool {
    let sorted = |quota: &Quota| {
        let mut limits = quota.limits().to_vec();
        limits.sort();
        limits
    };
    sorted(one) == sorted(other)
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { path, limits } => {
                write!(f, "+ {path}")?;
                limits.limits().iter().try_for_each(|limit| write!(f, "\n    + {}", Shown(limit)))
            }
            Self::Weight { path, from, to } => write!(f, "~ {path}\n    ~ weight {from} -> {to}"),
            Self::Limits { path, from, to } => {
                write!(f, "~ {path}")?;
                let gone = from.limits().iter().filter(|limit| !to.limits().contains(limit));
                gone.into_iter().try_for_each(|limit| write!(f, "\n    - {}", Shown(limit)))?;
                let new = to.limits().iter().filter(|limit| !from.limits().contains(limit));
                new.into_iter().try_for_each(|limit| write!(f, "\n    + {}", Shown(limit)))
            }
        }
    }
}

struct Shown<'a>(&'a Limit);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limit = self.0;
        write!(f, "{} {}", limit.name(), limit.name().shown(limit.value().get()))?;
        limit.model.as_deref().map_or(Ok(()), |model| write!(f, " for {model}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(value: u64) -> std::num::NonZeroU64 {
        value.try_into().unwrap()
    }

    fn wanted(path: &str, limits: Vec<Limit>) -> WantedAccount {
        let limits = Quota::new(limits).unwrap();
        WantedAccount { path: path.parse().unwrap(), weight: NonZeroU32::MIN, limits }
    }

    fn there(wanted: &[WantedAccount]) -> Vec<AccountRecord> {
        let record = |WantedAccount { path, weight, limits }: WantedAccount| AccountRecord {
            path,
            weight,
            limits: Arc::new(limits),
            created_at: Default::default(),
        };
        wanted.iter().cloned().map(record).collect()
    }

    #[test]
    fn only_what_is_missing_changes_and_parents_come_first() {
        let two = vec![Limit::requests_per_minute(n(1)), Limit::tokens_per_minute(n(5))];
        let file = [wanted("acme/vision", vec![]), wanted("acme", two.clone())];
        let changes = Change::between(&[], &file);
        let paths: Vec<_> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(paths, ["+ acme\n    + requests_per_minute 1\n    + tokens_per_minute 5", "+ acme/vision"]);
        assert_eq!(Change::between(&there(&file), &file), [], "twice is once");
        let reordered = [wanted("acme", two.into_iter().rev().collect())];
        assert_eq!(Change::between(&there(&file), &reordered), [], "the order of limits means nothing");
    }

    #[test]
    fn a_changed_limit_is_shown_as_what_goes_and_what_comes() {
        let before = there(&[wanted("acme", vec![Limit::requests_per_minute(n(1))])]);
        let mut after = wanted("acme", vec![Limit::requests_per_minute(n(2))]);
        after.weight = NonZeroU32::new(3).unwrap();
        let shown: Vec<_> = Change::between(&before, &[after]).iter().map(ToString::to_string).collect();
        let limits = "~ acme\n    - requests_per_minute 1\n    + requests_per_minute 2";
        assert_eq!(shown, [limits, "~ acme\n    ~ weight 1 -> 3"]);
    }
}
