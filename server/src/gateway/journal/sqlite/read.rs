//! Reads the ledger, beside whoever writes it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use passerelle_engine::Usage;
use rusqlite::{Connection, Row, params};
use serde::{Deserialize, Serialize};

use super::super::entry::{Chain, Counts, Entry, EntryId, Opening, Settlement, Told};
use super::super::store::AskedBefore;
use super::start_of_slot;
use crate::gateway::account::AccountPath;
use crate::gateway::attribution::{Asker, Attribution};
use crate::gateway::data::{DataDir, DataError};
use crate::gateway::ledger::Spent;
use crate::gateway::quota::{Unit, UnixSeconds};

/// Usage as it was settled.
#[derive(Debug)]
pub struct UsageReader {
    connection: Mutex<Connection>,
}

/// What one account used of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UsageSum {
    pub account: String,
    pub model: String,
    #[serde(flatten)]
    pub used: Used,
}

/// What one account used for one user, as its callers name them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UserSum {
    pub account: String,
    /// `None`: for nobody in particular, and for those that are too many to list.
    pub user: Option<String>,
    #[serde(flatten)]
    pub used: Used,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Used {
    pub requests: u64,
    pub input_tokens: u64,
    pub cached_tokens: u64,
    pub output_tokens: u64,
    pub billed_gpu_us: u64,
    pub measured_gpu_us: u64,
}

pub(super) const COLUMNS: &str = "id, account, key, model, model_digest, partition, tariff, binary, opened_at,
    prompt_tokens, input_tokens, cached_tokens, output_tokens, seq, settled_at, billed_us, measured_us, finish, hash,
    answers, told_model_digest, told_site, told_billed_us, user, metadata, bill, asker_reservation,
    asker_account, requests, asker_part";

/// Users of one answer.
const MAX_LISTED_USERS: usize = 1_000;

/// Of an account and everything below it; the root holds all.
const WITHIN: &str = "(?1 = '/' OR account = ?1 OR substr(account, 1, length(?1) + 1) = ?1 || '/')";

impl UsageReader {
    pub fn open(data: &DataDir) -> Result<Self, DataError> {
        Ok(Self { connection: Mutex::new(data.connect()?) })
    }

    /// By account and model, of `account` and everything below it. Quarters of an hour that begin in the window count.
    pub fn sums(
        &self,
        account: &AccountPath,
        (from, until): (UnixSeconds, UnixSeconds),
    ) -> rusqlite::Result<Vec<UsageSum>> {
        let sums = format!(
            "SELECT account, model, sum(requests), sum(input_tokens), sum(cached_tokens), sum(output_tokens),
             sum(billed_us), sum(measured_us) FROM usage WHERE {WITHIN} AND slot >= ?2 AND slot < ?3
             GROUP BY account, model ORDER BY account, model"
        );
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = connection.prepare_cached(&sums)?;
        let sum = |row: &Row<'_>| Ok(UsageSum { account: row.get(0)?, model: row.get(1)?, used: sum_of(row)? });
        rows.query_map(params![account, from, until], sum)?.collect()
    }

    /// By account and user. Of the users that used most at most [`MAX_LISTED_USERS`] are listed; what nobody of them
    /// used stands in one line for each account, so that the lines of an account add up to what it used.
    pub fn sums_by_user(
        &self,
        account: &AccountPath,
        window: (UnixSeconds, UnixSeconds),
    ) -> rusqlite::Result<Vec<UserSum>> {
        let mut left: BTreeMap<String, Used> = BTreeMap::new();
        for UsageSum { account, used, .. } in self.sums(account, window)? {
            let sum = left.entry(account).or_default();
            *sum = sum.with(used, u64::saturating_add);
        }
        let mut sums = self.listed_users(account, window)?;
        for UserSum { account, used, .. } in &sums {
            let sum = left.entry(account.clone()).or_default();
            *sum = sum.with(*used, u64::saturating_sub);
        }
        let left = left.into_iter().filter(|(_, used)| *used != Used::default());
        sums.extend(left.map(|(account, used)| UserSum { account, user: None, used }));
        sums.sort_by(|a, b| (&a.account, a.user.is_none(), &a.user).cmp(&(&b.account, b.user.is_none(), &b.user)));
        Ok(sums)
    }

