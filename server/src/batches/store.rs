//! The files and batches of all accounts. Everything is bounded, and everything on disk is the owner's alone to read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::journal::{self, Journal};
use super::{
    Batch, BatchError, BatchId, BatchStatus, Counts, Disk, Ending, FileId, Purpose, StoredFile, SystemDisk, orphans,
};
use crate::durable;

/// Bounds on what is kept.
#[derive(Debug, Clone, Copy)]
pub struct BatchBounds {
    /// Of one uploaded file.
    pub max_file_bytes: u64,
    /// Of all files together; outputs count once they are there.
    pub max_stored_bytes: u64,
    /// Files of one account.
    pub max_files: usize,
    /// Batches of one account that are not over.
    pub max_batches: usize,
    /// Batches of one account that are over; the oldest of more are forgotten. Their files are not.
    pub max_ended: usize,
    /// Requests of one batch.
    pub max_requests: usize,
    /// Requests of one batch that run at the same time.
    pub max_running_requests: usize,
}

impl Default for BatchBounds {
    fn default() -> Self {
        Self {
            max_file_bytes: 64 << 20,
            max_stored_bytes: 4 << 30,
            max_files: 256,
            max_batches: 16,
            max_ended: 1000,
            max_requests: 10_000,
            max_running_requests: 8,
        }
    }
}

#[derive(Debug)]
pub struct BatchStore {
    disk: Arc<dyn Disk>,
    files_folder: PathBuf,
    batches_folder: PathBuf,
    bounds: BatchBounds,
    index: Mutex<Index>,
}

#[derive(Debug, Default)]
struct Index {
    files: BTreeMap<FileId, StoredFile>,
    batches: BTreeMap<BatchId, Batch>,
}

/// A file on its way in. Dropping it before [`BatchStore::keep`] removes what was written.
#[derive(Debug)]
pub struct Upload {
    disk: Arc<dyn Disk>,
    id: FileId,
    file: File,
    path: PathBuf,
    bytes: u64,
    max_bytes: u64,
    is_kept: bool,
}

impl BatchStore {
    /// Reads what earlier runs left in `data_dir`, and ends the batches that were about to.
    pub fn open(data_dir: &Path, bounds: BatchBounds) -> Result<Self, BatchError> {
        Self::open_on(Arc::new(SystemDisk), data_dir, bounds)
    }

