use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::gguf::{GgufMetadata, Header, HeaderRead};
use super::mapped::FileBytes;
use super::unsupported;
use crate::ModelError;

/// How much of a GGUF file that is read and not mapped is read for its header, which does not say how long it is: about as
/// long as its vocabulary. Where that is not enough, so many times as much is.
const GGUF_HEAD_BYTES: u64 = 64 << 20;
const GGUF_HEAD_GROWTH: u64 = 4;

/// The files of one checkpoint: a directory, a GGUF file that holds everything, or files compiled into the program.
#[derive(Debug, Clone)]
pub struct CheckpointFiles {
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Directory(PathBuf),
    Gguf(PathBuf),
    Embedded { name: &'static str, files: &'static [(&'static str, &'static [u8])] },
}

impl CheckpointFiles {
    /// Errors when `path` is not a directory. Files in it may be symbolic links, as the hub's cache has them.
    pub fn directory(path: impl Into<PathBuf>) -> Result<Self, ModelError> {
        let path = path.into();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => Ok(Self { source: Source::Directory(path) }),
            Ok(_) => Err(ModelError::checkpoint(&path, "checkpoint", "not a directory; give the one with config.json")),
            Err(source) => Err(ModelError::Io { file: path, source }),
        }
    }

    /// Errors when `path` is not a file.
    pub fn gguf(path: impl Into<PathBuf>) -> Result<Self, ModelError> {
        let path = path.into();
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_file() => Ok(Self { source: Source::Gguf(path) }),
            Ok(_) => Err(ModelError::checkpoint(&path, "checkpoint", "not a file; give the .gguf file itself")),
            Err(source) => Err(ModelError::Io { file: path, source }),
        }
    }

    /// Pairs of file name and content; `name` stands for the directory in errors.
    pub const fn embedded(name: &'static str, files: &'static [(&'static str, &'static [u8])]) -> Self {
        Self { source: Source::Embedded { name, files } }
    }

    /// What errors and start-up lines call the whole checkpoint.
    pub fn root(&self) -> &Path {
        match &self.source {
            Source::Directory(path) | Source::Gguf(path) => path,
            Source::Embedded { name, .. } => Path::new(name),
        }
    }

    /// The files in one folder of this checkpoint; none where it is compiled in. `name` must be that of a plain folder.
    pub(crate) fn folder(&self, name: &str) -> Self {
        let source = match &self.source {
            Source::Directory(path) | Source::Gguf(path) => Source::Directory(path.join(name)),
            Source::Embedded { name, .. } => Source::Embedded { name, files: &[] },
        };
        Self { source }
    }

    /// What errors call one file.
    pub fn path_of(&self, file: &str) -> PathBuf {
        match &self.source {
            Source::Gguf(path) if path.file_name().is_some_and(|name| name == file) => path.clone(),
            _ => self.root().join(file),
        }
    }

    pub fn contains(&self, file: &str) -> bool {
        match &self.source {
            Source::Directory(path) => path.join(file).is_file(),
            Source::Gguf(path) => path.file_name().is_some_and(|name| name == file),
            Source::Embedded { files, .. } => files.iter().any(|(name, _)| *name == file),
        }
    }

    /// The names of all plain files, sorted.
    pub fn names(&self) -> Result<Vec<String>, ModelError> {
        let mut names: Vec<String> = match &self.source {
            Source::Embedded { files, .. } => files.iter().map(|(name, _)| (*name).to_owned()).collect(),
            Source::Directory(path) => {
                entry_names(path, Path::is_file).map_err(|error| self.io(path.clone(), error))?
            }
            Source::Gguf(path) => {
                path.file_name().into_iter().map(|name| name.to_string_lossy().into_owned()).collect()
            }
        };
        names.sort_unstable();
        Ok(names)
    }

    /// The names of all folders, sorted; none where the checkpoint is one file or compiled in.
    pub(crate) fn folders(&self) -> Result<Vec<String>, ModelError> {
        let Some(path) = self.as_folder() else { return Ok(Vec::new()) };
        let mut names = entry_names(path, Path::is_dir).map_err(|error| self.io(path.to_owned(), error))?;
        names.sort_unstable();
        Ok(names)
    }

    /// `None` where the checkpoint is one file or compiled in.
    pub(crate) fn as_folder(&self) -> Option<&Path> {
        match &self.source {
            Source::Directory(path) => Some(path),
            Source::Gguf(_) | Source::Embedded { .. } => None,
        }
    }

    /// Whether everything is in one file.
    pub fn is_gguf(&self) -> bool {
        matches!(self.source, Source::Gguf(_))
    }

    /// The length of one file.
    pub(crate) fn size_of(&self, file: &str) -> Result<u64, ModelError> {
        if let Some(bytes) = self.embedded_file(file) {
            return Ok(bytes.len() as u64);
        }
        let path = self.path_of(file);
        fs::metadata(&path).map(|metadata| metadata.len()).map_err(|error| self.io(path, error))
    }

    /// The content of one file, `None` when there is no such file, an error when it is longer than `max_bytes`.
    pub fn read(&self, file: &str, max_bytes: u64) -> Result<Option<Cow<'static, [u8]>>, ModelError> {
        let path = self.path_of(file);
        let bytes = match &self.source {
            Source::Embedded { .. } => self.embedded_file(file).map(Cow::Borrowed),
            // What other checkpoints keep in further files is inside this one.
            Source::Gguf(_) => None,
            Source::Directory(_) => {
                read_at_most(&path, max_bytes).map_err(|error| self.io(path.clone(), error))?.map(Cow::Owned)
            }
        };
        match bytes {
            Some(bytes) if bytes.len() as u64 > max_bytes => {
                let problem = format!("longer than {max_bytes} bytes, more than such a file ever needs");
                Err(ModelError::checkpoint(&path, "size", problem))
            }
            Some(bytes) => {
                unsupported::refuse_pointer(&path, &bytes)?;
                Ok(Some(bytes))
            }
            None => Ok(None),
        }
    }

    /// The content of one file as text.
    pub fn read_text(&self, file: &str, max_bytes: u64) -> Result<Option<String>, ModelError> {
        let Some(bytes) = self.read(file, max_bytes)? else { return Ok(None) };
        match String::from_utf8(bytes.into_owned()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(ModelError::checkpoint(&self.path_of(file), "text", "not UTF-8; fetch the file again")),
        }
    }

    /// The beginning of one file, and how long the file is: as much as `head_bytes` says from the first few bytes, or somewhat
    /// more. The rest is not read, which on a network's file system would take as long as loading it.
    pub(crate) fn head(
        &self,
        file: &str,
        head_bytes: fn(&[u8]) -> u64,
    ) -> Result<(Cow<'static, [u8]>, u64), ModelError> {
        if let Some(bytes) = self.embedded_file(file) {
            return Ok((Cow::Borrowed(bytes), bytes.len() as u64));
        }
        let path = self.path_of(file);
        let (head, file_bytes) = read_head(&path, head_bytes).map_err(|error| self.io(path.clone(), error))?;
        unsupported::refuse_pointer(&path, &head)?;
        Ok((Cow::Owned(head), file_bytes))
    }

    /// The content of one file without reading it first.
    pub(crate) fn map(&self, file: &str) -> Result<FileBytes, ModelError> {
        let path = self.path_of(file);
        match &self.source {
            Source::Directory(_) | Source::Gguf(_) => Ok(self.map_path(&path, u64::MAX)?.0),
            Source::Embedded { .. } => match self.embedded_file(file) {
                Some(bytes) => Ok(FileBytes::Static(bytes)),
                None => Err(self.io(path, io::ErrorKind::NotFound.into())),
            },
        }
    }

    /// What one file has of the bytes in `range`. No others are read.
    pub(crate) fn read_range(&self, file: &str, range: Range<usize>) -> Result<Vec<u8>, ModelError> {
        if let Some(bytes) = self.embedded_file(file) {
            return Ok(bytes.get(range).map(<[u8]>::to_vec).unwrap_or_default());
        }
        let path = self.path_of(file);
        read_range(&path, range).map_err(|error| self.io(path, error))
    }

    /// What a GGUF file says about itself, the tokenizer included; `None` for other checkpoints.
    pub fn gguf_metadata(&self) -> Result<Option<GgufMetadata>, ModelError> {
        Ok(self.gguf_header()?.map(|header| header.metadata))
    }

    /// As [`Self::gguf_metadata`], with the table of tensors.
    pub(crate) fn gguf_header(&self) -> Result<Option<Header>, ModelError> {
        let Source::Gguf(path) = &self.source else { return Ok(None) };
        read_gguf_header(path, GGUF_HEAD_BYTES, |most| self.map_path(path, most)).map(Some)
    }

    /// The first `most` bytes of a file or more, and how long it is.
    fn map_path(&self, path: &Path, most: u64) -> Result<(FileBytes, u64), ModelError> {
        let (bytes, file_bytes) = FileBytes::open(path, most).map_err(|error| self.io(path.to_owned(), error))?;
        unsupported::refuse_pointer(path, bytes.as_slice())?;
        Ok((bytes, file_bytes))
    }

    /// `None` where it is not compiled in.
    pub(crate) fn embedded_file(&self, file: &str) -> Option<&'static [u8]> {
        let Source::Embedded { files, .. } = &self.source else { return None };
        files.iter().find(|(name, _)| *name == file).map(|(_, bytes)| *bytes)
    }

    fn io(&self, file: PathBuf, source: io::Error) -> ModelError {
        ModelError::Io { file, source }
    }
}

