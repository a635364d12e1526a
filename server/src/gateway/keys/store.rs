//! The file of keys, `keys.json` in the data directory.
//!
//! Every change is made under an advisory lock, so that two processes never lose each other's, and replaces the file
//! by a rename, so that a reader sees the old file or the new one. Only the owner may read it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use passerelle_engine::clock::Clock;
use serde::{Deserialize, Serialize};

use super::secret::{ApiKey, KeyDigest, KeyId};
use super::{KeyError, io_error};
use crate::gateway::quota::Quota;

pub(super) const MAX_NAME_BYTES: usize = 64;
const FORMAT_VERSION: u32 = 1;
const MAX_KEYS: usize = 10_000;
/// Far above what `MAX_KEYS` keys take; a larger file is not ours.
const MAX_FILE_BYTES: u64 = 16 << 20;
const OWNER_ONLY_FILE: u32 = 0o600;
const OWNER_ONLY_DIRECTORY: u32 = 0o700;

#[derive(Debug, Clone)]
pub struct KeyStore {
    directory: PathBuf,
    clock: Arc<dyn Clock>,
}

/// What whoever creates a key decides.
#[derive(Debug, Clone)]
pub struct NewKey {
    pub name: String,
    pub limits: Quota,
    /// `None`: until revoked.
    pub valid_for: Option<Duration>,
}

/// What may be known of a key: everything but its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyInfo {
    pub id: KeyId,
    pub name: String,
    pub limits: Quota,
    pub created_at: UnixSeconds,
    pub expires_at: Option<UnixSeconds>,
    pub revoked_at: Option<UnixSeconds>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyStatus {
    Active,
    Expired,
    Revoked,
}

/// Wall time, seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixSeconds(pub u64);

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeyRecord {
    #[serde(flatten)]
    pub(super) info: KeyInfo,
    pub(super) digest: KeyDigest,
}

/// Which file was read: a rename changes the inode, an edit in place the times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVersion {
    inode: (u64, u64),
    modified_ns: (i64, i64),
    changed_ns: (i64, i64),
    bytes: u64,
}

#[derive(Serialize, Deserialize)]
struct FileVersionOnly {
    format_version: u32,
}

#[derive(Serialize, Deserialize)]
struct KeysFile {
    format_version: u32,
    keys: Vec<KeyRecord>,
}

