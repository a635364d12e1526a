//! Where an account stands in the tree: `acme/vision/alice`. Everything is below the root, which is written `/`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Names an account in logs, refusals, the ledger and the administration. Never contains a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AccountPath(Arc<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("'{0}' is no account: write names of letters, digits, '.', '_' or '-', joined by '/'")]
    BadName(String),
    #[error("'{0}' is deeper than {max} levels", max = AccountPath::MAX_DEPTH)]
    TooDeep(String),
}

impl AccountPath {
    /// Levels below the root.
    pub const MAX_DEPTH: usize = 8;
    pub const MAX_NAME_BYTES: usize = 64;

    pub fn root() -> Self {
        Self("".into())
    }

    pub fn as_str(&self) -> &str {
        if self.is_root() { "/" } else { &self.0 }
    }

    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let parent = self.0.rsplit_once('/').map_or("", |(parent, _)| parent);
        Some(Self(parent.into()))
    }

    /// The last name; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// This node first, the root last.
    pub fn lineage(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(Some(self.clone()), Self::parent)
    }

    /// Whether this is `above` or below it.
    pub fn is_within(&self, above: &Self) -> bool {
        above.is_root() || self.0.strip_prefix(&*above.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

/// Whether `name` may stand between the slashes of a path.
pub fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=AccountPath::MAX_NAME_BYTES).contains(&name.len()) && name.bytes().all(allowed)
}

impl FromStr for AccountPath {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text == "/" {
            return Ok(Self::root());
        }
        if !text.split('/').all(is_name) {
            return Err(PathError::BadName(text.to_owned()));
        }
        match text.split('/').count() <= Self::MAX_DEPTH {
            true => Ok(Self(text.into())),
            false => Err(PathError::TooDeep(text.to_owned())),
        }
    }
}

impl fmt::Display for AccountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for AccountPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for AccountPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> AccountPath {
        text.parse().unwrap()
    }

    #[test]
    fn a_lineage_runs_from_the_account_to_the_root() {
        let lineage: Vec<_> = path("acme/vision/alice").lineage().map(|path| path.to_string()).collect();
        assert_eq!(lineage, ["acme/vision/alice", "acme/vision", "acme", "/"]);
        assert_eq!(path("/").lineage().count(), 1);
    }

    #[test]
    fn a_name_that_only_begins_alike_is_not_within() {
        assert!(path("acme/vision").is_within(&path("acme")) && path("acme").is_within(&path("acme")));
        assert!(path("acme").is_within(&path("/")) && !path("/").is_within(&path("acme")));
        assert!(!path("acme2").is_within(&path("acme")) && !path("acme").is_within(&path("acme/vision")));
    }

    #[test]
    fn only_eight_levels_of_plain_names_are_a_path() {
        for bad in ["", "a//b", "/a", "a/", "a b", "é", "a:b", "..//", &"x".repeat(65)] {
            assert!(bad.parse::<AccountPath>().is_err(), "{bad}");
        }
        assert!("1/2/3/4/5/6/7/8".parse::<AccountPath>().is_ok());
        assert!(matches!("1/2/3/4/5/6/7/8/9".parse::<AccountPath>(), Err(PathError::TooDeep(_))));
    }
}
