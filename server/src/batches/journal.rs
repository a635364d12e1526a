//! The answers of a running batch, one a line, appended as they come.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Counts;

/// How a request of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed,
}

#[derive(Debug)]
pub struct Journal {
    output: File,
    errors: File,
    done: HashSet<String>,
    counts: Counts,
}

#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

impl Journal {
    /// Opens or goes on with the journal of a batch of `total` requests. What a crash left of a line is cut off.
    pub(super) fn open(output: &Path, errors: &Path, total: usize) -> io::Result<Self> {
        let mut done = HashSet::new();
        let mut counts = Counts { total, ..Counts::default() };
        let (output, completed) = open_whole_lines(output, &mut done)?;
        let (errors, failed) = open_whole_lines(errors, &mut done)?;
        (counts.completed, counts.failed) = (completed, failed);
        Ok(Self { output, errors, done, counts })
    }

    pub fn is_done(&self, custom_id: &str) -> bool {
        self.done.contains(custom_id)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// `line`: JSON without line breaks, which names `custom_id`.
    pub fn append(&mut self, custom_id: &str, outcome: Outcome, line: &str) -> io::Result<()> {
        let (file, count) = match outcome {
            Outcome::Completed => (&mut self.output, &mut self.counts.completed),
            Outcome::Failed => (&mut self.errors, &mut self.counts.failed),
        };
        // In one write, so that a line is there or is not, as far as the system allows.
        file.write_all(format!("{line}\n").as_bytes())?;
        *count += 1;
        self.done.insert(custom_id.to_owned());
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.output.sync_all()?;
        self.errors.sync_all()
    }
}

/// The file, at its end, and how many whole lines it holds.
fn open_whole_lines(path: &Path, done: &mut HashSet<String>) -> io::Result<(File, usize)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let (mut whole, mut count) = (0, 0);
    let mut reader = BufReader::new(&file);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        let Some(Named { custom_id }) = line.ends_with(b"\n").then(|| serde_json::from_slice(&line).ok()).flatten()
        else {
            break;
        };
        done.insert(custom_id);
        whole += line.len() as u64;
        count += 1;
        line.clear();
    }
    file.set_len(whole)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, count))
}

/// Where a batch's journal lies.
pub(super) fn paths(folder: &Path, id: &str) -> [PathBuf; 2] {
    [folder.join(format!("{id}.out")), folder.join(format!("{id}.err"))]
}
