//! Copies of checkpoints, under a name of their own in a folder of models: whole and on the disk, or not there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use passerelle_models::{CheckpointFiles, Manifest, Mismatch, ModelDigest, NothingKnown};
use tempfile::TempDir;

use super::bundle::BundleReader;
use super::manifest_files::{MANIFEST_FILE, ManifestFiles, SIGNATURE_FILE, TrustedKeys, Watch};
use super::{TrustError, at};

const MAX_NAME_BYTES: usize = 100;
/// Where copies are made before they have their name; beside the models, so that they are renamed and not copied again.
const STAGE: &str = "importing";
/// In that folder. Held by each import that is under way.
const LOCK: &str = "lock";

/// What a copy is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportedName(String);

/// Where copies go, and what is asked of them.
#[derive(Debug)]
pub struct Import<'a> {
    /// Holds `models`, which is made if it is not there.
    pub data_dir: &'a Path,
    pub name: ImportedName,
    /// `None`: a signature is kept, and nobody asks whose it is.
    pub trust: Option<&'a TrustedKeys>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// A folder, or a GGUF file.
    pub path: PathBuf,
    pub digest: ModelDigest,
    pub signature: CopiedSignature,
    /// Files of a copy that was there already, and damaged.
    pub num_mended: usize,
}

/// Which signature a copy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedSignature {
    None,
    /// That of the source, or where that has none, the one that was there.
    Kept,
    /// The one that was there: the source has another, and nobody asked whose that is.
    Former,
}

/// A folder in which a copy is made. Gone when dropped.
struct Stage {
    folder: TempDir,
    _lock: File,
}

/// A copy that has no name yet.
struct Staged {
    stage: Stage,
    manifest: Manifest,
    signature: Option<Vec<u8>>,
}

impl Import<'_> {
    /// Copies what is part of the checkpoint, and its signature. One that comes with a manifest must be what that says.
    pub fn checkpoint(&self, files: &CheckpointFiles, watch: Watch<'_>) -> Result<Imported, TrustError> {
        let manifest_files = ManifestFiles::of(files).ok();
        let signature = manifest_files.as_ref().map(ManifestFiles::signature).transpose()?.flatten();
        let written = manifest_files.as_ref().map(ManifestFiles::text).transpose()?.flatten();
        if let Some(trust) = self.trust {
            let manifest_files = manifest_files.as_ref().ok_or(TrustError::Embedded)?;
            trust.verify_signature(manifest_files, written.as_deref(), signature.as_deref())?;
        }
        let expected = match (&manifest_files, written) {
            (Some(manifest_files), Some(text)) => Some(super::manifest_files::parse(&manifest_files.manifest, &text)?),
            _ => None,
        };
        if let Some(expected) = &expected {
            expected.check_names(files, &[MANIFEST_FILE, SIGNATURE_FILE])?;
        }
        Manifest::require_parts(files)?;
        let stage = self.stage()?;
        let manifest = Manifest::copy(files, stage.folder.path(), &mut |progress| watch(progress))?;
        if let Some(expected) = expected
            && let Some(changed) = first_difference(&expected, &manifest)
        {
            return Err(Mismatch::Changed(files.root().join(changed)).into());
        }
        self.name_it(Staged { stage, manifest, signature }, watch)
    }

    /// The same of a bundle.
    pub fn bundle(&self, file: &Path, watch: Watch<'_>) -> Result<Imported, TrustError> {
        let mut reader = BundleReader::open(file)?;
        let (text, signature) = reader.manifest_files()?;
        if let Some(trust) = self.trust {
            trust.verify_signature(&ManifestFiles::inside(file), Some(&text), signature.as_deref())?;
        }
        let manifest = reader.parse_manifest(&text)?;
        let stage = self.stage()?;
        reader.unpack(&manifest, stage.folder.path(), watch)?;
        self.name_it(Staged { stage, manifest, signature }, watch)
    }

    /// A folder to copy into. Removes what imports left that were killed.
    fn stage(&self) -> Result<Stage, TrustError> {
        let stage = self.data_dir.join(STAGE);
        fs::create_dir_all(&stage).map_err(at(&stage))?;
        // Whoever imports holds the lock with others. If nobody does, nobody needs what lies there.
        let place = stage.join(LOCK);
        let lock = File::create(&place).map_err(at(&place))?;
        if lock.try_lock().is_ok() {
            clear(&stage).map_err(at(&stage))?;
            lock.unlock().map_err(at(&place))?;
        }
        lock.lock_shared().map_err(at(&place))?;
        Ok(Stage { folder: TempDir::new_in(&stage).map_err(at(&stage))?, _lock: lock })
    }

    /// A model that is there already under this name is left as it is, unless it is the same and damaged; if it is the same,
    /// it may get a signature, or another one of a key that is trusted.
    fn name_it(&self, staged: Staged, watch: Watch<'_>) -> Result<Imported, TrustError> {
        let Staged { stage: Stage { folder, _lock }, manifest, signature } = staged;
        let models = self.data_dir.join("models");
        fs::create_dir_all(&models).map_err(at(&models))?;
        let is_gguf = manifest.files().iter().any(|file| file.name == Manifest::GGUF);
        let [as_folder, as_file] = places(&models, &self.name);
        let imported =
            |path: PathBuf, signature| Imported { path, digest: manifest.digest(), signature, num_mended: 0 };
        if let Some(path) = [&as_folder, &as_file].into_iter().find(|path| path.exists()) {
            let manifest_files = manifest_files_of(path);
            if manifest_files.manifest()?.as_ref() != Some(&manifest) {
                return Err(TrustError::Exists(path.clone()));
            }
            let former = manifest_files.signature()?;
            let copied = self.choose_signature(signature.as_deref(), former.as_deref());
            let num_mended = mend(path, &manifest, folder.path(), watch)?;
            let signature = signature.filter(|_| copied == CopiedSignature::Kept);
            manifest_files.write(&manifest, signature.as_deref())?;
            return Ok(Imported { num_mended, ..imported(path.clone(), copied) });
        }
        let path = if is_gguf { as_file } else { as_folder };
        if is_gguf {
            manifest_files_of(&path).write(&manifest, signature.as_deref())?;
            fs::rename(folder.path().join(Manifest::GGUF), &path).map_err(at(&path))?;
        } else {
            ManifestFiles::inside(folder.path()).write(&manifest, signature.as_deref())?;
            fs::rename(folder.keep(), &path).map_err(at(&path))?;
        }
        File::open(&models).and_then(|folder| folder.sync_all()).map_err(at(&models))?;
        let copied = self.choose_signature(signature.as_deref(), None);
        Ok(imported(path, copied))
    }

    /// One that nobody checked takes no other one's place, which may be good.
    fn choose_signature(&self, new: Option<&[u8]>, former: Option<&[u8]>) -> CopiedSignature {
        match (new, former) {
            (None, None) => CopiedSignature::None,
            (Some(new), Some(former)) if new != former && self.trust.is_none() => CopiedSignature::Former,
            _ => CopiedSignature::Kept,
        }
    }
}

