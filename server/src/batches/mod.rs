//! Files that callers upload, and batches of requests that run from them: what is kept of them in the data directory.
//!
//! ```text
//! DATA_DIR/files/file-ID.json     who, when, how large
//! DATA_DIR/files/file-ID.data     what was uploaded, or what a batch wrote
//! DATA_DIR/batches/batch_ID.json  where a batch stands
//! DATA_DIR/batches/batch_ID.out   answers so far, one a line; batch_ID.err: refusals so far
//! ```
//!
//! The lines of the last two say which requests are over, so a batch that a restart interrupts goes on where it was: a
//! request whose line is there is not run again. What the disk has no room for is written whole or not at all, and what is
//! known in memory is what lies on the disk. This room speaks neither HTTP nor text, and runs nothing.

mod disk;
mod error;
mod id;
mod input;
mod journal;
mod orphans;
mod record;
mod store;

pub use disk::{Disk, SystemDisk};
pub use error::BatchError;
pub use id::{BatchId, FileId};
pub use input::{BatchLine, read_input};
pub use journal::{Journal, Outcome};
pub use record::{Batch, BatchStatus, Counts, Ending, Endpoint, LineError, Purpose, StoredFile};
pub use store::{BatchBounds, BatchStore, Upload};

/// How the name of a record begins that is being written.
const UNFINISHED: &str = ".tmp";

#[cfg(test)]
mod tests;
