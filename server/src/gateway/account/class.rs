//! How urgent a caller's requests are.

use std::fmt;
use std::str::FromStr;

use passerelle_engine::Class;
use serde::{Deserialize, Serialize};

/// Whoever stands further up goes first and is preempted last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServiceClass {
    /// Somebody is waiting for it.
    Interactive,
    #[default]
    Standard,
    /// Uses what the others leave.
    Batch,
}

/// The classes that a caller's requests may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Classes {
    best: ServiceClass,
    usual: ServiceClass,
}

impl Classes {
    /// Standard, unless the request asks for another one.
    pub const ANY: Self = Self { best: ServiceClass::Interactive, usual: ServiceClass::Standard };

    /// Of a key: its class, unless the request asks for one that is less urgent.
    pub fn up_to(class: ServiceClass) -> Self {
        Self { best: class, usual: class }
    }

    /// What a request gets that asks for `asked`: never more than the caller may have.
    pub fn grant(self, asked: Option<ServiceClass>) -> ServiceClass {
        asked.map_or(self.usual, |asked| asked.max(self.best))
    }
}

impl ServiceClass {
    const ALL: [Self; 3] = [Self::Interactive, Self::Standard, Self::Batch];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }
}

impl From<ServiceClass> for Class {
    fn from(class: ServiceClass) -> Self {
        match class {
            ServiceClass::Interactive => Self::Interactive,
            ServiceClass::Standard => Self::Standard,
            ServiceClass::Batch => Self::Batch,
        }
    }
}

impl fmt::Display for ServiceClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ServiceClass {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = || Self::ALL.map(Self::as_str).join(", ");
        Self::ALL
            .into_iter()
            .find(|class| class.as_str() == text)
            .ok_or_else(|| format!("a class is one of {}", known()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ServiceClass::{Batch, Interactive, Standard};

    #[test]
    fn a_request_gets_what_it_asks_for_and_never_more_than_its_key_may_have() {
        let granted =
            |classes: Classes| [None, Some(Interactive), Some(Standard), Some(Batch)].map(|a| classes.grant(a));
        assert_eq!(granted(Classes::ANY), [Standard, Interactive, Standard, Batch]);
        assert_eq!(granted(Classes::up_to(Interactive)), [Interactive, Interactive, Standard, Batch]);
        assert_eq!(granted(Classes::up_to(Standard)), [Standard, Standard, Standard, Batch]);
        assert_eq!(granted(Classes::up_to(Batch)), [Batch; 4]);
    }

    #[test]
    fn every_class_reads_back() {
        assert!(ServiceClass::ALL.into_iter().all(|class| class.as_str().parse() == Ok(class)));
        assert!("urgent".parse::<ServiceClass>().unwrap_err().contains("interactive"));
    }
}
