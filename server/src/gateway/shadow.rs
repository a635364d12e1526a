//! A candidate that gets a share of an alias's requests too, once they are answered: a new checkpoint is tried on what users
//! ask, and no user gets its answers.

use std::sync::Arc;

use super::account::{AccountPath, Caller};
use super::auth::Authenticator;
use super::chance::Chance;

#[derive(Debug)]
pub struct Shadow {
    pub alias: String,
    /// The model that is asked too.
    pub candidate: String,
    /// Who pays.
    pub account: AccountPath,
    share: f64,
    chance: Chance,
}

impl Shadow {
    /// `share`: of the requests, above 0 and at most 1. `seed` decides which.
    pub fn new(alias: String, candidate: String, share: f64, account: AccountPath, seed: u64) -> Self {
        Self { alias, candidate, account, share, chance: Chance::new(seed) }
    }

    /// Whether the next request is one of the share.
    pub fn draws(&self) -> bool {
        self.chance.draw_unit() < self.share
    }

    /// In whose name the candidate is asked. `None`: there is no such account.
    pub fn caller(&self, authenticator: &Authenticator) -> Option<Arc<Caller>> {
        authenticator.account(&self.account).map(|account| Arc::new(Caller::shadow(account)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUESTS: usize = 20_000;

    fn drawn(share: f64, seed: u64) -> Vec<bool> {
        let shadow = Shadow::new("chat".to_owned(), "new".to_owned(), share, AccountPath::root(), seed);
        (0..REQUESTS).map(|_| shadow.draws()).collect()
    }

    #[test]
    fn a_candidate_gets_its_share_of_the_requests_and_a_seed_says_which() {
        let of = |share: f64| drawn(share, 7).into_iter().filter(|drawn| *drawn).count() as f64 / REQUESTS as f64;
        // Five standard deviations of a share of a twentieth over so many draws are 0.0077.
        assert!((of(0.05) - 0.05).abs() < 0.0077, "{}", of(0.05));
        assert!((of(1.0) - 1.0).abs() < f64::EPSILON, "all are all");
        assert_eq!(drawn(0.3, 7), drawn(0.3, 7));
        assert_ne!(drawn(0.3, 7), drawn(0.3, 8));
    }
}
