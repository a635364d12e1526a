//! The keys that a running server knows.
//!
//! The directory is asked for its generation whenever a key is presented and [`RELOAD_INTERVAL`] has passed, and read
//! again if it is another one: so a revocation is effective within a second without a thread or a signal. Whoever changes
//! the directory in this process has it looked at before they answer ([`KeyRing::look`]), so that what they say holds.
//! A directory that can no longer be read leaves the keys as they were and is logged: trouble with a disk must neither log
//! everyone out nor let anyone in.
//!
//! A key has expired once either clock says so: the one that budgets follow, which never goes back (`today`), or the wall
//! clock, which may be ahead of it. So no key comes back because a clock was set back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passerelle_engine::clock::Clock;

use super::key_file::StaticKey;
use super::secret::{ApiKey, KeyDigest, KeyFormatError, KeyId};
use crate::gateway::account::{
    Account, AccountPath, Caller, Classes, ModelAccess, Scope, Scopes, ServiceClass, Tree, Via,
};
use crate::gateway::auth::AuthError;
use crate::gateway::directory::{Directory, DirectoryError, KeyRecord, KeyStatus, Snapshot};
use crate::gateway::quota::{Quota, UnixSeconds};

/// How old the picture of the directory may be.
const RELOAD_INTERVAL: Duration = Duration::from_millis(500);
/// Nobody's key is longer; a longer one is refused before it is hashed.
const MAX_KEY_BYTES: usize = 512;

#[derive(Debug)]
pub struct KeyRing {
    directory: Option<Directory>,
    clock: Arc<dyn Clock>,
    /// Held from a reading of the directory until it is taken over, so that no older one follows a newer. Locked before `known`.
    looking: Mutex<()>,
    known: Mutex<Known>,
}

/// What a configuration gives, beside the directory.
#[derive(Debug)]
struct Given {
    static_keys: Vec<StaticKey>,
    /// What accounts directly below the root get where they state no limit of some name.
    defaults: Quota,
}

/// What a changed configuration makes of a ring.
#[derive(Debug)]
pub struct Regiven {
    given: Arc<Given>,
    picture: Arc<Picture>,
}

#[derive(Debug)]
struct Known {
    given: Arc<Given>,
    picture: Arc<Picture>,
    looked_at: Duration,
}

/// What was last read from the directory.
#[derive(Debug)]
struct Picture {
    generation: u64,
    keys: HashMap<KeyId, KnownKey>,
    fixed: Vec<(KeyDigest, Arc<Caller>)>,
    /// Read when somebody asks for an account that no key is on.
    tree: Mutex<Tree>,
}

#[derive(Debug)]
struct KnownKey {
    record: KeyRecord,
    caller: Arc<Caller>,
}

