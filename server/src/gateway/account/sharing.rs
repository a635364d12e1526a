use passerelle_engine::CacheSalt;

use super::{AccountPath, derive};

/// Whose prompts find each other's cached beginnings. An account's find those of the same account and no other, unless
/// an operator has named it, or one above it: then all accounts there share.
///
/// Whoever shares can tell from the time of an answer, and from its `cached_tokens`, whether somebody else has sent the same
/// beginning before, to the token: what somebody sent can be guessed bit by bit by whoever asks often enough.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrefixSharing(Vec<AccountPath>);

impl PrefixSharing {
    /// Everybody at or below one of `accounts` shares with all others there.
    pub fn below(accounts: Vec<AccountPath>) -> Self {
        Self(accounts)
    }

    /// The salt of an account's prefixes, or the narrower one that its caller asked for (`cache_salt` in a request): that
    /// separates among those who share, and can never reach beyond them.
    pub fn salt(&self, account: &AccountPath, narrower: Option<&str>) -> CacheSalt {
        let named = account.lineage().filter(|path| self.0.contains(path)).last();
        let group = named.as_ref().unwrap_or(account).as_str();
        CacheSalt(match narrower {
            None => derive("cache salt", &[group]),
            Some(caller) => derive("caller cache salt", &[group, caller]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> AccountPath {
        text.parse().unwrap()
    }

    fn salt(sharing: &PrefixSharing, account: &str) -> CacheSalt {
        sharing.salt(&path(account), None)
    }

    #[test]
    fn an_account_shares_with_nobody_unless_it_is_said_so() {
        let nobody = PrefixSharing::default();
        assert_ne!(salt(&nobody, "acme/a"), salt(&nobody, "acme/b"));
        assert_ne!(salt(&nobody, "acme/a"), salt(&nobody, "acme"));
        assert_eq!(salt(&nobody, "acme/a"), salt(&PrefixSharing::default(), "acme/a"), "stable over restarts");
    }

    #[test]
    fn accounts_below_a_named_one_share_and_others_do_not() {
        let sharing = PrefixSharing::below(vec![path("acme/vision"), path("acme"), path("lab/x")]);
        assert_eq!(salt(&sharing, "acme/vision/eve"), salt(&sharing, "acme/sound"), "the account named highest counts");
        assert_eq!(salt(&sharing, "acme"), salt(&sharing, "acme/sound"));
        assert_ne!(salt(&sharing, "lab/x"), salt(&sharing, "lab/y"));
        assert_ne!(salt(&sharing, "acmeish"), salt(&sharing, "acme"));
    }

    #[test]
    fn a_callers_salt_separates_among_those_who_share_and_nowhere_else() {
        let sharing = PrefixSharing::below(vec![path("acme")]);
        let narrower = |account: &str, caller| sharing.salt(&path(account), Some(caller));
        assert_ne!(narrower("acme/a", "x"), narrower("acme/a", "y"));
        assert_eq!(narrower("acme/a", "x"), narrower("acme/b", "x"));
        assert_ne!(narrower("lab/a", "x"), narrower("lab/b", "x"));
        assert_ne!(narrower("lab/a", ""), sharing.salt(&path("lab/a"), None));
        assert_ne!(narrower("a", "bc"), narrower("ab", "c"));
    }
}
