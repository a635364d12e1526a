//! What a killed process left in the folders of files and batches, and nobody knows any more.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::Path;

use super::FileId;

/// Removes records that were not finished.
pub(super) fn clear_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(super::UNFINISHED.as_bytes())) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Removes contents without a record: uploads that were not finished. A record that cannot be read keeps its content, and
/// `to_be` are those of which a batch that is about to end makes files.
pub(super) fn clear_contents(folder: &Path, to_be: &HashSet<FileId>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_content = path.extension() == Some(OsStr::new("data"));
        let id = path.file_stem().and_then(OsStr::to_str).and_then(FileId::parse);
        let Some(id) = id.filter(|id| is_content && !to_be.contains(id)) else { continue };
        if matches!(path.with_extension("json").try_exists(), Ok(false)) {
            tracing::info!(file = %id, "what was uploaded in part before the server was killed is removed");
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
