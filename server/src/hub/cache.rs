//! The hub's cache on disk, read without the hub.

use std::fs;
use std::path::{Path, PathBuf};

use super::files::{WEIGHTS, WEIGHTS_INDEX, Wanted, shards};
use super::{HubError, HubId, HubOptions, LocalCheckpoint};

/// The complete snapshot that the cache has for an id.
pub(super) fn resolve(id: &HubId, options: &HubOptions) -> Result<LocalCheckpoint, HubError> {
    let cache_dir = &options.cache_dir;
    let folder = repo_folder(id, cache_dir);
    let not_cached = || HubError::NotCached { id: id.clone(), looked: folder.clone() };
    let commit = cached_commit(id, &folder).ok_or_else(not_cached)?;
    let directory = snapshot(id, cache_dir, &commit);
    let missing = missing_files(&directory, options.wanted)
        .map_err(|problem| HubError::Unsuitable { id: id.clone(), problem })?;
    if missing.is_empty() {
        Ok(LocalCheckpoint { path: directory, commit: Some(commit) })
    } else {
        Err(HubError::Incomplete { id: id.clone(), looked: directory, missing })
    }
}

pub(super) fn snapshot(id: &HubId, cache_dir: &Path, commit: &str) -> PathBuf {
    repo_folder(id, cache_dir).join("snapshots").join(commit)
}

/// What a snapshot lacks to be served. A dangling link counts as missing.
pub(super) fn missing_files(snapshot: &Path, wanted: Wanted) -> Result<Vec<String>, String> {
    let weights = match fs::read(snapshot.join(WEIGHTS_INDEX)) {
        _ if !wanted.has_weights() => Vec::new(),
        Ok(index) => shards(&index)?.into_iter().collect(),
        Err(_) => vec![WEIGHTS.to_owned()],
    };
    let needed = wanted.required().iter().map(|&file| file.to_owned()).chain(weights);
    Ok(needed.filter(|file| !snapshot.join(file).is_file()).collect())
}

#[cfg(feature = "hub")]
/// Remembers which commit a branch or tag means, for later offline starts.
pub(super) fn write_ref(id: &HubId, cache_dir: &Path, commit: &str) -> Result<(), HubError> {
    let path = ref_path(id, &repo_folder(id, cache_dir));
    let written = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, commit));
    written.map_err(|error| HubError::Read { path, problem: error.to_string() })
}

/// The commit a revision meant last time; a revision that is a cached commit means itself.
fn cached_commit(id: &HubId, folder: &Path) -> Option<String> {
    let from_ref = fs::read_to_string(ref_path(id, folder)).ok().map(|commit| commit.trim().to_owned());
    let from_ref = from_ref.filter(|commit| is_commit(commit));
    let itself = || Some(id.revision().to_owned()).filter(|commit| folder.join("snapshots").join(commit).is_dir());
    from_ref.or_else(itself)
}

pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn ref_path(id: &HubId, folder: &Path) -> PathBuf {
    folder.join("refs").join(id.revision())
}

pub(super) fn repo_folder(id: &HubId, cache_dir: &Path) -> PathBuf {
    cache_dir.join(format!("models--{}", id.repo().replace('/', "--")))
}
