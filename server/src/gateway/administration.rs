//! What administration works on, by whichever way it comes: accounts, keys and usage.

use std::sync::Arc;

use super::data::{DataDir, DataError};
use super::directory::Directory;
use super::journal::UsageReader;

#[derive(Debug, Clone)]
pub struct Administration {
    pub directory: Directory,
    pub usage: Arc<UsageReader>,
    pub data: DataDir,
}

impl Administration {
    /// The same, by somebody else, whom the audit log names.
    #[must_use]
    pub fn acting_as(&self, actor: &str) -> Self {
        Self { directory: self.directory.acting_as(actor), ..self.clone() }
    }

    pub fn open(data: &DataDir, directory: Directory) -> Result<Self, DataError> {
        Ok(Self { directory, usage: Arc::new(UsageReader::open(data)?), data: data.clone() })
    }
}