fn entry_names(path: &Path, wanted: fn(&Path) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if wanted(&entry.path()) {
            names.extend(entry.file_name().into_string().ok());
        }
    }
    Ok(names)
}

/// At most one byte more than `max_bytes`, so that the caller sees when there is more.
fn read_at_most(path: &Path, max_bytes: u64) -> io::Result<Option<Vec<u8>>> {
    // A named pipe would block for ever when opened.
    if !path.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(max_bytes + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn read_range(path: &Path, range: Range<usize>) -> io::Result<Vec<u8>> {
    if !path.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(range.start as u64))?;
    let mut bytes = Vec::new();
    file.take(range.len() as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// `beginning` gives the first so many bytes of the file, or more, and how long it is.
fn read_gguf_header(
    path: &Path,
    first_bytes: u64,
    beginning: impl Fn(u64) -> Result<(FileBytes, u64), ModelError>,
) -> Result<Header, ModelError> {
    let mut most = first_bytes;
    loop {
        let (head, file_bytes) = beginning(most)?;
        let is_cut = head.as_slice().len() as u64 == most && most < file_bytes;
        match Header::read(path, head.as_slice(), file_bytes) {
            HeaderRead::Whole(header) => return Ok(header),
            HeaderRead::Short(_) if is_cut => most = most.saturating_mul(GGUF_HEAD_GROWTH),
            HeaderRead::Short(error) | HeaderRead::Refused(error) => return Err(error),
        }
    }
}

/// As every file and folder of a checkpoint is called: nothing that leads out of its folder or to a hidden file, and no
/// space, which would make a manifest's line ambiguous.
pub(crate) fn is_plain_name(name: &str) -> bool {
    const MAX_BYTES: usize = 255;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= MAX_BYTES && !name.starts_with('.') && name.bytes().all(plain)
}

fn read_head(path: &Path, head_bytes: fn(&[u8]) -> u64) -> io::Result<(Vec<u8>, u64)> {
    // A page: less is read as fast.
    const FIRST_BYTES: u64 = 4096;
    if !path.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut head = Vec::new();
    file.by_ref().take(FIRST_BYTES).read_to_end(&mut head)?;
    let more = head_bytes(&head).saturating_sub(head.len() as u64);
    file.take(more).read_to_end(&mut head)?;
    Ok((head, file_bytes))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn of_a_long_file_only_its_head_is_read() {
        const FILE_BYTES: u64 = 1 << 38;
        let folder = tempfile::tempdir().unwrap();
        for (name, head_bytes) in [("short", 9_u16), ("long", 9000)] {
            let path = folder.path().join(name);
            fs::write(&path, head_bytes.to_le_bytes()).unwrap();
            // The rest is a hole.
            File::options().write(true).open(&path).unwrap().set_len(FILE_BYTES).unwrap();
            let files = CheckpointFiles::directory(folder.path()).unwrap();
            let says = |first: &[u8]| u64::from(u16::from_le_bytes([first[0], first[1]]));
            let (head, file_bytes) = files.head(name, says).unwrap();
            assert_eq!((head.len(), file_bytes), (usize::from(head_bytes).max(4096), FILE_BYTES), "{name}");
        }
    }

    #[test]
    fn of_a_long_file_only_the_wanted_range_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.gguf");
        // A hole before the last bytes.
        let mut file = File::create(&path).unwrap();
        file.seek(SeekFrom::Start(1 << 38)).unwrap();
        io::Write::write_all(&mut file, b"factors").unwrap();
        let files = CheckpointFiles::gguf(&path).unwrap();
        let read = |start: usize, end: usize| files.read_range("long.gguf", start..end).unwrap();
        assert_eq!(read((1 << 38) + 1, (1 << 38) + 4), b"act");
        assert_eq!(read((1 << 38) + 4, (1 << 38) + 9), b"ors", "of what the file does not have there is nothing");
        assert_eq!(read(1 << 39, (1 << 39) + 4), b"");
    }

    /// One key, whose text begins at byte 56 and ends at byte 1056.
    fn gguf(version: u32) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let counts = [0_u64, 1].map(u64::to_le_bytes).concat();
        let entry = [&text("general.name")[..], &8_u32.to_le_bytes(), &text(&"x".repeat(1000))[..]].concat();
        [&b"GGUF"[..], &version.to_le_bytes(), &counts[..], &entry[..], &[0; 4096]].concat()
    }

    /// How long the name is that the header gives, or what is wrong; and how many bytes were asked for, each time.
    fn read_gguf(file: &[u8]) -> (Result<usize, String>, Vec<u64>) {
        let asked = RefCell::new(Vec::new());
        let beginning = |most: u64| {
            asked.borrow_mut().push(most);
            let head = file[..file.len().min(most as usize)].to_vec();
            Ok((FileBytes::Read(head), file.len() as u64))
        };
        let header = read_gguf_header(Path::new("model.gguf"), 64, beginning);
        let name = header.map(|header| header.metadata.text("general.name").unwrap().unwrap().len());
        (name.map_err(|error| error.to_string()), asked.into_inner())
    }

    #[test]
    fn of_a_gguf_file_more_is_read_only_where_its_header_goes_on() {
        assert_eq!(read_gguf(&gguf(3)), (Ok(1000), vec![64, 256, 1024, 4096]));
        let (refused, asked) = read_gguf(&gguf(9));
        assert!(refused.unwrap_err().contains("only 2 and 3"));
        assert_eq!(asked, [64], "what is refused is not read again");
        let (cut, asked) = read_gguf(&gguf(3)[..900]);
        assert!(cut.unwrap_err().contains("general.name: needs 1000 bytes where the file has 844 left"));
        assert_eq!(asked, [64, 256, 1024]);
    }

    #[test]
    fn names_of_files_and_folders_are_plain() {
        for name in ["model.safetensors", "1_Pooling", "a-b.json", &"a".repeat(255)] {
            assert!(is_plain_name(name), "{name}");
        }
        for name in ["", ".", "..", ".hidden", "../a", "a/b", "/a", "a b", "a\n", "\u{e9}", &"a".repeat(256)] {
            assert!(!is_plain_name(name), "{name}");
        }
    }
}
