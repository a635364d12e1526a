//! Accounts and keys, as they are kept: in the data directory, changed by one transaction each.
//!
//! Every change is written to the audit log in the same transaction, and raises the directory's *generation*, one number
//! that a running server reads to know whether its picture ([`super::keys::KeyRing`]) is still true. Changes by several
//! processes queue up at the database's lock, and none is lost.

mod accounts;
mod audit;
pub(super) mod columns;
mod keys;
mod owed;
mod plan;
mod record;

use std::sync::{Arc, Mutex, PoisonError};

use passerelle_engine::clock::Clock;
use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::account::{AccountPath, PathError};
use super::data::{DataDir, DataError, cannot_write};
use super::quota::{LimitName, QuotaError, UnixSeconds};
use owed::{Owed, OwedAct};

pub use audit::AuditEntry;
pub use plan::{Change, Making, WantedAccount};
pub use record::{AccountRecord, KeyInfo, KeyRecord, KeyStatus, NewKey, Snapshot};

/// A cloneable handle on the accounts and keys of one data directory.
#[derive(Debug, Clone)]
pub struct Directory {
    connection: Arc<Mutex<Connection>>,
    /// Locked after the connection.
    owed: Arc<Mutex<Owed>>,
    clock: Arc<dyn Clock>,
    /// Who is named in the audit log.
    actor: Arc<str>,
}

/// What can go wrong with accounts and keys. Never quotes a secret.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("the database of accounts: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Quota(#[from] QuotaError),
    #[error("there is no account '{0}': `passerelle account create` makes one")]
    UnknownAccount(AccountPath),
    #[error("the account '{0}' exists")]
    AccountExists(AccountPath),
    #[error("the account '{0}' has accounts below it, or keys that are not revoked")]
    AccountInUse(AccountPath),
    #[error("the account '{0}' is named twice: say all of it in one place")]
    NamedTwice(AccountPath),
    #[error("'{0}' limits no {1}")]
    NoSuchLimit(AccountPath, LimitName),
    #[error("there are {0} {1}, the most that one data directory holds")]
    TooMany(usize, &'static str),
    #[error("'{0}' is no key name: use 1 to {max} letters, digits, '.', '_' or '-'", max = AccountPath::MAX_NAME_BYTES)]
    BadName(String),
    #[error("'{account}' has a key named '{name}': revoke or rotate it, or choose another name")]
    NameTaken { account: AccountPath, name: String },
    #[error("no key has the id or name '{0}': `passerelle key list` shows them")]
    UnknownKey(String),
    #[error("several keys are named '{0}': use an id; `passerelle key list` shows them")]
    AmbiguousKey(String),
    #[error("the key '{0}' was revoked")]
    KeyRevoked(String),
    #[error("the system gave no random numbers: {0}")]
    Random(#[from] getrandom::Error),
}

/// Where an act stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    Written,
    /// In memory, until there is room.
    Owed,
}

impl DirectoryError {
    /// Whether it is the disk that has no room, or does not work.
    pub fn is_for_want_of_room(&self) -> bool {
        match self {
            Self::Sql(error) => cannot_write(error),
            Self::Data(error) => error.is_for_want_of_room(),
            _ => false,
        }
    }
}

/// One administrative act, for the audit log.
struct Act<'a> {
    name: &'static str,
    subject: &'a str,
    /// What about it: limits, scopes, dates. Never a secret.
    detail: String,
}

/// How a transaction ends that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    RollBack,
}

impl Directory {
    /// `actor`: who changes things through this handle, as the audit log names them.
    pub fn open(data: &DataDir, clock: Arc<dyn Clock>, actor: &str) -> Result<Self, DataError> {
        let (connection, owed) = (Arc::new(Mutex::new(data.connect()?)), Arc::default());
        Ok(Self { connection, owed, clock, actor: actor.into() })
    }

    /// The same directory, used by somebody else.
    #[must_use]
    pub fn acting_as(&self, actor: &str) -> Self {
        Self { actor: actor.into(), ..self.clone() }
    }

