//! A checkpoint's manifest and the signature over it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use passerelle_models::{
    CheckpointFiles, FileHash, FileStamp, KnownHashes, LoadProgress, MAX_MANIFEST_BYTES, Manifest, ModelDigest,
    NothingKnown,
};
use tempfile::NamedTempFile;

use super::keys::{KeyError, PublicKey, SigningKey};
use super::{TrustError, at};

pub(super) const MANIFEST_FILE: &str = "passerelle.manifest";
pub(super) const SIGNATURE_FILE: &str = "passerelle.manifest.sig";
pub(super) const SIGNATURE_BYTES: u64 = 64;

/// Called from any thread; [`ControlFlow::Break`] ends the reading.
pub type Watch<'a> = &'a (dyn Fn(LoadProgress) -> ControlFlow<()> + Sync);

/// Where a checkpoint's manifest and signature are: in its folder, or beside its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFiles {
    pub manifest: PathBuf,
    pub signature: PathBuf,
}

/// Keys whose signature is enough, each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKeys(Vec<PublicKey>);

impl ManifestFiles {
    /// Errors when the checkpoint is compiled in.
    pub fn of(files: &CheckpointFiles) -> Result<Self, TrustError> {
        match files.is_gguf() {
            true => Ok(Self::beside(files.root())),
            false if files.root().is_dir() => Ok(Self::inside(files.root())),
            false => Err(TrustError::Embedded),
        }
    }

    pub(super) fn inside(folder: &Path) -> Self {
        Self { manifest: folder.join(MANIFEST_FILE), signature: folder.join(SIGNATURE_FILE) }
    }

    pub(super) fn beside(file: &Path) -> Self {
        let with = |ending: &str| {
            let mut name = file.as_os_str().to_owned();
            name.push(ending);
            PathBuf::from(name)
        };
        Self { manifest: with(".manifest"), signature: with(".manifest.sig") }
    }

    /// The manifest as it lies there, unchecked. `None` where there is none.
    pub(super) fn manifest(&self) -> Result<Option<Manifest>, TrustError> {
        self.text()?.map(|text| parse(&self.manifest, &text)).transpose()
    }

    pub(super) fn text(&self) -> Result<Option<Vec<u8>>, TrustError> {
        read(&self.manifest, MAX_MANIFEST_BYTES)
    }

    pub(super) fn signature(&self) -> Result<Option<Vec<u8>>, TrustError> {
        read(&self.signature, SIGNATURE_BYTES)
    }

    /// Each is whole or not there, whatever happens meanwhile. What was there before is replaced.
    pub(super) fn write(&self, manifest: &Manifest, signature: Option<&[u8]>) -> Result<(), TrustError> {
        let replace = |file: &Path, bytes: &[u8]| {
            let mut new = unnamed(file)?;
            new.write_all(bytes)?;
            new.as_file().sync_all()?;
            new.persist(file).map(drop).map_err(io::Error::from)
        };
        replace(&self.manifest, manifest.to_text().as_bytes()).map_err(at(&self.manifest))?;
        match signature {
            Some(signature) => replace(&self.signature, signature).map_err(at(&self.signature)),
            None => Ok(()),
        }
    }
}

/// Knows nothing itself: what is asked is found out anew, and told.
struct OnlyLearns<'a>(&'a dyn KnownHashes);

impl KnownHashes for OnlyLearns<'_> {
    fn find(&self, _: &FileStamp) -> Option<FileHash> {
        None
    }

    fn learn(&self, file: FileStamp, hash: FileHash) {
        self.0.learn(file, hash);
    }
}

impl TrustedKeys {
    /// `None` without any file: then nothing is asked of a checkpoint.
    pub fn load(files: &[PathBuf]) -> Result<Option<Self>, KeyError> {
        let keys = files.iter().map(|file| PublicKey::load(file)).collect::<Result<Vec<_>, _>>()?;
        Ok((!keys.is_empty()).then_some(Self(keys)))
    }

