//! The keys that a running server knows.
//!
//! The file of keys is looked at again whenever a key is presented and [`RELOAD_INTERVAL`] has passed, so a revocation
//! is effective within a second without a thread or a signal. A file that can no longer be read, or makes no sense,
//! leaves the keys as they were and is logged: trouble with a disk must neither log everyone out nor let anyone in.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;

use super::KeyError;
use super::key_file::StaticKey;
use super::secret::{ApiKey, KeyDigest, KeyFormatError, KeyId};
use super::store::{FileVersion, KeyRecord, KeyStatus, KeyStore, UnixSeconds};
use crate::gateway::account::{Account, AccountId};
use crate::gateway::auth::AuthError;
use crate::gateway::quota::Quota;

/// How old the picture of the file of keys may be.
const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// Nobody's key is longer; a longer one is refused before it is hashed.
const MAX_KEY_BYTES: usize = 512;

#[derive(Debug)]
pub struct KeyRing {
    store: Option<KeyStore>,
    static_keys: Vec<StaticKey>,
    /// What keys that state no limit of some kind get.
    default_limits: Quota,
    clock: Arc<dyn Clock>,
    stored: Mutex<Stored>,
}

/// What was last read from the store.
#[derive(Debug)]
struct Stored {
    keys: Arc<HashMap<KeyId, KnownKey>>,
    version: Option<FileVersion>,
    looked_at: Duration,
}

#[derive(Debug)]
struct KnownKey {
    record: KeyRecord,
    account: Arc<Account>,
}

impl KeyRing {
    /// `default_limits` fill in what a stored key does not limit itself. Fails if the file of keys cannot be read: a
    /// server that starts must know its keys.
    pub fn new(
        store: Option<KeyStore>,
        static_keys: Vec<StaticKey>,
        default_limits: Quota,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, KeyError> {
        let (records, version) = store.as_ref().map_or(Ok((Vec::new(), None)), KeyStore::read)?;
        let keys = Arc::new(by_id(records, &default_limits));
        let stored = Mutex::new(Stored { keys, version, looked_at: clock.now() });
        Ok(Self { store, static_keys, default_limits, clock, stored })
    }

    /// Whether nobody ever made a key. One that was revoked or has expired still counts: taking the last key away must
    /// not open the door to everybody.
    pub fn is_empty(&self) -> bool {
        self.static_keys.is_empty() && self.stored_keys().is_empty()
    }

    /// Whether some key would be accepted now.
    pub fn has_active_key(&self) -> bool {
        let now = self.wall();
        let is_active = |key: &KnownKey| key.record.info.status(now) == KeyStatus::Active;
        !self.static_keys.is_empty() || self.stored_keys().values().any(is_active)
    }

    pub fn authenticate(&self, bearer: &str) -> Result<Arc<Account>, AuthError> {
        if bearer.len() > MAX_KEY_BYTES {
            return Err(AuthError::Malformed);
        }
        self.reload_if_changed();
        let presented = KeyDigest::of(bearer);
        if let Some(account) = self.find_static(&presented) {
            return Ok(account);
        }
        let key = ApiKey::parse(bearer).map_err(|error| match error {
            KeyFormatError::OtherForm => AuthError::Unknown,
            KeyFormatError::Mistyped => AuthError::Malformed,
        })?;
        let keys = self.stored_keys();
        let known = keys.get(key.id()).ok_or(AuthError::Unknown)?;
        // What became of a key is told only to whoever holds its secret.
        if !known.record.digest.matches(&presented) {
            return Err(AuthError::Unknown);
        }
        match known.record.info.status(self.wall()) {
            KeyStatus::Active => Ok(Arc::clone(&known.account)),
            KeyStatus::Revoked => Err(AuthError::Revoked),
            KeyStatus::Expired => Err(AuthError::Expired),
        }
    }

    /// The account with this id, if its key would be accepted now.
    pub fn account(&self, id: &str) -> Option<Arc<Account>> {
        self.reload_if_changed();
        let now = self.wall();
        let fixed = self.static_keys.iter().map(|key| &key.account);
        let stored = self.stored_keys();
        let active = stored.values().filter(|key| key.record.info.status(now) == KeyStatus::Active);
        fixed.chain(active.map(|key| &key.account)).find(|account| account.id.as_str() == id).cloned()
    }

    /// Follows the file of keys. Costs a comparison of times until [`RELOAD_INTERVAL`] has passed, then one look at
    /// the file, and reads it only if it is another one.
    pub fn reload_if_changed(&self) {
        let Some(store) = &self.store else { return };
        let now = self.clock.now();
        let known_version = {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            if now.saturating_sub(stored.looked_at) < RELOAD_INTERVAL {
                return;
            }
            stored.looked_at = now;
            stored.version
        };
        // Outside the lock: whoever asks meanwhile is answered from the old picture.
        match read_if_other(store, known_version, &self.default_limits) {
            Ok(None) => {}
            Ok(Some((keys, version))) => {
                let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
                stored.keys = keys;
                stored.version = version;
            }
            Err(error) => tracing::warn!(%error, "the keys stay as they were"),
        }
    }

    /// Compares with every key, found or not.
    fn find_static(&self, presented: &KeyDigest) -> Option<Arc<Account>> {
        let mut found = None;
        for key in &self.static_keys {
            if key.digest.matches(presented) {
                found = Some(Arc::clone(&key.account));
            }
        }
        found
    }

    fn stored_keys(&self) -> Arc<HashMap<KeyId, KnownKey>> {
        Arc::clone(&self.stored.lock().unwrap_or_else(PoisonError::into_inner).keys)
    }

    fn wall(&self) -> UnixSeconds {
        UnixSeconds(self.clock.wall().as_secs())
    }
}

type Reading = (Arc<HashMap<KeyId, KnownKey>>, Option<FileVersion>);

fn read_if_other(
    store: &KeyStore,
    known: Option<FileVersion>,
    default_limits: &Quota,
) -> Result<Option<Reading>, KeyError> {
    if store.version()? == known {
        return Ok(None);
    }
    let (records, version) = store.read()?;
    Ok(Some((Arc::new(by_id(records, default_limits)), version)))
}

fn by_id(records: Vec<KeyRecord>, default_limits: &Quota) -> HashMap<KeyId, KnownKey> {
    let known = |record: KeyRecord| {
        let id = AccountId::new(record.info.id.as_str());
        let limits = record.info.limits.clone().or(default_limits);
        let account = Arc::new(Account::new(id, record.info.name.clone(), limits));
        (record.info.id.clone(), KnownKey { record, account })
    };
    records.into_iter().map(known).collect()
}

#[cfg(test)]
mod tests;