    /// Everything, at one instant.
    pub fn snapshot(&self) -> Result<Snapshot, DirectoryError> {
        self.read(|transaction| {
            let generation = generation(transaction)?;
            Ok(Snapshot { generation, accounts: accounts::all(transaction)?, keys: keys::all(transaction)? })
        })
    }

    /// Rises with every change.
    pub fn generation(&self) -> Result<u64, DirectoryError> {
        self.read(|transaction| Ok(generation(transaction)?))
    }

    /// With what could not be written down before, if there is room for it now.
    pub fn audit_log(&self) -> Result<Vec<AuditEntry>, DirectoryError> {
        if let Err(error) = self.settle_owed() {
            tracing::error!(%error, "administrative acts are missing in the audit log, which has no room for them");
        }
        self.read(|transaction| Ok(audit::all(transaction)?))
    }

    /// Whom the audit log names.
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// Writes down an act that changes nothing here. `subject`: what it is done to. `detail`: never a secret.
    pub fn note(&self, act: &'static str, subject: &str, detail: &str) -> Result<(), DirectoryError> {
        self.change(Act { name: act, subject, detail: detail.to_owned() }, |_| Ok(()))
    }

    /// Writes down an act that happens whether there is room to write or not: at once, or else before the next entry.
    pub fn note_when_it_can(&self, act: &'static str, subject: &str, detail: &str) -> Result<Noted, DirectoryError> {
        match self.note(act, subject, detail) {
            Ok(()) => Ok(Noted::Written),
            Err(error) if error.is_for_want_of_room() => {
                tracing::error!(%error, act, "an administrative act is missing in the audit log for now");
                let owed = OwedAct::new(self.now(), Arc::clone(&self.actor), act, subject, detail);
                self.owed.lock().unwrap_or_else(PoisonError::into_inner).add(owed);
                Ok(Noted::Owed)
            }
            Err(error) => Err(error),
        }
    }

    fn settle_owed(&self) -> Result<(), DirectoryError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        if owed.is_empty() {
            return Ok(());
        }
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        owed.write(&transaction)?;
        transaction.commit()?;
        owed.clear();
        Ok(())
    }

    fn read<T>(&self, look: impl FnOnce(&Transaction<'_>) -> Result<T, DirectoryError>) -> Result<T, DirectoryError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        look(&connection.transaction()?)
    }

    /// Nothing is written if `change` fails.
    fn change<T>(
        &self,
        act: Act<'_>,
        change: impl FnOnce(&Transaction<'_>) -> Result<T, DirectoryError>,
    ) -> Result<T, DirectoryError> {
        self.transact(|transaction| {
            let answer = change(transaction)?;
            self.write_down(transaction, &act)?;
            Ok((answer, End::Commit))
        })
    }

    /// Nothing is written if `work` fails.
    fn transact<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<(T, End), DirectoryError>,
    ) -> Result<T, DirectoryError> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut owed = self.owed.lock().unwrap_or_else(PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        owed.write(&transaction)?;
        let (answer, end) = work(&transaction)?;
        match end {
            End::Commit => {
                transaction.commit()?;
                owed.clear();
            }
            End::RollBack => transaction.rollback()?,
        }
        Ok(answer)
    }

    fn write_down(&self, transaction: &Transaction<'_>, act: &Act<'_>) -> Result<(), DirectoryError> {
        audit::append(transaction, self.now(), &self.actor, act)?;
        transaction.execute("UPDATE meta SET value = value + 1 WHERE name = 'directory_generation'", [])?;
        Ok(())
    }

    /// By the clock that its entries are dated by.
    pub fn now(&self) -> UnixSeconds {
        UnixSeconds::of(self.clock.wall())
    }
}

fn generation(transaction: &Transaction<'_>) -> rusqlite::Result<u64> {
    transaction.query_row("SELECT value FROM meta WHERE name = 'directory_generation'", [], |row| row.get(0))
}

#[cfg(test)]
mod tests;
