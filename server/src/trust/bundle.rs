//! One file of a checkpoint: a tar archive of its manifest and signature, then of the files in the manifest's order.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use passerelle_models::{
    CheckpointFiles, LoadProgress, MAX_MANIFEST_BYTES, Manifest, ManifestFile, Mismatch, ModelDigest, NothingKnown,
    copy_hashed, copy_part,
};

use super::manifest_files::{MANIFEST_FILE, ManifestFiles, SIGNATURE_BYTES, SIGNATURE_FILE, Watch, parse, unnamed};
use super::tar::{self, Header};
use super::{TrustError, at};

const CUT_SHORT: &str = "ends in the middle: it was not copied whole";

/// Writes the checkpoint into `out`, which must not exist and is whole when this returns. With its manifest and signature,
/// if it has them; else with a manifest of what it is now, and no signature.
pub fn write_bundle(files: &CheckpointFiles, out: &Path, watch: Watch<'_>) -> Result<ModelDigest, TrustError> {
    if out.exists() {
        let problem = "it is there already; name another file, or remove it first";
        return Err(at(out)(io::Error::new(io::ErrorKind::AlreadyExists, problem)));
    }
    let manifest_files = ManifestFiles::of(files).ok();
    let written = manifest_files.as_ref().map(ManifestFiles::manifest).transpose()?.flatten();
    let signature = manifest_files.as_ref().map(ManifestFiles::signature).transpose()?.flatten();
    let manifest = match written {
        Some(manifest) => manifest,
        None => {
            Manifest::require_parts(files)?;
            Manifest::read(files, &NothingKnown, watch)?
        }
    };
    let mut file = unnamed(out).map_err(at(out))?;
    write_small(&mut file, MANIFEST_FILE, manifest.to_text().as_bytes()).map_err(at(out))?;
    if let Some(signature) = signature {
        write_small(&mut file, SIGNATURE_FILE, &signature).map_err(at(out))?;
    }
    let mut progress = Progress::of(&manifest, watch);
    for part in manifest.files() {
        let hashed = write_part(&mut file, files.open_part(&part.name)?, part, &mut progress).map_err(at(out))?;
        if hashed != *part {
            return Err(Mismatch::Changed(files.root().join(&part.name)).into());
        }
    }
    tar::write_end(&mut file).and_then(|()| file.as_file().sync_all()).map_err(at(out))?;
    file.persist_noclobber(out).map_err(|error| at(out)(error.error))?;
    Ok(manifest.digest())
}

/// A bundle that is being read. What is wrong with it is told by its name.
pub(super) struct BundleReader {
    file: PathBuf,
    from: BufReader<File>,
    /// That of the entry whose bytes come next.
    next: Option<Header>,
}

