//! Fetching a snapshot from the hub into its cache.
//!
//! The revision is turned into a commit once, and every file is fetched of that commit: a push during the download cannot
//! mix two versions. Only files that serving needs are fetched, and only those that the snapshot lacks.

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use sha2::{Digest, Sha256};

use super::file_progress::FileProgress;
use super::files::{WEIGHTS, WEIGHTS_INDEX, is_description, shards};
use super::{HubError, HubId, HubOptions, LocalCheckpoint, cache};
use crate::hex::hex;

/// How often one file is tried before the start fails.
const MAX_ATTEMPTS: u32 = 5;
/// How often a file may arrive damaged.
const MAX_DAMAGED: u32 = 2;
const READ_BUFFER_BYTES: usize = 1 << 20;

pub(super) fn resolve(id: &HubId, options: &HubOptions) -> Result<LocalCheckpoint, HubError> {
    let api = api(id, options)?;
    let info = match api.repo(repo(id, id.revision())).info() {
        Ok(info) => info,
        Err(error) => return cached_if_unreachable(id, options, &error),
    };
    if !cache::is_commit(&info.sha) {
        return Err(HubError::Transfer { id: id.clone(), problem: "the hub's answer names no commit".into() });
    }
    let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let snapshot = cache::snapshot(id, &options.cache_dir, &info.sha);
    let repo_api = api.repo(repo(id, &info.sha));
    let transfer = Transfer { id, options, api: &api, repo: repo_api, cache: Cache::new(options.cache_dir.clone()) };
    transfer.fetch_all(&files, &snapshot)?;
    cache::write_ref(id, &options.cache_dir, &info.sha)?;
    Ok(LocalCheckpoint { path: snapshot, commit: Some(info.sha) })
}

fn api(id: &HubId, options: &HubOptions) -> Result<Api, HubError> {
    let cache = Cache::new(options.cache_dir.clone());
    // `hf auth login` leaves a token beside the cache.
    let token = options.token.clone().or_else(|| cache.token());
    let mut builder = ApiBuilder::from_cache(cache).with_token(token);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    // hf-hub's own retries can append to a file from its start again, so attempts are counted here.
    builder.with_retries(0).build().map_err(|error| transfer_error(id, &error))
}

fn repo(id: &HubId, revision: &str) -> Repo {
    Repo::with_revision(id.repo().to_owned(), RepoType::Model, revision.to_owned())
}

/// A hub that does not answer does not matter if the cache has everything; a hub that refuses does.
fn cached_if_unreachable(id: &HubId, options: &HubOptions, error: &ApiError) -> Result<LocalCheckpoint, HubError> {
    let failure = transfer_error(id, error);
    if status(error).is_some_and(|status| status < 500) {
        return Err(failure);
    }
    let cached = cache::resolve(id, options).map_err(|_| failure)?;
    tracing::warn!(model = %id, commit = cached.commit, "the hub does not answer; using the cached snapshot");
    Ok(cached)
}

struct Transfer<'a> {
    id: &'a HubId,
    options: &'a HubOptions,
    api: &'a Api,
    repo: ApiRepo,
    cache: Cache,
}

/// What to do about a failed attempt.
enum Remedy {
    Retry,
    /// The partial file is not a start of the real one.
    DropPartial,
    GiveUp,
}

