//! The ledger in the data directory's database.
//!
//! A commit in WAL mode is one `write` into the log: it survives the process. An `fdatasync` of that log, from another
//! thread, makes everything written to it before survive a loss of power.

mod disk;
mod read;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;

use passerelle_engine::Usage;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use super::entry::{Chain, Counts, Covered, Entry, EntryEnd, EntryId, Opening, Settlement, Told};
use super::store::{AskedBefore, LedgerDisk, LedgerStore, Record, StoreError};
use crate::gateway::attribution::Attribution;
use crate::gateway::data::{DataDir, DataError};
use crate::gateway::ledger::{Origins, PeerReservation};
use crate::gateway::quota::UnixSeconds;
use crate::gateway::tariff::Tariff;

pub use read::{UsageReader, UsageSum, Used, UserSum};

/// Sums are kept by quarters of an hour.
const SLOT_SECONDS: u64 = 900;
/// 32 MiB. A log that never rests grows to this, and is then brought into the database by whoever writes.
const MAX_LOG_PAGES: u32 = 8_192;
/// Of the requests of other gateways, those that are looked at when a process has died.
const MAX_ASKED_BEFORE: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

pub struct SqliteStore {
    data: DataDir,
    /// What recovered entries are billed by.
    tariff: Arc<Tariff>,
    connection: Connection,
    last: Last,
}

/// The end of the chain.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    seq: u64,
    chain: Chain,
}

impl SqliteStore {
    pub fn open(data: &DataDir, tariff: Arc<Tariff>) -> Result<Self, DataError> {
        let connection = connect(data)?;
        let last = last(&connection).map_err(|error| DataError::Sql { path: data.database(), error })?;
        Ok(Self { data: data.clone(), tariff, connection, last })
    }

    /// The database may not grow beyond so many pages, or what it has.
    #[cfg(test)]
    pub(super) fn limit_pages(&self, pages: u32) -> rusqlite::Result<()> {
        self.connection.pragma_update(None, "max_page_count", pages)
    }

    fn write_all(&mut self, records: &[Record]) -> rusqlite::Result<()> {
        let mut last = self.last;
        let transaction = self.connection.transaction()?;
        for record in records {
            write_one(&transaction, record, &mut last)?;
        }
        transaction.commit()?;
        self.last = last;
        Ok(())
    }

    fn open_entries(&self) -> rusqlite::Result<Vec<(Opening, Usage)>> {
        let open = format!("SELECT {} FROM entries WHERE seq IS NULL ORDER BY id", read::COLUMNS);
        let mut rows = self.connection.prepare(&open)?;
        rows.query_map([], |row| Ok((read::opening(row)?, read::used(row)?)))?.collect()
    }
}

impl LedgerStore for SqliteStore {
    fn write(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.write_all(records).map_err(store_error)
    }

    fn disk(&self) -> Box<dyn LedgerDisk> {
        Box::new(disk::SqliteDisk::new(&self.data))
    }

    /// A failed `fsync` may have thrown away what was written before it. So everything in the log is written once more,
    /// into the database itself, before anything is added.
    fn reopen(&mut self) -> Result<(), StoreError> {
        self.connection = connect(&self.data).map_err(|error| StoreError(error.to_string()))?;
        let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
        let is_busy: bool = self.connection.query_row(checkpoint, [], |row| row.get(0)).map_err(store_error)?;
        if is_busy {
            return Err(StoreError("somebody else holds the database".to_owned()));
        }
        self.last = last(&self.connection).map_err(store_error)?;
        Ok(())
    }

