//! The checkpoints in a folder: what is there at this moment, and under which names.

use std::fs::{self, Metadata};
use std::io;
use std::iter;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use passerelle::hub;
use passerelle::trust::ManifestFiles;
use passerelle_models::CheckpointFiles;

const CONFIG_FILE: &str = "config.json";
/// A checkpoint with it keeps parts of itself in sub-folders.
const MODULES_FILE: &str = "modules.json";

/// A checkpoint, as it is at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// `run` for `run/config.json` and `run.gguf`, `run@step-900` for `run/step-900/config.json` and `run/step-900.gguf`.
    pub(super) name: String,
    pub(super) path: PathBuf,
    pub(super) stamp: Stamp,
}

/// Changes when somebody writes to the checkpoint, or signs it. Of each file directly in it, and of the manifest and
/// signature beside one that is a file itself: name, length, time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp(Vec<(PathBuf, u64, Option<SystemTime>)>);

/// What lies in a folder.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// In the order of their names.
    pub(super) found: Vec<Found>,
    /// Checkpoints that cannot be served as they lie there, each with why.
    pub(super) passed_over: Vec<String>,
}

/// A file or folder that cannot be read is none, nor one that is hidden or whose name is no text. Links are followed: it is
/// how a folder of checkpoints elsewhere is made.
pub(super) fn look(folder: &Path) -> io::Result<Look> {
    let mut look = Look::default();
    if folder.join(CONFIG_FILE).is_file() {
        let shown = folder.display();
        look.passed_over
            .push(format!("{shown} is a checkpoint itself: serve it with --model, or name a folder of checkpoints"));
    }
    for entry in entries(folder)? {
        let Some(name) = entry.name() else { continue };
        look.found.extend(entry.checkpoint(name.to_owned()));
        if entry.metadata.is_dir() && !entry.path.join(MODULES_FILE).is_file() {
            for within in entries(&entry.path).unwrap_or_default() {
                let Some(revision) = within.name() else { continue };
                match within.checkpoint(format!("{name}@{revision}")) {
                    Some(checkpoint) => look.found.push(checkpoint),
                    None => look.passed_over.extend(within.too_deep()),
                }
            }
        }
    }
    look.found.sort_by(|one, other| (&one.name, &one.path).cmp(&(&other.name, &other.path)));
    let mut again = Vec::new();
    look.found.dedup_by(|other, one| {
        let is_same = one.name == other.name;
        if is_same {
            again.push(format!(
                "{} would be `{}` too, as {} is: rename one",
                other.path.display(),
                one.name,
                one.path.display()
            ));
        }
        is_same
    });
    look.passed_over.extend(again);
    look.passed_over.sort_unstable();
    Ok(look)
}

struct Entry {
    path: PathBuf,
    metadata: Metadata,
}

impl Entry {
    fn is_gguf(&self) -> bool {
        self.metadata.is_file() && hub::is_gguf(&self.path)
    }

    fn name(&self) -> Option<&str> {
        let name = if self.is_gguf() { self.path.file_stem() } else { self.path.file_name() };
        name?.to_str().filter(|name| !name.starts_with('.'))
    }

    fn checkpoint(&self, name: String) -> Option<Found> {
        let files = if self.is_gguf() {
            iter::once(self.stamp()).chain(self.manifest_files().iter().map(Self::stamp)).collect()
        } else if self.metadata.is_dir() && self.path.join(CONFIG_FILE).is_file() {
            let mut files: Vec<_> = entries(&self.path).ok()?.iter().map(Self::stamp).collect();
            files.sort_unstable();
            files
        } else {
            return None;
        };
        Some(Found { name, path: self.path.clone(), stamp: Stamp(files) })
    }

    /// Of a folder within one of the folder: checkpoints further down have no name.
    fn too_deep(&self) -> Option<String> {
        let is_checkpoint = |within: &Self| within.path.join(CONFIG_FILE).is_file();
        let deep = entries(&self.path).ok().filter(|_| self.metadata.is_dir())?.into_iter().find(is_checkpoint)?;
        Some(format!("{} lies too deep: checkpoints are NAME and NAME/REVISION", deep.path.display()))
    }