    /// The same; what it writes goes through `disk`.
    pub fn open_on(disk: Arc<dyn Disk>, data_dir: &Path, bounds: BatchBounds) -> Result<Self, BatchError> {
        let (files_folder, batches_folder) = (data_dir.join("files"), data_dir.join("batches"));
        for folder in [&files_folder, &batches_folder] {
            DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let files = read_records(&files_folder)?.into_iter().map(|file: StoredFile| (file.id.clone(), file)).collect();
        let batches: Vec<Batch> = read_records(&batches_folder)?;
        let ending = batches.iter().filter(|batch| batch.ending.is_some() && !batch.status.is_over());
        let ending: Vec<BatchId> = ending.map(|batch| batch.id.clone()).collect();
        let batches = batches.into_iter().map(|batch| (batch.id.clone(), batch)).collect();
        let index = Mutex::new(Index { files, batches });
        let store = Self { disk, files_folder, batches_folder, bounds, index };
        for id in &ending {
            // It stays as it is, and whoever runs batches tries again.
            if let Err(error) = store.end(id) {
                tracing::error!(batch = %id, %error, "a batch that was over could not be ended");
            }
        }
        let owners: BTreeSet<String> = store.index().batches.values().map(|batch| batch.owner.clone()).collect();
        owners.iter().for_each(|owner| store.forget_oldest(owner));
        store.count_answered();
        store.clear_orphans();
        Ok(store)
    }

    /// How far those have come that go on: their journals know. Of one that was about to end they may be files already.
    fn count_answered(&self) {
        let goes_on = |batch: &&Batch| !batch.status.is_over() && batch.ending.is_none();
        let has_begun = |batch: &&Batch| batch.reached_at.contains_key(&BatchStatus::InProgress);
        let index = self.index();
        let open = index.batches.values().filter(goes_on).filter(has_begun);
        let open: Vec<_> = open.map(|batch| (batch.id.clone(), batch.counts.total)).collect();
        drop(index);
        for (id, total) in open {
            match self.journal(&id, total) {
                Ok(journal) => self.count(&id, journal.counts()),
                Err(error) => tracing::warn!(batch = %id, %error, "how far a batch has come cannot be read"),
            }
        }
    }

    /// What cannot be removed keeps no server from starting.
    fn clear_orphans(&self) {
        let unfinished = [&self.files_folder, &self.batches_folder].map(|folder| orphans::clear_unfinished(folder));
        let index = self.index();
        let ending =
            index.batches.values().filter(|batch| !batch.status.is_over()).filter_map(|batch| batch.ending.as_ref());
        let to_be = ending.flat_map(|ending| [&ending.output, &ending.errors]).flatten().cloned().collect();
        let contents = orphans::clear_contents(&self.files_folder, &to_be);
        for error in unfinished.into_iter().chain([contents]).filter_map(Result::err) {
            tracing::warn!(%error, "what was not finished could not be removed");
        }
    }

    pub fn bounds(&self) -> &BatchBounds {
        &self.bounds
    }

    pub fn begin_upload(&self, owner: &str) -> Result<Upload, BatchError> {
        let index = self.index();
        if index.files.values().filter(|file| file.owner == owner).count() >= self.bounds.max_files {
            return Err(BatchError::TooManyFiles(self.bounds.max_files));
        }
        if index.stored_bytes() >= self.bounds.max_stored_bytes {
            return Err(BatchError::Full);
        }
        let id = FileId::random().ok_or(BatchError::NoRandomness)?;
        let path = self.content_path(&id);
        let (disk, file, max_bytes) = (Arc::clone(&self.disk), create(&path)?, self.bounds.max_file_bytes);
        Ok(Upload { disk, id, file, path, bytes: 0, max_bytes, is_kept: false })
    }

    pub fn keep(
        &self,
        mut upload: Upload,
        file: impl FnOnce(FileId, u64) -> StoredFile,
    ) -> Result<StoredFile, BatchError> {
        let mut stored = file(upload.id.clone(), upload.bytes);
        upload.file.sync_all()?;
        let mut index = self.index();
        stored.serial = index.next_serial();
        if index.stored_bytes().saturating_add(stored.bytes) > self.bounds.max_stored_bytes {
            return Err(BatchError::Full);
        }
        self.write_record(&self.files_folder, stored.id.as_str(), &stored)?;
        upload.is_kept = true;
        index.files.insert(stored.id.clone(), stored.clone());
        Ok(stored)
    }

    /// Newest first.
    pub fn files(&self, owner: &str) -> Vec<StoredFile> {
        let index = self.index();
        let mut files: Vec<_> = index.files.values().filter(|file| file.owner == owner).cloned().collect();
        files.sort_by_key(|file| Reverse((file.created_at, file.serial)));
        files
    }

    pub fn file(&self, owner: &str, id: &str) -> Result<StoredFile, BatchError> {
        let index = self.index();
        let file = FileId::parse(id).and_then(|id| index.files.get(&id).cloned());
        file.filter(|file| file.owner == owner).ok_or(BatchError::NoFile)
    }

    pub fn content(&self, file: &StoredFile) -> Result<Vec<u8>, BatchError> {
        Ok(fs::read(self.content_path(&file.id))?)
    }

    pub fn open_content(&self, file: &StoredFile) -> Result<File, BatchError> {
        Ok(File::open(self.content_path(&file.id))?)
    }

    pub fn delete_file(&self, owner: &str, id: &str) -> Result<FileId, BatchError> {
        let file = self.file(owner, id)?;
        let mut index = self.index();
        if index.batches.values().any(|batch| batch.input_file_id == file.id && !batch.status.is_over()) {
            return Err(BatchError::FileInUse);
        }
        // The record first: content without one is nobody's.
        fs::remove_file(self.files_folder.join(format!("{}.json", file.id)))?;
        fs::remove_file(self.content_path(&file.id))?;
        index.files.remove(&file.id);
        Ok(file.id)
    }

    pub fn add_batch(&self, mut batch: Batch) -> Result<Batch, BatchError> {
        let mut index = self.index();
        batch.serial = index.next_serial();
        // Looked at before, but whoever deletes it may have been faster.
        if !index.files.contains_key(&batch.input_file_id) {
            return Err(BatchError::NoFile);
        }
        let open = index.batches.values().filter(|other| other.owner == batch.owner && !other.status.is_over());
        if open.count() >= self.bounds.max_batches {
            return Err(BatchError::TooManyBatches(self.bounds.max_batches));
        }
        self.write_record(&self.batches_folder, batch.id.as_str(), &batch)?;
        index.batches.insert(batch.id.clone(), batch.clone());
        Ok(batch)
    }

    /// Of those of `owner` that are over, as many as are too many.
    fn forget_oldest(&self, owner: &str) {
        if let Err(error) = self.try_to_forget_oldest(&mut self.index(), owner) {
            tracing::warn!(%error, "batches that are over could not be removed");
        }
    }

    fn try_to_forget_oldest(&self, index: &mut Index, owner: &str) -> io::Result<()> {
        let ended = index.batches.values().filter(|batch| batch.owner == owner && batch.status.is_over());
        let ended_at = |batch: &Batch| batch.reached_at.get(&batch.status).copied();
        let mut ended: Vec<_> = ended.map(|batch| (ended_at(batch), batch.serial, batch.id.clone())).collect();
        ended.sort_unstable();
        let num_kept = ended.len().min(self.bounds.max_ended);
        for (_, _, id) in ended.drain(..ended.len() - num_kept) {
            unless_missing(fs::remove_file(self.batches_folder.join(format!("{id}.json"))))?;
            index.batches.remove(&id);
        }
        Ok(())
    }

    /// Newest first.
    pub fn batches(&self, owner: &str) -> Vec<Batch> {
        let index = self.index();
        let mut batches: Vec<_> = index.batches.values().filter(|batch| batch.owner == owner).cloned().collect();
        batches.sort_by_key(|batch| Reverse((batch.created_at, batch.serial)));
        batches
    }

    pub fn batch(&self, owner: &str, id: &str) -> Result<Batch, BatchError> {
        let index = self.index();
        let batch = BatchId::parse(id).and_then(|id| index.batches.get(&id).cloned());
        batch.filter(|batch| batch.owner == owner).ok_or(BatchError::NoBatch)
    }

    /// The oldest of those that are not over and not in `taken`.
    pub fn next_open(&self, taken: &[BatchId]) -> Option<Batch> {
        let index = self.index();
        let is_open = |batch: &&Batch| !batch.status.is_over() && !taken.contains(&batch.id);
        let open = index.batches.values().filter(is_open);
        open.min_by_key(|batch| (batch.created_at, batch.serial)).cloned()
    }

    /// Whether a batch was asked to end.
    pub fn is_cancelling(&self, id: &BatchId) -> bool {
        self.index().batches.get(id).is_some_and(|batch| batch.status == BatchStatus::Cancelling)
    }

    pub fn cancel(&self, owner: &str, id: &str, now: u64) -> Result<Batch, BatchError> {
        let batch = self.batch(owner, id)?;
        if batch.status.is_over() {
            return Err(BatchError::Over(batch.status));
        }
        self.change(&batch.id, |batch| batch.reach(BatchStatus::Cancelling, now))
    }

    /// What cannot be written down has not happened.
    pub fn change(&self, id: &BatchId, change: impl FnOnce(&mut Batch)) -> Result<Batch, BatchError> {
        let mut index = self.index();
        let batch = index.batches.get_mut(id).ok_or(BatchError::NoBatch)?;
        let mut changed = batch.clone();
        change(&mut changed);
        self.write_record(&self.batches_folder, id.as_str(), &changed)?;
        batch.clone_from(&changed);
        Ok(changed)
    }

    /// Shown to who asks; the journal knows it after a restart.
    pub fn count(&self, id: &BatchId, counts: Counts) {
        if let Some(batch) = self.index().batches.get_mut(id) {
            batch.counts = counts;
        }
    }

    pub fn journal(&self, id: &BatchId, total: usize) -> Result<Journal, BatchError> {
        let [output, errors] = journal::paths(&self.batches_folder, id.as_str());
        Ok(Journal::open([&output, &errors], total, Arc::clone(&self.disk))?)
    }

    /// Makes files of a batch's answers and ends it. What had no room before goes on where it was.
    pub fn finish(&self, id: &BatchId, journal: &Journal, status: BatchStatus, now: u64) -> Result<Batch, BatchError> {
        self.decide_end(id, journal, status, now)?;
        self.end(id)
    }

    pub(super) fn decide_end(
        &self,
        id: &BatchId,
        journal: &Journal,
        status: BatchStatus,
        at: u64,
    ) -> Result<(), BatchError> {
        if self.index().batches.get(id).is_some_and(|batch| batch.ending.is_some()) {
            return Ok(());
        }
        // Whatever the reason: what a failed sync lost, only the next start finds out, which reads what is there.
        journal.sync().map_err(io::Error::other)?;
        let [output, errors] = journal::paths(&self.batches_folder, id.as_str());
        let (output, errors) = (file_to_be(&output)?, file_to_be(&errors)?);
        let ending = Ending { status, at, counts: journal.counts(), output, errors };
        self.change(id, |batch| batch.ending = Some(ending)).map(drop)
    }

    /// Does what was decided and not done yet.
    pub fn end(&self, id: &BatchId) -> Result<Batch, BatchError> {
        let batch = self.index().batches.get(id).cloned().ok_or(BatchError::NoBatch)?;
        let Some(Ending { status, at, counts, output, errors }) = batch.ending.clone() else { return Ok(batch) };
        let [output_path, errors_path] = journal::paths(&self.batches_folder, id.as_str());
        self.adopt(&output_path, output.as_ref(), (&batch.owner, format!("{id}_output.jsonl")), at)?;
        self.adopt(&errors_path, errors.as_ref(), (&batch.owner, format!("{id}_error.jsonl")), at)?;
        let ended = self.change(id, |batch| {
            (batch.counts, batch.output_file_id, batch.error_file_id) = (counts, output, errors);
            batch.reach(status, at);
        })?;
        self.forget_oldest(&ended.owner);
        Ok(ended)
    }

    /// Makes a file of ours of one that a batch wrote, unless that was done.
    fn adopt(
        &self,
        path: &Path,
        id: Option<&FileId>,
        (owner, filename): (&str, String),
        created_at: u64,
    ) -> Result<(), BatchError> {
        let Some(id) = id else { return Ok(unless_missing(fs::remove_file(path))?) };
        let content = self.content_path(id);
        // Its folder is synced with its record.
        unless_missing(fs::rename(path, &content))?;
        let bytes = match fs::metadata(&content) {
            Ok(content) => content.len(),
            // An end that failed half way had made the file already, and its owner has deleted it since.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let (owner, purpose) = (owner.to_owned(), Purpose::BatchOutput);
        let mut index = self.index();
        let serial = index.next_serial();
        let file = StoredFile { id: id.clone(), owner, filename, purpose, bytes, created_at, serial };
        self.write_record(&self.files_folder, id.as_str(), &file)?;
        index.files.insert(id.clone(), file);
        Ok(())
    }

    /// Whole or not at all: a reader after a crash finds the record before or the record after.
    fn write_record(&self, folder: &Path, id: &str, record: &impl Serialize) -> Result<(), BatchError> {
        let text = serde_json::to_vec(record).map_err(io::Error::other)?;
        let mut file = tempfile::Builder::new().prefix(super::UNFINISHED).tempfile_in(folder)?;
        self.disk.write(file.as_file_mut(), &text)?;
        file.as_file().sync_all()?;
        file.persist(folder.join(format!("{id}.json"))).map_err(|error| error.error)?;
        // The record is there for whoever reads it now, and only a loss of power could take its name.
        if let Err(error) = durable::sync_folder(folder) {
            tracing::warn!(%error, "the folder of a record could not be synced");
        }
        Ok(())
    }

    fn content_path(&self, id: &FileId) -> PathBuf {
        self.files_folder.join(format!("{id}.data"))
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    /// Above all that are there. Taken again where whoever had it is not kept.
    fn next_serial(&self) -> u64 {
        let of_files = self.files.values().map(|file| file.serial);
        of_files.chain(self.batches.values().map(|batch| batch.serial)).max().map_or(0, |last| last.saturating_add(1))
    }

    fn stored_bytes(&self) -> u64 {
        self.files.values().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }
}

impl Batch {
    pub fn reach(&mut self, status: BatchStatus, now: u64) {
        self.status = status;
        self.reached_at.insert(status, now);
    }
}

impl Upload {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BatchError> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes > self.max_bytes {
            return Err(BatchError::FileTooLarge(self.max_bytes));
        }
        Ok(self.disk.write(&mut self.file, bytes)?)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.is_kept {
            // There is nobody left to tell.
            let _: io::Result<()> = fs::remove_file(&self.path);
        }
    }
}

/// `None`: it would be empty.
fn file_to_be(path: &Path) -> Result<Option<FileId>, BatchError> {
    if fs::metadata(path)?.len() == 0 {
        return Ok(None);
    }
    FileId::random().map(Some).ok_or(BatchError::NoRandomness)
}

/// What is missing was moved or removed before.
fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    done.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A record that cannot be read is left where it is, and logged: one broken file must not keep a server from starting.
fn read_records<T: DeserializeOwned>(folder: &Path) -> io::Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        match serde_json::from_slice(&fs::read(&path)?) {
            Ok(record) => records.push(record),
            Err(error) => tracing::warn!(file = %path.display(), %error, "a record of a file or batch is left out"),
        }
    }
    Ok(records)
}
