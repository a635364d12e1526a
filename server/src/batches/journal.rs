//! The answers of a running batch, one a line, appended as they come.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{Counts, Disk};

/// How a request of a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Completed,
    Failed,
}

#[derive(Debug)]
pub struct Journal {
    output: Lines,
    errors: Lines,
    done: HashSet<String>,
    counts: Counts,
    disk: Arc<dyn Disk>,
}

/// A file of lines, at its end.
#[derive(Debug)]
struct Lines {
    file: File,
    /// Bytes of whole lines.
    whole: u64,
    /// Something stands behind them.
    is_torn: bool,
}

#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

impl Journal {
    /// Opens or goes on with the journal of a batch of `total` requests. What a crash left of a line is cut off.
    pub(super) fn open([output, errors]: [&Path; 2], total: usize, disk: Arc<dyn Disk>) -> io::Result<Self> {
        let mut done = HashSet::new();
        let mut counts = Counts { total, ..Counts::default() };
        let (output, completed) = open_whole_lines(output, &mut done)?;
        let (errors, failed) = open_whole_lines(errors, &mut done)?;
        (counts.completed, counts.failed) = (completed, failed);
        Ok(Self { output, errors, done, counts, disk })
    }

    pub fn is_done(&self, custom_id: &str) -> bool {
        self.done.contains(custom_id)
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// `line`: JSON without line breaks, which names `custom_id`. What is refused is not there, and may be tried again.
    pub fn append(&mut self, custom_id: &str, outcome: Outcome, line: &str) -> io::Result<()> {
        let (lines, count) = match outcome {
            Outcome::Completed => (&mut self.output, &mut self.counts.completed),
            Outcome::Failed => (&mut self.errors, &mut self.counts.failed),
        };
        lines.append(line, &*self.disk)?;
        *count += 1;
        self.done.insert(custom_id.to_owned());
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.output.file.sync_all()?;
        self.errors.file.sync_all()
    }
}

impl Lines {
    /// In one write, so that a line is there or is not, as far as the system allows; the part of one that had no room is
    /// taken back, or the next would stand behind it.
    fn append(&mut self, line: &str, disk: &dyn Disk) -> io::Result<()> {
        if self.is_torn {
            self.cut()?;
        }
        let text = format!("{line}\n");
        let written = disk.write(&mut self.file, text.as_bytes());
        if written.is_ok() {
            self.whole += text.len() as u64;
        } else {
            self.is_torn = true;
            // If this fails too, it is tried again before the next line.
            let _: io::Result<()> = self.cut();
        }
        written
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.whole)?;
        self.file.seek(SeekFrom::Start(self.whole))?;
        self.is_torn = false;
        Ok(())
    }
}

/// The file, at its end, and how many whole lines it holds.
fn open_whole_lines(path: &Path, done: &mut HashSet<String>) -> io::Result<(Lines, usize)> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
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
    let mut lines = Lines { file, whole, is_torn: true };
    lines.cut()?;
    Ok((lines, count))
}

/// Where a batch's journal lies.
pub(super) fn paths(folder: &Path, id: &str) -> [PathBuf; 2] {
    [folder.join(format!("{id}.out")), folder.join(format!("{id}.err"))]
}
