//! Score files: what one checkpoint made of a data set, as JSON lines that are only ever added to.
//!
//! ```text
//! <folder>/<digest>.jsonl    {"format": 1, "digest": ..., "data": ..., ...}     the header, once
//!                            {"id": "1", "outcome": {...}}                      one line an item, in any order
//! ```
//!
//! A run that was killed leaves a last line without its end; the next one drops it and goes on after the items that are
//! there. A file of other data or other settings is refused: its numbers could not stand beside new ones.

use std::collections::HashSet;
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use passerelle_models::ModelDigest;
use serde::{Deserialize, Serialize};

use super::scored::Scored;

const FORMAT: u32 = 1;
pub const EXTENSION: &str = "jsonl";
/// The longest line that is read: a document of a few hundred thousand tokens.
const MAX_LINE_BYTES: u64 = 256 << 20;

/// What the numbers of a file are of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    pub format: u32,
    /// Of the checkpoint.
    pub digest: ModelDigest,
    /// What its folder or repository is called.
    pub name: String,
    /// The version of the program that began the file.
    pub binary: String,
    #[serde(flatten)]
    pub settings: Settings,
}

/// What numbers depend on, beside the checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Digest of the items.
    pub data: String,
    /// `None`: there is no end to them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_items: Option<usize>,
    /// What weights are held as.
    pub weights: String,
    /// What keys and values are held as.
    pub keys_and_values: String,
    /// Of a greedy answer.
    pub max_tokens: u32,
    /// Digest of the checkpoint that divergences are measured from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub against: Option<ModelDigest>,
    /// `None`: as served, or by a program that did not say it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ran_on: Option<RanOn>,
}

/// What computed the numbers of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RanOn {
    /// `cpu`, or what the driver calls the GPU.
    pub device: String,
    /// Of whoever began the file.
    pub kernels: String,
    /// The plainest kernels that have the same bits: a run may go on with all others that have them.
    pub bits_of: String,
    /// [`passerelle_models::NUMERICS`] of whoever began the file; 1 for a program that did not say it yet.
    #[serde(default = "first_numerics")]
    pub numerics: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ScoreFileError {
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{}: another process is writing it", .0.display())]
    Busy(PathBuf),
    #[error("{}: line {line} is not what `passerelle score` writes: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
    #[error(
        "{}: holds scores of other data or settings (`{field}` is {found} there and {wanted} here); give another --out",
        path.display()
    )]
    Other { path: PathBuf, field: &'static str, found: String, wanted: String },
    #[error("{}: no score file is in this folder", .0.display())]
    NoFiles(PathBuf),
}

/// Who may read a file that is made. One that is there stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// As for every file of whoever runs the program.
    AsUsual,
    OwnerAlone,
}

/// Adds to one file. Holds its lock until dropped.
#[derive(Debug)]
pub struct ScoreWriter {
    path: PathBuf,
    file: File,
    done: HashSet<String>,
    /// Where the last whole line ended.
    whole_bytes: u64,
    /// Something stands behind it.
    is_torn: bool,
}

/// Reads one file, item by item.
#[derive(Debug)]
pub struct ScoreReader {
    pub header: Header,
    path: PathBuf,
    lines: BufReader<File>,
    line: usize,
    /// Where the last whole line ended.
    whole_bytes: u64,
}

impl Header {
    pub fn new(digest: ModelDigest, name: String, binary: &str, settings: Settings) -> Self {
        Self { format: FORMAT, digest, name, binary: binary.to_owned(), settings }
    }

    /// Where the scores of this checkpoint stand. The digest's kind is no part of the name.
    pub fn path_in(&self, folder: &Path) -> PathBuf {
        let digest = self.digest.to_string();
        folder.join(digest.rsplit(':').next().unwrap_or(&digest)).with_extension(EXTENSION)
    }
}