    fn listed_users(
        &self,
        account: &AccountPath,
        (from, until): (UnixSeconds, UnixSeconds),
    ) -> rusqlite::Result<Vec<UserSum>> {
        let sums = format!(
            "SELECT account, user, sum(requests), sum(input_tokens), sum(cached_tokens), sum(output_tokens),
             sum(billed_us), sum(measured_us) FROM usage_by_user WHERE {WITHIN} AND slot >= ?2 AND slot < ?3
             GROUP BY account, user ORDER BY sum(billed_us) DESC, sum(requests) DESC, account, user
             LIMIT {MAX_LISTED_USERS}"
        );
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = connection.prepare_cached(&sums)?;
        let sum = |row: &Row<'_>| Ok(UserSum { account: row.get(0)?, user: row.get(1)?, used: sum_of(row)? });
        rows.query_map(params![account, from, until], sum)?.collect()
    }

    /// Settled entries in their order, each with the end of the chain after it. `see` is called for each.
    pub fn export(
        &self,
        mut see: impl FnMut(&Entry, Chain) -> std::io::Result<()>,
    ) -> rusqlite::Result<std::io::Result<()>> {
        let entries = format!("SELECT {COLUMNS} FROM entries WHERE seq IS NOT NULL ORDER BY seq");
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut statement = connection.prepare(&entries)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            if let Err(error) = see(&entry(row)?, Chain(row.get(18)?)) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

impl Spent for UsageReader {
    /// What cannot be read counts as spent: a budget that nobody can check is refused.
    fn used(
        &self,
        account: &AccountPath,
        unit: Unit,
        model: Option<&str>,
        (start, end): (UnixSeconds, UnixSeconds),
    ) -> u64 {
        let column = match unit {
            Unit::Requests => "requests",
            Unit::InputTokens => "input_tokens",
            Unit::OutputTokens => "output_tokens",
            Unit::Tokens => "input_tokens + output_tokens",
            Unit::GpuMicros => "billed_us",
        };
        let query = format!(
            "SELECT coalesce(sum({column}), 0) FROM usage WHERE {WITHIN} AND slot >= ?2 AND slot < ?3
             AND (?4 IS NULL OR model = ?4)"
        );
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = start_of_slot(start);
        let sum = |connection: &Connection| {
            let of_slots = params![account, slot, end, model];
            let used: u64 = connection.prepare_cached(&query)?.query_row(of_slots, |row| row.get(0))?;
            Ok(used.saturating_sub(settled_between(connection, column, account, model, slot..start)?))
        };
        sum(&connection).unwrap_or_else(|error: rusqlite::Error| {
            tracing::error!(%error, account = account.as_str(), "what was used cannot be read: its budgets are closed");
            u64::MAX
        })
    }
}

/// What was settled in a part of one slot, entry by entry: a grant may begin at any second.
fn settled_between(
    connection: &Connection,
    column: &str,
    account: &AccountPath,
    model: Option<&str>,
    part: Range<UnixSeconds>,
) -> rusqlite::Result<u64> {
    /// By how much an entry may be numbered before one that was settled earlier.
    const DISORDER: Duration = Duration::from_secs(60);
    if part.is_empty() {
        return Ok(0);
    }
    let first = first_settled(connection, UnixSeconds(part.start.0.saturating_sub(DISORDER.as_secs())))?;
    let last = first_settled(connection, part.end.after(DISORDER))?;
    let query = format!(
        "SELECT coalesce(sum({column}), 0) FROM entries WHERE {WITHIN} AND settled_at >= ?2 AND settled_at < ?3
         AND (?4 IS NULL OR model = ?4) AND seq >= ?5 AND seq < ?6"
    );
    let values = params![account, part.start, part.end, model, first, last];
    connection.prepare_cached(&query)?.query_row(values, |row| row.get(0))
}

/// The number of the first entry that was settled at that instant or later, by halves: entries are numbered as they are
/// settled.
fn first_settled(connection: &Connection, at: UnixSeconds) -> rusqlite::Result<u64> {
    let mut last = connection.prepare_cached("SELECT coalesce(max(seq), 0) FROM entries")?;
    let mut settled_at = connection.prepare_cached("SELECT settled_at FROM entries WHERE seq = ?1")?;
    let (mut low, mut high) = (1, last.query_row([], |row| row.get::<_, u64>(0))? + 1);
    while low < high {
        let middle = low + (high - low) / 2;
        let settled: UnixSeconds = settled_at.query_row([middle], |row| row.get(0))?;
        if settled < at { low = middle + 1 } else { high = middle }
    }
    Ok(low)
}

impl Used {
    fn with(self, other: Self, join: fn(u64, u64) -> u64) -> Self {
        Self {
            requests: join(self.requests, other.requests),
            input_tokens: join(self.input_tokens, other.input_tokens),
            cached_tokens: join(self.cached_tokens, other.cached_tokens),
            output_tokens: join(self.output_tokens, other.output_tokens),
            billed_gpu_us: join(self.billed_gpu_us, other.billed_gpu_us),
            measured_gpu_us: join(self.measured_gpu_us, other.measured_gpu_us),
        }
    }
}

/// Behind the two columns that are summed by.
fn sum_of(row: &Row<'_>) -> rusqlite::Result<Used> {
    Ok(Used {
        requests: row.get(2)?,
        input_tokens: row.get(3)?,
        cached_tokens: row.get(4)?,
        output_tokens: row.get(5)?,
        billed_gpu_us: row.get(6)?,
        measured_gpu_us: row.get(7)?,
    })
}

/// By the index of entries that somebody asked for, so that others cost nothing however many they are.
pub(super) fn asked_before(connection: &Connection, most: usize) -> rusqlite::Result<Vec<AskedBefore>> {
    let latest = format!(
        "SELECT {COLUMNS} FROM entries WHERE asker_reservation IS NOT NULL AND seq IS NOT NULL ORDER BY id DESC LIMIT ?1"
    );
    let asked = |row: &Row<'_>| {
        let (opening, billed_micros) = (opening(row)?, row.get(15)?);
        let (reservation, used, part) = (row.get(26)?, used(row)?, row.get(29)?);
        Ok(AskedBefore { account: opening.account, reservation, part, used, billed_micros })
    };
    let mut statement = connection.prepare(&latest)?;
    let mut asked = statement.query_map([most], asked)?.collect::<rusqlite::Result<Vec<_>>>()?;
    asked.reverse();
    Ok(asked)
}

pub(super) fn opening(row: &Row<'_>) -> rusqlite::Result<Opening> {
    Ok(Opening {
        id: EntryId(row.get(0)?),
        account: row.get(1)?,
        key: row.get(2)?,
        model: row.get(3)?,
        model_digest: row.get(4)?,
        partition: row.get(5)?,
        tariff: row.get(6)?,
        binary: row.get(7)?,
        at: row.get(8)?,
        prompt_tokens: row.get(9)?,
        answers: row.get(19)?,
        attribution: Attribution { user: row.get(23)?, metadata: row.get(24)?, asker: asker(row)? },
        bill: row.get::<_, Option<u64>>(25)?.map(EntryId),
    })
}

pub(super) fn used(row: &Row<'_>) -> rusqlite::Result<Usage> {
    let (prompt_tokens, cached_tokens, generated_tokens) = (row.get(10)?, row.get(11)?, row.get(12)?);
    Ok(Usage { prompt_tokens, cached_tokens, generated_tokens, ..Usage::default() })
}

fn asker(row: &Row<'_>) -> rusqlite::Result<Option<Asker>> {
    let Some(reservation) = row.get(26)? else { return Ok(None) };
    Ok(Some(Asker { reservation, part: row.get(29)?, account: row.get(27)? }))
}

fn told(row: &Row<'_>) -> rusqlite::Result<Option<Arc<Told>>> {
    let Some(model_digest) = row.get(20)? else { return Ok(None) };
    Ok(Some(Arc::new(Told { model_digest, site: row.get(21)?, billed_micros: row.get(22)? })))
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    let finish: String = row.get(17)?;
    let settlement = Settlement {
        at: row.get(14)?,
        used: used(row)?,
        billed_micros: row.get(15)?,
        measured_micros: row.get(16)?,
        end: finish.parse().map_err(|_| rusqlite::Error::InvalidColumnName(finish))?,
        told: told(row)?,
        counts: if row.get::<_, u32>(28)? == 0 { Counts::None } else { Counts::One },
    };
    Ok(Entry { seq: row.get(13)?, opening: opening(row)?, settlement })
}
