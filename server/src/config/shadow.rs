//! Requests that a candidate is asked too, checked as far as the configuration knows them.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::Deserialize;

use super::checked::count;
use super::{Aliases, ByteSize, ConfigError, WrittenShadow};

/// By alias.
pub type Candidates = BTreeMap<String, Candidate>;

/// What a share of an alias's requests is given to, too.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Served here: what only an upstream has cannot be scored.
    pub model: String,
    /// Of the requests, above 0 and at most 1.
    pub share: f64,
    /// Who pays. Default: the root of all accounts, which is the operator's.
    pub account: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ShadowConfig {
    pub aliases: Candidates,
    /// Requests that are looked at with a candidate at the same time.
    pub max_running: usize,
    /// Those that wait for it; further ones are dropped.
    pub max_waiting: usize,
    /// Of each greedy answer.
    pub max_tokens: NonZeroU32,
    /// Where answers and their scores are kept. `None`: nowhere.
    pub folder: Option<PathBuf>,
    /// Of all that is kept.
    pub max_stored: ByteSize,
}

pub(super) fn check_shadow(written: WrittenShadow, aliases: &Aliases) -> Result<ShadowConfig, ConfigError> {
    let candidates = written.aliases.unwrap_or_default();
    for (alias, Candidate { share, .. }) in &candidates {
        if !aliases.contains_key(alias) {
            return Err(refused(format!("`{alias}` is not one of [aliases]")));
        }
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(refused(format!("the share of `{alias}` is {share}; write a number above 0 and at most 1")));
        }
    }
    Ok(ShadowConfig {
        aliases: candidates,
        max_running: count(written.max_running, 1),
        max_waiting: count(written.max_waiting, 64),
        max_tokens: written.max_tokens.unwrap_or(const { NonZeroU32::new(64).unwrap() }),
        folder: written.folder,
        max_stored: written.max_stored.unwrap_or(ByteSize(256 << 20)),
    })
}

/// Each candidate is a model that runs here, or could.
pub fn check_candidates(candidates: &Candidates, here: &[String]) -> Result<(), ConfigError> {
    let elsewhere = candidates.iter().find(|(_, candidate)| !here.contains(&candidate.model));
    match elsewhere {
        Some((alias, Candidate { model, .. })) => {
            Err(refused(format!("the candidate of `{alias}` is `{model}`, which is not served here")))
        }
        None => Ok(()),
    }
}

fn refused(problem: String) -> ConfigError {
    ConfigError::value("shadow.aliases", problem)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(candidate: &str) -> Result<ShadowConfig, ConfigError> {
        let aliases = toml::from_str("chat = { old = 1 }").expect("the test's TOML is well formed");
        let written = toml::from_str(&format!("aliases = {{ {candidate} }}")).expect("the test's TOML is well formed");
        check_shadow(written, &aliases)
    }

    #[test]
    fn a_candidate_belongs_to_an_alias_and_gets_a_share_of_its_requests() {
        check("chat = { model = \"new\", share = 1.0, account = \"ops\" }").expect("all of them");
        for (candidate, wanted) in [
            ("chat = { model = \"new\", share = 0.0 }", "above 0"),
            ("chat = { model = \"new\", share = 1.5 }", "at most 1"),
            ("chat = { model = \"new\", share = nan }", "at most 1"),
            ("code = { model = \"new\", share = 0.5 }", "[aliases]"),
        ] {
            let error = check(candidate).expect_err(candidate).to_string();
            assert!(error.contains(wanted), "{error}");
        }
        toml::from_str::<Candidate>("model = \"new\"\nshare = 0.5\nshadow = 1").expect_err("an unknown key");
    }

    #[test]
    fn a_candidate_is_served_here() {
        let candidates = check("chat = { model = \"new\", share = 0.5 }").expect("it is valid").aliases;
        check_candidates(&candidates, &["old".to_owned(), "new".to_owned()]).expect("it is here");
        check_candidates(&candidates, &["old".to_owned()]).expect_err("it is elsewhere");
    }
}
