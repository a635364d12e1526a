//! Fetching a snapshot from the hub into its cache.
//!
//! The revision is turned into a commit once, and every file is fetched of that commit: a push during the download cannot
//! mix two versions. Only files that serving needs are fetched, and only those that the snapshot lacks.

use std::io;
use std::path::Path;
use std::time::Duration;

use hf_hub::api::RepoInfo;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::blobs::{Announced, Arrival, Blobs};
use super::file_progress::FileProgress;
use super::files::{WEIGHTS, WEIGHTS_INDEX, is_description, shards};
use super::{HubError, HubId, HubOptions, LocalCheckpoint, cache};

/// How often one file is tried before the start fails.
const MAX_ATTEMPTS: u32 = 5;
/// How often a file may arrive damaged.
const MAX_DAMAGED: u32 = 2;
/// A hub that is there has said so soon which files a repository has.
const LONGEST_ANSWER: Duration = Duration::from_secs(30);

pub(super) fn resolve(id: &HubId, options: &HubOptions) -> Result<LocalCheckpoint, HubError> {
    // `hf auth login` leaves a token beside the cache.
    let token = options.token.clone().or_else(|| Cache::new(options.cache_dir.clone()).token());
    let api = api(id, options, token.clone())?;
    let info = match info(&api.repo(repo(id, id.revision())), LONGEST_ANSWER) {
        Ok(info) => info,
        Err(error) => return cached_if_unreachable(id, options, &error),
    };
    if !cache::is_commit(&info.sha) {
        return Err(HubError::Transfer { id: id.clone(), problem: "the hub's answer names no commit".into() });
    }
    let files: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
    let snapshot = cache::snapshot(id, &options.cache_dir, &info.sha);
    let repo_api = api.repo(repo(id, &info.sha));
    let blobs = Blobs::new(&cache::repo_folder(id, &options.cache_dir), token.as_deref());
    let transfer = Transfer { id, options, api: &api, repo: repo_api, commit: &info.sha, blobs };
    transfer.fetch_all(&files, &snapshot)?;
    cache::write_ref(id, &options.cache_dir, &info.sha)?;
    Ok(LocalCheckpoint { path: snapshot, commit: Some(info.sha) })
}

fn api(id: &HubId, options: &HubOptions, token: Option<String>) -> Result<Api, HubError> {
    let mut builder = ApiBuilder::from_cache(Cache::new(options.cache_dir.clone())).with_token(token);
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    builder.build().map_err(|error| transfer_error(id, &error))
}

fn repo(id: &HubId, revision: &str) -> Repo {
    Repo::with_revision(id.repo().to_owned(), RepoType::Model, revision.to_owned())
}

/// What the hub says of a repository. One that has not said it by then is as good as away.
fn info(repo: &ApiRepo, patience: Duration) -> Result<RepoInfo, ApiError> {
    let request = repo.info_request().config().timeout_global(Some(patience)).build();
    let mut answer = request.call().map_err(Box::new)?;
    Ok(answer.body_mut().read_json().map_err(Box::new)?)
}

/// A hub that does not answer, or not now, does not matter if the cache has everything; a hub that refuses does.
fn cached_if_unreachable(id: &HubId, options: &HubOptions, error: &ApiError) -> Result<LocalCheckpoint, HubError> {
    let failure = transfer_error(id, error);
    if status(error).is_some_and(|status| !asks_for_patience(status)) {
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
    /// At `commit`.
    repo: ApiRepo,
    commit: &'a str,
    blobs: Blobs,
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
        if snapshot.join(file).is_file() {
            return Ok(());
        }
        let mut damaged = 0;
        for attempt in 1..=MAX_ATTEMPTS {
            match self.try_once(file, snapshot) {
                Ok(Arrival::Whole) => return Ok(()),
                Ok(Arrival::Damaged) => {
                    damaged += 1;
                    if damaged == MAX_DAMAGED {
                        return Err(HubError::Damaged { id: self.id.clone(), file: file.to_owned() });
                    }
                }
                Err(error) if attempt == MAX_ATTEMPTS || !may_pass(&error) => {
                    return Err(transfer_error(self.id, &error));
                }
                Err(_) => {}
            }
            std::thread::sleep(self.options.retry_pause * attempt);
        }
        Err(HubError::Transfer { id: self.id.clone(), problem: format!("{file} failed {MAX_ATTEMPTS} times") })
    }

    fn try_once(&self, file: &str, snapshot: &Path) -> Result<Arrival, ApiError> {
        let url = self.repo.url(file);
        let metadata = self.api.metadata(&url)?;
        if metadata.commit_hash() != self.commit {
            return Err(ApiError::InvalidHeader("x-repo-commit"));
        }
        let announced = Announced { file, url: &url, etag: metadata.etag(), size: metadata.size() as u64 };
        self.blobs.fetch(snapshot, announced, FileProgress::new(self.options.progress))
    }
}

/// Whether another try may help.
fn may_pass(error: &ApiError) -> bool {
    match (error, status(error)) {
        // 416: what has arrived is longer than what is there now, and is dropped.
        (_, Some(status)) => asks_for_patience(status) || status == 416,
        (ApiError::IoError(error), None) => {
            !matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        (ApiError::RequestError(_) | ApiError::LockAcquisition(_), None) => true,
        _ => false,
    }
}

/// Of a status: it says nothing about what was asked for.
fn asks_for_patience(status: u16) -> bool {
    matches!(status, 408 | 429 | 500..)
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

#[cfg(test)]
mod tests;