    fn recover(&mut self, at: UnixSeconds) -> Result<usize, StoreError> {
        let open = self.open_entries().map_err(store_error)?;
        // What another gateway asked again when the process died was billed once already.
        let origins = Origins::new(MAX_ASKED_BEFORE, self.asked_before(MAX_ASKED_BEFORE.get())?);
        let settle = |(opening, used): (Opening, Usage)| {
            let model = Some(&*opening.model).filter(|model| !model.is_empty());
            let price = |used| self.tariff.cost_micros(model, used, opening.answers);
            let (used, counts) = match PeerReservation::of(&opening) {
                Some(origin) => origins.bill(&origin, used, price),
                None => (used, Counts::One),
            };
            let (billed_micros, measured_micros, end, told) = (price(used), 0, EntryEnd::Died, None);
            let settlement = Settlement { at, used, billed_micros, measured_micros, end, told, counts };
            Record::Settle(Arc::new(opening), settlement)
        };
        let records: Vec<Record> = open.into_iter().map(settle).collect();
        self.write(&records)?;
        self.disk().sync()?;
        Ok(records.len())
    }

    fn next_id(&self) -> Result<EntryId, StoreError> {
        let largest = "SELECT coalesce(max(id), 0) FROM entries";
        let largest: u64 = self.connection.query_row(largest, [], |row| row.get(0)).map_err(store_error)?;
        Ok(EntryId(largest + 1))
    }

    fn asked_before(&self, most: usize) -> Result<Vec<AskedBefore>, StoreError> {
        read::asked_before(&self.connection, most).map_err(store_error)
    }

    fn latest_instant(&self) -> Result<UnixSeconds, StoreError> {
        let latest = "SELECT max(coalesce(max(settled_at), 0), coalesce(max(opened_at), 0)) FROM entries
                      WHERE id > (SELECT coalesce(max(id), 0) FROM entries) - 100000";
        self.connection.query_row(latest, [], |row| row.get(0)).map_err(store_error)
    }
}

/// Its commits do not wait for the disk, and leave the log's way into the database to [`disk`] for as long as that keeps up.
fn connect(data: &DataDir) -> Result<Connection, DataError> {
    let connection = data.connect()?;
    connection
        .pragma_update(None, "synchronous", "normal")
        .and_then(|()| connection.pragma_update(None, "wal_autocheckpoint", MAX_LOG_PAGES))
        .map_err(|error| DataError::Sql { path: data.database(), error })?;
    Ok(connection)
}

fn write_one(transaction: &Transaction<'_>, record: &Record, last: &mut Last) -> rusqlite::Result<()> {
    match record {
        Record::Open(opening) => insert(transaction, opening),
        Record::Mark { id, used } => {
            let mark =
                "UPDATE entries SET input_tokens = ?2, cached_tokens = ?3, output_tokens = max(output_tokens, ?4)
                        WHERE id = ?1 AND seq IS NULL";
            let Usage { prompt_tokens, cached_tokens, generated_tokens, .. } = used;
            let values = params![id.0, prompt_tokens, cached_tokens, generated_tokens];
            transaction.prepare_cached(mark)?.execute(values)?;
            Ok(())
        }
        Record::Settle(opening, settlement) => settle(transaction, opening, settlement, last),
        Record::Withdraw(id) => {
            transaction.prepare_cached("DELETE FROM entries WHERE id = ?1 AND seq IS NULL")?.execute([id.0])?;
            Ok(())
        }
    }
}

fn insert(transaction: &Transaction<'_>, opening: &Opening) -> rusqlite::Result<()> {
    let Opening {
        id,
        account,
        key,
        model,
        model_digest,
        partition,
        tariff,
        binary,
        at,
        prompt_tokens,
        answers,
        bill,
        ..
    } = opening;
    let Attribution { user, metadata, asker } = &opening.attribution;
    let asker = asker.as_ref();
    let insert = "INSERT OR IGNORE INTO entries (id, account, key, model, model_digest, partition, tariff, binary,
                  opened_at, prompt_tokens, answers, user, metadata, bill, asker_reservation, asker_account,
                  asker_part)
                  VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)";
    let entry = params![
        id.0,
        account,
        key,
        model,
        model_digest,
        partition,
        tariff,
        binary,
        at,
        prompt_tokens,
        answers,
        user,
        metadata,
        bill.map(|bill| bill.0),
        asker.map(|asker| &asker.reservation),
        asker.and_then(|asker| asker.account.as_ref()),
        asker.map(|asker| asker.part),
    ];
    transaction.prepare_cached(insert)?.execute(entry)?;
    Ok(())
}

