//! Whether a checkpoint is what a manifest says. Nothing but names, lengths and hashes is looked at.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::{KnownHashes, Manifest};
use crate::weights::CheckpointFiles;
use crate::{LoadProgress, ModelError};

/// How a checkpoint differs from its manifest. Names one file: the first in the order of names.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    #[error("{}: the manifest has it, and it is not there", .0.display())]
    Missing(PathBuf),
    #[error("{}: the manifest does not have it; take it away", .0.display())]
    Extra(PathBuf),
    #[error("{}: is not what the manifest says; it was changed", .0.display())]
    Changed(PathBuf),
    #[error("{}: the manifest has it, and what lies there is no file that is read of a model", .0.display())]
    Unread(PathBuf),
    #[error(transparent)]
    Unreadable(#[from] ModelError),
}

impl Manifest {
    /// Reads every byte of the checkpoint. Its folder may hold nothing but what the manifest has, and `beside`. `known`
    /// decides of which files the bytes need not be read, and learns the hashes of the others: give one that finds nothing
    /// where the bytes are to be proven.
    pub fn check(
        &self,
        files: &CheckpointFiles,
        beside: &[&str],
        known: &dyn KnownHashes,
        progress: &(dyn Fn(LoadProgress) -> ControlFlow<()> + Sync),
    ) -> Result<(), Mismatch> {
        self.check_names(files, beside)?;
        let found = Self::read(files, known, progress)?;
        for listed in &self.files {
            match found.files.iter().find(|found| found.name == listed.name) {
                Some(found) if found == listed => {}
                Some(_) => return Err(Mismatch::Changed(path_of(files, &listed.name))),
                // A link to nowhere or a pipe, or of a name that nobody would read.
                None => return Err(Mismatch::Unread(path_of(files, &listed.name))),
            }
        }
        Ok(())
    }

    /// The same without reading a file: by names and lengths, and by no file having been written to after `written`, when
    /// the manifest was. Whoever sets times back is not noticed.
    pub fn check_unread(&self, files: &CheckpointFiles, beside: &[&str], written: SystemTime) -> Result<(), Mismatch> {
        self.check_names(files, beside)?;
        for listed in &self.files {
            let path = path_of(files, &listed.name);
            let is = fs::metadata(&path).and_then(|file| Ok((file.len(), file.modified()?)));
            match is {
                Ok((size_bytes, modified)) if size_bytes == listed.size_bytes && modified <= written => {}
                Ok(_) => return Err(Mismatch::Changed(path)),
                Err(source) => return Err(ModelError::Io { file: path, source }.into()),
            }
        }
        Ok(())
    }

    /// The same by names alone.
    pub fn check_names(&self, files: &CheckpointFiles, beside: &[&str]) -> Result<(), Mismatch> {
        let there = all_names(files)?;
        let listed: BTreeSet<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        let names: BTreeSet<&str> = there.iter().map(String::as_str).chain(listed.iter().copied()).collect();
        for name in names {
            match (there.contains(name), listed.contains(name)) {
                (true, false) if !beside.contains(&name) => return Err(Mismatch::Extra(path_of(files, name))),
                (false, true) => return Err(Mismatch::Missing(path_of(files, name))),
                _ => {}
            }
        }
        Ok(())
    }
}

impl CheckpointFiles {
    /// The bytes of a file by the name that manifests give it.
    pub fn open_part(&self, name: &str) -> Result<Box<dyn Read>, ModelError> {
        if let Some(bytes) = self.embedded_file(name) {
            return Ok(Box::new(bytes));
        }
        let path = path_of(self, name);
        match File::open(&path) {
            Ok(file) => Ok(Box::new(file)),
            Err(source) => Err(ModelError::Io { file: path, source }),
        }
    }
}

fn path_of(files: &CheckpointFiles, name: &str) -> PathBuf {
    if files.is_gguf() { files.root().to_owned() } else { files.root().join(name) }
}

/// Of every file below the folder, and of whatever else lies there; a GGUF file goes by the name that manifests give it.
fn all_names(files: &CheckpointFiles) -> Result<BTreeSet<String>, ModelError> {
    if files.is_gguf() {
        return Ok(BTreeSet::from([Manifest::GGUF.to_owned()]));
    }
    let Some(folder) = files.as_folder() else { return Ok(files.names()?.into_iter().collect()) };
    let mut names = BTreeSet::new();
    walk(folder, "", &mut names).map_err(|source| ModelError::Io { file: folder.to_owned(), source })?;
    Ok(names)
}

/// A link to a folder is a name of its own and is not followed.
fn walk(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{name}/"), names)?;
        } else {
            names.insert(name);
        }
    }
    Ok(())
}
