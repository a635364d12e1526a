//! One file of a repository on its way into the cache.
//!
//! A blob gets its name once it is known to be whole, and a snapshot links only to blobs that have one: a start that was
//! killed leaves nothing that a later one would take for whole.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::Progress;
use hf_hub::api::sync::ApiError;
use sha2::{Digest, Sha256};
use ureq::Agent;
use ureq::config::RedirectAuthHeaders;

use super::file_progress::FileProgress;
use crate::hex::hex;

/// A connection to whoever keeps the bytes is there so soon.
const LONGEST_CONNECT: Duration = Duration::from_secs(20);
/// Between two pieces of a file; what says nothing for so long has broken.
const LONGEST_SILENCE: Duration = Duration::from_secs(60);
const BUFFER_BYTES: usize = 1 << 20;
/// Longest etag that names a blob as it is.
const MAX_NAME_BYTES: usize = 100;
/// Of an answer that begins where it was asked to.
const PARTIAL_CONTENT: u16 = 206;
/// Of one that has nothing there.
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// The blobs of one repository.
pub(super) struct Blobs {
    agent: Agent,
    authorization: Option<String>,
    folder: PathBuf,
}

/// A file, as the hub announces it.
#[derive(Clone, Copy)]
pub(super) struct Announced<'a> {
    /// In the repository.
    pub(super) file: &'a str,
    pub(super) url: &'a str,
    pub(super) etag: &'a str,
    pub(super) size: u64,
}

/// What came of one try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The snapshot has the file.
    Whole,
    /// It is not what its name says, and is gone.
    Damaged,
}

impl Blobs {
    /// `repo_folder`: of the cache. `token`: for the hub, and for nobody it redirects to.
    pub(super) fn new(repo_folder: &Path, token: Option<&str>) -> Self {
        let config = Agent::config_builder()
            .redirect_auth_headers(RedirectAuthHeaders::SameHost)
            // A part of a compressed file is no part of the file.
            .accept_encoding("identity")
            .timeout_connect(Some(LONGEST_CONNECT))
            .timeout_per_read(Some(LONGEST_SILENCE))
            .build();
        let authorization = token.map(|token| format!("Bearer {token}"));
        Self { agent: config.into(), authorization, folder: repo_folder.join("blobs") }
    }

    /// Brings the file into the snapshot. What has arrived of it before is gone on with.
    pub(super) fn fetch(
        &self,
        snapshot: &Path,
        announced: Announced<'_>,
        progress: FileProgress,
    ) -> Result<Arrival, ApiError> {
        let name = blob_name(announced.etag);
        let blob = self.folder.join(&name);
        fs::create_dir_all(&self.folder)?;
        let _lock = lock(blob.with_extension("lock"))?;
        if snapshot.join(announced.file).is_file() {
            // Another process was faster.
            return Ok(Arrival::Whole);
        }
        if !is_whole(&blob, &name, announced.size) {
            let part = blob.with_extension("part");
            self.receive(&part, announced, progress)?;
            if !is_whole(&part, &name, announced.size) {
                fs::remove_file(&part)?;
                return Ok(Arrival::Damaged);
            }
            fs::rename(&part, &blob)?;
        }
        link(&name, snapshot, announced.file)?;
        Ok(Arrival::Whole)
    }

    /// What `part` lacks of the file, to the disk.
    fn receive(&self, part: &Path, announced: Announced<'_>, mut progress: FileProgress) -> Result<(), ApiError> {
        let Announced { file, url, size, .. } = announced;
        let mut to = OpenOptions::new().append(true).create(true).open(part)?;
        let mut start = to.metadata()?.len();
        if start > size {
            to.set_len(0)?;
            start = 0;
        }
        if start == size {
            return Ok(());
        }
        let mut request = self.agent.get(url).header("Range", format!("bytes={start}-"));
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization.as_str());
        }
        let response = match request.call() {
            Ok(response) => response,
            Err(error) => {
                if matches!(error, ureq::Error::StatusCode(RANGE_NOT_SATISFIABLE)) {
                    // The next try begins anew.
                    to.set_len(0)?;
                }
                return Err(Box::new(error).into());
            }
        };
        if start > 0 && response.status().as_u16() != PARTIAL_CONTENT {
            // It is sent from its beginning.
            to.set_len(0)?;
            start = 0;
        }
        progress.init(usize::try_from(size).unwrap_or(usize::MAX), file);
        progress.update(usize::try_from(start).unwrap_or(usize::MAX));
        // One byte more than it has shows one that is too long.
        let from = response.into_body().into_reader().take((size - start).saturating_add(1));
        copy(from, &mut to, &mut progress)?;
        to.sync_all()?;
        if to.metadata()?.len() < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        progress.finish();
        Ok(())
    }
}

fn copy(mut from: impl Read, mut to: impl Write, progress: &mut FileProgress) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            read => {
                to.write_all(&buffer[..read])?;
                progress.update(read);
            }
        }
    }
}

/// Held while one process fetches a blob.
fn lock(place: PathBuf) -> Result<File, ApiError> {
    let lock = File::create(&place)?;
    // Where nothing can be locked, nobody is kept out.
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(ApiError::LockAcquisition(place)),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(lock),
    }
}

/// A plain name for whatever the hub sends: it never leads out of the folder.
fn blob_name(etag: &str) -> String {
    // Who passes a file on may call its etag weak.
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    match (1..=MAX_NAME_BYTES).contains(&etag.len()) && etag.bytes().all(is_plain) {
        true => etag.to_owned(),
        false => format!("etag-{}", hex(&Sha256::digest(etag)[..])),
    }
}

/// Whether the file has the announced size and, if the blob's name is a SHA-256, that content.
fn is_whole(file: &Path, name: &str, size: u64) -> bool {
    let has_size = file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == size);
    let is_digest = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    has_size && (!is_digest || sha256(file).is_ok_and(|digest| digest.eq_ignore_ascii_case(name)))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => hasher.update(&buffer[..read]),
        }
    }
    Ok(hex(&hasher.finalize()[..]))
}

/// In the place of a link whose blob somebody removed.
fn link(name: &str, snapshot: &Path, file: &str) -> io::Result<()> {
    let place = snapshot.join(file);
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    match fs::remove_file(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Out of `snapshots/COMMIT`, and of the folder of a module.
    let up = "../".repeat(2 + file.matches('/').count());
    symlink(format!("{up}blobs/{name}"), place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_called_by_its_etag_and_nothing_that_leads_elsewhere() {
        let digest = "a".repeat(64);
        for (etag, name) in [(digest.as_str(), digest.as_str()), ("W/0a1b", "0a1b"), ("0a-1", "0a-1")] {
            assert_eq!(blob_name(etag), name);
        }
        for odd in ["", ".", "..", "../x", "/etc/passwd", "a/b", "a.part", &"a".repeat(101)] {
            let name = blob_name(odd);
            assert!(name.starts_with("etag-") && !name.contains(['/', '.']), "{odd}: {name}");
        }
    }
}
