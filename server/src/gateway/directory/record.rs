//! What is kept of accounts and keys.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::gateway::account::{AccountPath, ModelAccess, Scopes, ServiceClass};
use crate::gateway::keys::{KeyDigest, KeyId};
use crate::gateway::quota::{Quota, UnixSeconds};

/// All accounts and keys at one instant.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub generation: u64,
    /// In the order of paths; the root first.
    pub accounts: Vec<AccountRecord>,
    /// Every key ever made, oldest first.
    pub keys: Vec<KeyRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AccountRecord {
    pub path: AccountPath,
    /// Its part of an engine beside others; 1 unless somebody said more.
    pub weight: NonZeroU32,
    #[serde(serialize_with = "limits_of")]
    pub limits: Arc<Quota>,
    pub created_at: UnixSeconds,
}

/// What whoever creates a key decides.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub account: AccountPath,
    pub name: String,
    pub scopes: Scopes,
    pub models: ModelAccess,
    pub class: ServiceClass,
    /// `None`: until revoked.
    pub valid_for: Option<Duration>,
}

/// What may be known of a key: everything but its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeyInfo {
    pub id: KeyId,
    pub account: AccountPath,
    pub name: String,
    pub scopes: Scopes,
    pub models: ModelAccess,
    /// Of its requests, at best.
    pub class: ServiceClass,
    pub created_at: UnixSeconds,
    pub expires_at: Option<UnixSeconds>,
    pub revoked_at: Option<UnixSeconds>,
    /// Until when the secret before the last rotation is accepted.
    pub former_until: Option<UnixSeconds>,
}

/// A key known by its digests only.
#[derive(Debug, Clone)]
pub struct KeyRecord {
    pub info: KeyInfo,
    pub(in crate::gateway) digest: KeyDigest,
    pub(in crate::gateway) former_digest: Option<KeyDigest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyStatus {
    Active,
    Expired,
    Revoked,
}

impl KeyInfo {
    pub fn status(&self, now: UnixSeconds) -> KeyStatus {
        if self.revoked_at.is_some() {
            KeyStatus::Revoked
        } else if self.expires_at.is_some_and(|end| end <= now) {
            KeyStatus::Expired
        } else {
            KeyStatus::Active
        }
    }
}

impl KeyRecord {
    /// In time that does not depend on where digests differ.
    pub(in crate::gateway) fn matches(&self, presented: &KeyDigest, now: UnixSeconds) -> bool {
        let is_current = self.digest.matches(presented);
        let is_former = self.former_digest.as_ref().is_some_and(|former| former.matches(presented));
        is_current || is_former && self.info.former_until.is_some_and(|until| now < until)
    }
}

impl KeyStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

fn limits_of<S: serde::Serializer>(limits: &Quota, serializer: S) -> Result<S::Ok, S::Error> {
    limits.limits().serialize(serializer)
}
