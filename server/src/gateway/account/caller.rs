//! Who asks: an account, through a key that may do some things and not others.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Account, AccountPath, Classes, ServiceClass};
use crate::gateway::directory::KeyInfo;
use crate::gateway::keys::KeyId;
use crate::gateway::quota::Quota;

#[derive(Debug, Clone)]
pub struct Caller {
    pub account: Arc<Account>,
    pub via: Via,
    pub scopes: Scopes,
    pub models: ModelAccess,
    pub classes: Classes,
}

/// What let the caller in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Via {
    /// An open listener.
    OpenDoor,
    /// A key of `--api-key-file`, by its name.
    FixedKey(Arc<str>),
    Key(KeyId),
    /// The command line of whoever owns the data directory.
    CommandLine,
    /// The server itself, which asks a candidate what others were answered.
    Shadow,
}

/// What a key may be used for. Whoever may do anything may also look at the models and at their own limits and usage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// Run models and wait for the answer.
    Inference,
    /// Run models in the class `batch`.
    Batch,
    /// Manage keys at and below the key's account, and accounts and limits below it.
    Admin,
    /// Look, and nothing else.
    ReadOnly,
    /// Name a reservation of another gateway, under which what is asked twice is billed once. Beside `inference`.
    Gateway,
}

/// Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BTreeSet<Scope>", into = "BTreeSet<Scope>")]
pub struct Scopes(BTreeSet<Scope>);

/// Which models a key may see. For the others it is as if they were not served.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "Option<BTreeSet<String>>", into = "Option<BTreeSet<String>>")]
pub enum ModelAccess {
    #[default]
    All,
    Only(BTreeSet<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a key without a scope could do nothing")]
pub struct NoScope;

impl ModelAccess {
    /// Whether whoever has this has all of `other`.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::All, _) => true,
            (Self::Only(_), Self::All) => false,
            (Self::Only(known), Self::Only(asked)) => asked.is_subset(known),
        }
    }

    /// Those that are listed.
    pub fn named(&self) -> impl Iterator<Item = &str> {
        let listed = match self {
            Self::All => None,
            Self::Only(models) => Some(models),
        };
        listed.into_iter().flatten().map(String::as_str)
    }
}

impl Caller {
    /// Everybody, where nobody needs a key. Administration still needs one.
    pub fn at_open_door(account: Account) -> Self {
        let scopes = Scopes([Scope::Inference, Scope::Batch].into());
        let (account, classes) = (Arc::new(account), Classes::ANY);
        Self { account, via: Via::OpenDoor, scopes, models: ModelAccess::All, classes }
    }

    /// Whoever owns the data directory: governs everything in it, and runs no model.
    pub fn operator() -> Self {
        let account = Account::alone(AccountPath::root(), Quota::unlimited());
        let scopes = Scopes([Scope::Admin].into());
        let (account, classes) = (Arc::new(account), Classes::ANY);
        Self { account, via: Via::CommandLine, scopes, models: ModelAccess::All, classes }
    }

    /// The server itself, where the configuration has it ask a model on this account's bill.
    pub fn shadow(account: Arc<Account>) -> Self {
        let (scopes, classes) = (Scopes([Scope::Batch].into()), Classes::up_to(ServiceClass::Batch));
        Self { account, via: Via::Shadow, scopes, models: ModelAccess::All, classes }
    }

    /// Whoever shows the key.
    pub fn with_key(key: &KeyInfo, account: Arc<Account>) -> Self {
        let (via, classes) = (Via::Key(key.id.clone()), Classes::up_to(key.class));
        Self { account, via, scopes: key.scopes.clone(), models: key.models.clone(), classes }
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.allow(scope)
    }

    /// Whether this caller sees a model, which may belong to an account and what is below it.
    pub fn sees(&self, model: &str, owner: Option<&AccountPath>) -> bool {
        let is_listed = match &self.models {
            ModelAccess::All => true,
            ModelAccess::Only(models) => models.contains(model),
        };
        is_listed && owner.is_none_or(|owner| self.account.path.is_within(owner))
    }

