//! All accounts at one instant, from which each account with what is above it is read.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use super::{Account, AccountPath, Node};
use crate::gateway::directory::AccountRecord;
use crate::gateway::quota::Quota;

/// Every account is made once, so that all its callers share it.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: HashMap<AccountPath, (Arc<Quota>, NonZeroU32)>,
    /// What an account directly below the root gets where it does not state the same rule itself: a limit on trial or for
    /// another model is none.
    defaults: Quota,
    accounts: HashMap<AccountPath, Arc<Account>>,
}

impl Tree {
    pub fn new(records: Vec<AccountRecord>, defaults: &Quota) -> Self {
        let mut tree = Self { defaults: defaults.clone(), ..Self::default() };
        for AccountRecord { path, limits, weight, .. } in records {
            let limits = tree.with_defaults(&path, limits);
            tree.nodes.insert(path, (limits, weight));
        }
        tree
    }

    /// An account that nobody made has no limits but the defaults.
    pub fn account(&mut self, path: &AccountPath) -> Arc<Account> {
        if let Some(account) = self.accounts.get(path) {
            return Arc::clone(account);
        }
        let nodes = path.lineage().map(|path| self.node(path)).collect();
        let weight = self.nodes.get(path).map_or(NonZeroU32::MIN, |(_, weight)| *weight);
        let account = Arc::new(Account::new(nodes, weight));
        self.accounts.insert(path.clone(), Arc::clone(&account));
        account
    }

    /// The same, of one that somebody made or has a key on. The root is there always.
    pub fn known(&mut self, path: &AccountPath) -> Option<Arc<Account>> {
        (path.is_root() || self.nodes.contains_key(path)).then(|| self.account(path))
    }

    fn node(&mut self, path: AccountPath) -> Node {
        if !self.nodes.contains_key(&path) {
            let limits = self.with_defaults(&path, Arc::default());
            self.nodes.insert(path.clone(), (limits, NonZeroU32::MIN));
        }
        let limits = Arc::clone(&self.nodes[&path].0);
        Node { path, limits }
    }

    fn with_defaults(&self, path: &AccountPath, limits: Arc<Quota>) -> Arc<Quota> {
        let is_top = path.parent().is_some_and(|parent| parent.is_root());
        let missing = self.defaults.limits().iter().filter(|default| !limits.states(default));
        let missing: Vec<_> = missing.cloned().collect();
        if !is_top || missing.is_empty() {
            return limits;
        }
        let all = limits.limits().iter().cloned().chain(missing);
        // More limits than a quota holds: what the account states itself counts.
        Quota::new(all.collect()).map_or(limits, Arc::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::quota::{Enforcement, Limit, UnixSeconds};

    fn n(value: u64) -> std::num::NonZeroU64 {
        value.try_into().unwrap()
    }

    fn record(path: &str, limits: Vec<Limit>) -> AccountRecord {
        let limits = Arc::new(Quota::new(limits).unwrap());
        AccountRecord { path: path.parse().unwrap(), weight: NonZeroU32::MIN, limits, created_at: UnixSeconds(0) }
    }

    #[test]
    fn an_account_is_bound_by_every_node_above_it() {
        let records = vec![
            record("/", vec![Limit::concurrent_requests(n(100))]),
            record("acme", vec![Limit::requests_per_minute(n(60))]),
            record("acme/vision", vec![]),
        ];
        let account = Tree::new(records, &Quota::unlimited()).account(&"acme/vision".parse().unwrap());
        let limits: Vec<_> = account.limits().map(|(node, limit)| (node.path.as_str(), limit.value().get())).collect();
        assert_eq!(limits, [("acme", 60), ("/", 100)]);
    }

    #[test]
    fn defaults_fill_in_at_the_top_level_and_nowhere_else() {
        let defaults = Quota::new(vec![Limit::requests_per_minute(n(1)), Limit::concurrent_requests(n(2))]).unwrap();
        let records = vec![record("/", vec![]), record("acme", vec![Limit::requests_per_minute(n(7))])];
        let mut tree = Tree::new(records, &defaults);
        let account = tree.account(&"acme/vision".parse().unwrap());
        let limits: Vec<_> = account.limits().map(|(node, limit)| (node.path.as_str(), limit.value().get())).collect();
        assert_eq!(limits, [("acme", 7), ("acme", 2)]);
        assert!(tree.known(&"unknown".parse().unwrap()).is_none() && tree.known(&AccountPath::root()).is_some());
        assert_eq!(tree.account(&"unknown".parse().unwrap()).limits().count(), 2);
    }

    #[test]
    fn neither_a_limit_on_trial_nor_one_for_another_model_takes_the_place_of_a_default() {
        let defaults = Quota::new(vec![Limit::requests_per_minute(n(2))]).unwrap();
        let on_trial = Limit { enforcement: Enforcement::DryRun, ..Limit::requests_per_minute(n(1)) };
        let of_other = Limit { model: Some("other".into()), ..Limit::requests_per_minute(n(1)) };
        let mut tree = Tree::new(vec![record("a", vec![on_trial]), record("b", vec![of_other])], &defaults);
        let mut binding = |path: &str| -> Vec<(Option<String>, u64)> {
            let account = tree.account(&path.parse().unwrap());
            let limits = account.limits();
            limits.map(|(_, limit)| (limit.model.as_deref().map(str::to_owned), limit.value().get())).collect()
        };
        assert_eq!(binding("a"), [(None, 2)]);
        assert_eq!(binding("b"), [(Some("other".to_owned()), 1), (None, 2)]);
    }
}
