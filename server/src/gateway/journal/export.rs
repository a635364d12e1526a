//! The ledger as CSV, and the check that nothing of it was changed: offline, from the file alone.

use std::io::{self, BufRead, Write};

use super::entry::{Chain, Entry};
use super::sqlite::UsageReader;

/// How long a ledger is, and how it ends. Two exports of one ledger agree as far as the shorter one goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Exported {
    pub entries: u64,
    pub head: Chain,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the database of the ledger: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("this is no export of a ledger: the first line must be `{}`", header())]
    NoExport,
    #[error("line {line}: {problem}")]
    Broken { line: u64, problem: &'static str },
}

/// Every settled entry from the first one on, each with the hash of the chain up to it.
pub fn write_csv(reader: &UsageReader, out: &mut impl Write) -> Result<Exported, ExportError> {
    writeln!(out, "{}", header())?;
    let mut exported = Exported::default();
    reader.export(|entry, head| {
        exported = Exported { entries: exported.entries + 1, head };
        writeln!(out, "{},{}", entry.csv(), head.hex())
    })??;
    Ok(exported)
}

/// Computes the chain again, from what the lines say. Exports of earlier programs have fewer columns.
pub fn verify_csv(export: impl BufRead) -> Result<Exported, ExportError> {
    let mut lines = export.lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let covered = first.strip_suffix(",hash").and_then(Entry::chaining).ok_or(ExportError::NoExport)?;
    let mut seen = Exported::default();
    for line in lines {
        let line = line?;
        let number = seen.entries + 2;
        let broken = |problem| ExportError::Broken { line: number, problem };
        let (entry, hash) = line.rsplit_once(',').ok_or_else(|| broken("a line without a hash"))?;
        let seq = entry.split(',').next().and_then(|seq| seq.parse::<u64>().ok());
        if seq != Some(seen.entries + 1) {
            return Err(broken("an entry is missing, or was added"));
        }
        let head = seen.head.then(covered.of(entry));
        if head.hex() != hash {
            return Err(broken("the entry does not follow from those before it: something was changed"));
        }
        seen = Exported { entries: seen.entries + 1, head };
    }
    Ok(seen)
}

fn header() -> String {
    format!("{},hash", Entry::COLUMNS)
}