impl RanOn {
    /// Whether the other would have come to the same numbers, bit for bit.
    pub fn has_bits_of(&self, other: &Self) -> bool {
        (&self.device, &self.bits_of, self.numerics) == (&other.device, &other.bits_of, other.numerics)
    }
}

fn first_numerics() -> u32 {
    1
}

impl fmt::Display for RanOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, numerics {})", self.device, self.kernels, self.numerics)
    }
}

impl ScoreWriter {
    /// Makes the file, or goes on with it. What is there is read once, for the ids of its items.
    pub fn open(folder: &Path, header: &Header, readers: Readers) -> Result<Self, ScoreFileError> {
        let path = header.path_in(folder);
        let at = |error| ScoreFileError::Io { path: path.clone(), error };
        fs::create_dir_all(folder).map_err(at)?;
        let mut how = OpenOptions::new();
        if readers == Readers::OwnerAlone {
            how.mode(0o600);
        }
        let file = how.read(true).append(true).create(true).open(&path).map_err(at)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(ScoreFileError::Busy(path)),
            Err(TryLockError::Error(error)) => return Err(at(error)),
        }
        let mut writer = Self { file, done: HashSet::new(), path, whole_bytes: 0, is_torn: true };
        if let Some(mut reader) = ScoreReader::begin(&writer.path)? {
            while let Some(scored) = reader.next_scored()? {
                writer.done.insert(scored.id);
            }
            if writer.num_done() > 0 {
                header.check_same(&reader)?;
                writer.whole_bytes = reader.whole_bytes;
                writer.cut()?;
                return Ok(writer);
            }
        }
        // A header alone binds nobody.
        writer.line(header)?;
        Ok(writer)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn is_done(&self, id: &str) -> bool {
        self.done.contains(id)
    }

    pub fn num_done(&self) -> usize {
        self.done.len()
    }

    pub fn append(&mut self, scored: &Scored) -> Result<(), ScoreFileError> {
        self.line(scored)?;
        self.done.insert(scored.id.clone());
        Ok(())
    }

    /// In one write, so that a kill leaves at most one line torn; the part of one that had no room is taken back, or the next
    /// would stand behind it.
    fn line(&mut self, value: &impl Serialize) -> Result<(), ScoreFileError> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::from).map_err(|error| self.failed(error))?;
        line.push(b'\n');
        if self.is_torn {
            self.cut()?;
        }
        let written = self.file.write_all(&line);
        if written.is_ok() {
            self.whole_bytes += line.len() as u64;
        } else {
            self.is_torn = true;
            // If this fails too, it is tried again before the next line.
            let _: Result<(), ScoreFileError> = self.cut();
        }
        written.map_err(|error| self.failed(error))
    }

    /// What is written next goes to the end, wherever that is by then.
    fn cut(&mut self) -> Result<(), ScoreFileError> {
        self.file.set_len(self.whole_bytes).map_err(|error| self.failed(error))?;
        self.is_torn = false;
        Ok(())
    }

    fn failed(&self, error: io::Error) -> ScoreFileError {
        ScoreFileError::Io { path: self.path.clone(), error }
    }
}

impl ScoreReader {
    /// A file that somebody may still be adding to.
    pub fn open(path: &Path) -> Result<Self, ScoreFileError> {
        let problem = || "it ends before the header does".to_owned();
        Self::begin(path)?.ok_or_else(|| ScoreFileError::Line { path: path.to_owned(), line: 1, problem: problem() })
    }