impl KeyRing {
    /// Fails if the directory cannot be read: a server that starts must know its keys.
    pub fn new(
        directory: Option<Directory>,
        static_keys: Vec<StaticKey>,
        defaults: Quota,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, DirectoryError> {
        let given = Arc::new(Given { static_keys, defaults });
        let snapshot = directory.as_ref().map(Directory::snapshot).transpose()?;
        let picture = Arc::new(Picture::of(snapshot, &given));
        let known = Mutex::new(Known { given, picture, looked_at: clock.now() });
        Ok(Self { directory, clock, looking: Mutex::default(), known })
    }

    /// With other keys of a file, or other defaults; in force once it is adopted. Fails if the directory cannot be read.
    pub fn regive(&self, static_keys: Vec<StaticKey>, defaults: Quota) -> Result<Regiven, DirectoryError> {
        let given = Arc::new(Given { static_keys, defaults });
        let snapshot = self.directory.as_ref().map(Directory::snapshot).transpose()?;
        let picture = Arc::new(Picture::of(snapshot, &given));
        Ok(Regiven { given, picture })
    }

    /// Whether a file holds others than those that are in force.
    pub fn has_other_fixed_keys(&self, keys: &[StaticKey]) -> bool {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let given = &known.given.static_keys;
        let is_same = |(a, b): (&StaticKey, &StaticKey)| a.account == b.account && a.digest.matches(&b.digest);
        given.len() != keys.len() || !given.iter().zip(keys).all(is_same)
    }

    /// What was changed since it was read is in it: a key that was revoked meanwhile does not come back.
    pub fn adopt(&self, Regiven { given, picture }: Regiven) {
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = match &self.directory {
            Some(directory) => read_if_other(directory, picture.generation, &given),
            None => Ok(None),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.given = given;
        match newer {
            Ok(newer) => known.picture = newer.map_or(picture, Arc::new),
            Err(error) => {
                tracing::warn!(%error, "the keys stay as they were");
                if picture.generation >= known.picture.generation {
                    known.picture = picture;
                }
            }
        }
    }

    /// Whether nobody ever made a key. One that was revoked or has expired still counts: taking the last key away must
    /// not open the door to everybody.
    pub fn is_empty(&self) -> bool {
        let picture = self.picture();
        picture.fixed.is_empty() && picture.keys.is_empty()
    }

    /// Whether some key would be accepted now, by the wall clock alone.
    pub fn has_active_key(&self) -> bool {
        let now = self.now(UnixSeconds(0));
        let is_active = |key: &KnownKey| key.record.info.status(now) == KeyStatus::Active;
        let picture = self.picture();
        !picture.fixed.is_empty() || picture.keys.values().any(is_active)
    }

    pub fn authenticate(&self, bearer: &str, today: UnixSeconds) -> Result<Arc<Caller>, AuthError> {
        if bearer.len() > MAX_KEY_BYTES {
            return Err(AuthError::Malformed);
        }
        self.reload_if_changed();
        let presented = KeyDigest::of(bearer);
        let picture = self.picture();
        if let Some(caller) = picture.find_fixed(&presented) {
            return Ok(caller);
        }
        let key = ApiKey::parse(bearer).map_err(|error| match error {
            KeyFormatError::OtherForm => AuthError::Unknown,
            KeyFormatError::Mistyped => AuthError::Malformed,
        })?;
        let known = picture.keys.get(key.id()).ok_or(AuthError::Unknown)?;
        let now = self.now(today);
        // What became of a key is told only to whoever holds its secret.
        if !known.record.matches(&presented, now) {
            return Err(AuthError::Unknown);
        }
        match known.record.info.status(now) {
            KeyStatus::Active => Ok(Arc::clone(&known.caller)),
            KeyStatus::Revoked => Err(AuthError::Revoked),
            KeyStatus::Expired => Err(AuthError::Expired),
        }
    }

    /// The caller who came in by this key, if the key would still be accepted.
    pub fn caller(&self, account: &str, via: &str, today: UnixSeconds) -> Option<Arc<Caller>> {
        self.reload_if_changed();
        let (picture, now) = (self.picture(), self.now(today));
        let fixed = picture.fixed.iter().map(|(_, caller)| caller);
        let named = picture.keys.get(via).filter(|key| key.record.info.status(now) == KeyStatus::Active);
        let is_it = |caller: &&Arc<Caller>| caller.account.path.as_str() == account && caller.via.label() == via;
        named.map(|key| &key.caller).into_iter().chain(fixed).find(is_it).cloned()
    }

    /// The account as it is now. `None`: it is not the root, and nobody made it.
    pub fn account(&self, path: &AccountPath) -> Option<Arc<Account>> {
        self.reload_if_changed();
        self.picture().tree.lock().unwrap_or_else(PoisonError::into_inner).known(path)
    }

    /// Follows the directory. Costs a comparison of times until [`RELOAD_INTERVAL`] has passed, then a [`KeyRing::look`].
    fn reload_if_changed(&self) {
        let now = self.clock.now();
        {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            if now.saturating_sub(known.looked_at) < RELOAD_INTERVAL {
                return;
            }
            known.looked_at = now;
        }
        self.look();
    }

    /// One look at the directory's generation; reads it only if it is another one. Waits for the disk.
    pub fn look(&self) {
        let Some(directory) = &self.directory else { return };
        let _looking = self.looking.lock().unwrap_or_else(PoisonError::into_inner);
        let (generation, given) = {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            (known.picture.generation, Arc::clone(&known.given))
        };
        // Beside the lock of what is known: whoever asks meanwhile is answered from the old picture.
        match read_if_other(directory, generation, &given) {
            Ok(None) => {}
            Ok(Some(picture)) => {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).picture = Arc::new(picture);
            }
            Err(error) => tracing::warn!(%error, "the keys stay as they were"),
        }
    }

    fn picture(&self) -> Arc<Picture> {
        Arc::clone(&self.known.lock().unwrap_or_else(PoisonError::into_inner).picture)
    }

    fn now(&self, today: UnixSeconds) -> UnixSeconds {
        today.max(UnixSeconds::of(self.clock.wall()))
    }
}

fn read_if_other(directory: &Directory, known: u64, given: &Given) -> Result<Option<Picture>, DirectoryError> {
    if directory.generation()? == known {
        return Ok(None);
    }
    Ok(Some(Picture::of(Some(directory.snapshot()?), given)))
}

impl Picture {
    fn of(snapshot: Option<Snapshot>, Given { static_keys, defaults }: &Given) -> Self {
        let snapshot = snapshot.unwrap_or(Snapshot { generation: 0, accounts: Vec::new(), keys: Vec::new() });
        let mut tree = Tree::new(snapshot.accounts, defaults);
        let fixed = static_keys.iter().map(|key| (key.digest.clone(), Arc::new(fixed_caller(&mut tree, key))));
        let fixed = fixed.collect();
        let known = |record: KeyRecord| {
            let caller = Arc::new(Caller::with_key(&record.info, tree.account(&record.info.account)));
            (record.info.id.clone(), KnownKey { record, caller })
        };
        let keys = snapshot.keys.into_iter().map(known).collect();
        Self { generation: snapshot.generation, keys, fixed, tree: Mutex::new(tree) }
    }

    /// Compares with every key, found or not.
    fn find_fixed(&self, presented: &KeyDigest) -> Option<Arc<Caller>> {
        let mut found = None;
        for (digest, caller) in &self.fixed {
            if digest.matches(presented) {
                found = Some(Arc::clone(caller));
            }
        }
        found
    }
}

fn fixed_caller(tree: &mut Tree, key: &StaticKey) -> Caller {
    let scopes = Scopes::new([Scope::Inference, Scope::Batch]).expect("two scopes are not none");
    let via = Via::FixedKey(key.account.name().into());
    let classes = Classes::up_to(ServiceClass::default());
    Caller { account: tree.account(&key.account), via, scopes, models: ModelAccess::All, classes }
}

#[cfg(test)]
mod tests;
