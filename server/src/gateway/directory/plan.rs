//! From the accounts that are there to those that somebody wrote down.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;

use rusqlite::Transaction;

use super::{AccountRecord, Act, Directory, DirectoryError, End, accounts};
use crate::gateway::account::AccountPath;
use crate::gateway::quota::{Calendar, Quota, UnixSeconds};

/// An account as it shall be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedAccount {
    pub path: AccountPath,
    /// `None`: as it is.
    pub weight: Option<NonZeroU32>,
    pub limits: Quota,
}

/// Whether what changes is made, or only tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Making {
    Real,
    Rehearsal,
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
            if let Some(weight) = weight.filter(|weight| is_weight != *weight) {
                changes.push(Self::Weight { path: path.clone(), from: is_weight, to: weight });
            }
        }
        changes
    }

    /// As people read it, in their time zone.
    pub fn shown(&self, calendar: &Calendar) -> String {
        let (head, lines) = match self {
            Self::Create { path, limits } => {
                (format!("+ {path}"), limits.limits().iter().map(|limit| ("+", limit.shown(calendar))).collect())
            }
            Self::Weight { path, from, to } => (format!("~ {path}"), vec![("~", format!("weight {from} -> {to}"))]),
            Self::Limits { path, from, to } => {
                let gone = from.limits().iter().filter(|limit| !to.limits().contains(limit));
                let new = to.limits().iter().filter(|limit| !from.limits().contains(limit));
                let gone = gone.map(|limit| ("-", limit.shown(calendar)));
                (format!("~ {path}"), gone.chain(new.map(|limit| ("+", limit.shown(calendar)))).collect::<Vec<_>>())
            }
        };
        lines.iter().fold(head, |text, (sign, line)| format!("{text}\n    {sign} {line}"))
    }

    fn make(&self, transaction: &Transaction<'_>, now: UnixSeconds) -> Result<(), DirectoryError> {
        match self {
            Self::Create { path, limits } => accounts::create(transaction, path, limits, now),
            Self::Weight { path, to, .. } => accounts::write_weight(transaction, path, *to),
            Self::Limits { path, to, .. } => accounts::write_limits(transaction, path, to),
        }
    }

    fn act(&self) -> Act<'_> {
        match self {
            Self::Create { path, limits } => Act::create(path, limits),
            Self::Weight { path, to, .. } => Act::weight(path, *to),
            Self::Limits { path, to, .. } => Act::limits(path, to),
        }
    }
}

impl Directory {
    /// All that is wanted or, if one thing of it cannot be, nothing. A rehearsal makes the same changes and takes them back,
    /// so it fails where the real one would. Answers what changes.
    pub fn apply(&self, wanted: &[WantedAccount], making: Making) -> Result<Vec<Change>, DirectoryError> {
        let mut named = BTreeSet::new();
        if let Some(again) = wanted.iter().find(|account| !named.insert(&account.path)) {
            return Err(DirectoryError::NamedTwice(again.path.clone()));
        }
        let now = self.now();
        self.transact(|transaction| {
            let changes = Change::between(&accounts::all(transaction)?, wanted);
            for change in &changes {
                change.make(transaction, now)?;
                self.write_down(transaction, &change.act())?;
            }
            let end = if making == Making::Real { End::Commit } else { End::RollBack };
            Ok((changes, end))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::quota::Limit;

    fn n(value: u64) -> std::num::NonZeroU64 {
        value.try_into().unwrap()
    }

    fn wanted(path: &str, limits: Vec<Limit>) -> WantedAccount {
        let limits = Quota::new(limits).unwrap();
        WantedAccount { path: path.parse().unwrap(), weight: None, limits }
    }

    fn there(wanted: &[WantedAccount]) -> Vec<AccountRecord> {
        let record = |WantedAccount { path, weight, limits }: WantedAccount| AccountRecord {
            path,
            weight: weight.unwrap_or(NonZeroU32::MIN),
            limits: Arc::new(limits),
            created_at: Default::default(),
        };
        wanted.iter().cloned().map(record).collect()
    }

    fn shown(change: &Change) -> String {
        change.shown(&Calendar::utc())
    }

    #[test]
    fn only_what_is_missing_changes_and_parents_come_first() {
        let two = vec![Limit::requests_per_minute(n(1)), Limit::tokens_per_minute(n(5))];
        let file = [wanted("acme/vision", vec![]), wanted("acme", two.clone())];
        let changes = Change::between(&[], &file);
        let paths: Vec<_> = changes.iter().map(shown).collect();
        assert_eq!(paths, ["+ acme\n    + requests_per_minute 1\n    + tokens_per_minute 5", "+ acme/vision"]);
        assert_eq!(Change::between(&there(&file), &file), [], "twice is once");
        let reordered = [wanted("acme", two.into_iter().rev().collect())];
        assert_eq!(Change::between(&there(&file), &reordered), [], "the order of limits means nothing");
    }

    #[test]
    fn a_changed_limit_is_shown_as_what_goes_and_what_comes() {
        let before = there(&[wanted("acme", vec![Limit::requests_per_minute(n(1))])]);
        let mut after = wanted("acme", vec![Limit::requests_per_minute(n(2))]);
        after.weight = NonZeroU32::new(3);
        let shown: Vec<_> = Change::between(&before, &[after]).iter().map(shown).collect();
        let limits = "~ acme\n    - requests_per_minute 1\n    + requests_per_minute 2";
        assert_eq!(shown, [limits, "~ acme\n    ~ weight 1 -> 3"]);
    }

    /// Two grants that differ in their dates only, and one on trial, must not look alike.
    #[test]
    fn the_dates_of_a_grant_and_whether_a_limit_is_on_trial_are_shown() {
        let grant = |until: u64, dry_run: bool| -> Limit {
            let written = format!(
                r#"{{"limit":"gpu_seconds_granted","value":10,"from":1767225600,"until":{until},"dry_run":{dry_run}}}"#
            );
            serde_json::from_str(&written).unwrap()
        };
        let before = there(&[wanted("acme", vec![grant(1_798_761_600, true)])]);
        let after = wanted("acme", vec![grant(1_798_848_000, false)]);
        let shown: Vec<_> = Change::between(&before, &[after]).iter().map(shown).collect();
        let expected = "~ acme\n    - gpu_seconds_granted 10.000 s from 2026-01-01 until 2027-01-01 (on trial)\n    \
                        + gpu_seconds_granted 10.000 s from 2026-01-01 until 2027-01-02";
        assert_eq!(shown, [expected]);
    }

    #[test]
    fn a_weight_that_nobody_states_stays() {
        let mut heavy = there(&[wanted("acme", vec![])]);
        heavy[0].weight = NonZeroU32::new(7).unwrap();
        assert_eq!(Change::between(&heavy, &[wanted("acme", vec![])]), []);
    }
}