impl Transfer<'_> {
    fn fetch_all(&self, files: &[String], snapshot: &Path) -> Result<(), HubError> {
        let wanted = self.options.wanted;
        if let Some(lacking) = wanted.required().iter().find(|required| !files.iter().any(|file| file == *required)) {
            return Err(self.unsuitable(format!("the repository has no {lacking}")));
        }
        for file in files.iter().filter(|file| is_description(file)) {
            self.fetch(file, snapshot)?;
        }
        if wanted.has_weights() {
            for file in self.weights(files, snapshot)? {
                self.fetch(&file, snapshot)?;
            }
        }
        Ok(())
    }

    fn weights(&self, files: &[String], snapshot: &Path) -> Result<Vec<String>, HubError> {
        let has = |name: &str| files.iter().any(|file| file == name);
        if has(WEIGHTS_INDEX) {
            let path = snapshot.join(WEIGHTS_INDEX);
            let index = std::fs::read(&path).map_err(|error| HubError::Read { path, problem: error.to_string() })?;
            return shards(&index)
                .map(|shards| shards.into_iter().collect())
                .map_err(|problem| self.unsuitable(problem));
        }
        if has(WEIGHTS) {
            return Ok(vec![WEIGHTS.to_owned()]);
        }
        let problem =
            format!("the repository has neither {WEIGHTS} nor {WEIGHTS_INDEX}; convert its weights to safetensors");
        Err(self.unsuitable(problem))
    }

    fn unsuitable(&self, problem: String) -> HubError {
        HubError::Unsuitable { id: self.id.clone(), problem }
    }

    /// Fetches one file unless the snapshot has it. A broken transfer goes on where it stopped.
    fn fetch(&self, file: &str, snapshot: &Path) -> Result<(), HubError> {
        let target = snapshot.join(file);
        if target.is_file() {
            return Ok(());
        }
        let mut damaged = 0;
        for attempt in 1..=MAX_ATTEMPTS {
            let size = Rc::new(Cell::new(None));
            let progress = FileProgress::new(self.options.progress, Rc::clone(&size));
            match self.repo.download_with_progress(file, progress) {
                Ok(_) if is_intact(&target, size.get()) => return Ok(()),
                Ok(_) => {
                    remove_with_blob(&target);
                    damaged += 1;
                    if damaged == MAX_DAMAGED {
                        return Err(HubError::Damaged { id: self.id.clone(), file: file.to_owned() });
                    }
                }
                Err(error) => match remedy(&error) {
                    Remedy::GiveUp => return Err(transfer_error(self.id, &error)),
                    _ if attempt == MAX_ATTEMPTS => return Err(transfer_error(self.id, &error)),
                    Remedy::DropPartial => self.drop_partial(file),
                    Remedy::Retry => {}
                },
            }
            std::thread::sleep(self.options.retry_pause * attempt);
        }
        Err(HubError::Transfer { id: self.id.clone(), problem: format!("{file} failed {MAX_ATTEMPTS} times") })
    }

    fn drop_partial(&self, file: &str) {
        if let Ok(metadata) = self.api.metadata(&self.repo.url(file)) {
            let blob = self.cache.repo(repo(self.id, self.id.revision())).blob_path(metadata.etag());
            // If it cannot be removed, the next attempt fails and says why.
            let _ = std::fs::remove_file(blob.with_extension("part"));
        }
    }
}

fn remedy(error: &ApiError) -> Remedy {
    match (error, status(error)) {
        // The partial file is as long as the real one, or longer: nothing is left to ask for.
        (ApiError::InvalidResume, _) | (_, Some(416)) => Remedy::DropPartial,
        (_, Some(429 | 500..)) | (ApiError::IoError(_), _) => Remedy::Retry,
        (ApiError::RequestError(_), None) => Remedy::Retry,
        _ => Remedy::GiveUp,
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

fn transfer_error(id: &HubId, error: &ApiError) -> HubError {
    let id = id.clone();
    match (error, status(error)) {
        (_, Some(404)) => HubError::NotFound(id),
        (_, Some(401 | 403)) => HubError::Forbidden(id),
        (ApiError::LockAcquisition(path), _) => {
            let problem = format!("another process is fetching it (lock {})", path.display());
            HubError::Transfer { id, problem }
        }
        _ => HubError::Transfer { id, problem: error.to_string() },
    }
}

/// Whether a file has the announced size and, if a SHA-256 names its blob, that content.
fn is_intact(file: &Path, size: Option<u64>) -> bool {
    let Ok(blob) = file.canonicalize() else { return false };
    let has_size = blob.metadata().is_ok_and(|metadata| size.is_none_or(|size| size == metadata.len()));
    let name = blob.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    has_size && (!is_digest || sha256(&blob).is_ok_and(|digest| digest == name))
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; READ_BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hex(&hasher.finalize()[..]))
}

fn remove_with_blob(link: &Path) {
    // Best effort: what stays is found damaged again.
    if let Ok(blob) = link.canonicalize() {
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(link);
}

#[cfg(test)]
mod tests;
