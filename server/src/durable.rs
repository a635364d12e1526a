//! Names that outlast a loss of power. A file's bytes are on the disk once it is synced; its name, once its folder is.

use std::fs::File;
use std::io;
use std::path::Path;

/// What was made, renamed or removed in this folder stays so.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