    /// What is there of those of a GGUF file.
    fn manifest_files(&self) -> Vec<Self> {
        let manifest_files = CheckpointFiles::gguf(&self.path).ok().and_then(|files| ManifestFiles::of(&files).ok());
        let places =
            manifest_files.into_iter().flat_map(|manifest_files| [manifest_files.manifest, manifest_files.signature]);
        places.filter_map(|path| Some(Self { metadata: fs::metadata(&path).ok()?, path })).collect()
    }

    fn stamp(&self) -> (PathBuf, u64, Option<SystemTime>) {
        (self.path.clone(), self.metadata.len(), self.metadata.modified().ok())
    }
}

fn entries(folder: &Path) -> io::Result<Vec<Entry>> {
    let entry = |entry: fs::DirEntry| {
        let path = entry.path();
        fs::metadata(&path).ok().map(|metadata| Entry { path, metadata })
    };
    Ok(fs::read_dir(folder)?.flatten().filter_map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().expect("it has one")).expect("the folder is writable");
            fs::write(path, "{}").expect("the folder is writable");
        }
    }

    fn names(folder: &Path) -> Vec<String> {
        look(folder).expect("it is readable").found.into_iter().map(|found| found.name).collect()
    }

    #[test]
    fn checkpoints_are_called_by_their_folders_and_revisions_by_those_within() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(
            folder.path(),
            &[
                "b/config.json",
                "a/config.json",
                "run/step-2/config.json",
                "run/step-1/config.json",
                "run/notes/README.md",
                "c.Q8_0.gguf",
                "D.GGUF",
                "run/step-3.gguf",
                "embed/config.json",
                "embed/modules.json",
                "embed/1_Pooling/config.json",
                ".hidden/config.json",
                "notes/README.md",
                "a/b/c/config.json",
            ],
        );
        let expected = ["D", "a", "b", "c.Q8_0", "embed", "run@step-1", "run@step-2", "run@step-3"];
        assert_eq!(names(folder.path()), expected);
    }

    #[test]
    fn a_checkpoint_that_is_written_to_changes_its_stamp_and_no_other_does() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(folder.path(), &["a/config.json", "b/config.json"]);
        let before = look(folder.path()).expect("it is readable").found;
        write(folder.path(), &["a/model.safetensors"]);
        let after = look(folder.path()).expect("it is readable").found;
        assert_ne!(before[0].stamp, after[0].stamp);
        assert_eq!(before[1], after[1]);
    }

    #[test]
    fn a_gguf_file_that_is_signed_changes_its_stamp() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(folder.path(), &["a.gguf", "b.gguf"]);
        let mut before = look(folder.path()).expect("it is readable").found;
        for manifest_files in ["a.gguf.manifest", "a.gguf.manifest.sig"] {
            write(folder.path(), &[manifest_files]);
            let after = look(folder.path()).expect("it is readable").found;
            assert_ne!(before[0].stamp, after[0].stamp, "{manifest_files}");
            assert_eq!(before[1], after[1]);
            before = after;
        }
    }

    #[test]
    fn what_is_passed_over_is_said() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        write(
            folder.path(),
            &["config.json", "z/1/config.json", "z@1/config.json", "a/b/c/config.json", "notes/x/README.md"],
        );
        let Look { found, passed_over } = look(folder.path()).expect("it is readable");
        assert_eq!(found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["z@1"]);
        assert_eq!(passed_over.len(), 3, "{passed_over:?}");
        for said in ["is a checkpoint itself", "would be `z@1` too", "a/b/c lies too deep"] {
            assert!(passed_over.iter().any(|problem| problem.contains(said)), "{said}: {passed_over:?}");
        }
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_and_an_empty_one_holds_nothing() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert!(names(folder.path()).is_empty());
        look(&folder.path().join("nowhere")).expect_err("it is not there");
    }
}