/// Nothing, for an entry that is settled or was withdrawn.
fn settle(
    transaction: &Transaction<'_>,
    opening: &Arc<Opening>,
    settlement: &Settlement,
    last: &mut Last,
) -> rusqlite::Result<()> {
    let is_open = "SELECT 1 FROM entries WHERE id = ?1 AND seq IS NULL";
    if !transaction.prepare_cached(is_open)?.exists([opening.id.0])? {
        return Ok(());
    }
    let entry = Entry { seq: last.seq + 1, opening: Opening::clone(opening), settlement: settlement.clone() };
    let chain = last.chain.then(Covered::TODAY.of(&entry.csv()));
    let Settlement { at, used, billed_micros, measured_micros, end, told, counts } = settlement;
    let Usage { prompt_tokens, cached_tokens, generated_tokens, .. } = used;
    let told = told.as_deref();
    let update = "UPDATE entries SET seq = ?2, settled_at = ?3, input_tokens = ?4, cached_tokens = ?5,
                  output_tokens = ?6, billed_us = ?7, measured_us = ?8, finish = ?9, hash = ?10, told_model_digest = ?11,
                  told_site = ?12, told_billed_us = ?13, requests = ?14 WHERE id = ?1";
    let values = params![
        opening.id.0,
        entry.seq,
        at,
        prompt_tokens,
        cached_tokens,
        generated_tokens,
        billed_micros,
        measured_micros,
        end.as_str(),
        chain.0.as_slice(),
        told.map(|Told { model_digest, .. }| model_digest),
        told.map(|Told { site, .. }| site),
        told.map(|Told { billed_micros, .. }| billed_micros),
        counts.requests(),
    ];
    transaction.prepare_cached(update)?.execute(values)?;
    add_to_sums(transaction, ("usage", "model", &opening.model), opening, settlement)?;
    if let Some(user) = &opening.attribution.user {
        add_to_sums(transaction, ("usage_by_user", "user", user), opening, settlement)?;
    }
    *last = Last { seq: entry.seq, chain };
    Ok(())
}

/// `table` sums up by account, time, and `column`.
fn add_to_sums(
    transaction: &Transaction<'_>,
    (table, column, value): (&str, &str, &str),
    opening: &Opening,
    settlement: &Settlement,
) -> rusqlite::Result<()> {
    let Settlement { at, used, billed_micros, measured_micros, counts, .. } = settlement;
    let Usage { prompt_tokens, cached_tokens, generated_tokens, .. } = used;
    let add = format!(
        "INSERT INTO {table} VALUES (?1, ?2, ?3, ?9, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (account, slot, {column}) DO UPDATE SET requests = requests + excluded.requests,
         input_tokens = input_tokens + excluded.input_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
         output_tokens = output_tokens + excluded.output_tokens, billed_us = billed_us + excluded.billed_us,
         measured_us = measured_us + excluded.measured_us"
    );
    let slot = start_of_slot(*at);
    let account = &opening.account;
    let values = params![
        account,
        slot,
        value,
        prompt_tokens,
        cached_tokens,
        generated_tokens,
        billed_micros,
        measured_micros,
        counts.requests(),
    ];
    transaction.prepare_cached(&add)?.execute(values)?;
    Ok(())
}

fn start_of_slot(at: UnixSeconds) -> UnixSeconds {
    UnixSeconds(at.0 / SLOT_SECONDS * SLOT_SECONDS)
}

fn last(connection: &Connection) -> rusqlite::Result<Last> {
    let last = "SELECT seq, hash FROM entries WHERE seq IS NOT NULL ORDER BY seq DESC LIMIT 1";
    let read = |row: &Row<'_>| Ok(Last { seq: row.get(0)?, chain: Chain(row.get(1)?) });
    Ok(connection.query_row(last, [], read).optional()?.unwrap_or_default())
}

fn store_error(error: rusqlite::Error) -> StoreError {
    StoreError(error.to_string())
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("data", &self.data).field("last", &self.last).finish_non_exhaustive()
    }
}