/// Makes the copy at `path` what `manifest` says, if it is not: each part that differs is replaced by the one in `fresh`.
/// Returns how many were. Errors where there is something beside, which somebody may want.
fn mend(path: &Path, manifest: &Manifest, fresh: &Path, watch: Watch<'_>) -> Result<usize, TrustError> {
    let mut num_mended = 0;
    let files = if path.is_dir() { CheckpointFiles::directory(path)? } else { CheckpointFiles::gguf(path)? };
    loop {
        match manifest.check(&files, &[MANIFEST_FILE, SIGNATURE_FILE], &NothingKnown, watch) {
            Ok(()) => return Ok(num_mended),
            Err(Mismatch::Missing(damaged) | Mismatch::Changed(damaged) | Mismatch::Unread(damaged)) => {
                let part = damaged.strip_prefix(path).ok().filter(|part| !part.as_os_str().is_empty());
                let from = fresh.join(part.unwrap_or(Path::new(Manifest::GGUF)));
                // That of a module may be gone with all that it held.
                if let Some(folder) = damaged.parent() {
                    fs::create_dir_all(folder).map_err(at(folder))?;
                }
                fs::rename(from, &damaged).map_err(at(&damaged))?;
                num_mended += 1;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Of everything but the lock.
fn clear(stage: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(stage)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Where the copy of this name is, if there is one.
pub fn find_imported(data_dir: &Path, name: &ImportedName) -> Option<PathBuf> {
    places(&data_dir.join("models"), name).into_iter().find(|path| path.exists())
}

impl ImportedName {
    /// That of the source's last part: `./runs/step-10`, `org/name@v1`, `model.tar`.
    pub fn of_source(source: &str) -> Result<Self, TrustError> {
        let last = source.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        let last = [".gguf", ".GGUF", ".tar"].iter().find_map(|ending| last.strip_suffix(ending)).unwrap_or(last);
        last.replace('@', "-").parse()
    }
}

impl FromStr for ImportedName {
    type Err = TrustError;

    fn from_str(name: &str) -> Result<Self, TrustError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(plain);
        if is_name { Ok(Self(name.to_owned())) } else { Err(TrustError::Name(name.to_owned())) }
    }
}

/// As a folder, and as a GGUF file.
fn places(models: &Path, name: &ImportedName) -> [PathBuf; 2] {
    [models.join(&name.0), models.join(format!("{}.gguf", name.0))]
}

fn manifest_files_of(path: &Path) -> ManifestFiles {
    if path.is_dir() { ManifestFiles::inside(path) } else { ManifestFiles::beside(path) }
}

fn first_difference<'a>(one: &'a Manifest, other: &'a Manifest) -> Option<&'a str> {
    let differs = |file: &&passerelle_models::ManifestFile| !other.files().contains(file);
    let in_one = one.files().iter().find(differs);
    in_one.or_else(|| other.files().iter().find(|file| !one.files().contains(file))).map(|file| file.name.as_str())
}
