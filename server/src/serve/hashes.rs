//! Hashes of checkpoints' files, kept in the data directory, so that a second start does not read every weight twice.
//!
//! They are worth what the directory is: whoever may write to it may also change the ledger. What must be proven is hashed
//! anew.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use passerelle_models::{
    CheckpointFiles, FileHash, FileStamp, KnownHashes, LoadProgress, Manifest, ModelDigest, ModelError,
};
use serde::{Deserialize, Serialize};

use super::kept_file;

/// In the data directory.
const FILE: &str = "hashes.json";
/// Files whose hashes are kept. When there are more, all are forgotten and learnt anew.
const MAX_KEPT: usize = 65_536;

#[derive(Debug)]
pub(crate) struct KeptHashes {
    folder: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// One for each place: what was there before is no more.
    by_path: BTreeMap<PathBuf, Entry>,
    is_changed: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    file: FileStamp,
    hash: FileHash,
}

impl KeptHashes {
    /// Those of earlier processes. What cannot be read is none: hashes are only ever a short cut.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let entries: Vec<Entry> = kept_file::read(data_dir, FILE).unwrap_or_else(|error| {
            tracing::warn!(%error, "{FILE} in the data directory cannot be read: files are hashed anew");
            Vec::new()
        });
        let by_path = entries.into_iter().map(|entry| (entry.file.path.clone(), entry)).collect();
        Self { folder: data_dir.to_owned(), kept: Mutex::new(Kept { by_path, is_changed: false }) }
    }

    /// As [`Manifest::read`].
    pub(crate) fn digest_of(
        &self,
        files: &CheckpointFiles,
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<ModelDigest, ModelError> {
        let manifest = Manifest::read(files, self, progress)?;
        self.save();
        Ok(manifest.digest())
    }

    /// Without reading a file: of a checkpoint that was hashed before and has not changed since, as far as the system says.
    pub(crate) fn kept_digest_of(&self, files: &CheckpointFiles) -> Option<ModelDigest> {
        Manifest::find(files, self).ok()?.map(|manifest| manifest.digest())
    }

    /// Where there is no data directory nothing is kept, and none is made for this.
    fn save(&self) {
        let mut kept = self.lock();
        if !kept.is_changed || !self.folder.is_dir() {
            return;
        }
        let entries: Vec<&Entry> = kept.by_path.values().collect();
        match kept_file::write(&self.folder, FILE, &entries) {
            Ok(()) => kept.is_changed = false,
            Err(error) => tracing::warn!(%error, "hashes of files cannot be kept in the data directory"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownHashes for KeptHashes {
    fn find(&self, file: &FileStamp) -> Option<FileHash> {
        self.lock().by_path.get(&file.path).filter(|entry| entry.file == *file).map(|entry| entry.hash)
    }

    fn learn(&self, file: FileStamp, hash: FileHash) {
        // What is written as text must be read as the same path.
        if file.path.to_str().is_none() {
            return;
        }
        let mut kept = self.lock();
        if kept.by_path.len() >= MAX_KEPT {
            kept.by_path.clear();
        }
        kept.by_path.insert(file.path.clone(), Entry { file, hash });
        kept.is_changed = true;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn digest(kept: &KeptHashes, folder: &Path) -> ModelDigest {
        let files = CheckpointFiles::directory(folder).expect("it is a folder");
        kept.digest_of(&files, &|_| ControlFlow::Continue(())).expect("it is readable")
    }

    fn checkpoint() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::write(folder.path().join("config.json"), "{}").expect("the folder is writable");
        folder
    }

    #[test]
    fn what_one_process_hashed_the_next_one_knows() {
        let (data, checkpoint) = (tempfile::tempdir().expect("a temporary folder"), checkpoint());
        let first = digest(&KeptHashes::open(data.path()), checkpoint.path());
        let second = KeptHashes::open(data.path());
        let stamp = second.lock().by_path.values().next().expect("it was kept").file.clone();
        assert_eq!(stamp.path, checkpoint.path().join("config.json"));
        assert!(second.find(&stamp).is_some());
        let files = CheckpointFiles::directory(checkpoint.path()).expect("it is a folder");
        assert_eq!(second.kept_digest_of(&files), Some(first));
        assert_eq!(digest(&second, checkpoint.path()), first);
        for changed in [
            FileStamp { size_bytes: 3, ..stamp.clone() },
            FileStamp { modified: (1, 0), ..stamp.clone() },
            FileStamp { changed: (1, 0), ..stamp.clone() },
            FileStamp { inode: 1, ..stamp.clone() },
            FileStamp { device: 1, ..stamp.clone() },
            FileStamp { path: "elsewhere".into(), ..stamp },
        ] {
            assert_eq!(second.find(&changed), None, "{changed:?}");
        }
    }

    #[test]
    fn a_file_that_came_or_changed_since_leaves_no_digest_until_it_is_hashed() {
        let (data, checkpoint) = (tempfile::tempdir().expect("a temporary folder"), checkpoint());
        let files = CheckpointFiles::directory(checkpoint.path()).expect("it is a folder");
        let kept = KeptHashes::open(data.path());
        assert_eq!(kept.kept_digest_of(&files), None);
        for (name, content) in [("config.json", "{ }"), ("tokenizer.json", "{}")] {
            let former = digest(&kept, checkpoint.path());
            assert_eq!(kept.kept_digest_of(&files), Some(former));
            fs::write(checkpoint.path().join(name), content).expect("the folder is writable");
            assert_eq!(kept.kept_digest_of(&files), None, "{name}");
        }
    }

    #[test]
    fn a_damaged_file_of_hashes_costs_time_and_nothing_else() {
        let (data, checkpoint) = (tempfile::tempdir().expect("a temporary folder"), checkpoint());
        let first = digest(&KeptHashes::open(data.path()), checkpoint.path());
        fs::write(data.path().join(FILE), "[{\"path\": 7}]").expect("the folder is writable");
        assert_eq!(digest(&KeptHashes::open(data.path()), checkpoint.path()), first);
        assert_eq!(KeptHashes::open(data.path()).lock().by_path.len(), 1, "and is whole again");
    }

    #[test]
    fn no_data_directory_is_made_for_hashes() {
        let (data, checkpoint) = (tempfile::tempdir().expect("a temporary folder"), checkpoint());
        let nowhere = data.path().join("nowhere");
        digest(&KeptHashes::open(&nowhere), checkpoint.path());
        assert!(!nowhere.exists());
    }
}
