//! The log's way to the disk, and into the database.

use std::fs::File;
use std::io;

use rusqlite::Connection;

use super::StoreError;
use crate::durable;
use crate::gateway::data::DataDir;
use crate::gateway::journal::store::LedgerDisk;

pub(super) struct SqliteDisk {
    data: DataDir,
    log: Option<File>,
    connection: Option<Connection>,
    syncs_since_checkpoint: u32,
}

/// A second under load, with the default interval between two syncs.
const SYNCS_PER_CHECKPOINT: u32 = 20;

impl SqliteDisk {
    pub(super) fn new(data: &DataDir) -> Self {
        Self { data: data.clone(), log: None, connection: None, syncs_since_checkpoint: 0 }
    }

    fn sync_log(&mut self) -> io::Result<()> {
        let log = match self.log.take() {
            Some(log) => log,
            None => match open_log(&self.data) {
                // Whoever closed the database last has taken all of it into the database, and synced that.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                opened => opened?,
            },
        };
        log.sync_data()?;
        self.log = Some(log);
        Ok(())
    }

    /// What the log holds is copied into the database, so that the log can begin anew. Nobody waits for it, and what it
    /// cannot do now it does later.
    fn checkpoint(&mut self) -> Option<()> {
        if self.connection.is_none() {
            self.connection = self.data.connect().ok();
        }
        let checkpoint = "PRAGMA wal_checkpoint(PASSIVE)";
        self.connection.as_ref()?.query_row(checkpoint, [], |_| Ok(())).ok()
    }
}

impl LedgerDisk for SqliteDisk {
    fn sync(&mut self) -> Result<(), StoreError> {
        self.sync_log().map_err(|error| StoreError(error.to_string()))?;
        self.syncs_since_checkpoint += 1;
        if self.syncs_since_checkpoint >= SYNCS_PER_CHECKPOINT {
            self.syncs_since_checkpoint = 0;
            self.checkpoint();
        }
        Ok(())
    }
}

/// A log that was made just now is in its folder only once that is on the disk too.
fn open_log(data: &DataDir) -> io::Result<File> {
    let log = File::open(data.log())?;
    durable::sync_folder(data.path())?;
    Ok(log)
}