    /// Whether this caller may change what is at `path`.
    pub fn governs(&self, path: &AccountPath) -> bool {
        self.may(Scope::Admin) && path.is_within(&self.account.path)
    }
}

impl Via {
    /// For the ledger and the log.
    pub fn label(&self) -> &str {
        match self {
            Self::OpenDoor => "",
            Self::FixedKey(name) => name,
            Self::Key(id) => id.as_str(),
            Self::CommandLine => "command line",
            Self::Shadow => "shadow",
        }
    }
}

impl Scopes {
    pub fn new(scopes: impl IntoIterator<Item = Scope>) -> Result<Self, NoScope> {
        Self::try_from(scopes.into_iter().collect::<BTreeSet<_>>())
    }

    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope)
    }

    pub fn iter(&self) -> impl Iterator<Item = Scope> {
        self.0.iter().copied()
    }
}

impl Default for Scopes {
    fn default() -> Self {
        Self([Scope::Inference].into())
    }
}

impl TryFrom<BTreeSet<Scope>> for Scopes {
    type Error = NoScope;

    fn try_from(scopes: BTreeSet<Scope>) -> Result<Self, NoScope> {
        if scopes.is_empty() { Err(NoScope) } else { Ok(Self(scopes)) }
    }
}

impl From<Scopes> for BTreeSet<Scope> {
    fn from(scopes: Scopes) -> Self {
        scopes.0
    }
}

impl From<Option<BTreeSet<String>>> for ModelAccess {
    fn from(models: Option<BTreeSet<String>>) -> Self {
        models.map_or(Self::All, Self::Only)
    }
}

impl From<ModelAccess> for Option<BTreeSet<String>> {
    fn from(access: ModelAccess) -> Self {
        match access {
            ModelAccess::All => None,
            ModelAccess::Only(models) => Some(models),
        }
    }
}

impl Scope {
    const ALL: [Self; 5] = [Self::Inference, Self::Batch, Self::Admin, Self::ReadOnly, Self::Gateway];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inference => "inference",
            Self::Batch => "batch",
            Self::Admin => "admin",
            Self::ReadOnly => "read-only",
            Self::Gateway => "gateway",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Scope {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|scope| scope.as_str() == text)
            .ok_or_else(|| format!("a scope is one of {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(path: &str, scopes: &[Scope]) -> Caller {
        let mut caller = Caller::at_open_door(Account::alone(path.parse().unwrap(), Default::default()));
        caller.scopes = Scopes::new(scopes.iter().copied()).unwrap();
        caller
    }

    #[test]
    fn an_allow_list_and_an_owner_both_hide_a_model() {
        let mut alice = caller("acme/vision", &[Scope::Inference]);
        let acme = "acme".parse().unwrap();
        let other = "other".parse().unwrap();
        assert!(alice.sees("m", None) && alice.sees("m", Some(&acme)) && !alice.sees("m", Some(&other)));
        alice.models = ModelAccess::Only(["n".to_owned()].into());
        assert!(!alice.sees("m", None) && alice.sees("n", Some(&acme)) && !alice.sees("n", Some(&other)));
    }

    #[test]
    fn an_admin_key_governs_its_own_part_of_the_tree_and_no_other_key_does() {
        let owner = caller("acme", &[Scope::Admin]);
        let governs = |path: &str| owner.governs(&path.parse().unwrap());
        assert!(governs("acme") && governs("acme/vision") && !governs("acme2") && !governs("/"));
        assert!(!caller("acme", &[Scope::Inference]).governs(&"acme".parse().unwrap()));
        let operator = Caller::operator();
        assert!(operator.governs(&AccountPath::root()) && operator.governs(&"acme/vision".parse().unwrap()));
        assert!(!operator.may(Scope::Inference) && Scopes::new([]).is_err());
    }
}