    /// That the checkpoint is, byte for byte and file for file, what one of the keys has signed. Reads every byte; `proven`
    /// learns the hashes and is asked for none.
    pub fn verify(
        &self,
        files: &CheckpointFiles,
        proven: &dyn KnownHashes,
        watch: Watch<'_>,
    ) -> Result<ModelDigest, TrustError> {
        let manifest_files = ManifestFiles::of(files)?;
        let (text, signature) = (manifest_files.text()?, manifest_files.signature()?);
        let text = self.verify_signature(&manifest_files, text.as_deref(), signature.as_deref())?;
        let manifest = parse(&manifest_files.manifest, text)?;
        manifest.check(files, &[MANIFEST_FILE, SIGNATURE_FILE], &OnlyLearns(proven), watch)?;
        Ok(manifest.digest())
    }

    /// The manifest's text, once one of the keys is known to have signed it.
    pub(super) fn verify_signature<'a>(
        &self,
        manifest_files: &ManifestFiles,
        text: Option<&'a [u8]>,
        signature: Option<&[u8]>,
    ) -> Result<&'a [u8], TrustError> {
        let signature = signature.ok_or_else(|| TrustError::Unsigned(manifest_files.signature.clone()))?;
        let text = text.ok_or_else(|| TrustError::Unsigned(manifest_files.manifest.clone()))?;
        match self.0.iter().any(|key| key.verifies(text, signature)) {
            true => Ok(text),
            false => Err(TrustError::Untrusted(manifest_files.signature.clone())),
        }
    }
}

/// What the manifest beside a checkpoint says that it is, where nothing that the system says of its files contradicts that.
/// Nobody has read them, and whose manifest it is nobody asked.
pub fn stated_digest(files: &CheckpointFiles) -> Option<ModelDigest> {
    let manifest_files = ManifestFiles::of(files).ok()?;
    let manifest = manifest_files.manifest().ok()??;
    let written = fs::metadata(&manifest_files.manifest).and_then(|file| file.modified()).ok()?;
    manifest.check_unread(files, &[MANIFEST_FILE, SIGNATURE_FILE], written).ok()?;
    Some(manifest.digest())
}

/// Writes the manifest and signature of a checkpoint as it is now. Its folder must hold nothing else: whoever serves it
/// would refuse that.
pub fn sign(files: &CheckpointFiles, key: &SigningKey, watch: Watch<'_>) -> Result<ModelDigest, TrustError> {
    let manifest_files = ManifestFiles::of(files)?;
    Manifest::require_parts(files)?;
    let manifest = Manifest::read(files, &NothingKnown, watch)?;
    manifest.check_names(files, &[MANIFEST_FILE, SIGNATURE_FILE])?;
    manifest_files.write(&manifest, Some(&key.sign(manifest.to_text().as_bytes())))?;
    Ok(manifest.digest())
}

pub(super) fn parse(file: &Path, text: &[u8]) -> Result<Manifest, TrustError> {
    let text = String::from_utf8_lossy(text);
    Manifest::from_text(&text).map_err(|problem| TrustError::Manifest { file: file.to_owned(), problem })
}

/// What is to take the place of `file` once it is whole. Others may read it, as they may the checkpoint: whoever serves it,
/// and whoever a bundle travels to, has another name on the machine than whoever made it.
pub(super) fn unnamed(file: &Path) -> io::Result<NamedTempFile> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Less what the user's mask takes away, as of any new file.
    tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(folder)
}

/// `None` where nothing is; a longer one is cut after `most`, and so is neither a signature nor a manifest.
fn read(file: &Path, most: u64) -> Result<Option<Vec<u8>>, TrustError> {
    match fs::metadata(file) {
        // A named pipe would block for ever when opened.
        Ok(metadata) if metadata.is_file() => {}
        _ => return Ok(None),
    }
    let mut bytes = Vec::new();
    let read = File::open(file).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(at(file))?;
    Ok(Some(bytes))
}