impl BundleReader {
    pub(super) fn open(file: &Path) -> Result<Self, TrustError> {
        let from = BufReader::new(File::open(file).map_err(at(file))?);
        let mut reader = Self { file: file.to_owned(), from, next: None };
        let first = Header::read(&mut reader.from);
        reader.next = first.map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => reader.refuse("is no bundle of a model: it is too short for one"),
            _ => reader.refuse(&format!("is no bundle of a model: {error}")),
        })?;
        Ok(reader)
    }

    /// The text of the manifest and the signature over it, if there is one. Both come first.
    pub(super) fn manifest_files(&mut self) -> Result<(Vec<u8>, Option<Vec<u8>>), TrustError> {
        let Some(manifest) = self.small(MANIFEST_FILE, MAX_MANIFEST_BYTES)? else {
            return Err(self.refuse("does not begin with a manifest, so it is no bundle of a model"));
        };
        Ok((manifest, self.small(SIGNATURE_FILE, SIGNATURE_BYTES)?))
    }

    pub(super) fn parse_manifest(&self, text: &[u8]) -> Result<Manifest, TrustError> {
        let manifest = parse(&self.file, text)?;
        if manifest.files().is_empty() { Err(self.refuse("its manifest has no file")) } else { Ok(manifest) }
    }

    /// Copies every file of the manifest into `folder`, an empty one, and finds the end of the archive after the last.
    pub(super) fn unpack(&mut self, manifest: &Manifest, folder: &Path, watch: Watch<'_>) -> Result<(), TrustError> {
        let mut progress = Progress::of(manifest, watch);
        for part in manifest.files() {
            let header = match self.next.take() {
                Some(header) if header.name == part.name => header,
                Some(header) if manifest.files().iter().any(|other| other.name == header.name) => {
                    return Err(Mismatch::Missing(self.file.join(&part.name)).into());
                }
                Some(header) => return Err(Mismatch::Extra(self.file.join(header.name)).into()),
                None => return Err(Mismatch::Missing(self.file.join(&part.name)).into()),
            };
            let bytes = (&mut self.from).take(header.size_bytes);
            let copied = copy_part(bytes, folder, &part.name, &mut |more| progress.add(more));
            let (hash, size_bytes) = copied.map_err(at(&self.file))?;
            if size_bytes < header.size_bytes {
                return Err(self.refuse(CUT_SHORT));
            }
            if (hash, size_bytes) != (part.hash, part.size_bytes) {
                return Err(Mismatch::Changed(self.file.join(&part.name)).into());
            }
            self.skip(header.padding())?;
            self.advance()?;
        }
        match self.next.take() {
            Some(header) => Err(Mismatch::Extra(self.file.join(header.name)).into()),
            None => tar::read_end(&mut self.from).map_err(|error| self.refuse(&told(&error))),
        }
    }

    /// The next entry, if it has this name.
    fn small(&mut self, name: &str, most: u64) -> Result<Option<Vec<u8>>, TrustError> {
        let Some(header) = self.next.take_if(|header| header.name == name) else { return Ok(None) };
        if header.size_bytes > most {
            return Err(self.refuse(&format!("{name} has {} bytes; at most {most} are read", header.size_bytes)));
        }
        let mut bytes = vec![0; header.size_bytes as usize];
        self.from.read_exact(&mut bytes).map_err(|error| self.refuse(&told(&error)))?;
        self.skip(header.padding())?;
        self.advance()?;
        Ok(Some(bytes))
    }

    fn advance(&mut self) -> Result<(), TrustError> {
        self.next = Header::read(&mut self.from).map_err(|error| self.refuse(&told(&error)))?;
        Ok(())
    }

    fn skip(&mut self, padding: usize) -> Result<(), TrustError> {
        let mut zeros = vec![0; padding];
        self.from.read_exact(&mut zeros).map_err(|error| self.refuse(&told(&error)))?;
        match zeros.iter().all(|byte| *byte == 0) {
            true => Ok(()),
            false => Err(self.refuse("holds bytes between its files")),
        }
    }

    fn refuse(&self, problem: &str) -> TrustError {
        TrustError::Bundle { file: self.file.clone(), problem: problem.to_owned() }
    }
}

fn told(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::UnexpectedEof { CUT_SHORT.to_owned() } else { error.to_string() }
}

/// How far a bundle is.
struct Progress<'a> {
    done: LoadProgress,
    watch: Watch<'a>,
}

impl<'a> Progress<'a> {
    fn of(manifest: &Manifest, watch: Watch<'a>) -> Self {
        let bytes_total = manifest.files().iter().map(|file| file.size_bytes).fold(0, u64::saturating_add);
        Self { done: LoadProgress { bytes_done: 0, bytes_total }, watch }
    }

    fn add(&mut self, more: u64) -> io::Result<()> {
        self.done.bytes_done += more;
        match (self.watch)(self.done) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(io::ErrorKind::Interrupted.into()),
        }
    }
}

fn write_small(mut to: impl Write, name: &str, bytes: &[u8]) -> io::Result<()> {
    let header = Header { name: name.to_owned(), size_bytes: bytes.len() as u64 };
    header.write(&mut to)?;
    to.write_all(bytes)?;
    to.write_all(&vec![0; header.padding()])
}

/// What was written of it: another size or hash if the file is no longer what the manifest says.
fn write_part(
    mut to: impl Write,
    from: impl Read,
    part: &ManifestFile,
    progress: &mut Progress<'_>,
) -> io::Result<ManifestFile> {
    let header = Header { name: part.name.clone(), size_bytes: part.size_bytes };
    header.write(&mut to)?;
    let (hash, size_bytes) = copy_hashed(from, &mut to, &mut |more| progress.add(more))?;
    to.write_all(&vec![0; header.padding()])?;
    Ok(ManifestFile { name: header.name, size_bytes, hash })
}