impl KeyStore {
    /// Makes the directory, readable by its owner only, if there is none.
    pub fn open(directory: &Path, clock: Arc<dyn Clock>) -> Result<Self, KeyError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(OWNER_ONLY_DIRECTORY);
        builder.create(directory).map_err(io_error("create", directory))?;
        Ok(Self { directory: directory.to_owned(), clock })
    }

    /// The key returned is the only copy there will ever be.
    pub fn create(&self, new: NewKey) -> Result<(ApiKey, KeyInfo), KeyError> {
        check_name(&new.name)?;
        let now = self.wall();
        let key = ApiKey::generate()?;
        let info = KeyInfo {
            id: key.id().clone(),
            name: new.name,
            limits: new.limits,
            created_at: now,
            expires_at: new.valid_for.map(|span| UnixSeconds(now.0.saturating_add(span.as_secs()))),
            revoked_at: None,
        };
        let record = KeyRecord { info: info.clone(), digest: key.digest() };
        self.update(|keys| {
            if keys.iter().any(|key| key.info.name == record.info.name && key.info.status(now) == KeyStatus::Active) {
                return Err(KeyError::NameTaken(record.info.name));
            }
            if keys.len() >= MAX_KEYS {
                return Err(KeyError::TooMany(MAX_KEYS));
            }
            keys.push(record);
            Ok(())
        })?;
        Ok((key, info))
    }

    /// Every key ever made, oldest first.
    pub fn list(&self) -> Result<Vec<KeyInfo>, KeyError> {
        let (records, _) = self.read()?;
        Ok(records.into_iter().map(|record| record.info).collect())
    }

    /// By public id, or by the name of a key that is not revoked yet. Revoking twice changes nothing.
    pub fn revoke(&self, id_or_name: &str) -> Result<KeyInfo, KeyError> {
        let now = self.wall();
        self.update(|keys| {
            let by_id = keys.iter().position(|key| key.info.id.as_str() == id_or_name);
            let by_name = || keys.iter().rposition(|key| key.info.name == id_or_name && key.info.revoked_at.is_none());
            let index = by_id.or_else(by_name).ok_or_else(|| KeyError::NotFound(id_or_name.to_owned()))?;
            keys[index].info.revoked_at.get_or_insert(now);
            Ok(keys[index].info.clone())
        })
    }

    /// The version of the file as it is now; `None` if there is none yet.
    pub(super) fn version(&self) -> Result<Option<FileVersion>, KeyError> {
        let path = self.path();
        match std::fs::metadata(&path) {
            Ok(metadata) => Ok(Some(FileVersion::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("look at", &path)(error)),
        }
    }

    /// The keys, and the version of exactly the file that they were read from. A file that is not there holds none.
    pub(super) fn read(&self) -> Result<(Vec<KeyRecord>, Option<FileVersion>), KeyError> {
        let path = self.path();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), None)),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let metadata = file.metadata().map_err(io_error("look at", &path))?;
        let mut text = String::new();
        file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(io_error("read", &path))?;
        let keys = self.parse(&text)?;
        Ok((keys, Some(FileVersion::of(&metadata))))
    }

    fn parse(&self, text: &str) -> Result<Vec<KeyRecord>, KeyError> {
        let content = |reason: String| KeyError::Content { path: self.path(), reason };
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(content(format!("larger than {MAX_FILE_BYTES} bytes")));
        }
        let broken = |error: serde_json::Error| content(format!("not a file of keys: {error}"));
        let FileVersionOnly { format_version: found } = serde_json::from_str(text).map_err(broken)?;
        if found != FORMAT_VERSION {
            return Err(KeyError::Version { path: self.path(), found, known: FORMAT_VERSION });
        }
        let KeysFile { keys, .. } = serde_json::from_str(text).map_err(broken)?;
        Ok(keys)
    }

    /// Reads, changes and replaces the file while no other process does. Nothing is written if `change` fails.
    fn update<T>(&self, change: impl FnOnce(&mut Vec<KeyRecord>) -> Result<T, KeyError>) -> Result<T, KeyError> {
        let _lock = self.lock()?;
        let (mut keys, _) = self.read()?;
        let answer = change(&mut keys)?;
        self.replace(&KeysFile { format_version: FORMAT_VERSION, keys })?;
        Ok(answer)
    }

    /// The lock stands on a file of its own, because the file of keys is replaced. Waits for whoever holds it, which
    /// is never longer than one such change; released when the file is closed.
    fn lock(&self) -> Result<File, KeyError> {
        let path = self.directory.join("keys.lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(OWNER_ONLY_FILE);
        let file = options.open(&path).map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }

    fn replace(&self, content: &KeysFile) -> Result<(), KeyError> {
        let path = self.path();
        let text =
            serde_json::to_vec_pretty(content).expect("keys are strings, numbers and lists, all of which are JSON");
        let mut temporary = tempfile::Builder::new()
            .prefix(".keys-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(OWNER_ONLY_FILE))
            .tempfile_in(&self.directory)
            .map_err(io_error("create a file in", &self.directory))?;
        temporary.write_all(&text).map_err(io_error("write", &path))?;
        temporary.as_file().sync_all().map_err(io_error("write", &path))?;
        temporary.persist(&path).map_err(|error| io_error("replace", &path)(error.error))?;
        // The rename itself lasts only once the directory is on disk.
        let directory = File::open(&self.directory).map_err(io_error("open", &self.directory))?;
        directory.sync_all().map_err(io_error("write", &self.directory))
    }

    fn path(&self) -> PathBuf {
        self.directory.join("keys.json")
    }

    fn wall(&self) -> UnixSeconds {
        UnixSeconds(self.clock.wall().as_secs())
    }
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

impl FileVersion {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            modified_ns: (metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: (metadata.ctime(), metadata.ctime_nsec()),
            bytes: metadata.len(),
        }
    }
}

pub(super) fn check_name(name: &str) -> Result<(), KeyError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(allowed) {
        return Err(KeyError::BadName(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