    /// `None` for a file without a whole first line.
    fn begin(path: &Path) -> Result<Option<Self>, ScoreFileError> {
        let io_error = |error| ScoreFileError::Io { path: path.to_owned(), error };
        let lines = BufReader::new(File::open(path).map_err(io_error)?);
        let mut raw = RawLines { lines, path };
        let Some(first) = raw.next_whole()? else { return Ok(None) };
        let wrong = |problem: String| ScoreFileError::Line { path: path.to_owned(), line: 1, problem };
        let header: Header = serde_json::from_slice(&first).map_err(|error| wrong(error.to_string()))?;
        if header.format != FORMAT {
            return Err(wrong(format!("its format is {}, and {FORMAT} is read", header.format)));
        }
        let (lines, path, whole_bytes) = (raw.lines, path.to_owned(), first.len() as u64);
        Ok(Some(Self { header, path, lines, line: 1, whole_bytes }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `None` at the end, or at a last line that is not whole.
    pub fn next_scored(&mut self) -> Result<Option<Scored>, ScoreFileError> {
        let mut raw = RawLines { lines: &mut self.lines, path: &self.path };
        let Some(line) = raw.next_whole()? else { return Ok(None) };
        self.line += 1;
        let wrong = |error: serde_json::Error| {
            let (path, problem) = (self.path.clone(), error.to_string());
            ScoreFileError::Line { path, line: self.line, problem }
        };
        let scored = serde_json::from_slice(&line).map_err(wrong)?;
        self.whole_bytes += line.len() as u64;
        Ok(Some(scored))
    }
}

struct RawLines<'a, R> {
    lines: R,
    path: &'a Path,
}

impl<R: BufRead> RawLines<'_, R> {
    fn next_whole(&mut self) -> Result<Option<Vec<u8>>, ScoreFileError> {
        let mut line = Vec::new();
        let read = io::Read::take(&mut self.lines, MAX_LINE_BYTES).read_until(b'\n', &mut line);
        read.map_err(|error| ScoreFileError::Io { path: self.path.to_owned(), error })?;
        Ok((line.last() == Some(&b'\n')).then_some(line))
    }
}

impl Header {
    /// The program's version and the name may differ; what the numbers depend on may not.
    fn check_same(&self, there: &ScoreReader) -> Result<(), ScoreFileError> {
        let (here, found) = (&self.settings, &there.header.settings);
        let against = |settings: &Settings| settings.against.map_or("none".to_owned(), |digest| digest.to_string());
        let ran_on = |settings: &Settings, of: fn(&RanOn) -> String| {
            settings.ran_on.as_ref().map_or("not stated".to_owned(), of)
        };
        let device = |settings| ran_on(settings, |ran_on| ran_on.device.clone());
        let kernels = |settings| ran_on(settings, |ran_on| ran_on.bits_of.clone());
        let numerics = |settings| ran_on(settings, |ran_on| ran_on.numerics.to_string());
        let fields = [
            ("digest", there.header.digest.to_string(), self.digest.to_string()),
            ("data", found.data.clone(), here.data.clone()),
            ("weights", found.weights.clone(), here.weights.clone()),
            ("keys_and_values", found.keys_and_values.clone(), here.keys_and_values.clone()),
            ("max_tokens", found.max_tokens.to_string(), here.max_tokens.to_string()),
            ("against", against(found), against(here)),
            ("device", device(found), device(here)),
            ("kernels", kernels(found), kernels(here)),
            ("numerics", numerics(found), numerics(here)),
        ];
        match fields.into_iter().find(|(_, found, wanted)| found != wanted) {
            Some((field, found, wanted)) => {
                Err(ScoreFileError::Other { path: there.path.clone(), field, found, wanted })
            }
            None => Ok(()),
        }
    }
}

/// Every score file that was named, and those directly inside every folder that was, by name within a folder.
pub fn find(written: &[PathBuf]) -> Result<Vec<PathBuf>, ScoreFileError> {
    let mut found = Vec::new();
    for path in written {
        let at = |error| ScoreFileError::Io { path: path.clone(), error };
        if !fs::metadata(path).map_err(at)?.is_dir() {
            found.push(path.clone());
            continue;
        }
        let entries = fs::read_dir(path).map_err(at)?.collect::<Result<Vec<_>, _>>().map_err(at)?;
        let mut inside: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        inside.retain(|file| file.extension().is_some_and(|extension| extension == EXTENSION));
        if inside.is_empty() {
            return Err(ScoreFileError::NoFiles(path.clone()));
        }
        inside.sort();
        found.extend(inside);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
